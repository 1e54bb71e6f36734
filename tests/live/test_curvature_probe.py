"""The curvature probe's numbers against dense references, its schedule, its budget and what it says of itself."""

from __future__ import annotations

import copy
import functools
import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.curvature import Hessian
from foreshock.errors import UsageError
from foreshock.monitor import Monitor
from foreshock.probes import FREE, Curvature, cadence, every
from foreshock.probes.held import copied, takes_a_batch
from foreshock.run import Run
from foreshock.stability import edge_weights

Batch = tuple[Tensor, Tensor]


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(count: int, size: int = 10) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        yield x, torch.stack([x[:, 0] > 0, x[:, 1] > 0.3, x[:, 2] > x[:, 3]], 1).double()


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def dense_chi(model: nn.Module, optimizer: Any, batch: Batch, grads: list[Tensor | None]) -> float:
    """Returns chi from the dense Hessian, by eigenvalues of W^(1/2) (H + l2) W^(1/2)."""
    params = list(model.parameters())
    weights = edge_weights(optimizer, grads)
    flat = torch.cat([w.expand(p.shape).flatten().double() for w, p in zip(weights.tensors, params, strict=True)])
    decay = torch.cat([torch.full((p.numel(),), each) for p, each in zip(params, weights.l2, strict=True)])
    hessian = Hessian(lambda: loss_of(model, batch), params).dense() + torch.diag(decay.double())
    return float(torch.linalg.eigvalsh(flat.sqrt()[:, None] * hessian * flat.sqrt())[-1])


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
}


def watched(
    maker: Callable[[Any], torch.optim.Optimizer], probe: Curvature, *, steps: int = 30, accumulate: int = 1,
    clip: float | None = None, closure: Callable[[nn.Module, Batch], Any] | None = None, factor: float = 1.0,
    overhead: float = math.inf,
) -> tuple[Run, dict[int, float]]:
    """Trains and returns the run, and chi of each step from a dense Hessian and the gradients consumed."""
    model = small()
    optimizer = maker(model.parameters())
    truth: dict[int, float] = {}
    held: Batch | None = None
    with Monitor(model, optimizer, probes=[probe], every=5, max_overhead=overhead) as monitor:
        batches = data(steps * accumulate)
        for step in range(steps):
            for _ in range(accumulate):
                batch = next(batches)
                held = held or batch
                loss = loss_of(model, batch)
                monitor.observe(loss, closure=closure and closure(model, batch), batch=batch)
                (loss * factor / accumulate).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if step and step % 5 == 0:
                grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                twin = copy.deepcopy((model, optimizer))
                on = held if closure is not None and closure(model, batch).__code__.co_argcount else batch
                truth[step] = dense_chi(model, optimizer, on, list(grads))
                del twin
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    return run, truth


def compared(run: Run, truth: dict[int, float], rel: float = 0.03) -> None:
    steps, chi = run.measured("chi")
    for step, value in zip(steps.tolist(), chi.tolist(), strict=True):
        if step in truth:
            assert value == pytest.approx(truth[step], rel=rel), step
    assert len(set(steps.tolist()) & set(truth)) >= 3


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_chi_is_that_of_the_step_about_to_be_taken(kind: str) -> None:
    run, truth = watched(MAKERS[kind], Curvature(tol=1e-4))
    compared(run, truth, rel=1e-3)
    steps, chi = run.measured("chi")
    assert steps[0] == 5
    np.testing.assert_allclose(run.measured("sharpness")[1], chi * run.measured("threshold")[1], rtol=1e-6)
    lr = run["lr"][0]
    if kind != "adamw":
        np.testing.assert_allclose(run.measured("max_stable_lr")[1], lr / chi, rtol=1e-6)
    assert (run.measured("chi_converged")[1] == 1).all()
    assert (run.measured("probe_batch")[1] == 0).all()
    np.testing.assert_allclose(run.measured("probe_gradient_ratio")[1], 1.0, rtol=1e-9)
    shares = [run.measured(name)[1] for name in run.columns if name.startswith("chi_share/")]
    assert len(shares) == 4
    np.testing.assert_allclose(np.sum(shares, axis=0), 1.0, rtol=1e-6)


