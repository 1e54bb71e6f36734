"""Generalised sharpness against enumeration and closed forms, and on trainings at their edge."""

from __future__ import annotations

import doctest
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import foreshock.curvature.norms as module
from foreshock.curvature import ExplicitOperator, Hessian
from foreshock.curvature.norms import dual_norm, generalized_sharpness, polar
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(n: int, seed: int, kind: str) -> Tensor:
    a = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    if kind == "wigner":
        return (a + a.T) / 2
    return a @ a.T / n - (0.5 if kind == "indefinite" else 0.0) * torch.eye(n, dtype=torch.float64)


def enumerated(matrix: Tensor) -> float:
    n = matrix.shape[0]
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=n - 1)), dtype=torch.float64)
    signs = signs.view(1 << (n - 1), n - 1)
    signs = torch.cat([torch.ones(len(signs), 1, dtype=torch.float64), signs], 1)
    return float(((signs @ matrix) * signs).sum(1).max())


def quadratic_form(a: ExplicitOperator, direction: list[Tensor]) -> float:
    flat = torch.cat([d.flatten() for d in direction])
    return float(flat @ a.matrix @ flat)


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("kind", ["positive", "indefinite", "wigner"])
@pytest.mark.parametrize("n", [1, 2, 5, 11, 14])
def test_up_to_sixteen_dimensions_signs_are_exact(kind: str, n: int) -> None:
    for seed in range(5):
        a = ExplicitOperator(square(n, seed, kind))
        found = generalized_sharpness(a)
        assert found.exact
        assert found.converged
        assert found.matvecs == n
        assert found.value == pytest.approx(enumerated(a.matrix), rel=1e-12)
        assert quadratic_form(a, found.direction) == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("kind", "worst", "mean"), [("positive", 0.75, 0.9), ("indefinite", 0.75, 0.9), ("wigner", 0.6, 0.8)]
)
def test_climbs_come_near_enumeration_within_their_products(kind: str, worst: float, mean: float) -> None:
    shares = []
    for seed in range(20):
        a = ExplicitOperator(square(14, seed, kind))
        found = generalized_sharpness(a, max_matvecs=13)
        assert not found.exact
        assert found.matvecs <= 13
        assert quadratic_form(a, found.direction) == pytest.approx(found.value)
        shares.append(found.value / enumerated(a.matrix))
    assert max(shares) <= 1 + 1e-12
    assert min(shares) > worst
    assert sum(shares) / len(shares) > mean


@pytest.mark.parametrize("kind", ["positive", "indefinite", "wigner"])
def test_a_matrix_that_the_products_give_is_climbed_to_the_top(kind: str) -> None:
    for seed in range(4):
        a = ExplicitOperator(square(17, seed, kind))
        found = generalized_sharpness(a)
        assert found.matvecs == 17
        assert found.value > 0.97 * enumerated(a.matrix)


def test_a_rank_one_matrix_is_known_in_every_norm() -> None:
    """With H = h h' the most curvature is the square of the dual norm of h."""
    params = [torch.zeros(12, 8).double(), torch.zeros(8).double(), torch.zeros(4, 3, 2, 2).double()]
    h = torch.randn(152, generator=seeded(3), dtype=torch.float64)
    a = ExplicitOperator(torch.outer(h, h), params)
    pieces = a.space.pieces(h)
    for norm in ("linf", "spectral", "l2"):
        found = generalized_sharpness(a, norm)
        assert found.value == pytest.approx(dual_norm(pieces, norm) ** 2, rel=1e-9)
        assert found.converged
        assert found.edge_ratio(0.1) == pytest.approx(0.05 * found.value)
        assert found.edge_ratio(0.1, pieces) == pytest.approx(0.05 * dual_norm(pieces, norm))


def test_the_euclidean_norm_gives_the_top_eigenvalue() -> None:
    spectrum = outliers()
    found = generalized_sharpness(operator(spectrum), "l2")
    assert found.value == pytest.approx(9.0, rel=1e-3)
    assert math.sqrt(sum(float(d.square().sum()) for d in found.direction)) == pytest.approx(1.0)
    assert found.converged


def test_a_diagonal_of_blocks_has_a_closed_form_in_the_spectral_norm() -> None:
    """Multiples of the identity on each matrix: every step of the ball has the same curvature in a block."""
    params = [torch.zeros(6, 4).double(), torch.zeros(5).double(), torch.zeros(3, 2, 2).double()]
    values = torch.cat([torch.full((24,), 2.0), torch.full((5,), -1.0), torch.full((12,), 0.5)]).double()
    found = generalized_sharpness(ExplicitOperator(torch.diag(values), params), "spectral")
    assert found.value == pytest.approx(2.0 * 4 - 1.0 + 0.5 * 3)


@pytest.mark.parametrize("kind", ["positive", "wigner"])
def test_no_random_step_of_the_spectral_ball_beats_what_is_found(kind: str) -> None:
    params = [torch.zeros(5, 3).double(), torch.zeros(4).double(), torch.zeros(3, 4).double()]
    a = ExplicitOperator(square(31, 2, kind), params)
    found = generalized_sharpness(a, "spectral", max_matvecs=30)
    assert quadratic_form(a, found.direction) == pytest.approx(found.value)
    for d in found.direction:
        torch.testing.assert_close(polar(d), d)
    generator = seeded(1)
    for _ in range(500):
        drawn = [polar(torch.randn(p.shape, generator=generator, dtype=torch.float64)) for p in params]
        assert quadratic_form(a, drawn) < found.value
    assert generalized_sharpness(a, "spectral").value >= found.value * (1 - 1e-3)  # 100 climbs on the matrix itself


