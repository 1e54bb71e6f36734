from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock.errors import ForeshockWarning, RunError, UsageError
from foreshock.monitor import Monitor
from foreshock.probes import DEFAULT, every
from foreshock.run import Run
from foreshock.run.writer import RunWriter
from tests.live.nets import OPTIMIZERS, batches, net


def train(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, steps: int, seed: int = 0) -> None:
    for x, y in batches(steps, seed):
        loss = F.cross_entropy(model(x), y)
        monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS["adamw"](model.parameters())


def test_micro_batches_are_averaged_and_counted() -> None:
    model, losses = net(), []
    optimizer = adam(model)
    with Monitor(model, optimizer) as monitor:
        for i, (x, y) in enumerate(batches(12)):
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.item())
            monitor.observe(loss)
            (loss / 3).backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
        run = monitor.run
    np.testing.assert_allclose(run["loss"], np.array(losses).reshape(4, 3).mean(1), rtol=1e-6)
    assert run["micro_batches"].tolist() == [3.0] * 4
    np.testing.assert_allclose(run["loss_scale"], 1.0, rtol=1e-6)  # three times a third


def test_losses_that_die_before_the_next_is_made_all_count() -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def micro_batch(scale: float) -> None:  # the next loss may be made where this one was
        loss = model(torch.ones(2, 4) * scale).square().mean()
        monitor.observe(loss)
        (loss / 8).backward()

    with Monitor(model, optimizer) as monitor:
        for _ in range(6):
            for i in range(8):
                micro_batch(float(i))
            optimizer.step()
            optimizer.zero_grad()
        np.testing.assert_array_equal(monitor.run["micro_batches"], 8)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("at", [0, 4])
def test_an_overflow_under_a_grad_scaler_is_one_skipped_record(fused: bool, at: int) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    plain = []
    with Monitor(model, optimizer) as monitor:
        for i, (x, y) in enumerate(batches(8)):
            loss = F.cross_entropy(model(x), y)
            plain.append(loss.item())
            monitor.observe(loss)
            scaler.scale(loss if i != at else loss * torch.inf).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        run = monitor.run
    assert len(run) == 8
    np.testing.assert_allclose(run["loss"], plain, rtol=1e-6)
    assert [i for i, skipped in enumerate(run["skipped"]) if skipped > 0] == [at]
    norms = run["grad_norm"]
    assert not np.isfinite(norms[at])
    assert (np.delete(norms, at) < 50).all()  # unscaled
    np.testing.assert_array_equal(run["micro_batches"], 1)
    assert run["loss_scale"][at + 1] == 2.0**11
    assert np.isfinite(run["v_ratio"][[6, 7]]).all()


def test_the_first_nonfinite_tensor_is_named_wherever_it_is() -> None:
    for where in ("head.bias", "body.4.weight", "body.0.weight"):
        model = net(dropout=0.0)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        with Monitor(model, optimizer) as monitor:
            for i, (x, y) in enumerate(batches(4)):
                loss = F.cross_entropy(model(x), y)
                monitor.observe(loss)
                loss.backward()
                if i == 2:
                    dict(model.named_parameters())[where].grad.view(-1)[0] = torch.nan  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()
            run = monitor.run
        names = run.meta["tensors"]
        assert run["nonfinite"][:2].tolist() == [0, 0]
        assert names[int(run["nonfinite_first"][2])] == where
        assert run["nonfinite"][2] == 1
        assert any(event.kind == "nonfinite" and event.onset <= 2 <= (event.end or 9) for event in monitor.events)


def test_events_of_a_live_run_equal_a_scan_of_its_record() -> None:
    from foreshock.detect import scan

    model = net(dropout=0.0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with Monitor(model, optimizer) as monitor:
        for i, (x, y) in enumerate(batches(300)):
            loss = F.cross_entropy(model(x), y) * (30.0 if i in (150, 151) else 1.0)
            monitor.observe(loss)
            (loss / (30.0 if i in (150, 151) else 1.0)).backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert [event.raised for event in monitor.events if event.kind == "spike"] == [150]
    assert monitor.events == scan(run) == monitor.run.events


def test_a_users_function_and_every_are_recorded_under_their_names() -> None:
    model = net()
    optimizer = adam(model)

    def head(step: Any) -> dict[str, Any]:
        return {"head_norm": step.params[step.plan.tensors.index("head.weight")].norm(), "batch": float(step.batch)}

    with Monitor(model, optimizer, probes=[*DEFAULT, head, every(4, lambda step: {"rare": step.number})]) as monitor:
        for i, (x, y) in enumerate(batches(9)):
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss, batch=i)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert run["head_norm"][-1] == pytest.approx(model.head.weight.norm().item())  # type: ignore[union-attr,operator]
    assert run["batch"].tolist() == list(range(9))
    assert run.measured("rare")[0].tolist() == [0, 4, 8]


