"""What a reading says beside chi, against dense matrices of the same steps."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.curvature import Hessian
from foreshock.monitor import Monitor
from foreshock.probes import Curvature, approach, cadence
from foreshock.run import Run
from foreshock.stability import edge_weights

torch.set_num_threads(1)
STEPS = 12


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def batch_of(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return x, x[:, :1] * x[:, 1:2] + x[:, 2:].sin()


@dataclass
class Point:
    """Everything at one step, densely: u and its W, P, the gradient and the Hessian."""

    W: Tensor
    P: Tensor
    H: Tensor
    g: Tensor
    u: Tensor
    chi: float
    lr: float
    gain: float
    correction: float

    @property
    def way(self) -> Tensor:
        y = self.W.sqrt() * self.u
        return y / y.norm()


def flat(tensors: Any) -> Tensor:
    return torch.cat([each.detach().double().reshape(-1) for each in tensors])


def point(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list[Tensor], loss: Callable[[], Tensor]) -> Point:
    weights = edge_weights(optimizer, grads)
    W, P = flat(weights.tensors), flat(weights.denominators)
    params = list(model.parameters())
    decay = flat([torch.full_like(p, each) for p, each in zip(params, weights.l2, strict=True)])
    raw = Hessian(loss, params).dense()
    values, vectors = torch.linalg.eigh(W.sqrt()[:, None] * (raw + torch.diag(decay)) * W.sqrt())
    return Point(
        W, P, raw, flat(grads) + decay * flat(params), vectors[:, -1], float(values[-1]), weights.lrs[0],
        weights.gains[0], weights.corrections[0],
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=3e-2, betas=(0.9, 0.98)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.6, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
}


def watched(
    kind: str, *, held: bool = True, schedule: Callable[[int], float] = lambda step: 1.0, steps: int = STEPS,
    probe: Curvature | None = None, size: int = 16,
) -> tuple[Run, dict[int, Point]]:
    """Trains with a reading at every step, and returns the run with the dense truth of each."""
    model = small()
    optimizer = OPTIMIZERS[kind](model.parameters())
    first, truth = optimizer.param_groups[0]["lr"], {}
    probe = Curvature(every=1, tol=1e-6) if probe is None else probe
    with Monitor(model, optimizer, probes=[probe], max_overhead=math.inf) as monitor:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = first * schedule(step)
            x, y = batch_of(0 if held else step, size)

            def of(batch: tuple[Tensor, Tensor]) -> Tensor:
                return F.mse_loss(model(batch[0]), batch[1])

            loss = of((x, y))
            monitor.observe(loss, closure=of if held else None, batch=(x, y))
            loss.backward()
            grads = [param.grad.clone() for param in model.parameters() if param.grad is not None]
            kept = copy.deepcopy((model, optimizer))
            truth[step] = point(*kept, grads, lambda m=kept[0], b=(x, y): F.mse_loss(m(b[0]), b[1]))
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    return run, truth


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadence, "NEAR", -math.inf)
    monkeypatch.setattr(cadence, "CONFIRMED", 0)
    monkeypatch.setattr(cadence, "RELIEVED", math.inf)


def columns(run: Run, name: str) -> dict[int, float]:
    if name not in run.columns:
        return {}
    steps, values = run.measured(name)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def schedule(step: int) -> float:
    return 1.0 + 0.02 * step


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_growth_and_its_parts_are_those_of_dense_matrices(kind: str) -> None:
    run, truth = watched(kind, schedule=schedule)
    growth, overlap = columns(run, "chi_growth"), columns(run, "chi_overlap")
    assert len(growth) >= STEPS - 6
    parts = {
        name: columns(run, f"chi_growth_{name}")
        for name in ("lr", "momentum", "denominator", "preconditioner", "landscape")
    }
    for before, now in itertools.pairwise(sorted(columns(run, "chi"))):
        one, two = truth[before], truth[now]
        assert overlap[now] == pytest.approx(abs(float(one.way @ two.way)), abs=1e-4)
        if now not in growth:
            assert overlap[now] < 0.5
            continue
        masses = (one.u**2 + two.u**2) / 2
        whole = float(masses @ (two.W.log() - one.W.log()))
        lr = math.log(two.lr / one.lr)
        momentum = math.log(two.gain / one.gain) - math.log(two.correction / one.correction)
        assert growth[now] == pytest.approx(math.log(two.chi / one.chi), abs=1e-5)
        assert parts["preconditioner"][now] == pytest.approx(whole, abs=1e-4)
        assert parts["landscape"][now] == pytest.approx(growth[now] - whole, abs=1e-4)
        assert parts["lr"][now] == pytest.approx(lr, abs=1e-6)
        assert parts["momentum"][now] == pytest.approx(momentum, abs=1e-6)
        assert parts["denominator"][now] == pytest.approx(whole - lr - momentum, abs=1e-4)
    tensors = [name for name in run.columns if name.startswith("chi_growth_denominator/")]
    assert len(tensors) == 4
    for step in growth:
        told = sum(columns(run, name)[step] for name in tensors)
        assert told == pytest.approx(parts["denominator"][step], abs=1e-6)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_the_mode_is_that_of_dense_matrices(kind: str) -> None:
    run, truth = watched(kind)
    loss, denominator = columns(run, "chi_mode_loss"), columns(run, "chi_denominator")
    for step in columns(run, "chi"):
        at = truth[step]
        assert denominator[step] == pytest.approx(float((at.u**2 @ at.P.log()).exp()), rel=1e-3)
        told = float(at.u @ (at.W.sqrt() * at.g)) ** 2 / (2 * at.chi)
        assert loss[step] == pytest.approx(told, rel=1e-2, abs=1e-6)


def later_chi(at: Point, kind: str, step: int, ahead: int) -> float:
    """Returns chi sum u^2 P/P', P' being the denominator so many steps later, written out for each optimizer."""
    if kind == "rmsprop":
        root = (at.P - 1e-8) * 0.99 ** (ahead / 2)
        return at.chi * float(at.u**2 @ (at.P / (root + 1e-8)))
    now, then = step + 1, step + 1 + ahead
    first, second = (1 - 0.9**now, 1 - 0.9**then), (1 - 0.98**now, 1 - 0.98**then)
    root = (at.P / first[0] - 1e-8) * math.sqrt(second[0] * 0.98**ahead / second[1])
    return at.chi * float(at.u**2 @ (at.P / (first[1] * (root + 1e-8))))


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_the_crossing_is_the_first_step_of_free_decay_beyond_the_edge(kind: str) -> None:
    run, truth = watched(kind)
    crossing, chi = columns(run, "chi_crossing"), columns(run, "chi")
    assert len(crossing) == len(chi)
    for step, ahead in crossing.items():
        if chi[step] >= 1:
            assert ahead == 0
            continue
        assert later_chi(truth[step], kind, step, int(ahead)) > 1 - 2e-3
        assert later_chi(truth[step], kind, step, int(ahead) - 1) < 1 + 2e-3


@pytest.mark.parametrize(("kind", "boost"), [("adam", 60.0), ("rmsprop", 1.0)])
def test_eps_and_floor_would_bring_chi_to_nine_tenths(kind: str, boost: float) -> None:
    run, truth = watched(kind, schedule=lambda step: boost if step > 5 else 1.0)
    eps, floor, chi = (columns(run, name) for name in ("stable_eps", "stable_floor", "chi"))
    above = {step for step, value in chi.items() if value > 0.9}
    assert len(above) >= 3
    assert set(eps) == set(floor) == above
    for step in above:
        at = truth[step]
        raised = at.P + at.correction * (eps[step] - 1e-8)
        assert at.chi * float(at.u**2 @ (at.P / raised)) == pytest.approx(0.9, rel=5e-3)
        floored = at.P.clamp(min=floor[step])
        assert at.chi * float(at.u**2 @ (at.P / floored)) == pytest.approx(0.9, rel=5e-3)


def test_plain_descent_has_no_eps_to_raise() -> None:
    run, _ = watched("sgd", schedule=lambda step: 1.5)
    assert max(columns(run, "chi").values()) > 0.9
    assert not {"stable_eps", "stable_floor", "chi_crossing"} & set(run.columns)


def test_the_top_of_the_raw_spectrum_is_measured_once_in_an_alarm_and_seldom_after(
    alarmed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approach, "TOP_EVERY", 5)
    run, truth = watched("adam")
    top, state = columns(run, "hessian_top"), columns(run, "curvature_cadence")
    in_alarm = sorted(step for step in columns(run, "chi") if step - 1 in state and state[step - 1] == 2.0)
    assert sorted(top) == in_alarm[::5]
    assert len(top) >= 2
    for step, value in top.items():
        assert value == pytest.approx(float(torch.linalg.eigvalsh(truth[step].H)[-1]), rel=0.05)
    matvecs = columns(run, "chi_matvecs")
    assert min(matvecs[step] for step in top) > 2


def test_when_calm_no_product_is_spent_on_the_raw_spectrum() -> None:
    run, _ = watched("adam")
    assert max(columns(run, "curvature_cadence").values()) < 2.0
    assert "hessian_top" not in run.columns


def test_climbing_the_negative_is_descending() -> None:
    found = []
    for sign in (1.0, -1.0):
        model, (x, y) = small(), batch_of(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-2, betas=(0.9, 0.98), maximize=sign < 0)
        with Monitor(model, optimizer, probes=[Curvature(every=1, tol=1e-8)], max_overhead=math.inf) as monitor:
            for _ in range(6):
                loss = sign * F.mse_loss(model(x), y)
                monitor.observe(loss)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(monitor.run)
    for name in ("chi", "chi_growth", "chi_growth_denominator", "chi_mode_loss", "chi_crossing"):
        one, two = (columns(run, name) for run in found)
        assert one == pytest.approx(two, rel=1e-3, abs=1e-6)
        assert len(one) >= 4


def test_on_changing_batches_growth_is_told_only_where_the_direction_lasts() -> None:
    run, truth = watched("adam", held=False, size=2)
    growth, overlap = columns(run, "chi_growth"), columns(run, "chi_overlap")
    for before, now in itertools.pairwise(sorted(columns(run, "chi"))):
        assert overlap[now] == pytest.approx(abs(float(truth[before].way @ truth[now].way)), abs=1e-3)
        assert (now in growth) == (overlap[now] >= 0.5)
    assert min(overlap.values()) < 0.5
    assert growth


def test_where_memory_is_short_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approach, "lacking", lambda params, vectors: "no room")
    run, _ = watched("adam", steps=6)
    assert "chi_mode_loss" in run.columns
    for name in ("chi_overlap", "chi_growth", "chi_denominator", "chi_crossing"):
        assert name not in run.columns


def test_after_a_resume_growth_begins_anew() -> None:
    probe = Curvature(every=1)
    watched("adam", steps=8, probe=probe)
    resumed = Curvature(every=1)
    resumed.load_state_dict(copy.deepcopy(probe.state_dict()))
    run, _ = watched("adam", steps=8, probe=resumed)
    steps = sorted(columns(run, "chi"))
    assert sorted(columns(run, "chi_overlap")) == steps[1:]


def test_a_learning_rate_of_zero_is_read_as_chi_zero_and_ends_nothing() -> None:
    model, (x, y) = small(), batch_of(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    with Monitor(model, optimizer, probes=[Curvature(every=1)], max_overhead=1.0) as monitor:
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.0 if step < 5 else 1e-3
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
    steps, chi = monitor.run.measured("chi")
    assert steps.tolist() == list(range(1, 8))
    assert (chi[:4] == 0).all()
    assert (chi[4:] > 0).all()
