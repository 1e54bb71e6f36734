"""Eigenvalues of prescribed spectra: right where they are said to be, and said not to be where they are not."""

from __future__ import annotations

import doctest
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh as scipy_eigsh
from torch import Tensor

from foreshock.curvature import (
    EigResult,
    ExplicitOperator,
    Hessian,
    Operator,
    eigsh,
    generalized_sharpness,
    spectral_density,
)
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers, symmetric
from tests.curvature.zoo import case, dense
from tests.nightly import thinned

torch.set_num_threads(1)
DOUBLE, SINGLE = torch.float64, torch.float32
ENDS = ["LA", "SA", "BE", "LM"]
WORDS = {"largest": "LA", "smallest": "SA", "both": "BE", "magnitude": "LM"}
Spectrum = Callable[[np.random.Generator, int], np.ndarray]


def _placed(values: list[float], rest: np.ndarray) -> np.ndarray:
    kept = values[: len(rest)]
    rest[: len(kept)] = kept
    return rest


SPECTRA: dict[str, Spectrum] = {
    "exponential": lambda rng, n: np.exp(-rng.uniform(0.05, 1.0) * np.arange(n)),
    "power law": lambda rng, n: (1.0 + np.arange(n)) ** -rng.uniform(0.3, 3.0),
    "near tied ends": lambda rng, n: _placed(
        [3.0, -3.0 * (1 + rng.choice([-1, 1]) * 10.0 ** -rng.uniform(1, 5))], rng.uniform(-1, 1, n)
    ),
    "cluster at the top": lambda rng, n: _placed(
        list(1 + rng.uniform(0, 0.08, rng.integers(2, 10))), rng.uniform(-0.3, 0.5, n)
    ),
    "copies": lambda rng, n: _placed(list(rng.choice([1.0, 2.0], rng.integers(2, 6))), rng.uniform(-0.3, 0.5, n)),
    "all equal": lambda rng, n: np.full(n, rng.normal()),
    "zero": lambda rng, n: np.zeros(n),
    "low rank": lambda rng, n: _placed(list(rng.normal(size=rng.integers(1, 8))), np.zeros(n)),
    "negative": lambda rng, n: -rng.exponential(size=n) - 0.01,
    "outliers over a bulk": lambda rng, n: _placed(
        list(3 * rng.exponential(size=rng.integers(1, 8))), 0.05 * rng.normal(size=n)
    ),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "nearly double": lambda rng, n: _placed([1.0, 1 - 10.0 ** -rng.uniform(2, 6)], rng.uniform(-0.2, 0.5, n)),
    "just above a bulk": lambda rng, n: _placed([1.02], np.linspace(1.0, 0.0, n)),
}


def wanted(matrix: Tensor, k: int, which: str) -> np.ndarray:
    """Returns what LAPACK says, in the order that `EigResult` promises."""
    values = np.linalg.eigvalsh(matrix.double().numpy())[::-1]
    if which == "LA":
        return values[:k]
    if which == "SA":
        return values[::-1][:k]
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    upper = math.ceil(k / 2)
    return np.concatenate([values[:upper], values[::-1][: k - upper]])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()


def relative(found: EigResult, matrix: Tensor, k: int, which: str) -> np.ndarray:
    """Returns the error of each value in the unit of `tol`, 0 where it is rounding."""
    true = wanted(matrix, k, which)
    size = float(np.abs(np.linalg.eigvalsh(matrix.double().numpy())).max())
    got = found.values
    if which == "LM":  # the order of +x and -x is a matter of rounding
        got, true = np.abs(got), np.abs(true)
    error = np.abs(got - true)
    error[error <= 20 * torch.finfo(matrix.dtype).eps * size] = 0.0
    return error / np.maximum(np.maximum(np.abs(true), 1e-4 * size), 1e-300)


