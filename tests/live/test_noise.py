"""The noise scale of a live training is that of its gradients, and the training is bit for bit the same."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.batch_size import NoiseScale as Averages
from foreshock.batch_size import pair
from foreshock.errors import UsageError
from foreshock.monitor import Monitor
from foreshock.probes import DEFAULT, Curvature, NoiseScale, Softmax
from foreshock.requeue import Requeue
from foreshock.run import Run, StepRecord
from tests.live.nets import OPTIMIZERS, Net, batches, net, same, state_of
from tests.live.test_softmax_harmless import LOOPS, Mark


def normed(seed: int = 0) -> Net:
    """Returns the net with a LayerNorm in place of the statistics of its batch."""
    model = net(seed)
    model.body[1] = nn.LayerNorm(16)
    return model


def outcome(name: str, kind: str, probes: list[Any] | None, make: Any = normed, **settings: Any) -> Any:
    model = make()
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(1)
    watched = Monitor(model, optimizer, probes=probes, **settings) if probes else contextlib.nullcontext()
    with watched as monitor:
        LOOPS[name](model, optimizer, monitor)
        run = monitor.run if monitor else None
    return state_of(model, optimizer), run


WATCHED = [(name, "all") for name in sorted({*LOOPS} - {"exact", "repaired", "smoothed", "by hand"})]


@pytest.mark.parametrize(("name", "layers"), [*WATCHED, ("stock", "norm"), ("checkpointed", "norm")])
def test_a_training_whose_noise_is_watched_is_the_same_bit_for_bit(name: str, layers: str) -> None:
    watched, run = outcome(name, "adam-fused", [NoiseScale(layers, every=1, calibrate=2)])
    assert same(watched, outcome(name, "adam-fused", None)[0])
    assert not [note for note in run.notes if note["kind"] == "probe_disabled"]
    found = len(run.measured("noise_trace")[0]) if "noise_trace" in run.columns else 0
    assert found == 0 if name == "kept" else found >= {"not a number": 1, "accumulating": 5, "scaled": 8}.get(name, 9)


def test_all_probes_together_leave_it_alone_too() -> None:
    probes = [*DEFAULT, NoiseScale(every=1)]
    watched, run = outcome("stock", "adam-foreach", probes, every=2, max_overhead=math.inf)
    assert same(watched, outcome("stock", "adam-foreach", None)[0])
    assert len(run.measured("chi")[0]) >= 1
    assert len(run.measured("noise_trace")[0]) >= 9


def data(steps: int, size: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(size, 8, generator=generator)
        yield x, (x[:, 0] > -0.5).long() + (x[:, 1] > 1).long()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def training(probe: NoiseScale, steps: int = 12, *, parts: int = 1, scale: float = 1.0, clip: float = 0.0) -> Run:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        for x, y in data(steps):
            for part in torch.arange(12).chunk(parts):
                loss = F.cross_entropy(model(x[part]), y[part])
                monitor.observe(loss, batch=x[part])
                (loss * (scale / parts)).backward()
            for param in model.parameters():
                param.grad /= scale
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        return monitor.run


def slowly(parts: int, steps: int = 12) -> list[tuple[float, float]]:
    """The pairs of each step, one backward pass for each small batch; parts = 12 are the examples."""
    model, found = small(), []
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.005)
    for x, y in data(steps):
        grads = []
        for part in torch.arange(12).chunk(parts):
            loss = F.cross_entropy(model(x[part]), y[part])
            grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]).double())
        table = torch.stack(grads)
        found.append(pair(table.square().sum(1), float(table.mean(0).square().sum()), small=12 // parts, big=12))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("how", [{}, {"scale": 64.0}])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_step_s_estimates_are_those_of_its_gradients(parts: int, how: dict[str, float]) -> None:
    run = training(NoiseScale(every=1), parts=parts, **how)
    reference = slowly(12 if parts == 1 else parts)
    steps, traces = run.measured("noise_trace")
    assert steps.tolist() == list(range(1 if parts == 1 else 0, 12))
    for step, trace, square in zip(steps, traces, run.measured("noise_square")[1], strict=True):
        assert (trace, square) == pytest.approx(reference[step], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_clipping_after_backward_does_not_show(parts: int) -> None:
    """Of the first step measured: after it the parameters differ."""
    plainly, clipped = (training(NoiseScale(every=1), 2, parts=parts, clip=clip) for clip in (0.0, 1e-6))
    if parts == 3:
        assert plainly["noise_trace"][0] == clipped["noise_trace"][0]
    assert clipped["noise_trace"][1] > 0.3 * plainly["noise_trace"][1]


def test_the_ratio_of_the_averages_is_recorded_with_its_band_or_left_out() -> None:
    probe = NoiseScale(every=1)
    run = training(probe, 40)
    averages = Averages()
    for step in range(1, 40):
        found = pair([1.0], 0.0, small=1, big=2)._replace(
            tr_sigma=run["noise_trace"][step], g_sq=run["noise_square"][step]
        )
        averages.take(found)
        value = averages.value()
        told = [run[name][step] for name in ("noise_scale", "noise_low", "noise_high")]
        if value.status == "ok":
            assert told == pytest.approx([value.noise_scale, value.low, value.high], rel=1e-4)
        else:
            assert np.isnan(told).all()
    assert probe.estimate.status == "ok"
    assert probe.estimate.n == 39


def test_readings_are_left_out_while_the_softmax_absorbs_and_after_a_spike() -> None:
    probe = NoiseScale(every=1)
    probe.saw(StepRecord(3, {"softmax_absorbed": 0.8, "softmax_residual": 0.4}))
    assert probe.estimate.status == "gated"
    run = training(probe, 8)
    assert run["noise_gated"][1:].tolist() == [1.0] * 7
    assert "noise_trace" not in run.columns
    probe.saw(StepRecord(9, {"softmax_absorbed": 0.2, "softmax_residual": 0.05}))
    assert probe.estimate.status == "gated"
    probe.saw(StepRecord(10, {"softmax_absorbed": 0.01, "softmax_residual": 1e-4}))
    assert probe.estimate.status == "undefined"
    training(probe, 10)
    assert probe.estimate.n == 9
    probe.heard("watch", 7)
    assert probe.estimate.n == 9
    probe.heard("spike", 8)
    assert (probe.estimate.status, probe.estimate.n) == ("gated", 0)
    training(probe, 14)
    assert 2 <= probe.estimate.n <= 4


def test_a_softmax_that_absorbs_gates_the_readings_once_its_probe_has_seen_it() -> None:
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer, probes=[Softmax(every=1), NoiseScale(every=1)]) as monitor:
        for _ in range(6):
            y = torch.randint(3, (12,))
            loss = F.cross_entropy(model(30.0 * F.one_hot(y, 3).float()), y)  # margins of 30: right classes round to 1
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert run["softmax_absorbed"][0] == 1.0
    assert run["noise_gated"][-3:].tolist() == [1.0] * 3
    assert "noise_scale" not in run.columns


def test_preconditioned_readings_divide_by_the_denominators_of_the_steps_before() -> None:
    model = small()
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-3, eps=1e-3)
    expected = {}
    with Monitor(model, optimizer, probes=[NoiseScale(every=1, precondition=True)]) as monitor:
        for step, (x, y) in enumerate(data(9)):
            if step >= 5:
                state = [optimizer.state[param] for param in params]
                roots = [(each["exp_avg_sq"] / (1 - 0.999**step)).sqrt() + 1e-3 for each in state]
                rows = []
                for i in range(12):
                    grads = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), params)
                    rows.append(torch.cat([(g / r).flatten() for g, r in zip(grads, roots, strict=True)]))
                table = torch.stack(rows)
                big = float(table.mean(0).square().sum())
                expected[step] = pair(table.square().sum(1), big, small=1, big=12).tr_sigma
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        steps, traces = monitor.run.measured("noise_trace")
    assert steps.tolist() == [5, 6, 7, 8]
    assert traces.tolist() == pytest.approx([expected[step] for step in steps], rel=1e-3)


def test_what_examples_cannot_be_told_apart_in_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = NoiseScale(every=1)
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        for _ in range(3):
            loss = model(torch.randn(6, 4, 8)).square().mean()
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert len(run.measured("noise_trace")[0]) == 2
    packed = {f"0.self_attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    assert set(probe.missing) == packed


def test_passes_of_other_probes_are_not_taken_for_the_loop_s() -> None:
    """A held batch of another size goes through the layers in between; and the loop's own passes before."""
    run = {}
    for others in ([], [Curvature(every=1)]):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
        with Monitor(
            model, optimizer, probes=[NoiseScale(every=1), *others], every=1, max_overhead=math.inf
        ) as monitor:
            for x, y in data(6):
                if others:
                    model(x[:5]).sum().backward()
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)

                def closure(batch: Any = (x[:4], y[:4])) -> Tensor:
                    return F.cross_entropy(model(batch[0]), batch[1])  # noqa: B023

                monitor.observe(loss, closure=closure, batch=(x, y))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            run[len(others)] = monitor.run
    assert len(run[1].measured("chi")[0]) > 2
    assert run[0]["noise_trace"][1:].tolist() == run[1]["noise_trace"][1:].tolist()


