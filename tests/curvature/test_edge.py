"""chi of every optimizer against closed forms and dense matrices, and what it foretells against what happens."""

from __future__ import annotations

import doctest
import math
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from foreshock.curvature import Edge, EdgeTracker, Hessian, edge
from foreshock.errors import UsageError
from foreshock.stability import edge_weights, planned_step
from tests.curvature.matrices import symmetric
from tests.nightly import thinned
from tests.stability.live_cases import MATRICES, OTHERS, TORCH, built, label, stepped

torch.set_num_threads(1)
DOUBLE = torch.float64
SPECTRUM = [6.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.0, -0.5, -8.0]
TIGHT = 1e-8


def bowl(seed: int = 0) -> tuple[list[nn.Parameter], Tensor, Callable[[], Tensor]]:
    """Returns two parameters, the Hessian of a quadratic in them, and the quadratic."""
    a = symmetric(SPECTRUM, seed)
    start = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    params = [nn.Parameter(start[:6].reshape(2, 3).clone()), nn.Parameter(start[6:].clone())]

    def loss() -> Tensor:
        flat = torch.cat([param.reshape(-1) for param in params])
        return 0.5 * flat @ a @ flat

    return params, a, loss


def rough(params: Sequence[Tensor], seed: int = 0) -> Callable[[], Tensor]:
    """Returns a loss that is no quadratic, couples all parameters, curves both ways and lets nobody diverge."""
    n = sum(param.numel() for param in params)
    mix = symmetric(torch.linspace(-1, 2, n, dtype=DOUBLE), seed)
    tilt = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1), dtype=DOUBLE)

    def loss() -> Tensor:
        flat = torch.cat([param.reshape(-1) for param in params])
        return torch.cos(mix @ flat).sum() + torch.tanh(tilt @ flat)

    return loss


def hessian_of(loss: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss(), params, create_graph=True, allow_unused=True)
    flat = torch.cat([(p * 0 if g is None else g).reshape(-1) for g, p in zip(grads, params, strict=True)])
    rows = [torch.autograd.grad(each, params, retain_graph=True, allow_unused=True) for each in flat]
    return torch.stack([
        torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(row, params, strict=True)])
        for row in rows
    ])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).to(DOUBLE)


def gradients(loss: Callable[[], Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(), params))