def check_pairs(found: EigResult, matrix: Tensor, k: int) -> None:
    """Checks that residuals are |A u - value u| recomputed, of unit, mutually orthogonal vectors."""
    a = matrix.double()
    size = float(torch.linalg.matrix_norm(a, 2))
    rounding = torch.finfo(matrix.dtype).eps
    u = torch.stack([flat(vector) for vector in found.vectors])
    assert found.values.shape == found.residuals.shape == found.errors.shape == found.converged.shape == (k,)
    assert found.values.dtype == np.float64
    assert found.converged.dtype == bool
    assert float((u @ u.T - torch.eye(k, dtype=DOUBLE)).abs().max()) < 100 * rounding
    again = torch.linalg.vector_norm(u @ a - torch.from_numpy(found.values)[:, None] * u, dim=1).numpy()
    np.testing.assert_allclose(found.residuals, again, rtol=0.02, atol=100 * rounding * size)
    assert found.extent[0] <= found.values.min() + rounding * size
    assert found.extent[1] >= found.values.max() - rounding * size


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(sys.modules[eigsh.__module__]).failed == 0


@pytest.mark.parametrize("spectrum", thinned(SPECTRA))
def test_what_is_said_to_be_converged_is_right(spectrum: str) -> None:
    """Random sizes, ends, k, tolerances and types: within tol nearly always, within 5 tol always."""
    rng = np.random.default_rng(list(SPECTRA).index(spectrum))
    errors, said, asked = [], 0, 0
    for trial in range(15):
        n = int(rng.choice([2, 3, 7, 30, 80, 150, 200]))
        k, which = int(min(n, rng.integers(1, 7))), str(rng.choice(ENDS))
        tol, dtype = 10.0 ** -int(rng.integers(2, 9)), (DOUBLE, SINGLE)[int(rng.integers(2))]
        scale = 10.0 ** rng.choice([-8, 0, 0, 6])
        matrix = symmetric(scale * SPECTRA[spectrum](rng, n), int(rng.integers(1 << 30)), dtype)
        drawn = torch.Generator().manual_seed(trial)
        found = eigsh(ExplicitOperator(matrix), k, which=which, tol=tol, generator=drawn)
        check_pairs(found, matrix, k)
        error = relative(found, matrix, k, which)[found.converged] / tol
        assert (error <= 5.0).all(), (n, k, which, tol, dtype, scale, found, error)
        errors += error.tolist()
        said, asked = said + int(found.converged.sum()), asked + k
    assert said >= 0.6 * asked  # refusing to say is honest, but no use
    assert np.mean(np.array(errors) <= 1.0) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_one_eigenvalue_is_right_at_a_loose_tolerance(which: str, seed: int) -> None:
    """The case of every reading of a training: tol 1e-2, where little is seen of the spectrum before stopping."""
    rng = np.random.default_rng([seed, ENDS.index(which)])
    errors = []
    for trial in range(400):
        n = int(rng.choice([10, 60, 200, 500]))
        spectrum = SPECTRA[str(rng.choice(list(SPECTRA)))](rng, n)
        matrix = symmetric(spectrum, int(rng.integers(1 << 30)), (DOUBLE, SINGLE)[trial % 2])
        drawn = torch.Generator().manual_seed(1000 * seed + trial)
        found = eigsh(ExplicitOperator(matrix), which=which, tol=1e-2, generator=drawn)
        errors += (relative(found, matrix, 1, which)[found.converged] / 1e-2).tolist()
    assert len(errors) > 0.95 * 400
    assert np.mean(np.array(errors) <= 2.0) >= 0.97
    assert max(errors) < 10.0


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_copies_are_all_found(k: int, which: str) -> None:
    dtype = (DOUBLE, SINGLE)[k % 2]
    spectrum = np.concatenate([[4.0, 4.0, 4.0, 2.0, 2.0], np.linspace(-1, 1, 60), [-3.0, -3.0, -5.0]])
    matrix = symmetric(spectrum, seed=k, dtype=dtype)
    found = eigsh(ExplicitOperator(matrix), k, which=which, tol=1e-4)
    assert found.converged.all()
    assert (relative(found, matrix, k, which) <= 2e-4).all(), found
    check_pairs(found, matrix, k)


