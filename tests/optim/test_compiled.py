"""The step as a Triton kernel, in Triton's interpreter, and by torch's compiler: the numbers of float64.

The interpreter has to be chosen before Triton is first imported, so its tests run in a process of their own, which
`test_the_kernel_in_the_interpreter` starts where there is Triton (`make kernel` installs it). What torch's compiler is
given is tested as it is, every time; compiling it, which takes a minute, in the nightly tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.optim import compiled, update
from foreshock.optim.flat import constants, in_order
from tests.optim.test_native import SETTINGS, Lists, drawn, exactly

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
POWERS = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0]
interpreted = pytest.mark.skipif(not compiled.INTERPRETED, reason="runs in the process that another test starts")
has_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


def close(lists: Lists, told: list[torch.Tensor], settings: dict, few: float) -> bool:
    """Returns whether parameter and root are within `few` roundings, each of what it was made of."""
    theta, _, r, u = told
    eps, history = torch.finfo(lists[0][0].dtype).eps, lists[2][0].double().abs() + lists[1][0].double().abs()
    moved = 1 + theta.abs() + settings["lr"] * (u.abs() + history / (r + settings["eps"]))
    right = ((lists[3][0].double() - r).abs() <= few * eps * r).all()
    return bool(right and ((lists[0][0].double() - theta).abs() <= few * eps * moved).all())


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_compiler_is_given_is_the_step(p: float, dtype: torch.dtype) -> None:
    for settings in ({**SETTINGS, "p": p}, {**SETTINGS, "p": p, "beta2": 0.999, "nesterov": False, "maximize": True}):
        lists = drawn(1, 900, dtype)
        told = exactly(lists, settings)
        numbers = torch.tensor(constants(dtype, **settings), dtype=dtype)
        compiled.coordinates(p)(*(column[0] for column in lists), numbers)
        assert close(lists, told, settings, 16)


def test_the_cube_root_is_right_to_a_rounding() -> None:
    s = torch.logspace(-30, 30, 20_000, dtype=torch.float64).float()
    off = (compiled.cube_root(s).double() / s.double() ** (1 / 3) - 1).abs().max()
    assert off < 1.1 * torch.finfo(torch.float32).eps


def test_tensors_that_lie_apart_go_through_copies_in_the_parameters_order() -> None:
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows = [(wide[:, ::2], wide[:, :4], wide.t()[:6, :6][:, :4], wide[:, :4].clone()), (wide.t(), *[wide.t()] * 3)]
    columns, copies = in_order([list(column) for column in zip(*rows, strict=True)])
    assert [column[1] is wide.t() or column[1].data_ptr() == wide.data_ptr() for column in columns] == [True] * 4
    assert all(column[0].is_contiguous() for column in columns)
    assert all(torch.equal(column[0], row) for column, row in zip(columns, rows[0], strict=True))
    written = [rows[0][0], rows[0][2]]  # neither the gradient nor what lies as it should
    assert [tensor.data_ptr() for tensor, _ in copies][:1] == [written[0].data_ptr()]
    assert all(tensor is not rows[0][1] for tensor, _ in copies)


def test_where_there_is_no_compiler_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*tensors: torch.Tensor) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled, "_compiled", lambda p, types: broken)
    monkeypatch.setattr(compiled, "INTERPRETED", False)
    with pytest.raises(UsageError, match=r"C\+\+ compiler.*fused=False"):
        compiled.update(*drawn(2, 8), **SETTINGS)


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    types = (torch.float32,) * 4
    monkeypatch.setattr(compiled, "INTERPRETED", True)
    for wrong in (0.01, float("nan")):
        monkeypatch.setattr(compiled, "_verdicts", {})
        monkeypatch.setattr(compiled, "discrepancy", lambda *_, wrong=wrong: wrong)
        with pytest.warns(ForeshockWarning, match="differs from float64"):
            assert not compiled._kernel_serves(CPU, types)
        assert not compiled._kernel_serves(CPU, types)  # silent the second time
    monkeypatch.setattr(compiled, "_verdicts", {})
    monkeypatch.setattr(compiled, "discrepancy", lambda *_: 1e-7)
    assert compiled._kernel_serves(CPU, types)


@interpreted
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_takes_a_list_of_any_sizes(p: float, dtype: torch.dtype) -> None:
    from foreshock.optim import kernel

    settings = {**SETTINGS, "p": p}
    parts = [drawn(i, size, dtype) for i, size in enumerate((1500, 1, 0, 1024, 7))]
    told = [exactly(part, settings) for part in parts]
    columns = [[part[column][0] for part in parts] for column in range(4)]
    kernel.step(columns, [dtype] * 4, torch.tensor(constants(dtype, **settings), dtype=dtype), p)
    assert all(close(part, true, settings, 16) for part, true in zip(parts, told, strict=True))


@interpreted
def test_the_kernel_serves_every_type_and_layout() -> None:
    for types in ((torch.bfloat16,) * 4, (torch.float16,) * 4, (torch.float32,) * 2 + (torch.bfloat16,) * 2):
        assert compiled._kernel_serves(CPU, types)
    draw = torch.Generator().manual_seed(1)
    lists = [[torch.randn(30, 40, generator=draw).t(), torch.randn(5, generator=draw)] for _ in range(4)]
    lists[3] = [each.abs() for each in lists[3]]
    other = [[each.clone() for each in column] for column in lists]
    lists[1][0] = lists[1][0].contiguous()
    before = lists[0][0]._version
    compiled.update(*lists, **{**SETTINGS, "lr": torch.tensor(0.1)})
    update.update(*other, **{**SETTINGS, "lr": 0.1})
    assert lists[0][0]._version > before
    for mine, theirs in zip(lists, other, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(mine, theirs, strict=True))


@interpreted
def test_the_kernel_keeps_what_is_not_finite_in_its_coordinate() -> None:
    for column in (1, 2, 3):
        lists, spared = drawn(3, 100), drawn(3, 100)
        lists[column][0][57] = torch.nan
        for each in (lists, spared):
            compiled.update(*each, **SETTINGS)
        others = torch.arange(100) != 57
        assert lists[0][0][57].isnan()
        for mine, theirs in zip(lists, spared, strict=True):
            assert torch.equal(mine[0][others], theirs[0][others])


@pytest.mark.skipif(compiled.INTERPRETED or find_spec("triton") is None, reason="make kernel installs Triton")
def test_the_kernel_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "kernel", __file__]
    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch's compiler imports
@has_compiler
def test_one_compilation_serves_all_shapes_schedules_and_settings() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    for turn, size in enumerate((4099, 2, 10, 1000, 1, 0, 77)):
        settings = {**SETTINGS, "lr": 0.01 * (turn + 1), "nesterov": turn % 2 == 0, "weight_decay": 0.05 * turn}
        lists = drawn(size, size)
        told = exactly(lists, settings)
        compiled.update(*lists, **settings)
        assert close(lists, told, settings, 16)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]