class Dense:
    """All numbers of a reading from dense matrices, for an optimizer whose parameters all are trained."""

    def __init__(self, loss: Callable[[], Tensor], optimizer: Optimizer | Sequence[Optimizer]) -> None:
        each = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        params = [param for one in each for group in one.param_groups for param in group["params"]]
        grads = gradients(loss, params)
        weights = edge_weights(optimizer, grads)
        shapes = [param.shape for param in params]
        sizes = [param.numel() for param in params]
        eye = torch.eye(sum(sizes), dtype=DOUBLE)

        def applied(row: Tensor, power: float) -> Tensor:
            pieces = [piece.view(shape) for piece, shape in zip(row.split(sizes), shapes, strict=True)]
            return flat(weights.apply(pieces, power))

        sign = -1.0 if weights.maximize else 1.0
        decay = torch.cat([torch.full((size,), l2, dtype=DOUBLE) for size, l2 in zip(sizes, weights.l2, strict=True)])
        self.h = sign * hessian_of(loss, params) + torch.diag(decay)
        self.g = sign * flat(grads) + decay * flat(params)
        self.root = torch.stack([applied(row, 0.5) for row in eye])
        self.w = torch.stack([applied(row, 1.0) for row in eye])
        self.values, self.vectors = torch.linalg.eigh(self.root @ self.h @ self.root)
        self.delta = flat(planned_step(optimizer, grads))
        self.weights, self.sizes = weights, sizes

    @property
    def chi(self) -> float:
        return float(self.values[-1])

    def check(self, found: Edge) -> None:
        h, g, w, delta = self.h, self.g, self.w, self.delta
        u = self.vectors[:, -1]
        assert found.converged
        assert found.chi == pytest.approx(self.chi, rel=1e-6)
        assert found.chi_gradient == pytest.approx(float(g @ w @ h @ g / (g @ g)), rel=1e-6, abs=1e-12)
        assert found.chi_gradient_sym == pytest.approx(float(w @ g @ h @ (w @ g) / (g @ w @ g)), rel=1e-6, abs=1e-12)
        assert found.chi_gradient_sym <= found.chi * (1 + 1e-6)
        assert found.change == pytest.approx(float(g @ delta + delta @ h @ delta / 2), rel=1e-6, abs=1e-12)
        if float(g @ delta) < 0:
            assert found.chi_step == pytest.approx(float(delta @ h @ delta / (-2 * g @ delta)), rel=1e-6, abs=1e-12)
        else:
            assert math.isnan(found.chi_step)
        if float(self.values[-1] - self.values[-2]) > 1e-3 * abs(self.chi):
            shares = torch.stack([piece.square().sum() for piece in u.split(self.sizes)]).tolist()
            assert found.shares == pytest.approx(shares, abs=1e-3)
            way = self.root @ u
            assert abs(float(flat(found.vector) @ way / way.norm())) == pytest.approx(1.0, abs=1e-6)
            cosine = abs(float(self.root @ g @ u / (self.root @ g).norm()))
            assert found.alignment == pytest.approx(cosine, abs=1e-3)
            if self.chi > 0:
                mode = float(self.root @ g @ u) ** 2 / (2 * self.chi)
                assert found.mode_loss == pytest.approx(mode, rel=5e-3, abs=1e-6 * float(g @ w @ g) / self.chi)
            felt = sum(share * factor for share, factor in zip(shares, self.weights.factors, strict=True))
            assert found.threshold == pytest.approx(1 / felt, rel=1e-3)
            assert found.sharpness == pytest.approx(self.chi / felt, rel=1e-3)
        assert sum(found.shares) == pytest.approx(1.0)
        assert float(flat(found.vector).norm()) == pytest.approx(1.0)
        assert found.lowest >= float(self.values[0]) - 1e-9 * abs(float(self.values[0]))


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(sys.modules[edge.__module__]).failed == 0


# ---- closed forms on a quadratic: the top eigenvalue is 6, the one of the largest magnitude -8


@pytest.mark.parametrize(("kind", "settings", "chi"), [
    (optim.SGD, {"lr": 0.1}, 6 * 0.1 / 2),
    (optim.SGD, {"lr": 0.1, "weight_decay": 2.0}, 8 * 0.1 / 2),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}, 6 * 0.1 / 3.8),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}, 6 * 0.1 / 38),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 6 * 0.1 * 2.8 / 3.8),
    (optim.SGD, {"lr": 0.1, "maximize": True}, 8 * 0.1 / 2),
    (optim.SGD, {"lr": 0.1, "maximize": True, "weight_decay": 2.0}, 10 * 0.1 / 2),
    (optim.ASGD, {"lr": 0.1, "lambd": 1.0}, 6 * 0.1 / 1.9),
], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_plain_descent_has_its_closed_form(kind: type, settings: dict[str, float], chi: float, seed: int) -> None:
    params, _, loss = bowl(seed)
    found = edge(loss, kind(params, **settings), tol=TIGHT)
    assert found.chi == pytest.approx(chi, rel=1e-6)
    assert found.sharpness == pytest.approx(found.chi * found.threshold)
    assert (found.formal, found.approximate) == (False, False)
    assert found.loss == pytest.approx(float(loss().detach()))