@pytest.mark.parametrize("word", WORDS)
def test_words_name_the_ends(word: str) -> None:
    a = operator(outliers(80), seed=2)
    assert (eigsh(a, 3, which=word).values == eigsh(a, 3, which=WORDS[word]).values).all()


def test_the_largest_is_no_negative_eigenvalue_however_far_out() -> None:
    a = operator([-50.0, -40.0] + [0.1 * i for i in range(20)], seed=1)
    assert eigsh(a).values[0] == pytest.approx(1.9, rel=1e-2)
    assert eigsh(a, which="LM").values[0] == pytest.approx(-50.0, rel=1e-2)
    assert eigsh(a, which="SA").values[0] == pytest.approx(-50.0, rel=1e-2)


def test_near_tied_ends_are_told_apart_when_the_tolerance_asks() -> None:
    a = operator(np.concatenate([[3.0, -3.0003], np.linspace(-1, 1, 60)]), seed=1)
    assert eigsh(a, which="LM", tol=1e-6).values[0] == pytest.approx(-3.0003, rel=1e-6)


@pytest.mark.parametrize("which", ENDS)
def test_scipy_agrees(which: str) -> None:
    a = operator(outliers(200), seed=5)
    theirs = np.sort(scipy_eigsh(a.to_scipy(), 4, which=which, return_eigenvectors=False))
    np.testing.assert_allclose(np.sort(eigsh(a, 4, which=which, tol=1e-8).values), theirs, rtol=1e-7)


@pytest.mark.parametrize("name", ["tanh, mse", "layer norm", "group norm, conv", "embedding, tied weights"])
@pytest.mark.parametrize("which", ["LA", "BE"])
def test_dense_hessians_of_nets_agree(name: str, which: str) -> None:
    loss = case(name)
    matrix = dense(loss)
    found = eigsh(Hessian(loss.closure, loss.params), 3, which=which, tol=1e-6)
    assert found.converged.all()
    assert (relative(found, matrix, 3, which) <= 2e-6).all()
    check_pairs(found, matrix, 3)
    assert [tensor.shape for tensor in found.vectors[0]] == [param.shape for param in loss.params]


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("which", ENDS)
def test_all_eigenvalues_of_small_operators(n: int, which: str, dtype: torch.dtype) -> None:
    matrix = symmetric(np.arange(n) - 1.3, seed=n, dtype=dtype)
    found = eigsh(ExplicitOperator(matrix), n, which=which, tol=1e-8)
    np.testing.assert_allclose(found.values, wanted(matrix, n, which), atol=1e-5 if dtype == SINGLE else 1e-12)
    assert found.converged.all()
    assert found.matvecs == n
    check_pairs(found, matrix, n)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_multiples_of_the_identity_take_k_products(value: float) -> None:
    found = eigsh(operator([value] * 50), 3, tol=1e-8)
    np.testing.assert_allclose(found.values, [value] * 3, atol=1e-12)
    assert found.converged.all()
    assert found.matvecs <= 4


@pytest.mark.parametrize("k", [1, 4])
def test_running_out_of_products_is_said(k: int) -> None:
    a = operator(torch.linspace(-1, 1, 150), seed=3)
    true = wanted(a.matrix, k, "LA")
    for most in range(1, 40, 3):
        before = a.matvecs
        found = eigsh(a, k, tol=1e-8, max_matvecs=most)
        assert found.matvecs == a.matvecs - before <= most
        assert not found.converged.all()
        assert "not converged" in repr(found)
        assert not (found.converged & (np.abs(found.values - true) > 1e-6)).any()
        assert len(found.values) == len(found.vectors) == len(found.residuals) == k
        assert np.isfinite(found.values).sum() == min(k, most)


