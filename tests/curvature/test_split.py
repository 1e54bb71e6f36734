"""The split of ln chi against finite differences of dense matrices, and against trainings whose answer is known."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from foreshock.curvature import Edge, ExplicitOperator, Growth, Hessian, edge, mode_denominator, split
from foreshock.curvature.edge import read_edge
from foreshock.curvature.split import Mark
from foreshock.stability import edge_weights
from foreshock.stability.blocks import KroneckerBlock, RotatedBlock
from tests.curvature.matrices import symmetric
from tests.nightly import thinned

torch.set_num_threads(1)
DOUBLE = torch.float64
SPECTRUM = [6.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.0, -0.5, -2.0]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Path:
    """A Hessian and an RMSprop with momentum whose moments, lr and momentum all move along a path in s."""

    def __init__(self, seed: int) -> None:
        self.params = [nn.Parameter(drawn(2, 3, seed=seed)), nn.Parameter(drawn(3, seed=seed + 1))]
        self.optimizer = optim.RMSprop(
            [{"params": [self.params[0]]}, {"params": [self.params[1]], "lr": 0.03, "momentum": 0.5}], lr=0.02,
            weight_decay=0.1,
        )
        self.a, self.b = symmetric(SPECTRUM, seed), symmetric(torch.linspace(-1, 1, 9), seed + 2)
        self.v, self.w = drawn(9, seed=seed + 3).exp(), drawn(9, seed=seed + 4)

    def hessian(self, s: float) -> Tensor:
        return self.a + s * self.b

    def set(self, s: float) -> None:
        v = self.v * torch.exp(s * self.w)
        for param, piece in zip(self.params, v.split([6, 3]), strict=True):
            self.optimizer.state[param] = {
                "step": torch.tensor(5.0), "square_avg": piece.reshape(param.shape).clone(),
                "momentum_buffer": torch.zeros_like(param),
            }
        for group, lr in zip(self.optimizer.param_groups, (0.02, 0.03), strict=True):
            group["lr"] = lr * math.exp(0.7 * s)
            group["momentum"] = 0.5 + 0.2 * s

    def read(self, s: float) -> Edge:
        self.set(s)
        operator = ExplicitOperator(self.hessian(s), self.params)
        return read_edge(operator, edge_weights(self.optimizer), self.optimizer, tol=1e-13, forms=False)

    def dense(self, s: float) -> tuple[Tensor, Tensor]:
        """Returns W as a vector and H + l2."""
        self.set(s)
        W = torch.cat([each.reshape(-1) for each in edge_weights(self.optimizer).tensors])
        return W, self.hessian(s) + 0.1 * torch.eye(9, dtype=DOUBLE)


@pytest.mark.parametrize("seed", range(4))
def test_the_split_is_the_derivative_of_ln_chi_to_nine_digits(seed: int) -> None:
    path, h = Path(seed), 2e-5
    W, H = path.dense(0.0)
    values, vectors = torch.linalg.eigh(W.sqrt()[:, None] * H * W.sqrt())
    u, chi, y = vectors[:, -1], values[-1], W.sqrt() * vectors[:, -1]
    (W0, H0), (W1, H1) = path.dense(-h), path.dense(h)
    preconditioner = float((u**2) @ (W1.log() - W0.log())) / (2 * h)
    landscape = float(y @ (H1 - H0) @ y / chi) / (2 * h)
    before, after = path.read(-h), path.read(h)
    found = split(before, after, ExplicitOperator(path.hessian(h), path.params))
    assert found.preconditioner / (2 * h) == pytest.approx(preconditioner, abs=1e-9)
    assert found.landscape / (2 * h) == pytest.approx(landscape, abs=1e-9)
    assert found.growth == pytest.approx(math.log(after.chi / before.chi), rel=1e-9)
    assert found.measured == pytest.approx(found.landscape, abs=1e-3 * abs(found.growth) + 1e-8)
    assert found.lr / (2 * h) == pytest.approx(0.7, abs=1e-8)
    assert found.momentum / (2 * h) == pytest.approx(-0.2 / 1.5, abs=1e-8)  # q = 1/(1 + mu)
    v = (u**2) * torch.cat([path.v]).sqrt() / (path.v.sqrt() + 1e-8) * path.w / 2
    told = [float(-piece.sum()) for piece in v.split([6, 3])]
    assert [each / (2 * h) for each in found.denominators] == pytest.approx(told, abs=1e-8)


def test_between_distant_readings_the_error_is_of_third_order() -> None:
    path = Path(7)
    grid = np.linspace(-0.2, 0.2, 81)
    fine = Growth()
    for s in grid:
        fine.add(path.read(float(s)))
    errors = []
    for h in (0.2, 0.1):
        middle = Growth()
        for s in grid[40 - int(h * 200) : 41 + int(h * 200)]:
            middle.add(path.read(float(s)))
        whole = split(path.read(-h), path.read(h))
        errors.append(abs(whole.preconditioner - middle.preconditioner))
    assert errors[0] < 0.05 * abs(fine.preconditioner)
    assert errors[1] < errors[0] / 6


def quadratic_run(betas: tuple[float, float], steps: Sequence[int]) -> list[Edge]:
    theta = nn.Parameter(torch.ones((), dtype=DOUBLE))
    optimizer = optim.Adam([theta], lr=0.1, betas=betas)
    readings = []
    for t in range(1, max(steps) + 1):
        if t in steps:
            readings.append(edge(lambda: theta**2 / 2, optimizer, forms=False))
        theta.grad = theta.detach().clone()
        optimizer.step()
    return readings


def test_adam_on_a_quadratic_is_all_preconditioner() -> None:
    readings = quadratic_run((0.9, 0.99), [1, 2, 10, 100, 500, 888, 930, 945, 960])
    for before, after in itertools.pairwise(readings):
        found = split(before, after)
        assert abs(found.landscape) < 1e-6 * abs(found.growth) + 1e-12
        assert found.overlap == pytest.approx(1.0)
        assert found.lr == 0.0
        bias = math.log(before.weights.corrections[0] / after.weights.corrections[0])
        assert found.momentum == pytest.approx(bias, abs=1e-12)


def net(seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = drawn(12, 3, seed=seed), drawn(12, 2, seed=seed + 1)
    return model, lambda: (model(x) - y).square().mean()


def trained(
    make: Callable[[Sequence[Tensor]], optim.Optimizer], seed: int, steps: int = 12,
    schedule: Callable[[int], float] | None = None,
) -> list[Edge]:
    model, loss = net(seed)
    optimizer = make(list(model.parameters()))
    readings = []
    for step in range(steps):
        if schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
        readings.append(edge(loss, optimizer, tol=1e-10, forms=False))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return readings


@pytest.mark.parametrize("seed", range(3))
def test_gradient_descent_is_all_landscape(seed: int) -> None:
    readings = trained(lambda p: optim.SGD(p, lr=0.1, momentum=0.5), seed)
    for before, after in itertools.pairwise(readings):
        found = split(before, after)
        assert found.preconditioner == 0.0
        assert found.landscape == found.growth == pytest.approx(math.log(after.chi / before.chi))


def test_a_schedule_is_the_learning_rates_doing() -> None:
    readings = trained(lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.5), 0, schedule=lambda t: 1e-3 * 1.3**t)
    for step, (before, after) in enumerate(itertools.pairwise(readings)):
        decays = [0.5 * 1e-3 * 1.3**at for at in (step, step + 1)]
        told = math.log(1.3) - math.log((2 - decays[1]) / (2 - decays[0]))
        assert split(before, after).lr == pytest.approx(told, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    thinned([
        lambda p: optim.Adam(p, lr=1e-3), lambda p: optim.RMSprop(p, lr=1e-3),
        lambda p: optim.SGD(p, lr=0.1), lambda p: optim.Adagrad(p, lr=1e-2),
        lambda p: optim.NAdam([{"params": p[:2]}, {"params": p[2:], "lr": 1e-2}], lr=1e-3),
        lambda p: optim.Adam(p, lr=1e-3, amsgrad=True, weight_decay=0.1),
    ]),
)
def test_what_a_product_measures_is_what_remains(make: Callable[[Sequence[Tensor]], optim.Optimizer]) -> None:
    model, loss = net(3)
    optimizer = make(list(model.parameters()))
    before: Edge | None = None
    for step in range(25):
        reading = edge(loss, optimizer, tol=1e-10, forms=False)
        if before is not None and step > 15:
            found = split(before, reading, Hessian(loss, list(model.parameters())))
            assert found.overlap > 0.98
            assert found.measured == pytest.approx(found.landscape, abs=0.05 * abs(found.landscape) + 2e-3)
        before = reading
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_the_rise_on_the_wide_network_is_the_denominators() -> None:
    """Bai et al.'s network: chi rises from .6 to 1 while the curvature stays where it is."""
    draw = np.random.default_rng(0)
    X, w, v, W = (draw.standard_normal(shape) for shape in ((200, 50), 50, 50, (1000, 50)))
    b, a, c = draw.standard_normal(1000), draw.standard_normal(1000), draw.standard_normal(1)
    x, y = torch.tensor(X), torch.tensor(X @ w + X**2 @ v)
    params = [nn.Parameter(torch.tensor(each / 1000)) for each in (W, b, a, c)]
    optimizer = optim.Adam(params, lr=0.02)

    def loss() -> Tensor:
        return (torch.tanh(x @ params[0].T + params[1]) @ params[2] + params[3] - y).square().mean()

    growth, last = Growth(), None
    for t in range(1, 201):
        if t in (120, 140, 160, 180, 200):
            last = edge(loss, optimizer, tol=1e-2, forms=False, warm_start=last)
            growth.add(last)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert growth.restarts == 0
    assert growth.growth > 0.2
    assert 0.85 < growth.share < 1.15
    assert growth.denominator == pytest.approx(growth.preconditioner, rel=1e-3)


