"""The Lanczos process by its invariants: A Q = Q T + r e', Q'Q = 1, T = Q'A Q, through restarts and exhaustion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from foreshock.curvature import ExplicitOperator
from foreshock.curvature.krylov import Krylov
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers, symmetric

torch.set_num_threads(1)
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6}
DTYPES = list(ROUNDING)


def drawn(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def grown(a: ExplicitOperator, steps: int, *, starts: int = 1, capacity: int = 64, seed: int = 0) -> Krylov:
    krylov = Krylov(a, capacity)
    for i in range(starts):
        assert krylov.admit(drawn(a.space.n, seed + i, a.dtype))
    for _ in range(steps):
        krylov.step()
    return krylov


def basis(krylov: Krylov) -> Tensor:
    return krylov._basis[: krylov.held].double()


def check_relation(krylov: Krylov, matrix: Tensor) -> None:
    """Checks A Q_m = Q T[:, :m], the processed columns, to rounding, and that Q is orthonormal."""
    q, m = basis(krylov), krylov.processed
    a = matrix.double()
    size = float(torch.linalg.matrix_norm(a, 2)) or 1.0
    rounding = ROUNDING[matrix.dtype]
    projected = torch.from_numpy(krylov.projected[: krylov.held, :m])
    assert float((a @ q[:m].T - q.T @ projected).abs().max()) <= rounding * size
    assert float((q @ q.T - torch.eye(len(q), dtype=torch.float64)).abs().max()) <= rounding
    rayleigh = (q[:m] @ a @ q[:m].T).numpy()
    np.testing.assert_allclose(krylov.projected[:m, :m], rayleigh, atol=rounding * size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("starts", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 5, 30])
def test_products_are_the_basis_times_the_projected_matrix(dtype: torch.dtype, starts: int, steps: int) -> None:
    a = operator(outliers(200), seed=starts, dtype=dtype)
    krylov = grown(a, steps, starts=starts)
    assert (krylov.processed, krylov.held, krylov.matvecs) == (steps, steps + starts, steps)
    check_relation(krylov, a.matrix)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spectrum", [
    10.0 ** -torch.linspace(0, 12, 100, dtype=torch.float64),
    torch.cat([torch.full((4,), 1e6, dtype=torch.float64), torch.linspace(-1, 1, 96, dtype=torch.float64)]),
], ids=["twelve decades", "far outliers"])
def test_the_basis_stays_orthonormal_where_plain_lanczos_loses_it(dtype: torch.dtype, spectrum: Tensor) -> None:
    a = operator(spectrum, seed=1, dtype=dtype)
    krylov = grown(a, 1)
    while not krylov.exhausted and krylov.processed < 60:
        krylov.step()
    check_relation(krylov, a.matrix)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("starts", [1, 3])
def test_restarts_keep_the_projected_matrix_true(dtype: torch.dtype, starts: int) -> None:
    a = operator(outliers(120), seed=3, dtype=dtype)
    krylov = grown(a, 12, starts=starts, capacity=20)
    for kept in (6, 4, 9):
        krylov.restart(krylov.ritz().coefficients[:, :kept])
        assert (krylov.processed, krylov.waiting) == (kept, starts)
        check_relation(krylov, a.matrix)
        for _ in range(6):
            krylov.step()
        check_relation(krylov, a.matrix)


def test_a_restart_keeps_the_ritz_pairs_it_is_given() -> None:
    krylov = grown(operator(outliers(120), seed=4), 15)
    before = krylov.ritz()
    krylov.restart(before.coefficients[:, [0, 1, 14]])
    after = krylov.ritz()
    np.testing.assert_allclose(after.values, before.values[[0, 1, 14]], rtol=1e-12)
    np.testing.assert_allclose(after.residuals, before.residuals[[0, 1, 14]], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residuals_are_those_of_the_ritz_vectors(dtype: torch.dtype) -> None:
    a = operator(outliers(150), seed=5, dtype=dtype)
    krylov = grown(a, 12)
    ritz = krylov.ritz()
    assert (np.diff(ritz.values) <= 0).all()
    u = krylov.vectors(ritz.coefficients).double()
    true = torch.linalg.vector_norm(u @ a.matrix.double() - torch.from_numpy(ritz.values.copy())[:, None] * u, dim=1)
    np.testing.assert_allclose(ritz.residuals, true.numpy(), rtol=1e-3, atol=20 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_invariant_space_exhausts_the_process_and_its_values_are_exact(dtype: torch.dtype) -> None:
    a = operator([5.0, 2.0, -1.0] + [0.0] * 57, seed=6, dtype=dtype)
    krylov = grown(a, 4)
    assert krylov.exhausted
    assert krylov.processed == 4
    np.testing.assert_allclose(krylov.ritz().values, [5.0, 2.0, 0.0, -1.0], atol=50 * ROUNDING[dtype])
    assert krylov.admit(drawn(60, 9, dtype))
    assert not krylov.exhausted
    krylov.step()
    check_relation(krylov, a.matrix)


def test_a_whole_space_gives_the_whole_spectrum() -> None:
    a = operator(outliers(40), seed=7)
    krylov = Krylov(a, 1000)
    krylov.admit(drawn(40))
    while krylov.processed < 40:
        if krylov.exhausted:
            krylov.admit(drawn(40, krylov.processed))
        krylov.step()
    np.testing.assert_allclose(krylov.ritz().values, np.sort(outliers(40).numpy())[::-1], atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_directions_in_the_span_and_zero_are_not_admitted(dtype: torch.dtype) -> None:
    krylov = grown(operator(outliers(60), dtype=dtype), 3)
    q = krylov._basis[: krylov.held]
    assert not krylov.admit(torch.zeros(60, dtype=dtype))
    assert not krylov.admit(1e-20 * (q[0] + 2.0 * q[1] - q[3]))
    assert krylov.admit(q[0] + 0.1 * drawn(60, 4, dtype))
    check_relation(krylov, krylov.operator.matrix)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_relation_holds_at_any_scale_of_the_curvature(scale: float) -> None:
    matrix = symmetric(outliers(80), seed=8, dtype=torch.float32) * scale
    krylov = grown(ExplicitOperator(matrix), 10)
    assert krylov.waiting == 1
    check_relation(krylov, matrix)


def test_inner_products_are_accumulated_in_double() -> None:
    """Of float32 vectors so long that float32 sums lose the small coefficients: 1e-7 of the others, yet right."""
    n = 1 << 18
    scales = torch.full((n,), 1.0)
    scales[0] = 3.0
    start = torch.ones(n)
    start[0] = 30.0

    class Long(ExplicitOperator):
        def __init__(self) -> None:
            super(ExplicitOperator, self).__init__([scales])

        def _product(self, flat: Tensor) -> Tensor:
            return scales * flat

    krylov = Krylov(Long(), 4)
    krylov.admit(start)
    krylov.step()
    q = start.double() / start.double().norm()
    exact = float(q @ (scales.double() * q))
    assert krylov.projected[0, 0] == pytest.approx(exact, rel=3e-7)
    krylov.step()
    assert krylov.exhausted
    np.testing.assert_allclose(krylov.ritz().values, [3.0, 1.0], rtol=2e-6)


def test_products_that_are_not_finite_are_refused() -> None:
    matrix = symmetric(outliers(20))
    matrix[3, 3] = torch.inf
    krylov = Krylov(ExplicitOperator(matrix), 5)
    krylov.admit(drawn(20))
    with pytest.raises(UsageError, match="NaN or infinity"):
        krylov.step()
    with pytest.raises(UsageError, match="start vector"):
        krylov.admit(torch.full((20,), torch.nan, dtype=torch.float64))
