"""Counterfactuals against the optimizer set as they say: exact for one mode, bounds for several."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn, optim

from foreshock.curvature import (
    Edge,
    ExplicitOperator,
    Hessian,
    counterfactual,
    edge,
    mode_denominator,
    split,
    steps_to_edge,
    verified,
)
from foreshock.curvature.condensed import condensed
from foreshock.curvature.counterfactual import changed
from foreshock.curvature.edge import read_edge
from foreshock.curvature.mode import mode_of
from foreshock.errors import UsageError
from foreshock.stability import edge_weights, eps_crit
from tests.curvature.matrices import symmetric
from tests.reference import optimizers as others
from tests.stability.live_cases import stepped

torch.set_num_threads(1)
DOUBLE = torch.float64


def quadratic(make: Callable[[Sequence[Tensor]], optim.Optimizer], steps: int) -> tuple[nn.Parameter, optim.Optimizer]:
    """Returns theta and an optimizer of theta^2/2 so many steps after theta = 1."""
    theta = nn.Parameter(torch.ones((), dtype=DOUBLE))
    optimizer = make([theta])
    for _ in range(steps):
        theta.grad = theta.detach().clone()
        optimizer.step()
    return theta, optimizer


@pytest.mark.parametrize(("beta2", "crossing"), [(0.99, 888), (0.999, 6541), (0.95, 216)])
def test_the_crossing_on_a_quadratic_is_told_to_the_step(beta2: float, crossing: int) -> None:
    since = int(0.6 * crossing)
    theta, optimizer = quadratic(lambda p: optim.Adam(p, lr=0.1, betas=(0.9, beta2)), since)
    for step in range(since + 1, since + 5):
        reading = edge(lambda: theta**2 / 2, optimizer, forms=False)
        ahead = steps_to_edge(reading)
        assert ahead is not None
        assert step + ahead == crossing
        theta.grad = theta.detach().clone()
        optimizer.step()


FADING = [
    lambda p: optim.Adam(p, lr=0.02), lambda p: optim.Adam(p, lr=0.02, betas=(0.5, 0.9), eps=1e-3),
    lambda p: optim.NAdam(p, lr=0.02, momentum_decay=1.0), lambda p: optim.RAdam(p, lr=0.02, betas=(0.9, 0.98)),
    lambda p: optim.RMSprop(p, lr=0.001, momentum=0.9), lambda p: others.SOAP(p, lr=0.02, weight_decay=0.0),
    lambda p: others.AdEMAMix(p, lr=0.01),
    lambda p: [optim.Adam(p[:1], lr=0.02), optim.SGD(p[1:], lr=0.1)],
]


def rank_one(
    make: Callable[[Sequence[Tensor]], optim.Optimizer | list[optim.Optimizer]], size: float, steps: int = 9
) -> tuple[list[nn.Parameter], list[optim.Optimizer], list[Tensor], ExplicitOperator]:
    """Returns a training whose Hessian has one eigenvalue: there the rank-one formula is exact."""
    generator = torch.Generator().manual_seed(3)
    params = [nn.Parameter(torch.zeros(shape, dtype=DOUBLE)) for shape in ((2, 3), (4,))]
    torch.manual_seed(0)  # of SOAP's basis
    made = make(params)
    optimizers = made if isinstance(made, list) else [made]
    for _ in range(steps + 1):
        grads = [torch.randn(p.shape, generator=generator, dtype=DOUBLE).exp() for p in params]
        for one in optimizers:
            mine = [(p, g) for p, g in zip(params, grads, strict=True) if any(p is q for q in held(one))]
            stepped(one, [p for p, _ in mine], [g for _, g in mine])
    h = torch.randn(10, generator=generator, dtype=DOUBLE) * size
    return params, optimizers, grads, ExplicitOperator(torch.outer(h, h), params)


def held(optimizer: optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def read(operator: ExplicitOperator, optimizers: list[optim.Optimizer], grads: Sequence[Tensor] | None = None) -> Edge:
    return read_edge(operator, edge_weights(optimizers, grads), optimizers, tol=1e-12, forms=False)


@pytest.mark.parametrize("place", range(len(FADING)))
def test_the_crossing_is_where_steps_without_gradient_lead(place: int) -> None:
    params, optimizers, grads, operator = rank_one(FADING[place], 1.0)
    unit = read(operator, optimizers, grads).chi
    params, optimizers, grads, operator = rank_one(FADING[place], math.sqrt(0.4 / unit))
    reading = read(operator, optimizers, grads)
    assert reading.chi == pytest.approx(0.4)
    ahead = steps_to_edge(reading)
    assert ahead is not None
    assert 1 < ahead < 3000
    gains = reading.weights.gains
    for step in range(ahead + 1):
        for one in optimizers:
            mine = [(p, g) for p, g in zip(params, grads, strict=True) if any(p is q for q in held(one))]
            stepped(one, [p for p, _ in mine], [g if step == 0 else torch.zeros_like(g) for _, g in mine])
        if step >= ahead - 1:
            later = read(operator, optimizers)
            drift = sum(  # NAdam's and AdEMAMix's gain goes on changing, which the forecast leaves out
                share * new / old for share, new, old in zip(later.shares, later.weights.gains, gains, strict=True)
            )
            assert (later.chi / drift >= 1) == (step == ahead)


def test_an_eps_that_forbids_the_edge_is_noticed() -> None:
    for eps, crosses in ((2.63e-3, True), (2.64e-3, False)):
        theta, optimizer = quadratic(lambda p, e=eps: optim.Adam(p, lr=0.1, betas=(0.9, 0.99), eps=e), 300)
        ahead = steps_to_edge(edge(lambda t=theta: t**2 / 2, optimizer, forms=False))
        assert (ahead is not None) == crosses
    theta, optimizer = quadratic(lambda p: optim.SGD(p, lr=0.1), 3)
    assert steps_to_edge(edge(lambda: theta**2 / 2, optimizer, forms=False)) is None
    theta, optimizer = quadratic(lambda p: optim.Adam(p, lr=0.1), 3)
    assert steps_to_edge(edge(lambda: 1e3 * theta**2 / 2, optimizer, forms=False)) is not None
    assert steps_to_edge(edge(lambda: -(theta**2) / 2, optimizer, forms=False)) is None
    optimizer.param_groups[0]["lr"] = 100.0
    assert steps_to_edge(edge(lambda: theta**2 / 2, optimizer, forms=False)) == 0


MOVABLE = [
    lambda p: optim.Adam(p, lr=0.02), lambda p: optim.Adam(p, lr=0.02, amsgrad=True, eps=1e-2),
    lambda p: optim.AdamW(p, lr=0.02, weight_decay=3.0), lambda p: optim.NAdam(p, lr=0.02),
    lambda p: optim.RAdam(p, lr=0.02, betas=(0.9, 0.98)), lambda p: optim.RMSprop(p, lr=0.001, centered=True),
    lambda p: optim.Adagrad(p, lr=0.1), lambda p: others.Yogi(p, lr=0.02), lambda p: others.SOAP(p, lr=0.02),
    lambda p: optim.Adam([{"params": p[:1], "eps": 0.3}, {"params": p[1:], "lr": 0.05}], lr=0.02, eps=1e-4),
]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("place", range(len(MOVABLE)))
def test_with_one_mode_each_change_brings_chi_to_kappa(place: int, early: bool) -> None:
    steps = 3 if early and place not in (4, 8) else 40
    _, optimizers, grads, operator = rank_one(MOVABLE[place], 1.0, steps)
    size = math.sqrt(1.7 / read(operator, optimizers, grads).chi)
    _, optimizers, grads, operator = rank_one(MOVABLE[place], size, steps)
    reading = read(operator, optimizers, grads)
    found = counterfactual(reading, optimizers, kappa=0.8)
    assert found.eps is not None
    assert found.floor is not None
    assert found.notes == ()
    with_eps = copy.deepcopy(optimizers)
    for group in with_eps[0].param_groups:
        group["eps"] = max(group["eps"], found.eps)
    params = held(with_eps[0])
    on_copy = ExplicitOperator(operator.matrix, params)
    assert read(on_copy, with_eps, grads).chi == pytest.approx(0.8, rel=1e-8)
    floored = changed(reading.weights, "floor", found.floor)
    assert read_edge(operator, floored, optimizers, tol=1e-12, forms=False).chi == pytest.approx(0.8, rel=1e-8)
    assert min(float(dense(each).min()) for each in floored.denominators) == pytest.approx(found.floor)
    with_lr = copy.deepcopy(optimizers)
    first = with_lr[0].param_groups[0]["lr"]
    for group in with_lr[0].param_groups:
        group["lr"] *= found.lr / first
    on_copy = ExplicitOperator(operator.matrix, held(with_lr[0]))
    rel = 0.02 if place == 8 else 1e-8  # SOAP's decay comes after its move and shrinks it
    assert read(on_copy, with_lr, grads).chi == pytest.approx(0.8, rel=rel)


def dense(weight: object) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.diagonal  # type: ignore[attr-defined, no-any-return]


def test_far_from_the_edge_nothing_has_to_change() -> None:
    _, optimizers, grads, operator = rank_one(MOVABLE[0], 1e-3)
    found = counterfactual(read(operator, optimizers, grads), optimizers)
    assert found.eps == 1e-8
    assert found.floor == 0.0
    assert found.lr > 0.02


def test_what_has_no_eps_is_said_to_have_none() -> None:
    _, optimizers, grads, operator = rank_one(lambda p: optim.SGD(p, lr=1.0), 5.0)
    found = counterfactual(read(operator, optimizers, grads), optimizers, top=3.0)
    assert (found.eps, found.floor, found.eps_crit) == (None, None, None)
    assert len(found.notes) == 2
    _, optimizers, grads, operator = rank_one(lambda p: optim.Adamax(p, lr=1.0), 5.0)
    assert counterfactual(read(operator, optimizers, grads), optimizers).eps is None
    _, optimizers, grads, operator = rank_one(
        lambda p: [optim.Adam(p[:1], lr=1e-4), optim.SGD(p[1:], lr=1.0)], 5.0
    )
    found = counterfactual(read(operator, optimizers, grads), optimizers)
    assert found.eps is None
    assert "hold" in found.notes[0]


@pytest.mark.parametrize("step", [1, 4, 300])
def test_the_bound_on_eps_holds_whatever_the_second_moments_do(step: int) -> None:
    param = nn.Parameter(torch.zeros(12, dtype=DOUBLE))
    H = symmetric(torch.linspace(-1, 5, 12), step)
    generator = torch.Generator().manual_seed(step)
    optimizer = optim.Adam([param], lr=0.3)

    def state(v: Tensor) -> None:
        zero = torch.zeros_like(param)
        optimizer.state[param] = {"step": torch.tensor(float(step)), "exp_avg": zero, "exp_avg_sq": v}

    state(torch.ones(12, dtype=DOUBLE))
    found = counterfactual(read(ExplicitOperator(H, [param]), [optimizer]), optimizer, top=5.0)
    assert found.eps_crit == pytest.approx(eps_crit(5.0, lr=0.3, step=step))
    optimizer.param_groups[0]["eps"] = found.eps_crit
    highest = 0.0
    for spread in (0.1, 3.0, 30.0):
        state(torch.exp(spread * torch.randn(12, generator=generator, dtype=DOUBLE) - 3 * spread))
        highest = max(highest, read(ExplicitOperator(H, [param]), [optimizer]).chi)
    assert 0.5 < highest < 1.0


def crowd(seed: int) -> tuple[nn.Parameter, optim.Adam, ExplicitOperator]:
    """Returns Adam at chi = 1.2 on a random positive semi-definite problem in 40 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.zeros(40, dtype=DOUBLE))
    optimizer = optim.Adam([param], lr=0.02)
    root = torch.randn(40, 40, generator=generator, dtype=DOUBLE)
    v = torch.exp(2 * torch.randn(40, generator=generator, dtype=DOUBLE)) * 1e-4
    zero = torch.zeros_like(param)
    optimizer.state[param] = {"step": torch.tensor(2000.0), "exp_avg": zero, "exp_avg_sq": v}
    H = root @ root.T
    H *= 1.2 / read(ExplicitOperator(H, [param]), [optimizer]).chi
    return param, optimizer, ExplicitOperator(H, [param])