def explicit(H: Tensor, params: Sequence[Tensor], optimizer: optim.Optimizer, **changes: object) -> Edge:
    weights = dataclasses.replace(edge_weights(optimizer), **changes)  # type: ignore[arg-type]
    return read_edge(ExplicitOperator(H, params), weights, optimizer, tol=1e-12, forms=False)


def test_where_the_top_eigenvector_swaps_there_is_no_growth() -> None:
    w = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    optimizer = optim.SGD([w], lr=0.1)
    one = explicit(torch.diag(torch.tensor([5.0, 4.9, 1.0], dtype=DOUBLE)), [w], optimizer)
    two = explicit(torch.diag(torch.tensor([5.0, 5.1, 1.0], dtype=DOUBLE)), [w], optimizer)
    found = split(one, two)
    assert found.restarted
    assert found.overlap < 1e-6
    assert math.isnan(found.preconditioner)
    assert math.isnan(found.landscape)
    growth = Growth()
    for reading in (one, one, two, two):
        growth.add(reading)
    assert (growth.restarts, growth.readings, growth.growth) == (1, 2, 0.0)


def test_without_positive_curvature_there_is_no_growth() -> None:
    w = nn.Parameter(torch.ones(2, dtype=DOUBLE))
    optimizer = optim.SGD([w], lr=0.1)
    one = explicit(torch.diag(torch.tensor([-1.0, -2.0], dtype=DOUBLE)), [w], optimizer)
    assert split(one, one).restarted


