"""Where F.cross_entropy absorbs the right class: bounds that hold, and a measurement that finds the boundary."""

from __future__ import annotations

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.numerics.margin import margin_cross_entropy
from foreshock.numerics.repair import exact_gradient
from foreshock.numerics.thresholds import absorption_bounds, measured_threshold
from tests.numerics.logits import DTYPES

BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
MARGIN = {torch.float16: 0.02, torch.bfloat16: 0.05, torch.float32: 0.02, torch.float64: 0.02}
CLASSES = (2, 3, 10, 97, 1000)


def stock(gap: float, dtype: torch.dtype, classes: int) -> tuple[Tensor, Tensor, float]:
    """Returns F.cross_entropy, its gradient, and the gap after rounding, where the right class leads all by `gap`."""
    z = torch.zeros(1, classes, dtype=dtype)
    z[0, 0] = gap
    loss = F.cross_entropy(z.requires_grad_(), torch.tensor([0]))
    return loss.detach(), torch.autograd.grad(loss, z)[0][0], float(z.detach()[0, 0])


def spacing(value: float, dtype: torch.dtype) -> float:
    """Returns the distance of a type's numbers at a value."""
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(value))


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(sys.modules[measured_threshold.__module__]).failed == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bounds_are_their_closed_forms(dtype: torch.dtype) -> None:
    for classes in CLASSES:
        low, high = absorption_bounds(dtype, classes)
        assert low == pytest.approx(BITS[dtype] * math.log(2), rel=1e-15)
        assert high == pytest.approx(low + math.log(classes - 1), rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_absorbs_beyond_the_bounds_and_not_before(dtype: torch.dtype) -> None:
    """Loss and right-class gradient vanish together, and the class sum is then the wrong classes'."""
    for classes in CLASSES:
        low, high = absorption_bounds(dtype, classes)
        step = spacing(high, dtype)
        loss, gradient, gap = stock(math.floor((low - MARGIN[dtype]) / step) * step, dtype, classes)
        assert low - MARGIN[dtype] - step <= gap < low
        assert loss > 0
        assert gradient[0] < 0
        loss, gradient, gap = stock(math.ceil((high + MARGIN[dtype]) / step) * step, dtype, classes)
        assert high < gap <= high + MARGIN[dtype] + step
        assert loss == 0
        assert gradient[0] == 0
        assert (gradient[1:] > 0).all()
        assert gradient.double().sum() == gradient[1:].double().sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_the_measured_threshold_of_torch_lies_within_the_bounds(dtype: torch.dtype, classes: int) -> None:
    low, high = absorption_bounds(dtype, classes)
    found = measured_threshold(F.cross_entropy, dtype, classes)
    assert low <= found <= high + spacing(high, dtype)
    before = torch.nextafter(torch.tensor(found, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    assert stock(float(before), dtype, classes)[1][0] < 0
    assert stock(found, dtype, classes)[1][0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", CLASSES)
def test_half_precision_sits_on_the_upper_bound(dtype: torch.dtype, classes: int) -> None:
    """Its sums are kept in float32 and rounded once."""
    high = absorption_bounds(dtype, classes)[1]
    assert measured_threshold(F.cross_entropy, dtype, classes) == pytest.approx(high, abs=spacing(high, dtype))


@pytest.mark.parametrize("classes", CLASSES)
def test_one_close_rival_sits_on_the_lower_bound_whatever_the_number_of_classes(classes: int) -> None:
    low = absorption_bounds(torch.float32, classes)[0]
    far = torch.full((classes,), -60.0)
    far[:2] = 0.0
    found = measured_threshold(lambda z, target: F.cross_entropy(z + far, target), torch.float32, classes)
    assert found == pytest.approx(low, abs=1e-5)


def test_logits_sent_through_float64_absorb_where_float64_does() -> None:
    found = measured_threshold(lambda z, target: F.cross_entropy(z.double(), target), torch.float32, 2)
    assert found == pytest.approx(absorption_bounds(torch.float64, 2)[0], abs=1e-4)


def test_an_offset_matters_to_a_loss_by_log_sum_exp_and_not_to_torch() -> None:
    def fused(z: Tensor, target: Tensor) -> Tensor:
        return (z.logsumexp(1) - z.gather(1, target[:, None])[:, 0])[0]

    low = absorption_bounds(torch.float32, 2)[0]
    by_offset = [measured_threshold(fused, torch.float32, 2, offset=o) for o in (0.0, 16.0, 100.0, 1000.0)]
    assert by_offset == sorted(by_offset, reverse=True)
    # rounded where the logits lie: half a spacing of the offset, as the paper's table has it
    assert by_offset[1:] == pytest.approx([13.8, 12.5, 10.4], abs=0.1)
    for offset in (-1000.0, 16.0, 1000.0):
        assert measured_threshold(F.cross_entropy, torch.float32, 2, offset=offset) == pytest.approx(low, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("loss", [
    margin_cross_entropy, lambda z, target: F.cross_entropy(exact_gradient(z, target), target),
], ids=["margin", "repaired"])
def test_exact_losses_have_no_threshold(loss: object, dtype: torch.dtype, classes: int) -> None:
    assert measured_threshold(loss, dtype, classes) == math.inf


def test_a_loss_that_never_lets_go_has_no_threshold_either() -> None:
    def smoothed(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(z, target, label_smoothing=0.1)

    assert measured_threshold(smoothed, torch.float32, 10) == math.inf


@pytest.mark.parametrize(("dtype", "classes", "offset", "message"), [
    (torch.float32, 1, 0.0, "classes = 1"), (torch.int64, 2, 0.0, "floating"),
    (torch.float16, 2, 1e5, "no gaps"), (torch.bfloat16, 2, 1e38, "no gaps"),
])
def test_what_has_no_threshold_to_measure_is_refused(
    dtype: torch.dtype, classes: int, offset: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measured_threshold(F.cross_entropy, dtype, classes, offset=offset)
