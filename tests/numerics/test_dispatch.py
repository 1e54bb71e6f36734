"""The comparison with float64 that kernels have to pass, without Triton: torch's operators stand in for the kernels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from foreshock.numerics import dispatch
from foreshock.numerics.rows import gradients_of_rows, losses_of_rows


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(*rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return losses_of_rows(*rows, 1)

    def gradient(*rows: Tensor) -> Tensor:
        return gradients_of_rows(*rows, 1)

    monkeypatch.setattr(dispatch, "_module", lambda: SimpleNamespace(row_losses=losses, row_gradient=gradient))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_it_is_passed_whatever_the_default_device_is(dtype: torch.dtype, soft: bool, default: str) -> None:
    limit = dispatch.TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    with torch.device(default):
        assert dispatch.discrepancy(torch.device("cpu"), dtype, soft, classes=97) < limit / 10


def test_a_gradient_that_lost_the_right_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(logits: Tensor, right: Tensor, *rest: Tensor) -> Tensor:
        return gradients_of_rows(logits, right, *rest, 1).scatter(1, right, 0.0)

    honest = dispatch._module()
    monkeypatch.setattr(dispatch, "_module", lambda: SimpleNamespace(**{**vars(honest), "row_gradient": gradient}))
    found = dispatch.discrepancy(torch.device("cpu"), torch.float32, False, classes=97)
    assert found > dispatch.TOLERANCE[torch.float32]
