"""What happens to a training beside its updates is recorded: tensors, settings, weights written over, new classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.attempt import Attempt, examples
from foreshock.monitor import Monitor
from foreshock.probes import Softmax, Update, every
from foreshock.probes.novelty import NEW
from foreshock.run import Run

STEPS = 12
Act = Callable[[nn.Sequential, torch.optim.Optimizer], None]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(
    acts: dict[int, Act], *, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, steps: int = STEPS,
    **options: Any,
) -> Run:  # fmt: skip
    model = net()
    optimizer = make(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(1)
    with Monitor(model, optimizer, **options) as monitor:
        for t in range(steps):
            if t in acts:
                acts[t](model, optimizer)
            x, y = torch.randn(6, 4, generator=draw), torch.randint(0, 3, (6,), generator=draw)
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss, batch=(x, y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return monitor.run


def notes(run: Run, kind: str) -> list[dict[str, Any]]:
    return [note for note in run.notes if note["kind"] == kind]


def row(model: nn.Sequential, _: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        model[2].weight[1] += 2.0


def cell(model: nn.Sequential, _: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        model[0].weight[2, 3] = 100.0


def same(model: nn.Sequential, _: torch.optim.Optimizer) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})


@pytest.mark.parametrize("native", ["0", "1"])
def test_what_is_written_between_steps_is_measured_and_nothing_else(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native == "0":
        monkeypatch.setattr("foreshock.probes.plan.usable", lambda tensors: False)
    run = trained({3: same, 5: row, 8: cell}, probes=[Update])
    assert run.measured("outside_norm")[0].tolist() == [5, 8]
    assert run.measured("outside_count")[1].tolist() == [8, 1]
    assert run.measured("outside_norm/2.weight")[1].tolist() == pytest.approx([2.0 * 8**0.5])
    assert run.measured("outside_count/0.weight")[0].tolist() == [8]
    before, after = run["param_norm/2.weight"][[4, 5]]
    assert abs(after - before) <= 2.0 * 8**0.5 + run["update_norm/2.weight"][5] + 1e-5


def test_updates_that_were_not_looked_at_are_not_taken_for_somebody_elses() -> None:
    run = trained({}, probes=[every(3, Update)])
    assert len(run.measured("update_norm")[0]) == STEPS / 3
    assert "outside_norm" not in run


def test_a_head_that_is_replaced_is_noted_by_its_name() -> None:
    def larger(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model[2] = nn.Linear(8, 5)
        optimizer.param_groups[0]["params"][-2:] = list(model[2].parameters())

    def again(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model[2].weight = nn.Parameter(torch.zeros(5, 8))
        optimizer.param_groups[0]["params"][-2:] = list(model[2].parameters())

    def body(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model.append(nn.Linear(5, 3))
        optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 1e-3})

    def apart(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model[3] = nn.Linear(5, 3)  # the old one stays with the optimizer, without gradients
        optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 1e-3})

    found = notes(trained({3: larger, 5: again, 7: body, 9: apart}), "parameters_changed")
    told = [{name: found for name, found in note.items() if name not in ("time", "kind")} for note in found]
    assert told == [
        {"step": 3, "added": [], "removed": [], "resized": ["2.weight", "2.bias"], "replaced": []},
        {"step": 5, "added": [], "removed": [], "resized": [], "replaced": ["2.weight"]},
        {"step": 7, "added": ["3.weight", "3.bias"], "removed": [], "resized": [], "replaced": []},
        {"step": 9, "added": [], "removed": [], "resized": [], "replaced": ["3.weight", "3.bias"]},
    ]


def test_settings_that_change_once_are_noted_and_schedules_of_them_are_not() -> None:
    def to(beta2: float) -> Act:
        return lambda _, optimizer: optimizer.param_groups[0].update(betas=(0.9, beta2))

    (note,) = notes(trained({9: to(0.95)}), "settings_changed")
    assert (note["step"], note["group"], note["setting"]) == (9, 0, "betas")
    assert (note["was"], note["now"]) == ([0.9, 0.999], [0.9, 0.95])
    moving = trained({t: to(0.9 + t / 1000) for t in range(STEPS)})
    assert len(notes(moving, "settings_changed")) <= 1


def test_a_resumed_run_knows_the_shapes_it_had() -> None:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer) as monitor:
        step(monitor, model, optimizer)
        state = monitor.state_dict()
    model[2] = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, optimizer)
    monitor.load_state_dict(state)
    with monitor:
        step(monitor, model, optimizer)
        (note,) = notes(monitor.run, "parameters_changed")
    assert (note["step"], note["resized"], note["replaced"]) == (1, ["2.weight", "2.bias"], [])


def step(monitor: Monitor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = model(torch.ones(2, 4)).square().mean()
    monitor.observe(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_examples_of_a_step_are_those_of_its_micro_batches() -> None:
    assert trained({}, probes=[])["batch_size"].tolist() == [6.0] * STEPS
    attempt, host, device = Attempt(), {}, {}
    for batch in (torch.zeros(4, 2), {"ids": torch.zeros(3)}):
        attempt.take(torch.tensor(1.0), batch)
    attempt.signals(host, device)
    assert host["batch_size"] == 7.0
    attempt.take(torch.tensor(1.0), None)
    host.clear()
    attempt.signals(host, device)
    assert "batch_size" not in host


@pytest.mark.parametrize("batch", [17, "shard-3", (1, 2), [], {}, torch.tensor(3), [["text"] * 4] * 100])
def test_what_holds_no_tensor_has_no_number_of_examples(batch: object) -> None:
    assert examples(batch) != examples(batch)


def classes(first: int, later: int, change: int, steps: int) -> tuple[list[int], list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer, probes=[Softmax(every=1)]) as monitor:
        for t in range(steps):
            y = torch.arange(12) % (first if t < change else later)
            loss = F.cross_entropy(model(torch.randn(12, 4)), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
        at, values = monitor.run.measured("softmax_new")
        return at.tolist(), values.tolist()


def test_new_classes_are_new_for_eight_readings() -> None:
    at, values = classes(3, 6, 20, 40)
    assert at == list(range(NEW, 40))
    assert values == pytest.approx([0.5 if 20 <= t < 20 + NEW else 0.0 for t in at])


def test_seen_classes_are_remembered_over_a_resume() -> None:
    probe = Softmax(every=1)
    target, rows = torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)
    for _ in range(NEW + 2):
        probe._novelty.take(target, rows, 2)
    other = Softmax(every=1)
    other.load_state_dict(probe.state_dict())
    assert float(other._novelty.take(torch.tensor([0, 2]), rows, 3)) == 0.5


def test_rows_that_do_not_count_are_no_news() -> None:
    probe = Softmax()
    ignored = torch.tensor([0, -100, 1, -100])
    shares: list[Tensor | None] = [probe._novelty.take(ignored, ignored >= 0, 4) for _ in range(NEW + 1)]
    assert float(shares[-1]) == 0.0
    assert float(probe._novelty.take(torch.tensor([2, -100, 1, -100]), ignored >= 0, 4)) == 0.5