def test_the_threshold_is_that_of_the_optimizer_and_decoupled_decay_counts_in_the_stable_lr() -> None:
    run, _ = watched(MAKERS["sgd"], Curvature())
    np.testing.assert_allclose(run.measured("threshold")[1], 2 * 1.5 / 0.5, rtol=1e-6)
    run, _ = watched(MAKERS["adamw"], Curvature())
    lr, decay = 1e-2, 0.5
    np.testing.assert_allclose(run.measured("threshold")[1], (2 - lr * decay) * 19 / lr, rtol=1e-6)
    chi, stable = run.measured("chi")[1], run.measured("max_stable_lr")[1]
    k = chi * (2 - lr * decay) / lr
    np.testing.assert_allclose(k * stable / (2 - stable * decay), 1.0, rtol=1e-5)


def test_under_accumulation_v_holds_the_whole_gradient_and_h_is_the_last_micro_batchs() -> None:
    run, truth = watched(MAKERS["adam"], Curvature(tol=1e-4), accumulate=3)
    compared(run, truth, rel=2e-3)


def test_what_is_backpropagated_is_what_counts() -> None:
    """A loss that backward multiplies is the multiplied loss to an optimizer."""
    run, truth = watched(MAKERS["sgd"], Curvature(tol=1e-4), factor=2.0)
    lr = {step: value for step, value in truth.items() if step > 0}
    steps, chi = run.measured("chi")
    plain = dict(zip(steps.tolist(), chi.tolist(), strict=True))
    common = sorted(set(lr) & set(plain))
    assert len(common) >= 3
    for step in common:  # the dense reference is of the loss as it is, and half the coupled decay is a small part
        assert plain[step] == pytest.approx(2 * truth[step], rel=0.02)


def test_clipping_is_found_out_and_allowed_for_from_then_on() -> None:
    run, truth = watched(MAKERS["sgd"], Curvature(tol=1e-4), clip=0.05)
    ratios = run.measured("probe_gradient_ratio")[1]
    assert ratios[0] < 0.9
    steps, chi = run.measured("chi")
    assert steps[0] == 5
    model_chi = dict(zip(steps.tolist(), chi.tolist(), strict=True))
    later = [step for step in truth if step in model_chi and step > 10]
    assert len(later) >= 3
    for step in later:  # W shrinks with the gradient; the reference is told of gradients that are clipped already
        assert model_chi[step] < truth[step]
        assert model_chi[step] == pytest.approx(truth[step] * ratios[steps.tolist().index(step)], rel=0.02)
    told, _ = watched(MAKERS["sgd"], Curvature(tol=1e-4, max_norm=0.05), clip=0.05)
    assert told.measured("chi")[1][0] < chi[0]
    np.testing.assert_allclose(told.measured("chi")[1][2:], chi[2:], rtol=1e-3)


def test_a_function_of_a_batch_holds_the_first_and_sees_gradients_as_they_are_consumed() -> None:
    run, truth = watched(
        MAKERS["adam"], Curvature(tol=1e-4), clip=0.05, closure=lambda model, _: lambda batch: loss_of(model, batch)
    )
    compared(run, truth, rel=1e-3)
    assert (run.measured("probe_batch")[1] == 1).all()
    assert run.measured("chi_matvecs")[1][1:].mean() <= run.measured("chi_matvecs")[1][0]
    free, _ = watched(MAKERS["adam"], Curvature(hold=False), closure=lambda m, _: lambda batch: loss_of(m, batch))
    assert (free.measured("probe_batch")[1] == 0).all()


def test_in_alarm_the_forms_are_measured() -> None:
    """At an lr beyond the edge plain descent alarms; U then is S."""
    run, _ = watched(lambda p: torch.optim.SGD(p, lr=9.0), Curvature(every=2, tol=1e-3), steps=40)
    assert run.measured("curvature_cadence")[1].max() == 2
    steps, s = run.measured("chi_gradient_sym")
    assert len(steps) > 5
    taken, u = run.measured("chi_step")
    shared = np.isin(steps, taken)
    np.testing.assert_allclose(u[np.isin(taken, steps)], s[shared], rtol=1e-4)
    chi = dict(zip(*map(np.ndarray.tolist, run.measured("chi")), strict=True))
    assert all(value <= chi[step] * 1.01 for step, value in zip(steps.tolist(), s.tolist(), strict=True))
    assert run.measured("chi_alignment")[1].max() <= 1 + 1e-6