def test_a_costly_probe_runs_every_n_steps_and_within_its_share_of_the_time() -> None:
    class Costly:
        name, cost, calls = "costly", "costly", 0

        def __call__(self, step: Any) -> dict[str, float]:
            self.calls += 1
            return {"costly": 1.0}

    for overhead, calls in ((1e9, 4), (0.0, 1)):
        probe, model = Costly(), net()
        optimizer = adam(model)
        with Monitor(model, optimizer, probes=[probe], every=5, max_overhead=overhead) as monitor:
            train(model, optimizer, monitor, 20)
        assert probe.calls == calls


def test_parameters_added_later_are_watched_from_then_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model[0].parameters(), 1e-3)
    with Monitor(model, optimizer) as monitor:
        train(model, optimizer, monitor, 4)
        optimizer.add_param_group({"params": model[1].parameters(), "lr": 1e-2})
        train(model, optimizer, monitor, 4)
        run = monitor.run
    assert run.measured("grad_norm/0.weight")[0].tolist() == list(range(8))
    assert run.measured("grad_norm/1.weight")[0].tolist() == [4, 5, 6, 7]
    assert run.measured("lr/group1")[0].tolist() == [4, 5, 6, 7]


def test_names_come_without_wrappers_and_tensors_of_no_model_have_names_too() -> None:
    model = nn.ModuleDict({"module": nn.Linear(8, 3)})
    stray = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*model.parameters(), stray], 0.1)
    with Monitor(model, optimizer) as monitor:
        pass
    assert monitor.run.meta["tensors"] == ["weight", "bias", "group0.2"]
    with Monitor([("a", stray)], optimizer) as pairs:
        pass
    assert pairs.run.meta["tensors"] == ["a", "group0.0", "group0.1"]