@pytest.mark.parametrize("seed", range(5))
def test_on_crowded_problems_the_formula_is_a_bound_and_not_a_loose_one(seed: int) -> None:
    _param, optimizer, operator = crowd(seed)
    reading = read(operator, [optimizer])
    for eps in (1e-3, 1e-2, 0.1):
        told = reading.chi * mode_of(reading).with_eps(eps)
        seen = verified(reading, optimizer, operator, "eps", value=eps)
        optimizer.param_groups[0]["eps"] = eps
        assert seen.chi == pytest.approx(read(operator, [optimizer]).chi, rel=1e-3)
        optimizer.param_groups[0]["eps"] = 1e-8
        assert seen.predicted == pytest.approx(told)
        assert 0.6 * seen.chi < told <= seen.chi * (1 + 1e-3)
        assert seen.rounds == 1


@pytest.mark.parametrize("change", ["eps", "floor", "lr"])
@pytest.mark.parametrize("seed", range(3))
def test_a_change_is_enlarged_until_chi_is_below_kappa(seed: int, change: str) -> None:
    param, optimizer, operator = crowd(seed)
    reading = read(operator, [optimizer])
    state = copy.deepcopy(optimizer.state_dict())
    before = param.detach().clone()
    found = verified(reading, optimizer, operator, change, kappa=0.6)  # type: ignore[arg-type]
    assert 0.58 < found.chi <= 0.6
    first = counterfactual(reading, optimizer, kappa=0.6)
    assert found.value >= (getattr(first, change) or 0) * (1 if change != "lr" else 0.99)
    assert found.predicted <= 0.6 * (1 + 1e-6)
    assert found.rounds <= 12
    assert found.matvecs >= found.rounds
    assert torch.equal(before, param)
    assert str(state) == str(optimizer.state_dict())