def test_in_watch_a_closure_of_the_same_batch_gives_the_curvature_along_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cadence, "NEAR", 0.0)
    monkeypatch.setattr(cadence, "CONFIRMED", 10**9)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    truth = []
    with Monitor(model, optimizer, probes=[Curvature(every=10)], max_overhead=math.inf) as monitor:
        for batch in data(30):
            loss = loss_of(model, batch)
            monitor.observe(loss, closure=lambda batch=batch: loss_of(model, batch))
            before = [p.detach().clone() for p in model.parameters()]
            dense = Hessian(lambda batch=batch: loss_of(model, batch), list(model.parameters())).dense()
            loss.backward()
            optimizer.step()
            step = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
            slope = float(step @ torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            truth.append(float(step @ dense @ step) / (-2 * slope) if slope < 0 else math.nan)
            optimizer.zero_grad()
        steps, along = monitor.run.measured("chi_step")
    assert steps.tolist() == [step for step in range(11, 30) if math.isfinite(truth[step])]
    np.testing.assert_allclose(along, np.array(truth)[steps], rtol=0.1)  # the loss is no quadratic along a step


def test_every_monitor_reads_chi_unless_told_otherwise() -> None:
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer) as monitor:
        for batch in data(120):
            loss = loss_of(model, batch)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert monitor.run.measured("chi")[0].tolist()[0] == 10


def test_a_budget_withholds_and_says_so() -> None:
    run, _ = watched(MAKERS["adam"], Curvature(), overhead=0.0)
    assert run.measured("chi")[0].tolist() == [5]
    steps, withheld = run.measured("curvature_withheld")
    assert steps.tolist() == [5, *range(10, 30)]
    assert withheld.tolist() == [0, *range(1, 21)]
    assert set(run.measured("curvature_cadence")[1].tolist()) <= {0.0, 1.0}


def test_a_run_that_is_resumed_reads_at_the_same_steps_on_the_same_batch() -> None:
    def go(start: int, stop: int, state: Any = None) -> tuple[Any, Run]:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        monitor = Monitor(model, optimizer, probes=[*FREE, Curvature(every=7)], max_overhead=math.inf)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            monitor.load_state_dict(state[2])
        batches = list(data(40))
        with monitor:
            for batch in batches[start:stop]:
                loss = loss_of(model, batch)
                monitor.observe(loss, closure=lambda b: loss_of(model, b), batch=batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), monitor.state_dict()])
            return saved, monitor.run

    whole = go(0, 40)[1]
    again = go(17, 40, go(0, 17)[0])[1]
    steps, chi = whole.measured("chi")
    assert again.measured("chi")[0].tolist() == [step for step in steps.tolist() if step >= 17]
    np.testing.assert_allclose(again.measured("chi")[1], chi[steps >= 17], rtol=0.04)  # warm starts are not kept


def test_an_event_makes_it_watch() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Curvature(every=30)
    with Monitor(model, optimizer, probes=[*FREE, probe], max_overhead=math.inf) as monitor:
        for i, batch in enumerate(data(110)):
            loss = loss_of(model, batch) * (50.0 if i == 70 else 1.0)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.flush()
        steps = monitor.run.measured("chi")[0].tolist()
    assert steps[:4] == [10, 20, 40, 70]
    assert steps[4:8] == [73, 76, 79, 82]


def test_a_point_without_curvature_is_passed_over_and_three_in_a_row_end_it_with_a_note() -> None:
    for bad, kept in ((1, True), (9, False)):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with Monitor(model, optimizer, probes=[Curvature(every=2)], max_overhead=math.inf) as monitor:
            for i, batch in enumerate(data(16)):
                out = model(batch[0])
                # a square root at 0 has a finite value and no finite second derivative
                extra = (out * 0).square().sum().sqrt() if 4 <= i < 4 + 2 * bad else 0.0
                loss = F.mse_loss(out, batch[1]) + extra
                monitor.observe(loss)
                loss.backward()
                for p in model.parameters():
                    p.grad = torch.zeros_like(p)
                optimizer.step()
                optimizer.zero_grad()
            run = monitor.run
        notes = [note for note in run.notes if note["kind"] == "probe_unavailable"]
        assert (len(notes) == 0) is kept, notes[0]['reason']
        assert run.measured("chi")[0].tolist() == ([2, 6, 8, 10, 12, 14] if kept else [2])


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