def test_adamw_at_its_first_step_has_its_closed_form() -> None:
    """P = (1 - b1)(|g| + eps), q = (1 - b1)/(1 + b1), a = 1 - lr wd."""
    params, a, loss = bowl(1)
    found = edge(loss, optim.AdamW(params, lr=0.01, weight_decay=3.0, eps=1e-4), tol=TIGHT)
    g = flat(gradients(loss, params))
    w = 0.01 * (0.1 / 1.9) / ((2 - 0.03) * 0.1 * (g.abs() + 1e-4))
    chi = float(torch.linalg.eigvalsh(w.sqrt()[:, None] * a * w.sqrt())[-1])
    assert found.chi == pytest.approx(chi, rel=1e-6)
    assert found.threshold == pytest.approx(1.97 * 1.9 / 0.1 / 0.01)


def test_mixed_groups_and_optimizers_share_one_edge() -> None:
    params, a, loss = bowl(2)
    mixed = optim.SGD([
        {"params": params[:1], "lr": 0.1, "momentum": 0.9}, {"params": params[1:], "lr": 0.3, "weight_decay": 0.5},
    ])
    w = torch.tensor([0.1 / 3.8] * 6 + [0.3 / 2] * 3, dtype=DOUBLE)
    h = a + torch.diag(torch.tensor([0.0] * 6 + [0.5] * 3, dtype=DOUBLE))
    chi = float(torch.linalg.eigvalsh(w.sqrt()[:, None] * h * w.sqrt())[-1])
    assert edge(loss, mixed, tol=TIGHT).chi == pytest.approx(chi, rel=1e-6)
    two = [optim.SGD(params[:1], lr=0.1, momentum=0.9), optim.SGD(params[1:], lr=0.3, weight_decay=0.5)]
    assert edge(loss, two, tol=TIGHT).chi == pytest.approx(chi, rel=1e-6)
    assert edge(loss, two[::-1], tol=TIGHT).chi == pytest.approx(chi, rel=1e-6)


# ---- every optimizer, at several moments of its life, against dense matrices


@pytest.mark.parametrize("steps", thinned([7, 0]))
@pytest.mark.parametrize("case", TORCH + OTHERS + MATRICES, ids=label)
def test_all_numbers_are_those_of_dense_matrices(case: tuple[type, dict[str, object]], steps: int) -> None:
    optimizer, params, _ = built(case, seed=steps)
    loss = rough(params, steps)
    for _ in range(steps):
        stepped(optimizer, params, gradients(loss, params))
    Dense(loss, optimizer).check(edge(loss, optimizer, tol=TIGHT))


def test_two_optimizers_are_read_as_one() -> None:
    params = [nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(i), dtype=DOUBLE)) for i in range(4)]
    loss = rough(params)
    both = [
        optim.SGD([{"params": params[:1], "lr": 0.2}, {"params": params[1:2], "lr": 0.1, "momentum": 0.9}]),
        optim.AdamW(params[2:], lr=0.1, weight_decay=1.5),
    ]
    for _ in range(5):
        grads = gradients(loss, params)
        stepped(both[0], params[:2], grads[:2])
        stepped(both[1], params[2:], grads[2:])
    Dense(loss, both).check(edge(loss, both, tol=TIGHT))


# torch's Adafactor caps lr by t^-1/2, and schedule-free averages by weights made of lr
@pytest.mark.parametrize("case", [
    case for case in TORCH + OTHERS
    if case[0].__name__ not in ("ASGD", "Adafactor", "AdamWScheduleFree", "SGDScheduleFree", "Rprop")
], ids=label)
def test_at_the_largest_stable_lr_chi_is_one(case: tuple[type, dict[str, object]]) -> None:
    optimizer, params, _ = built(case, seed=3)
    loss = rough(params, 3)
    for _ in range(5):
        stepped(optimizer, params, gradients(loss, params))
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(1e-3, dtype=DOUBLE) if isinstance(group["lr"], Tensor) else 1e-3
    most = edge(loss, optimizer, tol=TIGHT).max_stable_lr
    assert 0 < most < math.inf
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(most, dtype=DOUBLE) if isinstance(group["lr"], Tensor) else most
    found = edge(loss, optimizer, tol=TIGHT)
    # where decoupled decay differs from tensor to tensor (LAMB's trust ratios) the top eigenvector's mean is taken
    assert found.chi == pytest.approx(1.0, rel=1e-3 if case[0].__name__ == "Lamb" else 1e-5)
    assert found.max_stable_lr == pytest.approx(most, rel=1e-3 if case[0].__name__ == "Lamb" else 1e-5)