def test_parameters_that_are_added_count_by_their_share_of_the_edge() -> None:
    old, new = nn.Parameter(torch.ones(2, dtype=DOUBLE)), nn.Parameter(torch.ones(2, dtype=DOUBLE))
    optimizer = optim.SGD([old], lr=0.1)
    before = explicit(torch.diag(torch.tensor([5.0, 1.0], dtype=DOUBLE)), [old], optimizer)
    optimizer.add_param_group({"params": [new]})
    for coupling, taken in ((0.01, True), (3.0, False)):
        H = torch.diag(torch.tensor([5.0, 1.0, 4.0, 0.1], dtype=DOUBLE))
        H[0, 2] = H[2, 0] = coupling
        found = split(before, explicit(H, [old, new], optimizer))
        assert found.restarted != taken
        assert 0 < found.joined < 1
        if taken:
            assert found.joined < 1e-3
            assert len(found.denominators) == 2
            assert found.preconditioner == pytest.approx(0.0, abs=1e-12)


def test_a_tensor_that_stops_moving_is_left_out() -> None:
    one, two = nn.Parameter(torch.ones(2, dtype=DOUBLE)), nn.Parameter(torch.ones(2, dtype=DOUBLE))
    optimizer = optim.Adam([one, two], lr=0.1)
    H = torch.diag(torch.tensor([5.0, 1.0, 4.0, 0.1], dtype=DOUBLE))
    operator = ExplicitOperator(H, [one, two])
    ones = torch.ones(2, dtype=DOUBLE)
    both = read_edge(operator, edge_weights(optimizer, [ones, ones]), optimizer, tol=1e-12, forms=False)
    single = read_edge(operator, edge_weights(optimizer, [ones, None]), optimizer, tol=1e-12, forms=False)
    assert split(both, single).growth == pytest.approx(0.0, abs=1e-12)
    assert split(single, both).joined < 1e-12


