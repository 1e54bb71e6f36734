"""The Triton kernels in Triton's interpreter: the numbers of the torch path, at every gap, in every type.

The interpreter has to be chosen before Triton is first imported, so these tests run in a process of their own: without
`TRITON_INTERPRET=1` the last one starts it, and the others are skipped. Skipped altogether where there is no Triton;
`make kernel` installs it.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foreshock.errors import ForeshockWarning
from foreshock.numerics import dispatch
from foreshock.numerics import rows as numerics_rows
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.rows import gradients_of_rows, losses_of_rows
from tests.numerics.logits import DTYPES, TOLERANCE, confident, error, exactly, value_and_gradient

pytest.importorskip("triton", reason="make kernel installs Triton")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not dispatch.INTERPRETED, reason="runs in the process that the last test starts")
# the interpreter is numpy: it warns where a GPU does not, of logits that are no numbers
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(
    seed: int, rows: int, classes: int, dtype: torch.dtype, soft: bool, **where: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Returns logits, right classes, shared targets, the right class's own, and the gradient that comes in."""
    generator = seeded(seed)
    z, target = confident(generator, rows, classes, dtype, **where)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    draw = {"generator": generator, "dtype": kind}
    spread = torch.rand(1, classes, **draw) / classes if soft else None
    mass = torch.rand(rows, 1, **draw) if soft else None
    return z, target[:, None], spread, mass, 0.1 + torch.rand(rows, 1, **draw)


@pytest.fixture
def kernel():
    from foreshock.numerics import kernel

    return kernel


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (5, 2), (130, 10), (9, 97), (3, 1000), (2, 9000), (1, 20000)])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_and_gradients_are_those_of_the_torch_path(
    kernel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, classes: int, soft: bool
) -> None:
    """One program for many rows, one for a row, many blocks for a row; the last of each not full."""
    z, right, spread, mass, outer = case(classes, rows, classes, dtype, soft)
    loss, top, wrong = kernel.row_losses(z, right, spread, mass)
    monkeypatch.setattr(numerics_rows, "kernels", lambda *_: None)
    true = losses_of_rows(z, right, spread, mass, 1)
    for mine, theirs in zip((loss, top, wrong), true, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=8 * torch.finfo(mine.dtype).eps, atol=torch.finfo(mine.dtype).tiny)
    gradient = kernel.row_gradient(z, right, spread, mass, outer, top, wrong)
    same = gradients_of_rows(z, right, spread, mass, outer, top, wrong, 1)
    assert gradient.dtype == dtype
    # the interpreter cuts off where hardware rounds, on the way to half precision
    lost = {torch.float16: 6e-8, torch.float64: 0.0}.get(dtype, 1e-37)
    allowed = {"rtol": max(TOLERANCE[dtype] / 10, torch.finfo(dtype).eps), "atol": 1e-6 if soft else lost}
    assert torch.allclose(gradient, same, **allowed)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_the_whole_loss_is_exact_at_every_gap(dtype: torch.dtype, classes: int, offset: float) -> None:
    z, target = confident(seeded(classes), 12, classes, dtype, offset=offset)
    assert dispatch.kernels(z, None, -1) is not None
    value, gradient = value_and_gradient(cross_entropy, z, target, reduction="none")
    true_value, true_gradient = exactly(z, target, reduction="none")
    assert error(value, true_value, dtype) < TOLERANCE[dtype]
    assert error(gradient, true_gradient, dtype) < TOLERANCE[dtype]


@interpreted
def test_rows_may_lie_apart_in_memory(kernel) -> None:
    z, right, _, _, outer = case(0, 6, 40, torch.float32, False)
    wide = torch.randn(6, 100, generator=seeded(1))
    wide[:, 20:60] = z
    apart = wide[:, 20:60]
    loss, top, wrong = kernel.row_losses(apart, right)
    assert torch.equal(loss, kernel.row_losses(z, right)[0])
    expanded = outer[:1].expand(6, 1)
    mine = kernel.row_gradient(apart, right, None, None, expanded, top, wrong)
    assert torch.equal(mine, kernel.row_gradient(z, right, None, None, expanded.clone(), top, wrong))