def test_the_largest_stable_lr_scales_all_groups() -> None:
    params, _, loss = bowl(4)
    optimizer = optim.SGD([{"params": params[:1], "lr": 0.1, "momentum": 0.9}, {"params": params[1:], "lr": 0.05}])
    most = edge(loss, optimizer, tol=TIGHT).max_stable_lr
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = most, most / 2
    assert edge(loss, optimizer, tol=TIGHT).chi == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_stable_just_below_and_unstable_just_above_the_edge(momentum: float) -> None:
    params, a, _ = bowl(5)
    a = a @ a / 8  # no negative curvature

    def loss() -> Tensor:
        theta = torch.cat([param.reshape(-1) for param in params])
        return 0.5 * theta @ a @ theta

    most = edge(loss, optim.SGD(params, lr=0.01, momentum=momentum), tol=TIGHT).max_stable_lr
    sizes = []
    for factor in (0.98, 1.02):
        mine = [nn.Parameter(param.detach().clone()) for param in params]
        optimizer = optim.SGD(mine, lr=factor * most, momentum=momentum)
        for _ in range(800):
            theta = flat(mine)
            pieces = (a @ theta).split([6, 3])
            stepped(optimizer, mine, [piece.view_as(p) for piece, p in zip(pieces, mine, strict=True)])
        sizes.append(float(flat(mine) @ a @ flat(mine)))
    assert sizes[0] < 1.0
    assert sizes[1] > 1e6


# ---- what is not trained, not used, or clipped


def test_frozen_and_unused_parameters_stay_out() -> None:
    params, _, loss = bowl(0)
    frozen = nn.Parameter(torch.ones(3, dtype=DOUBLE), requires_grad=False)
    unused = nn.Parameter(torch.ones(2, dtype=DOUBLE))
    optimizer = optim.AdamW([frozen, params[0], unused, params[1]], lr=0.1)
    for _ in range(3):
        grads = gradients(loss, params)
        stepped(optimizer, [frozen, params[0], unused, params[1]], [None, grads[0], None, grads[1]])
    alone = optim.AdamW(params, lr=0.1)
    alone.load_state_dict({
        "state": {i: optimizer.state[param] for i, param in enumerate(params)},
        "param_groups": alone.state_dict()["param_groups"],
    })
    found, expected = edge(loss, optimizer, tol=TIGHT), edge(loss, alone, tol=TIGHT)
    assert found.chi == pytest.approx(expected.chi, rel=1e-9)
    assert found.change == pytest.approx(expected.change, rel=1e-9)
    assert [id(param) for param in found.params] == [id(params[0]), id(unused), id(params[1])]
    assert found.shares[1] < 1e-12
    assert [tensor.shape for tensor in found.vector] == [param.shape for param in found.params]


def test_clipping_shrinks_chi() -> None:
    params, _, loss = bowl(0)
    optimizer = optim.SGD(params, lr=0.1)
    size = float(flat(gradients(loss, params)).norm())
    plain = edge(loss, optimizer, tol=TIGHT)
    assert edge(loss, optimizer, tol=TIGHT, max_norm=size / 4).chi == pytest.approx(plain.chi / 4, rel=1e-6)
    assert edge(loss, optimizer, tol=TIGHT, max_norm=size * 4).chi == pytest.approx(plain.chi, rel=1e-6)


# ---- what the step does


