"""The compiled sweep against float64 numpy, where it could be built."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreshock.monitor import Monitor
from foreshock.probes import native
from foreshock.probes.native import QUANTITIES, Native
from foreshock.probes.packs import build_apart
from foreshock.probes.second_moment import SecondMoment

ROOT = Path(__file__).parents[2]
MOMENT = SecondMoment("exp_avg_sq", 0.99, 0.01, 1e-8, corrected=True)
ALL = 63

compiled = pytest.mark.skipif(native.library() is None, reason="the compiled sweep was not built: no C compiler")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tensors(size: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g, last, theta, moved = (torch.randn(size, generator=generator) for _ in range(4))
    v = torch.rand(size, generator=generator) + 0.05 + 0.01 * g.square()
    return {"g": g, "last": last, "v": v, "before": theta, "p": theta + 0.01 * moved}


def run(cases: list[dict[str, Tensor]], moment: SecondMoment = MOMENT, what: int = ALL) -> dict[str, np.ndarray]:
    packs = build_apart([case["p"] for case in cases], [0] * len(cases))
    sweep = Native(packs)
    for pack, case in zip(packs, cases, strict=True):
        pack.own("last_grad").copy_(case["last"])
        pack.own("before").copy_(case["before"])
    column = {name: [case[name] for case in cases] for name in ("g", "p", "v")}
    sweep.run(what, column["g"], column["p"], column["v"], (moment,))
    for pack, case in zip(packs, cases, strict=True):
        assert pack.own("last_grad").numpy().tobytes() == case["g"].numpy().tobytes()
        assert pack.own("before").numpy().tobytes() == case["p"].numpy().tobytes()
    return dict(zip(QUANTITIES, sweep.out.numpy().copy(), strict=True))


def expected(case: dict[str, Tensor], moment: SecondMoment) -> dict[str, float]:
    g, last, v, before, p = (case[name].double() for name in ("g", "last", "v", "before", "p"))
    seen = ((-1 if moment.maximizes else 1) * g + moment.decay * before).square()
    ratio = seen / (v - moment.admit * seen).clamp(min=moment.keep * moment.eps**2)
    return {
        "grad_squares": float(g.square().sum()), "grad_products": float((g * last).sum()),
        "v_squares": float(v.square().sum()), "v": float(v.sum()), "ratio": float(ratio.sum()),
        "ratio_most": float(ratio.max()), "param_squares": float(p.square().sum()),
        "update_squares": float((p - before).square().sum()),
    }


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moment", [MOMENT, SecondMoment("exp_avg_sq", 0.99, 0.01, 1e-8, True, True, 0.1, True)])
def test_every_quantity_equals_float64_for_any_size(moment: SecondMoment, dtype: torch.dtype) -> None:
    drawn = [tensors(size, size) for size in (1, 2, 15, 16, 17, 4095, 4096, 4097, 10_000)]
    cases = [{name: tensor.to(dtype) for name, tensor in case.items()} for case in drawn]
    found, close = run(cases, moment), 2e-5 if dtype == torch.float32 else 1e-11
    for i, case in enumerate(cases):
        for name, value in expected(case, moment).items():
            assert found[name][i] == pytest.approx(value, rel=close, abs=close / 20), (name, i)


@compiled
def test_what_is_not_finite_shows_and_stays_in_its_tensor() -> None:
    for bad in (torch.nan, torch.inf):
        cases = [tensors(100, 1), tensors(100, 2)]
        cases[0]["g"][57] = bad
        found = run(cases)
        assert not np.isfinite(found["grad_squares"][0])
        assert not np.isfinite(found["ratio_most"][0])
        assert all(np.isfinite(values[1]) for values in found.values())


@compiled
def test_sums_of_squares_neither_underflow_nor_overflow() -> None:
    case = tensors(64, 3)
    case["g"] *= 1e-25
    case["v"] *= 1e-30
    case["p"] *= 1e25
    found = run([case])
    for name in ("grad_squares", "v_squares", "param_squares"):
        assert found[name][0] == pytest.approx(expected(case, MOMENT)[name], rel=1e-6), name


@compiled
def test_tensors_shared_out_among_threads_give_the_same(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [tensors(1000, seed) for seed in range(7)]
    alone = run(cases)
    monkeypatch.setattr(native, "SHARED", 2500)
    shared = run(cases)
    for name in QUANTITIES:
        np.testing.assert_array_equal(alone[name], shared[name])


@compiled
def test_a_missing_gradient_clears_the_last_one() -> None:
    model = nn.ParameterList([torch.ones(3), torch.ones(3)])
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with Monitor(model, optimizer) as monitor:
        for i in range(4):
            loss = model[0].square().sum() + (model[1].square().sum() if i != 2 else 0.0)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        cosine = monitor.run["grad_cosine/1"]
    assert np.isfinite(cosine).tolist() == [False, True, False, False]


def build_hook() -> Any:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_leaves_the_library_out_without_a_working_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = build_hook()
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setenv("CC", compiler)
        for source, _, flags in hook.PARTS:
            assert not hook.compile_loop(ROOT / source, tmp_path / "a.so", flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler on this machine")
def test_the_build_makes_a_library_where_there_is_a_compiler(tmp_path: Path) -> None:
    source, _, flags = build_hook().PARTS[0]
    assert build_hook().compile_loop(ROOT / source, tmp_path / "a.so", flags)
    assert os.listdir(tmp_path) == ["a.so"]