def test_foreign_autograd_functions_are_not_gone_through_without_a_closure() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer, probes=[Curvature(every=2)], max_overhead=math.inf) as monitor:
        for batch in data(6):
            loss = F.mse_loss(Odd.apply(model(batch[0])), batch[1])
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        notes = [note["reason"] for note in monitor.run.notes if note["kind"] == "probe_unavailable"]
    assert len(notes) == 1
    assert "OddBackward" in notes[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_a_loss_scale_changes_nothing(fused: bool, hold: bool) -> None:
    chis = []
    for scale in (False, True):
        model = small().float()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=scale, init_scale=2.0**12)
        with Monitor(model, optimizer, probes=[Curvature(every=4, tol=1e-3)], max_overhead=math.inf) as monitor:
            for x, y in data(20):
                loss = F.mse_loss(model(x.float()), y.float())
                again = functools.partial(loss_of, model) if hold else None
                monitor.observe(loss, closure=again, batch=(x.float(), y.float()))
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            chis.append(monitor.run.measured("chi")[1])
            assert (monitor.run.measured("probe_batch")[1] == hold).all()
            if not hold:
                np.testing.assert_allclose(monitor.run.measured("probe_gradient_ratio")[1], 1.0, rtol=1e-5)
    np.testing.assert_allclose(chis[0], chis[1], rtol=1e-3)


def test_an_optimizer_of_bounded_steps_has_a_formal_chi_that_alarms_nobody() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.5)
    with Monitor(model, optimizer, probes=[Curvature(every=2)], max_overhead=math.inf) as monitor:
        for x, y in data(20):
            loss = F.mse_loss(model(x.float()), y.float())
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert (run.measured("chi_formal")[1] == 1).all()
    assert (run.measured("curvature_cadence")[1] == 0).all()


def test_frozen_parameters_and_a_part_of_the_model_are_fine() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[0].weight, model[0].bias]}, {"params": model[2].parameters()}]
    optimizer = torch.optim.Adam(groups, 1e-2)
    with Monitor(model, optimizer, probes=[Curvature(every=2)], max_overhead=math.inf) as monitor:
        for batch in data(10):
            loss = loss_of(model, batch)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert len(run.measured("chi")[0]) == 4
    assert (run.measured("chi_share/0.weight")[1] == 0).all()


def test_wrong_arguments_are_refused() -> None:
    for settings, message in (
        ({"every": 0}, "every"), ({"tol": 0.0}, "tol"), ({"max_norm": -1.0}, "max_norm"), ({"every": True}, "every"),
    ):
        with pytest.raises(UsageError, match=message):
            Curvature(**settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Curvature\(every=n\)"):
        every(5, Curvature)


def test_what_takes_a_batch_and_what_does_not() -> None:
    class Model:
        def loss(self, batch: Any) -> float:
            return 0.0

        def again(self) -> float:
            return 0.0

        def __call__(self, batch: Any, weight: float = 1.0) -> float:
            return 0.0

    model = Model()
    for closure in (model.loss, model, lambda b: 0.0, lambda b, x=1: 0.0, functools.partial(model.loss)):
        assert takes_a_batch(closure)
    for closure in (model.again, lambda: 0.0, lambda b=1: 0.0, functools.partial(model.loss, 1), lambda a, b: 0.0):
        assert not takes_a_batch(closure)
    pair = namedtuple("pair", "x y")
    x = torch.ones(2, requires_grad=True)
    held = copied({"a": [x, (x, None)], "b": pair(x, 3)})
    assert held["a"][0] is not x
    assert not held["a"][1][0].requires_grad
    assert held["b"].y == 3
    assert torch.equal(held["b"].x, x)