@pytest.mark.parametrize("case", [
    (optim.SGD, {"lr": 1e-3}), (optim.SGD, {"lr": 1e-3, "momentum": 0.9}), (optim.AdamW, {"lr": 1e-3}),
    (optim.RMSprop, {"lr": 1e-4, "momentum": 0.9}), (optim.NAdam, {"lr": 1e-3}),
    (optim.SGD, {"lr": 1e-3, "maximize": True}),
], ids=label)
def test_the_foretold_change_is_the_one_that_happens(case: tuple[type, dict[str, object]]) -> None:
    optimizer, params, _ = built(case, seed=1)
    loss = rough(params, 1)
    for _ in range(6):
        stepped(optimizer, params, gradients(loss, params))
    found, before = edge(loss, optimizer), float(loss().detach())
    saved = [param.detach().clone() for param in params]
    stepped(optimizer, params, gradients(loss, params))
    moved = float(loss().detach()) - before
    sign = -1.0 if case[1].get("maximize") else 1.0
    length = float((flat(params) - flat(saved)).norm())
    assert abs(moved - sign * found.change) <= 200 * length**3  # of third order
    assert sign * moved == pytest.approx(found.change, rel=1e-2)


# ---- nothing is touched


def net() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        return model, torch.randn(20, 6), torch.randn(20, 3)


def trained(how: str, kind: type, settings: dict[str, object]) -> list[Tensor]:
    model, x, y = net()
    optimizer = kind(model.parameters(), **settings)
    torch.manual_seed(1)
    noise = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        if how == "live":
            edge(loss, optimizer)
        elif how == "closure":
            edge(lambda: (model(x) - y).square().mean(), optimizer)
        elif how == "both":
            edge((loss, lambda: (model(x) - y).square().mean()), optimizer)  # type: ignore[arg-type]
        assert all(param.grad is None for param in model.parameters())
        loss.backward()
        optimizer.step()
        noise.append(torch.rand(1))
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [*(param.detach() for param in model.parameters()), *state, *noise]


@pytest.mark.parametrize("case", [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}), (optim.NAdam, {"lr": 0.01}), (optim.Adafactor, {"lr": 0.01}),
], ids=label)
@pytest.mark.parametrize("how", ["live", "closure", "both"])
def test_training_goes_on_bitwise_as_if_nothing_had_been_read(how: str, case: tuple[type, dict[str, object]]) -> None:
    plain, seen = trained("", *case), trained(how, *case)
    assert len(plain) == len(seen)
    assert all(torch.equal(one, two) for one, two in zip(plain, seen, strict=True))


def test_a_live_loss_and_a_closure_read_the_same() -> None:
    model, x, y = net()
    optimizer = optim.Adam(model.parameters())

    def closure() -> Tensor:
        return (model(x) - y).square().mean()

    live, again = edge(closure(), optimizer), edge(closure, optimizer)
    assert live.chi == pytest.approx(again.chi, rel=1e-5)
    assert live.change == pytest.approx(again.change, rel=1e-4)
    warm = edge(closure, optimizer, warm_start=live)
    assert warm.chi == pytest.approx(again.chi, rel=1e-2)
    assert warm.matvecs <= again.matvecs


def test_without_forms_two_products_are_spared() -> None:
    params, _, loss = bowl(0)
    optimizer = optim.AdamW(params)
    full, bare = edge(loss, optimizer), edge(loss, optimizer, forms=False)
    assert bare.chi == full.chi
    assert math.isnan(bare.chi_gradient)
    assert math.isnan(bare.change)
    assert full.matvecs - bare.matvecs in (1, 2)


# ---- flags, invariances, ends of the range


def test_sign_methods_are_flagged_as_formal() -> None:
    params = [nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))]
    found = edge(rough(params), optim.Muon(params, lr=0.01))
    assert found.formal
    assert any("generalized_sharpness" in note for note in found.notes)