def test_batches_that_come_back_are_left_out() -> None:
    queue = Requeue(list(data(12)), horizon=2)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    again = []
    with Monitor(model, optimizer, probes=[NoiseScale(every=1, data=queue)]) as monitor:
        for i, (x, y) in enumerate(queue):
            loss = F.cross_entropy(model(x), y)
            if queue.tries(queue.current):
                again.append(i)
            monitor.observe(loss, batch=x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            queue.settle("requeue" if i == 4 else "accepted")
        run = monitor.run
    assert len(again) == 1
    assert not set(again) & set(run.measured("noise_trace")[0].tolist())
    assert len(run.measured("noise_trace")[0]) == 11


def test_a_jump_of_the_learning_rate_or_of_the_batch_shortens_the_average() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    weights = []
    probe = NoiseScale(every=1)
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        for i in range(16):
            (x, y), = data(1, size=24 if i >= 10 else 12)
            if i == 5:
                optimizer.param_groups[0]["lr"] = 0.02
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.append(probe.scale._moving.weight)
    falls = [i for i in range(1, 16) if weights[i] < weights[i - 1]]
    assert falls == [5, 10]


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped() -> None:
    batch = list(data(24))

    def go(monitor: Monitor, model: nn.Module, optimizer: Any, begin: int, end: int) -> None:
        for x, y in batch[begin:end]:
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss, batch=x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def new() -> Any:
        model = small()
        return model, torch.optim.SGD(model.parameters(), lr=0.005), NoiseScale("norm", every=2, calibrate=2)

    model, optimizer, probe = new()
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        go(monitor, model, optimizer, 0, 24)
    whole = probe.estimate, probe.state_dict()
    model, optimizer, probe = new()
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        go(monitor, model, optimizer, 0, 13)
        kept = json.loads(json.dumps(monitor.state_dict()))
    probe = NoiseScale("norm", every=2, calibrate=2)
    with Monitor(model, optimizer, probes=[probe]) as monitor:
        monitor.load_state_dict(kept)
        go(monitor, model, optimizer, 13, 24)
    assert probe.estimate.n in (whole[0].n, whole[0].n - 1)  # the reading that was listened for was another process's
    assert probe.estimate.tr_sigma == pytest.approx(whole[0].tr_sigma, rel=0.2)


def compiled() -> nn.Module:
    """Returns a model one of whose layers is called as a compiled one is, without the compiler."""
    model = small()
    model[0]._compiled_call_impl = model[0]._call_impl
    return model


@pytest.mark.parametrize(("make", "why"), [(net, "statistics of the batch"), (compiled, "compiled")])
def test_what_cannot_be_measured_is_said_once_and_left_alone(make: Any, why: str) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    with Monitor(model, optimizer, probes=[NoiseScale(every=1)]) as monitor:
        for x, y in batches(5):
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    (note,) = [note for note in run.notes if note["kind"] == "probe_unavailable"]
    assert why in note["reason"]
    assert "noise_trace" not in run.columns
    assert not any(module._forward_hooks for module in model.modules())


def test_graphs_are_freed_with_their_loss_and_hooks_with_the_step() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        with Monitor(model, optimizer, probes=[NoiseScale(every=1)]) as monitor:
            alive = []
            for x, y in data(4):
                z = model(x)
                mark = Mark()
                z.register_hook(mark)
                alive.append(weakref.ref(mark))
                loss = F.cross_entropy(z, y)
                monitor.observe(loss)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                del z, loss, mark
            assert [each() for each in alive] == [None] * 4
            assert not any(param._backward_hooks for param in model.parameters())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wrong", [{"layers": "heads"}, {"every": 0}, {"every": True}, {"calibrate": -1}, {"data": [1]}, {"ema": 2.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"NoiseScale\\({next(iter(wrong))}"):
        NoiseScale(**wrong)


def test_norm_layers_are_calibrated_by_all_of_them() -> None:
    probe = NoiseScale("norm", every=1, calibrate=2)
    run = training(probe, 44)
    factor = run["noise_factor"][-1]
    whole = training(NoiseScale(every=1), 44)
    assert factor * probe.estimate.noise_scale == pytest.approx(run["noise_scale"][-1], rel=1e-4)
    assert run["noise_scale"][-1] == pytest.approx(whole["noise_scale"][-1], rel=0.5)
    assert run["noise_trace"][-1] < whole["noise_trace"][-1]


RANKS = '''
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from foreshock.batch_size import pair
from foreshock.monitor import Monitor
from foreshock.probes import FREE, NoiseScale

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(1)
x, y = torch.randn(24, 6), torch.randint(0, 4, (24,))
for parts in (1, 2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
    mine = torch.arange(12 * rank, 12 * rank + 12).chunk(parts)
    local, grads = [], []
    for part in mine:
        grads.append(torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), list(model.parameters())))
    flat = [torch.cat([g.flatten() for g in each]) for each in grads]
    whole = torch.stack(flat).mean(0)
    dist.all_reduce(whole)
    norms, big = [float(g.square().sum()) for g in flat], float((whole / 2).square().sum())
    expected = pair(norms, big, small=12 // parts, big=24)
    with Monitor(ddp, optimizer, probes=[*FREE, NoiseScale()] if rank == 0 or parts == 2 else FREE) as monitor:
        for j, part in enumerate(mine):
            with ddp.no_sync() if j + 1 < parts else torch.enable_grad():
                loss = F.cross_entropy(ddp(x[part]), y[part])
                monitor.observe(loss, batch=x[part])
                (loss / parts).backward()
        nn.utils.clip_grad_norm_(ddp.parameters(), 1e-3)
        optimizer.step()
        run = monitor.run
    if rank == 0 or parts == 2:
        assert abs(run["noise_trace"][0] / expected.tr_sigma - 1) < 1e-3, (parts, run["noise_trace"], expected)
        assert abs(run["noise_square"][0] - expected.g_sq) < 1e-3 * abs(expected.tr_sigma), (parts, expected)
dist.barrier()
'''


@pytest.mark.slow
def test_ranks_are_small_batches_and_nothing_is_communicated() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(port)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    for each in ranks:
        _, said = each.communicate(timeout=120)
        assert each.returncode == 0, said