@pytest.mark.parametrize("seed", range(3))
def test_on_crowded_problems_the_edge_is_reached_no_later_than_told(seed: int) -> None:
    param, optimizer, operator = crowd(seed)
    operator.matrix.mul_(0.5)
    ahead = steps_to_edge(read(operator, [optimizer]))
    assert ahead is not None
    first = None
    for step in range(1, ahead + 1):
        optimizer.state[param]["exp_avg_sq"].mul_(0.999)
        optimizer.state[param]["step"] += 1
        if (step % 20 == 0 or step == ahead) and read(operator, [optimizer]).chi >= 1:
            first = step
            break
    assert first is not None
    assert first > 0.8 * ahead


def wide(dtype: torch.dtype) -> tuple[Edge, list[optim.Optimizer]]:
    """Returns a reading of 40,000 parameters in two groups, whose Hessian has one eigenvalue, and its optimizer."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((150, 200), (100, 100))]
    h = [torch.randn(param.shape, generator=generator, dtype=DOUBLE) for param in params]
    optimizer = optim.Adam([{"params": params[:1]}, {"params": params[1:], "lr": 0.1, "eps": 1e-3}], lr=0.02)
    for _ in range(3):
        stepped(optimizer, params, [(2 * torch.randn(p.shape, generator=generator)).exp().to(dtype) for p in params])

    def loss() -> Tensor:
        return sum((each * param).sum() for each, param in zip(h, params, strict=True)) ** 2 / 2  # type: ignore[operator]

    for scale in (1.0, None):
        reading = read_edge(
            Hessian(loss, params), edge_weights(optimizer), optimizer, tol=1e-8, forms=False,
        )
        h = [each * math.sqrt(0.5 / reading.chi) for each in h] if scale else h
    return reading, [optimizer]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_taking_entries_together_changes_next_to_nothing(dtype: torch.dtype) -> None:
    reading, optimizers = wide(dtype)
    whole, few = mode_of(reading), condensed(reading)
    assert sum(len(piece.masses) for piece in few.pieces) < 0.25 * sum(len(piece.masses) for piece in whole.pieces)
    for target in (0.9, 0.3, 0.02):
        assert few.eps(target) == pytest.approx(whole.eps(target), rel=1e-4)
        assert few.floor(target) == pytest.approx(whole.floor(target), rel=1e-3)
    for steps in (1, 100, 5000):
        assert few.faded(steps) == pytest.approx(whole.faded(steps), rel=1e-5)
    ahead = steps_to_edge(reading)
    assert ahead is not None
    assert reading.chi * whole.faded(ahead - 1) < 1 + 1e-5
    assert reading.chi * whole.faded(ahead) > 1 - 1e-5
    found = counterfactual(reading, optimizers, kappa=0.3 * reading.chi)
    assert found.eps == pytest.approx(whole.eps(0.3), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_asking_leaves_the_reading_as_it_is(dtype: torch.dtype) -> None:
    reading, optimizers = wide(dtype)
    kept = [each.clone() for each in (*reading.weights.tensors, *reading.vector) if isinstance(each, Tensor)]
    counterfactual(reading, optimizers, kappa=0.1)
    steps_to_edge(reading)
    split(reading, reading)
    mode_denominator(reading)
    after = [each for each in (*reading.weights.tensors, *reading.vector) if isinstance(each, Tensor)]
    assert all(torch.equal(one, two) for one, two in zip(kept, after, strict=True))


def test_senseless_questions_are_refused() -> None:
    _, optimizers, grads, operator = rank_one(lambda p: optim.SGD(p, lr=1.0), 5.0)
    reading = read(operator, optimizers, grads)
    with pytest.raises(UsageError, match="kappa"):
        counterfactual(reading, optimizers, kappa=0.0)
    with pytest.raises(UsageError, match="no such denominator"):
        verified(reading, optimizers, operator, "eps")
    with pytest.raises(UsageError, match="beta2"):
        verified(reading, optimizers, operator, "beta2")  # type: ignore[arg-type]