def test_a_second_moment_that_forgets_fast_is_flagged() -> None:
    params, _, loss = bowl(0)
    assert edge(loss, optim.Adam(params, betas=(0.9, 0.9))).approximate
    assert not edge(loss, optim.Adam(params)).approximate


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("kind", [optim.Adam, optim.RMSprop])
def test_chi_of_adaptive_optimizers_is_blind_to_the_scale_of_the_loss(kind: type, scale: float) -> None:
    found = []
    for factor in (1.0, scale):
        optimizer, params, _ = built((kind, {"lr": 0.01, "eps": 0.0}), seed=2)
        loss = rough(params, 2)
        for _ in range(4):
            stepped(optimizer, params, [factor * g for g in gradients(loss, params)])
        found.append(edge(lambda: factor * loss(), optimizer, tol=TIGHT).chi)  # noqa: B023
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_flat_loss_has_chi_zero_and_no_largest_lr() -> None:
    param = nn.Parameter(torch.ones(5, dtype=DOUBLE))
    found = edge(lambda: (2.0 * param).sum() + 0.0 * param.square().sum(), optim.SGD([param], lr=0.1))
    assert found.chi == 0.0
    assert found.converged
    assert found.max_stable_lr == math.inf


def test_a_learning_rate_of_zero_says_nothing_about_the_largest() -> None:
    params, _, loss = bowl(0)
    optimizer = optim.Adam(params, lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0  # as in the first step of a warm-up
    found = edge(loss, optimizer)
    assert (found.chi, found.threshold, found.change) == (0.0, math.inf, 0.0)
    assert math.isnan(found.max_stable_lr)
    assert math.isnan(found.sharpness)


def test_negative_curvature_alone_gives_a_negative_chi() -> None:
    param = nn.Parameter(torch.ones(5, dtype=DOUBLE))
    found = edge(lambda: -param.square().sum(), optim.SGD([param], lr=0.1), tol=TIGHT)
    assert found.chi == pytest.approx(-0.1)
    assert found.max_stable_lr == math.inf
    assert found.lowest == pytest.approx(-0.1)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.RMSprop])
def test_at_a_minimum_the_gradient_is_zero_and_chi_is_finite(kind: type) -> None:
    params, a, _ = bowl(0)
    with torch.no_grad():
        for param in params:
            param.zero_()

    def loss() -> Tensor:
        theta = torch.cat([param.reshape(-1) for param in params])
        return 0.5 * theta @ a @ theta

    found = edge(loss, kind(params, lr=0.1), tol=TIGHT)
    assert math.isfinite(found.chi)
    assert found.chi > 0
    assert math.isnan(found.chi_gradient)
    assert found.floored == pytest.approx(0.0 if kind is optim.SGD else 1.0)


def test_bad_input_is_refused_by_name() -> None:
    params, _, loss = bowl(0)
    optimizer = optim.SGD(params, lr=0.1)
    for tol in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tol"):
            edge(loss, optimizer, tol=tol)
    with pytest.raises(UsageError, match="scalar"):
        edge(lambda: params[1] * 2, optimizer)
    with pytest.raises(UsageError, match="loss"):
        edge(3.0, optimizer)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="LBFGS"):
        edge(loss, optim.LBFGS(params))
    with pytest.raises(UsageError, match="requires a gradient"):
        edge(loss, optim.SGD([torch.zeros(3)], lr=0.1))
    for wrong in (None, params, loss):
        with pytest.raises(UsageError, match="optimizer must be"):
            edge(loss, wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        edge(lambda: params[1].log().sum() / 0.0, optimizer)


def test_an_operator_takes_the_place_of_the_loss_and_keeps_its_options() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(40, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closure = lambda: model(x).square().mean()  # noqa: E731
    with pytest.raises(UsageError, match="deterministic='fix'"):
        edge(closure, optimizer)
    replayed = Hessian(closure, list(model.parameters()), deterministic="fix")
    found = edge(replayed, optimizer)
    dense = torch.linalg.eigvalsh(replayed.dense().double())
    assert found.chi == pytest.approx(float(dense[-1]) * 0.1 / 2, rel=2e-2)
    assert EdgeTracker(optimizer, replayed).read().chi == pytest.approx(found.chi, rel=3e-2)