def test_metadata_say_where_the_run_comes_from() -> None:
    model = net()
    with Monitor(model, adam(model)) as monitor:
        meta = monitor.run.meta
    group = meta["optimizers"][0]["groups"][0]
    assert meta["optimizers"][0]["class"] == "AdamW"
    assert (group["lr"], group["betas"]) == (1e-2, [0.9, 0.95])
    assert group["tensors"] == len(meta["tensors"])
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["device"] == "cpu"
    assert meta["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_forked_child_neither_measures_nor_writes(tmp_path: Any) -> None:
    model = net()
    optimizer = adam(model)
    with Monitor(model, optimizer, run=tmp_path / "a") as monitor:
        train(model, optimizer, monitor, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
            child = os.fork()
        if child == 0:
            train(model, optimizer, monitor, 3)
            monitor.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        train(model, optimizer, monitor, 3)
    assert Run.load(tmp_path / "a").steps.tolist() == list(range(6))


def test_signals_that_an_optimizer_cannot_have_are_no_columns_and_notes_can_be_added() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with Monitor(model, optimizer) as monitor:
        monitor.annotate(title="baseline", seed=3)
        train(model, optimizer, monitor, 3)
        run = monitor.run
    assert (run.meta["title"], run.meta["seed"]) == ("baseline", 3)
    assert "grad_norm" in run
    assert not [name for name in run.columns if name.startswith(("v_ratio", "grad_sq_over_v", "effective_step"))]


def test_wrong_arguments_are_refused_with_what_to_do() -> None:
    model = net()
    optimizer = adam(model)
    cases: list[tuple[Any, str]] = [
        (lambda: Monitor(model, torch.optim.LBFGS(model.parameters())), "LBFGS needs a closure"),
        (lambda: Monitor(model, torch.optim.SGD([{"params": []}], 0.1)), "has no parameters"),
        (lambda: Monitor(model, model), "must be a torch.optim.Optimizer, got Net"),  # type: ignore[arg-type]
        (lambda: Monitor(net(), optimizer), "none of the optimizer's parameters belongs to this model"),
        (lambda: Monitor(3, optimizer), "must be a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: Monitor(model, optimizer, every=0), "positive integer"),
        (lambda: Monitor(model, optimizer, probes="loss"), "list of probes"),
        (lambda: Monitor(model, optimizer, probes=[3]), "a probe is a function"),
        (lambda: every(0, lambda step: {}), "positive integer"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()


def test_a_loss_that_is_not_one_number_is_an_error_at_first_and_a_warning_later() -> None:
    model = net()
    optimizer = adam(model)
    with Monitor(model, optimizer) as monitor:
        with pytest.raises(UsageError, match=r"one number, got a tensor of shape \(12,\).*mean"):
            monitor.observe(torch.ones(12))
        with pytest.raises(UsageError, match="one number, got a str"):
            monitor.observe("high")  # type: ignore[arg-type]
        train(model, optimizer, monitor, 2)
        with pytest.warns(ForeshockWarning, match="one number"):
            monitor.observe(torch.ones(12))
        monitor.observe(torch.ones(12))  # said once
        train(model, optimizer, monitor, 1)
        assert len(monitor.run) == 3


def test_a_loss_observed_twice_counts_once_and_a_missing_one_is_said_once() -> None:
    model = net()
    optimizer = adam(model)
    with Monitor(model, optimizer) as monitor:
        for i, (x, y) in enumerate(batches(3)):
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            if i == 1:
                with pytest.warns(ForeshockWarning, match="observed twice in step 1"):
                    monitor.observe(loss)
            loss.backward()
            optimizer.step()
        with pytest.warns(ForeshockWarning, match="no loss was observed for step 3"):
            optimizer.step()
        optimizer.step()
        run = monitor.run
    assert run["micro_batches"].tolist() == [1, 1, 1, 0, 0]
    assert np.isnan(run["loss"][3:]).all()


def test_observe_outside_of_with_is_refused() -> None:
    model = net()
    monitor = Monitor(model, adam(model))
    with pytest.raises(UsageError, match="not attached"):
        monitor.observe(torch.tensor(1.0))


def test_a_directory_with_another_run_is_refused_and_left_alone(tmp_path: Any) -> None:
    model = net()
    optimizer = adam(model)
    with Monitor(model, optimizer, run=tmp_path / "a") as monitor:
        train(model, optimizer, monitor, 3)
    monitor = Monitor(model, optimizer, run=tmp_path / "a")
    with pytest.raises(RunError, match=r"already holds run.*3 steps.*load_state_dict"):
        monitor.__enter__()
    assert not optimizer._optimizer_step_post_hooks
    assert len(Run.load(tmp_path / "a")) == 3


def test_an_unwritable_place_is_an_error_before_training_starts(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    model = net()
    monitor = Monitor(model, adam(model), run=tmp_path / "file" / "a")
    with pytest.raises(RunError, match="cannot write a run to"):
        monitor.__enter__()


def test_a_disk_that_fills_up_is_one_warning_and_recording_starts_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    optimizer = adam(model)
    append, full = RunWriter.append, [False]

    def maybe(self: Any, *arguments: Any) -> None:
        if full[0]:
            raise RunError("no space left on device")
        append(self, *arguments)

    monkeypatch.setattr(RunWriter, "append", maybe)
    with Monitor(model, optimizer, run=tmp_path / "a") as monitor:
        train(model, optimizer, monitor, 3)
        monitor.flush()
        full[0] = True
        train(model, optimizer, monitor, 3, seed=1)
        with pytest.warns(ForeshockWarning, match="not being recorded: no space left"):
            monitor.flush()
        train(model, optimizer, monitor, 3, seed=2)
        monitor.flush()
        full[0] = False
        train(model, optimizer, monitor, 3, seed=3)
    assert Run.load(tmp_path / "a").steps.tolist() == [0, 1, 2, 9, 10, 11]


def test_an_error_in_the_loop_still_closes_the_run(tmp_path: Any) -> None:
    model = net()
    optimizer = adam(model)
    monitor = Monitor(model, optimizer, run=tmp_path / "a")

    def loop() -> None:
        with monitor:
            train(model, optimizer, monitor, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    run = Run.load(tmp_path / "a")
    assert len(run) == 5
    assert run.meta["ended"] == "ZeroDivisionError"


def test_a_closure_of_an_ordinary_optimizer_is_fine() -> None:
    model = net()
    optimizer = adam(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in batches(4):

            def closure(x: Any = x, y: Any = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                monitor.observe(loss)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
        run = monitor.run
    assert np.isfinite(run["loss"]).all()
    assert (run["update_norm"] > 0).all()
    assert (run["grad_norm"] > 0).all()
