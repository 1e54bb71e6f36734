"""Trace, diagonal and Frobenius norm against dense matrices, their errors against their error bars."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
from torch import Tensor, nn

from foreshock.curvature import ExplicitOperator, Hessian
from foreshock.curvature.trace import Estimate, diagonal, frobenius, trace
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers

SEEDS = range(30)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rms(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(sys.modules[trace.__module__]).failed == 0


@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_error_of_a_trace_is_the_size_of_its_error_bar(method: str, dtype: torch.dtype) -> None:
    spectrum = outliers()
    a = operator(spectrum, dtype=dtype)
    found = [trace(a, probes=20, method=method, generator=seeded(seed)) for seed in SEEDS]
    scores = [(each.value - float(spectrum.sum())) / each.standard_error for each in found]
    assert 0.5 < rms(scores) < 1.6
    assert abs(sum(scores) / len(scores)) < 0.8  # no bias that the bars do not cover
    assert {each.matvecs for each in found} == {40 if method == "xtrace" else 20}


def test_the_sketch_beats_hutchinson_at_the_same_number_of_products_where_there_are_outliers() -> None:
    spectrum = outliers()
    a = operator(spectrum)
    true = float(spectrum.sum())
    errors = {
        method: rms([trace(a, probes=probes, method=method, generator=seeded(seed)).value - true for seed in SEEDS])
        for method, probes in (("xtrace", 20), ("hutchinson", 40))
    }
    assert errors["xtrace"] < 0.2 * errors["hutchinson"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_the_sketch_holds_whole_is_exact_to_rounding(dtype: torch.dtype) -> None:
    spectrum = torch.zeros(200, dtype=torch.float64)
    spectrum[:6] = torch.tensor([5.0, 4.0, 3.0, 3.0, -1.0, -2.0])
    a = operator(spectrum, dtype=dtype)
    slack = 100 * torch.finfo(dtype).eps
    found = trace(a, probes=10)
    assert found.value == pytest.approx(12.0, rel=slack)
    assert 0.0 < found.standard_error < slack * 100
    assert frobenius(a, probes=10).value == pytest.approx(8.0, rel=slack)
    entries = diagonal(a, probes=10).values[0]
    torch.testing.assert_close(entries, a.matrix.diagonal(), rtol=0, atol=slack * 10)


def test_an_operator_of_zeros_has_trace_zero() -> None:
    a = ExplicitOperator(torch.zeros(100, 100))
    assert trace(a, probes=4).value == 0.0
    assert frobenius(a, probes=4) == Estimate(0.0, 0.0, 8)
    assert float(diagonal(a, probes=4).values[0].abs().max()) == 0.0


def test_frobenius_norms_lie_within_their_error_bars() -> None:
    spectrum = outliers()
    a = operator(spectrum, seed=3)
    true = float(spectrum.square().sum().sqrt())
    found = [frobenius(a, probes=20, generator=seeded(seed)) for seed in SEEDS]
    assert 0.4 < rms([(each.value - true) / each.standard_error for each in found]) < 2.2
    assert rms([each.value / true - 1 for each in found]) < 1e-2


def test_diagonals_lie_within_their_error_bars() -> None:
    a = operator(outliers(), seed=4)
    found = diagonal(a, probes=30, generator=seeded(1))
    scores = (found.values[0] - a.matrix.diagonal()) / found.standard_errors[0]
    assert 0.6 < float(scores.square().mean().sqrt()) < 1.5
    assert found.matvecs == a.matvecs == 60


def test_a_hessian_gives_tensors_shaped_like_its_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(20, 6, generator=seeded(0), dtype=torch.float64)
    params = list(model.parameters())

    def loss() -> Tensor:
        return model(x).square().mean()

    dense = Hessian(loss, params).dense()
    found = diagonal(Hessian(loss, params), probes=100)  # more than there are parameters: exact
    assert [each.shape for each in found.values] == [p.shape for p in params]
    torch.testing.assert_close(torch.cat([each.flatten() for each in found.values]), dense.diagonal())
    assert float(torch.cat([each.flatten() for each in found.standard_errors]).abs().max()) == 0.0
    few = trace(Hessian(loss, params), probes=8)
    assert abs(few.value - float(dense.trace())) < 5 * few.standard_error
    assert frobenius(Hessian(loss, params), probes=100).value == pytest.approx(float(torch.linalg.matrix_norm(dense)))


def test_one_seed_one_result_and_the_global_stream_is_left_alone() -> None:
    a = operator(outliers())
    before = torch.get_rng_state()
    assert trace(a, probes=5) == trace(a, probes=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("call", [trace, frobenius, diagonal])
def test_bad_arguments_are_named(call: object) -> None:
    a = operator(outliers())
    with pytest.raises(UsageError, match=r"probes=\.\.\..*got 1"):
        call(a, probes=1)  # type: ignore[operator]
    with pytest.raises(UsageError, match="not finite"):
        call(ExplicitOperator(torch.full((100, 100), torch.nan)), probes=4)  # type: ignore[operator]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="hutch"):
        trace(operator(outliers()), method="hutch")