def test_running_out_just_after_a_restart_is_no_accident() -> None:
    a = operator(torch.linspace(-1, 1, 60), seed=1)
    for most in range(40, 50):
        found = eigsh(a, 6, tol=1e-8, max_matvecs=most)
        check_pairs(found, a.matrix, 6)


@pytest.mark.parametrize("k", [1, 3])
def test_a_warm_start_is_cheaper_than_a_cold_one(k: int) -> None:
    """After a small change of the operator, as from one reading of a training to the next."""
    cold = warm = 0
    for seed in range(5):
        first = symmetric(outliers(200), seed)
        drift = symmetric(torch.randn(200, generator=torch.Generator().manual_seed(seed)), seed + 50)
        then = eigsh(ExplicitOperator(first), k, tol=1e-2)
        second = ExplicitOperator(first + 0.003 * drift)
        found = eigsh(second, k, tol=1e-2, warm_start=then)
        assert (relative(found, second.matrix, k, "LA") <= 2e-2).all()
        warm += found.matvecs
        cold += eigsh(second, k, tol=1e-2).matvecs
    assert warm < (0.8 if k == 1 else 1.0) * cold  # that no copy is missed is looked into warm as well


def test_every_form_of_a_warm_start_is_taken() -> None:
    a = operator(outliers(300), seed=1)
    exact = eigsh(a, 2, tol=1e-8)
    vectors = torch.stack([flat(vector) for vector in exact.vectors])
    cold = eigsh(a, tol=1e-4).matvecs
    for start in (exact, vectors, vectors[0], [vectors[0]], exact.vectors[0], list(exact.vectors)):
        found = eigsh(a, tol=1e-4, warm_start=start)
        assert found.values[0] == pytest.approx(9.0, rel=2e-4)
        assert found.matvecs < cold


def test_a_warm_start_is_taken_over_under_other_weights() -> None:
    """Directions in parameters stay, the coordinates follow W: W'^(-1/2) W^(1/2) u."""
    a = operator(outliers(300), seed=2)
    random = torch.Generator().manual_seed(0)
    w = 10.0 ** (-2 * torch.rand(300, generator=random, dtype=DOUBLE))
    first = eigsh(a.conditioned([w]), 2, tol=1e-6)
    for vector, direction in zip(first.vectors, first.directions, strict=True):
        torch.testing.assert_close(direction[0], w.sqrt() * vector[0])
    later = w * (1 + 0.02 * torch.rand(300, generator=random, dtype=DOUBLE))
    conditioned = a.conditioned([1000.0 * later])
    warm, cold = eigsh(conditioned, warm_start=first), eigsh(conditioned)
    true = torch.linalg.eigvalsh((1000.0 * later).sqrt()[:, None] * a.matrix * (1000.0 * later).sqrt())[-1]
    assert warm.values[0] == pytest.approx(float(true), rel=2e-2)
    assert warm.matvecs < cold.matvecs


@pytest.mark.parametrize("seed", range(6))
def test_a_warm_start_on_the_wrong_eigenvector_is_left(seed: int) -> None:
    a = operator(outliers(200), seed=seed)
    vectors = torch.linalg.eigh(a.matrix)[1]
    for wrong in (-2, -5, 0, 100):
        found = eigsh(a, warm_start=vectors[:, wrong], generator=torch.Generator().manual_seed(seed))
        assert found.converged[0]
        assert found.values[0] == pytest.approx(9.0, rel=2e-2)


@pytest.mark.parametrize("start", [torch.zeros(60, dtype=DOUBLE), torch.full((60,), 1e-200, dtype=DOUBLE)], ids=str)
def test_a_warm_start_without_a_direction_is_a_cold_one(start: Tensor) -> None:
    assert eigsh(operator(outliers(60)), warm_start=start).values[0] == pytest.approx(9.0, rel=1e-2)