@interpreted
def test_a_class_that_there_is_not_gives_nan_and_reads_nothing(kernel) -> None:
    z = torch.randn(4, 5, generator=seeded(2))
    loss, top, wrong = kernel.row_losses(z, torch.tensor([[0], [5], [-1], [4]]))
    assert loss.isnan().flatten().tolist() == [False, True, True, False]
    gradient = kernel.row_gradient(z, torch.tensor([[0], [5], [-1], [4]]), None, None, torch.ones(4, 1), top, wrong)
    assert gradient.isnan().all(1).tolist() == [False, True, True, False]


@interpreted
def test_second_derivatives_follow_the_kernels() -> None:
    z = torch.randn(4, 5, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 4, -100, 2])
    for smoothing in (0.0, 0.2):
        def loss(z: Tensor, smoothing: float = smoothing) -> Tensor:
            return cross_entropy(z, target, label_smoothing=smoothing)

        assert torch.autograd.gradcheck(loss, (z,))
        assert torch.autograd.gradgradcheck(loss, (z,))


@interpreted
def test_only_rows_that_it_can_read_are_given_to_it() -> None:
    z = torch.randn(6, 6, generator=seeded(4))
    even, each = torch.full((1, 6), 0.1), torch.full((6, 6), 0.1)
    assert dispatch.kernels(z, None, 1) is dispatch.kernels(z, even, -1) is not None
    for logits, spread, dim in [
        (z.t(), None, 1), (z[None], None, 1), (z, None, 0), (z[:0], None, 1), (z, each, 1), (z, even.double(), 1),
    ]:
        assert dispatch.kernels(logits, spread, dim) is None


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_comparison_with_float64_accepts_the_kernels(dtype: torch.dtype, soft: bool) -> None:
    limit = dispatch.TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    for classes in dispatch.SIZES:
        assert dispatch.discrepancy(CPU, dtype, soft, classes=classes) < limit / 10


@interpreted
@pytest.mark.parametrize("fault", ["loss", "gradient", "nan", "crash"])
def test_kernels_that_compute_something_else_are_left_alone_with_one_warning(
    kernel, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    honest_losses, honest_gradient = kernel.row_losses, kernel.row_gradient

    def losses(*arguments: Tensor) -> tuple[Tensor, ...]:
        if fault == "crash":
            raise RuntimeError("no C compiler")
        loss, top, wrong = honest_losses(*arguments)
        return loss * (1.001 if fault == "loss" else 1), top, wrong

    def gradient(logits: Tensor, right: Tensor, *rest: Tensor) -> Tensor:
        found = honest_gradient(logits, right, *rest)
        put = {"gradient": 0.0, "nan": math.nan}.get(fault)
        return found if put is None else found.scatter(1, right, put)

    monkeypatch.setattr(kernel, "row_losses", losses)
    monkeypatch.setattr(kernel, "row_gradient", gradient)
    monkeypatch.setattr(dispatch, "_verdicts", {})
    z, target = confident(seeded(5), 4, 10, torch.float32, gap=30.0)
    with pytest.warns(ForeshockWarning, match="no C compiler" if fault == "crash" else "differ from float64"):
        value, _ = value_and_gradient(cross_entropy, z, target)
    assert error(value, exactly(z, target)[0], torch.float32) < 1e-5
    value_and_gradient(cross_entropy, z, target)  # nothing more is said: warnings are errors here


@pytest.mark.skipif(dispatch.INTERPRETED, reason="this is that process")
def test_everything_above_holds_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__).resolve())],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(dispatch.INTERPRETED, reason="without the interpreter only")
def test_tensors_of_the_cpu_go_through_torch() -> None:
    assert dispatch.kernels(torch.zeros(4, 3), None, 1) is None
