"""The compiled step: to a few roundings of float64 over the whole range, the same bits on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from foreshock.optim import native

compiled = pytest.mark.skipif(native.library() is None, reason="the compiled step was not built: no C compiler")
SETTINGS = {
    "lr": 0.01, "beta": 0.95, "beta2": 0.95, "p": 3.0, "eps": 1e-30, "weight_decay": 0.1, "nesterov": True,
    "maximize": False,
}
Lists = list[list[Tensor]]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def drawn(seed: int, size: int, dtype: torch.dtype = torch.float32, *, low: float = -20, high: float = 15) -> Lists:
    """Returns a parameter, gradient, average and root in lists; the last three of one size, 10^low to 10^high."""
    draw = torch.Generator().manual_seed(seed)
    scale = 10 ** (low + (high - low) * torch.rand(size, generator=draw, dtype=torch.float64))
    theta, grad, average = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(3))
    root = torch.rand(size, generator=draw, dtype=torch.float64) * 4 ** torch.randn(size, generator=draw)
    grad[::17] = 0
    root[::13] = 0
    average[:: 17 * 13] = 0  # no history at all
    return [[each.to(dtype)] for each in (theta, grad * scale, average * scale, root * scale)]


def exactly(lists: Lists, settings: dict) -> list[Tensor]:
    """Returns the parameter, average and root after a step, and the update, in float64."""
    theta, g, m, r = (each[0].double() for each in lists)
    beta, beta2, p = settings["beta"], settings["beta2"], settings["p"]
    g = -g if settings["maximize"] else g
    most = torch.maximum(g.abs(), r)
    unit = torch.where(most > 0, most, 1)
    new, old = (g.abs() / unit) ** p, (r / unit) ** p
    m = beta * m + (1 - beta) * g
    s = beta2 * old + (1 - beta2) * new
    n, below = m, s
    if settings["nesterov"]:
        n, below = beta * m + (1 - beta) * g, beta2 * s + (1 - beta2) * new
    u = n / (unit * below ** (1 / p) * (most > 0) + settings["eps"])
    theta = (1 - settings["lr"] * settings["weight_decay"]) * theta - settings["lr"] * u
    return [theta, m, unit * s ** (1 / p) * (most > 0), u]


@compiled
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 1.01, 9.0, 40.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_within_a_few_roundings_of_float64(p: float, dtype: torch.dtype) -> None:
    for settings in ({**SETTINGS, "p": p}, {**SETTINGS, "p": p, "beta2": 0.999, "nesterov": False, "maximize": True}):
        lists = drawn(1, 4099, dtype)
        theta, m, r, u = exactly(lists, settings)
        eps, sizes = torch.finfo(dtype).eps, lists[1][0].double().abs() + lists[2][0].double().abs()
        native.update(*lists, **settings)
        few = 8 if dtype == torch.float32 else 16  # the reference's powers round as much
        assert ((lists[3][0].double() - r).abs() <= few * eps * r).all()
        assert ((lists[2][0].double() - m).abs() <= few * eps * sizes).all()
        moved = 1 + theta.abs() + settings["lr"] * (u.abs() + sizes / (r + settings["eps"]))
        assert ((lists[0][0].double() - theta).abs() <= few * eps * moved).all()


@compiled
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0, 4.0])
def test_the_smallest_and_largest_numbers_there_are_stay_right(p: float) -> None:
    for low, high, close in ((-44, -38, 1e-5), (30, 38, 1e-5)):
        lists = drawn(2, 500, low=low, high=high)
        lists[3][0].clamp_(max=3e38)
        theta, _, r, _ = exactly(lists, {**SETTINGS, "p": p, "eps": torch.finfo(torch.float32).tiny})
        native.update(*lists, **{**SETTINGS, "p": p, "eps": 0.0})
        rounding = 1.5e-45  # the step from one subnormal number to the next
        assert torch.allclose(lists[3][0].double(), r, rtol=close, atol=rounding)
        assert torch.allclose(lists[0][0].double(), theta, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("p", [1.0, 2.5, 3.0])
def test_what_is_not_finite_stays_in_its_coordinate(p: float) -> None:
    for column in (1, 2, 3):
        for bad in (torch.nan, torch.inf):
            lists = drawn(3, 100)
            spared = [[each[0].clone()] for each in lists]
            lists[column][0][57] = bad
            native.update(*lists, **{**SETTINGS, "p": p})
            native.update(*spared, **{**SETTINGS, "p": p})
            others = torch.arange(100) != 57
            for mine, theirs in zip(lists, spared, strict=True):
                assert torch.equal(mine[0][others], theirs[0][others])
            assert not lists[0][0][57].isfinite() or (column == 3 and bad is torch.inf)
            if column != 2:
                assert not lists[3][0][57].isfinite()


@compiled
def test_no_history_gives_no_step() -> None:
    for p in (1.0, 2.5, 3.0):
        lists = [[torch.ones(40)], *([torch.zeros(40)] for _ in range(3))]
        native.update(*lists, **{**SETTINGS, "p": p, "eps": 0.0, "weight_decay": 0.0})
        assert torch.equal(lists[0][0], torch.ones(40))
        assert not any(each[0].any() for each in lists[1:])


@compiled
@pytest.mark.parametrize("kinds", [(1, 1, 1, 1), (0, 0, 1, 1), (1, 1, 0, 0), (0, 1, 0, 1)])
@pytest.mark.parametrize("p", [3.0, 2.5])
def test_bfloat16_is_float32_that_is_rounded_when_it_is_stored(kinds: tuple[int, ...], p: float) -> None:
    types = [torch.bfloat16 if half else torch.float32 for half in kinds]
    lists = [[each[0].to(kind)] for each, kind in zip(drawn(4, 2500), types, strict=True)]
    wide = [[each[0].float().clone()] for each in lists]
    assert native.usable(*lists, p)
    native.update(*lists, **{**SETTINGS, "p": p})
    native.update(*wide, **{**SETTINGS, "p": p})
    for mine, theirs in zip(lists, wide, strict=True):
        assert torch.equal(mine[0], theirs[0].to(mine[0].dtype))


@compiled
def test_threads_change_no_bit(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [1, 70, 5000, 3, 20_001, 0, 64, 911]
    for kinds in ({torch.float32}, {torch.float32, torch.bfloat16}, {torch.float64}):
        results = []
        for team in (native.team(), None):
            for share in (1 << 30, 3000):
                monkeypatch.setattr(native, "SHARE", share)
                monkeypatch.setattr(native, "team", lambda team=team: team)
                parts = [drawn(i, size, sorted(kinds, key=str)[i % len(kinds)]) for i, size in enumerate(sizes)]
                lists = [[part[column][0] for part in parts] for column in range(4)]
                native.update(*lists, **SETTINGS)
                results.append(lists)
        for other in results[1:]:
            assert all(torch.equal(a, b) for mine, theirs in zip(results[0], other, strict=True)
                       for a, b in zip(mine, theirs, strict=True))


def test_shares_cover_all_tensors_in_order() -> None:
    for sizes in ([5], [0, 0], [1, 2, 3], [100_000], [64] * 50, [7, 100_000, 0, 9, 3000]):
        for shares in (1, 2, 5, 16):
            edges = native._edges(sizes, shares)
            assert edges[0] == 0
            assert edges[-1] == sum(sizes)
            assert edges == sorted(edges)
    edges = native._edges([100_000, 100_000], 8)
    assert max(b - a for a, b in pairwise(edges)) < 25_000 + 2 * native.LINE


@compiled
def test_a_write_is_seen_by_autograd() -> None:
    lists = drawn(5, 10)
    weight = lists[0][0].requires_grad_()
    loss = (weight * weight).sum()
    with torch.no_grad():
        native.update(*lists, **SETTINGS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@compiled
def test_only_what_it_can_read_is_taken() -> None:
    plain = drawn(6, 8)
    assert native.usable(*plain, 3.0)
    assert native.usable(*drawn(6, 8, torch.float64), 3.0)
    assert not native.usable(*plain, float("inf"))
    for column in range(4):
        for other in (
            plain[column][0].double(), plain[column][0].to("meta"), plain[column][0].to(torch.complex64),
            plain[column][0].to_sparse(),
        ):
            lists = [list(each) for each in plain]
            lists[column] = [other]
            assert not native.usable(*lists, 3.0)


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    monkeypatch.setenv("FORESHOCK_NATIVE", "0")
    try:
        assert native.library() is None
        assert not native.usable(*drawn(7, 8), 3.0)
    finally:
        native.library.cache_clear()


@compiled
def test_a_loop_that_computes_something_else_is_not_used() -> None:
    steps = native.library()
    assert steps is not None
    for dtype, step in steps.items():
        assert native._works(step, dtype)
        assert not native._works(lambda *arguments: None, dtype)
        # another rule: p = 2 in place of p = 3
        assert not native._works(lambda *a, step=step: step(*a[:4], native._HOW[2.0], *a[5:]), dtype)