def blocks(s: float, seed: int) -> tuple[list[object], Tensor]:
    """Returns a Kronecker and a rotated block that move with s, and W as a dense matrix."""
    made: list[object] = []
    factors = []
    for place, size in enumerate((2, 3)):
        root = drawn(size, size, seed=seed + place) + s * drawn(size, size, seed=seed + 10 + place)
        values, vectors = torch.linalg.eigh(root @ root.T + 0.3 * torch.eye(size, dtype=DOUBLE))
        factors.append((vectors, values**0.25))
    made.append(KroneckerBlock(torch.Size((2, 3)), tuple(factors)).reciprocal(0.1))
    turn = torch.linalg.matrix_exp(s * (drawn(3, 3, seed=seed + 20) - drawn(3, 3, seed=seed + 20).T))
    diagonal = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE) * torch.exp(s * drawn(3, seed=seed + 21))
    made.append(RotatedBlock(torch.Size((3,)), (turn,), diagonal).reciprocal(0.2))
    return made, torch.block_diag(*(each.dense() for each in made))  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_split_exactly_to_first_order(seed: int) -> None:
    params = [nn.Parameter(torch.zeros(2, 3, dtype=DOUBLE)), nn.Parameter(torch.zeros(3, dtype=DOUBLE))]
    optimizer = optim.SGD(params, lr=0.1)
    a, b = symmetric(SPECTRUM, seed), symmetric(torch.linspace(-1, 1, 9), seed + 2)
    h = 2e-5

    def read(s: float) -> Edge:
        return explicit(a + s * b, params, optimizer, tensors=blocks(s, seed)[0], factors=(0.1, 0.2))

    W = blocks(0.0, seed)[1]
    values, vectors = torch.linalg.eigh(W)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    chis, us = torch.linalg.eigh(root @ a @ root)
    y = root @ us[:, -1]
    change = (torch.linalg.inv(blocks(h, seed)[1]) - torch.linalg.inv(blocks(-h, seed)[1])) / (2 * h)
    found = split(read(-h), read(h))
    assert found.preconditioner / (2 * h) == pytest.approx(float(-y @ change @ y), abs=1e-6)
    assert found.landscape / (2 * h) == pytest.approx(float(y @ b @ y / chis[-1]), abs=1e-6)
    assert (found.lr, found.momentum) == (0.0, 0.0)


def test_blocks_that_are_scaled_are_split_exactly() -> None:
    params = [nn.Parameter(torch.zeros(2, 3, dtype=DOUBLE)), nn.Parameter(torch.zeros(3, dtype=DOUBLE))]
    optimizer = optim.SGD(params, lr=0.1)
    made, _ = blocks(0.0, 0)
    twice = [each.reciprocal().reciprocal(2.0) for each in made]  # type: ignore[attr-defined]
    a = symmetric(SPECTRUM, 0)
    one = explicit(a, params, optimizer, tensors=made, factors=(0.1, 0.2))
    two = explicit(a, params, optimizer, tensors=twice, factors=(0.2, 0.4))
    found = split(one, two)
    assert found.growth == pytest.approx(math.log(2))
    assert found.lr == pytest.approx(math.log(2))
    assert found.denominator == pytest.approx(0.0, abs=1e-12)


def test_the_denominator_in_the_unstable_direction() -> None:
    path = Path(1)
    reading = path.read(0.3)
    W, H = path.dense(0.3)
    u = torch.linalg.eigh(W.sqrt()[:, None] * H * W.sqrt())[1][:, -1]
    P = (path.v * torch.exp(0.3 * path.w)).sqrt() + 1e-8
    assert mode_denominator(reading) == pytest.approx(float((u**2 @ P.log()).exp()), rel=1e-6)
    params = [nn.Parameter(torch.zeros(2, 3, dtype=DOUBLE)), nn.Parameter(torch.zeros(3, dtype=DOUBLE))]
    made, W = blocks(0.4, 1)
    reading = explicit(
        symmetric(SPECTRUM, 1), params, optim.SGD(params, lr=0.1), tensors=made, factors=(0.1, 0.2)
    )
    values, vectors = torch.linalg.eigh(W)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    u = torch.linalg.eigh(root @ symmetric(SPECTRUM, 1) @ root)[1][:, -1]
    logarithm = vectors @ torch.diag(values.log()) @ vectors.T
    factors = torch.tensor([0.1] * 6 + [0.2] * 3, dtype=DOUBLE).log()
    assert mode_denominator(reading) == pytest.approx(math.exp(float(u**2 @ factors - u @ logarithm @ u)), rel=1e-5)


def test_sums_go_on_after_a_resume_as_if_there_had_been_none() -> None:
    model, loss = net(5)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    whole, first, second = Growth(), Growth(), Growth()
    for step in range(16):
        reading = edge(loss, optimizer, forms=False)
        whole.add(reading)
        (first if step < 8 else second).add(reading)
        if step == 7:
            second.load_state_dict(first.state_dict(reading.weights.params))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert second.state_dict(reading.weights.params)["denominators"] == whole.denominators
    assert (second.growth, second.preconditioner, second.readings) == (
        whole.growth, whole.preconditioner, whole.readings)
    resumed = Growth()
    resumed.load_state_dict(whole.state_dict())  # without the parameters: the sums are kept, and begin anew
    resumed.add(reading)
    assert (resumed.growth, resumed.readings) == (0.0, 1)


def test_a_mark_holds_two_tensors_for_each_parameter() -> None:
    reading = trained(lambda p: optim.Adam(p, lr=1e-2), 0, steps=1)[0]
    mark = Mark.of(reading)
    held = [value for value in dataclasses.astuple(mark) if isinstance(value, (list, tuple))]
    tensors = [each for value in held for each in value if isinstance(each, Tensor) and not each.requires_grad]
    assert sum(each.numel() for each in tensors) == 2 * sum(param.numel() for param in reading.params)