def test_equal_generators_give_equal_results_and_the_global_stream_is_left() -> None:
    a = operator(outliers(100), seed=1, dtype=SINGLE)
    state = torch.get_rng_state()
    one, two = eigsh(a, 2), eigsh(a, 2)
    other = eigsh(a, 2, generator=torch.Generator().manual_seed(5))
    again = eigsh(a, 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.values == two.values).all()
    assert torch.equal(flat(one.vectors[0]), flat(two.vectors[0]))
    assert (other.values == again.values).all()
    assert (other.values != one.values).any()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
def test_values_scale_with_the_operator(scale: float, dtype: torch.dtype) -> None:
    matrix = symmetric(outliers(100), seed=1, dtype=dtype)
    plain = eigsh(ExplicitOperator(matrix), 3, which="BE", tol=1e-4)
    scaled = eigsh(ExplicitOperator(matrix * scale), 3, which="BE", tol=1e-4)
    np.testing.assert_allclose(scaled.values, plain.values * scale, rtol=1e-4)
    assert scaled.converged.all()
    assert abs(scaled.matvecs - plain.matvecs) <= 3


@pytest.mark.parametrize("block", [1, 2, 5])
def test_blocks_find_the_same(block: int) -> None:
    a = operator(outliers(150), seed=3)
    found = eigsh(a, 6, tol=1e-6, block=block)
    np.testing.assert_allclose(found.values, wanted(a.matrix, 6, "LA"), rtol=1e-6)
    assert found.converged.all()


def test_parameters_of_every_shape_are_kept() -> None:
    params = [torch.zeros(()), torch.zeros(2, 3), torch.zeros(0, 4), torch.zeros(5)]
    a = ExplicitOperator(symmetric(range(12), seed=1, dtype=SINGLE), params)
    found = eigsh(a, 2)
    assert [tensor.shape for tensor in found.vectors[1]] == [param.shape for param in params]
    assert found.values[0] == pytest.approx(11.0, rel=1e-2)


def test_products_that_are_not_finite_are_refused() -> None:
    matrix = symmetric(outliers(30))
    matrix[4, 4] = torch.nan
    with pytest.raises(UsageError, match="NaN or infinity"):
        eigsh(ExplicitOperator(matrix))


@pytest.mark.parametrize("solver", [eigsh, spectral_density, generalized_sharpness])
def test_what_is_no_operator_is_named(solver: Callable[[object], object]) -> None:
    for given in (torch.eye(3), lambda: torch.zeros(())):
        with pytest.raises(UsageError, match=rf"{solver.__name__}\(operator\): .*got {type(given).__name__}"):
            solver(given)


@pytest.mark.parametrize(("settings", "said"), [
    ({"k": 0}, "k=..."), ({"k": -1}, "k=..."), ({"k": 1.0}, "k=..."), ({"k": True}, "k=..."),
    ({"k": 31}, "only 30"), ({"which": "top"}, "which"), ({"which": None}, "which"), ({"tol": 0.0}, "tol"),
    ({"tol": 1.0}, "tol"), ({"tol": float("nan")}, "tol"), ({"tol": -1e-2}, "tol"), ({"max_matvecs": 0}, "max_matvecs"),
    ({"block": 0}, "block"), ({"warm_start": torch.zeros(29)}, "30"), ({"warm_start": [torch.zeros(7)]}, "shape"),
    ({"warm_start": torch.full((30,), torch.nan)}, ""),
], ids=str)
def test_senseless_arguments_are_refused_by_name(settings: dict[str, object], said: str) -> None:
    a: Operator = operator(outliers(30))
    if settings.get("warm_start") is not None and not said:  # not finite: a cold start, or an error, but no NaN
        assert math.isfinite(eigsh(a, **settings).values[0])  # type: ignore[arg-type]
        return
    with pytest.raises(UsageError, match=said):
        eigsh(a, **settings)  # type: ignore[arg-type]