def test_couplings_between_layers_count() -> None:
    """A joint step meets more than the blocks alone: here all of the curvature is between the two."""
    coupling = torch.randn(20, 20, generator=seeded(0), dtype=torch.float64)
    zero = torch.zeros(20, 20, dtype=torch.float64)
    joint = torch.cat([torch.cat([zero, coupling], 1), torch.cat([coupling.T, zero], 1)])
    params = [torch.zeros(20).double(), torch.zeros(20).double()]
    found = generalized_sharpness(ExplicitOperator(joint, params), "spectral")
    assert found.value == pytest.approx(2 * float(torch.linalg.svdvals(coupling)[0]), rel=1e-2)


def test_a_warm_start_is_never_worse_than_where_it_starts() -> None:
    a = operator(outliers(200), seed=5)
    first = generalized_sharpness(a)
    again = generalized_sharpness(a, warm_start=first.direction, generator=seeded(9))
    assert again.value >= first.value
    alone = generalized_sharpness(a, warm_start=first.direction, restarts=0, max_matvecs=1)
    assert alone.value == pytest.approx(first.value)
    assert not alone.converged
    assert alone.matvecs == 1


def test_products_are_counted_and_bounded() -> None:
    for norm in ("linf", "spectral"):
        for budget in (1, 2, 7, 45):
            a = operator(outliers(120), seed=2)
            found = generalized_sharpness(a, norm, max_matvecs=budget)
            assert found.matvecs == a.matvecs <= budget
    agreed = generalized_sharpness(operator(torch.cat([torch.ones(1), torch.zeros(99)])))
    assert agreed.matvecs < 20  # climbs that agree need no more


def test_parameters_that_the_loss_ignores_change_nothing() -> None:
    h = torch.zeros(60, 60, dtype=torch.float64)
    h[:30, :30] = square(30, 1, "positive")
    params = [torch.zeros(6, 5).double(), torch.zeros(30).double()]
    found = generalized_sharpness(ExplicitOperator(h, params), "spectral")
    alone = generalized_sharpness(ExplicitOperator(h[:30, :30], params[:1]), "spectral")
    assert found.value == pytest.approx(alone.value, rel=0.05)
    assert all(bool(torch.isfinite(d).all()) for d in found.direction)


def test_dual_norms_are_attained_by_the_unit_step_along_the_gradient() -> None:
    g = [torch.randn(4, 6, generator=seeded(1)), torch.randn(7, generator=seeded(2)), None]
    assert dual_norm(g, "linf") == pytest.approx(float(sum(x.abs().sum() for x in g if x is not None)))
    assert dual_norm(g, "l2") == pytest.approx(float(torch.cat([x.flatten() for x in g if x is not None]).norm()))
    attained = sum(float((x * polar(x)).sum()) for x in g if x is not None)
    assert dual_norm(g, "spectral") == pytest.approx(attained, rel=1e-5)
    assert dual_norm([torch.zeros(3)], "linf") == 0.0
    assert dual_norm([None], "spectral") == 0.0
    assert math.isnan(generalized_sharpness(operator([1.0, 2.0])).edge_ratio(0.1, torch.zeros(2)))


def test_bad_input_is_named() -> None:
    a = operator(outliers(100))
    with pytest.raises(UsageError, match="'l1'"):
        generalized_sharpness(a, "l1")
    with pytest.raises(UsageError, match="'l1'"):
        dual_norm(torch.ones(2), "l1")
    with pytest.raises(UsageError, match="restarts"):
        generalized_sharpness(a, restarts=-1)
    with pytest.raises(UsageError, match="not finite"):
        generalized_sharpness(ExplicitOperator(torch.full((100, 100), torch.nan)))


def descended(norm: str, lr: float) -> tuple[float, float, float]:
    """Trains the digits MLP by steepest descent in a norm; returns edge ratios: start, tail median, Euclidean tail."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:500] / 16.0, dtype=torch.float32)
    x = x - x.mean(0)
    y = nn.functional.one_hot(torch.tensor(labels[:500]), 10).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    params = list(model.parameters())

    def loss() -> Tensor:
        return 0.5 * (model(x) - y).square().sum(1).mean()

    start = generalized_sharpness(Hessian(loss(), params), norm).edge_ratio(lr)
    warm, ratios, euclidean = None, [], []
    for step in range(2000):
        if step >= 1200 and step % 100 < 2:
            found = generalized_sharpness(Hessian(loss(), params), norm, warm_start=warm)
            warm = found.direction
            ratios.append(found.edge_ratio(lr))
            euclidean.append(generalized_sharpness(Hessian(loss(), params), "l2").edge_ratio(lr))
        gradient = torch.autograd.grad(loss(), params)
        length = lr * dual_norm(gradient, norm)
        with torch.no_grad():
            for p, g in zip(params, gradient, strict=True):
                p -= length * (torch.sign(g) if norm == "linf" else polar(g))
    return start, float(torch.tensor(ratios).median()), float(torch.tensor(euclidean).median())


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "lr"), [("linf", 3e-4), ("linf", 1e-3), ("spectral", 0.03), ("spectral", 0.06)])
def test_descent_in_a_norm_settles_at_the_edge_of_that_norm(norm: str, lr: float) -> None:
    start, tail, euclidean = descended(norm, lr)
    assert start < 0.8
    assert 0.92 < tail < 1.12
    assert euclidean < 0.1
