"""The watcher catches what a training does without the training noticing."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from foreshock.run import Run
from foreshock.script.watcher import Watcher

DATA = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 4, generator=DATA), torch.randint(3, (64,), generator=DATA)


class Caught:
    """A watcher with what it said and the runs it left."""

    def __init__(self, directory):
        self.lines: list[str] = []
        self.directory = directory
        self.watcher = Watcher(directory, self.lines.append, self.lines.append)

    def runs(self) -> list[Run]:
        self.watcher.close()
        return [Run.load(watched.path) for watched in self.watcher.runs]


@pytest.fixture
def caught(tmp_path):
    caught = Caught(tmp_path / "run")
    caught.watcher.install()
    yield caught
    caught.watcher.close()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def loop(model: nn.Module, steps: int = 12, parts: int = 1) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for inputs, targets in zip(X.chunk(parts), Y.chunk(parts), strict=True):
            loss = functional.cross_entropy(model(inputs), targets) / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


def test_a_plain_loop_is_recorded_under_its_own_names(caught):
    losses = loop(network())
    (run,) = caught.runs()
    assert np.allclose(run["loss"], losses, rtol=1e-6)
    assert run.tensors("grad_norm") == ("0.weight", "0.bias", "3.weight", "3.bias")
    assert caught.lines == [f"watching Adam, run in {caught.directory}"]


def test_micro_batches_add_up_to_the_loss_of_the_step(caught):
    losses = loop(network(), parts=4)
    (run,) = caught.runs()
    assert np.allclose(run["loss"], losses, rtol=1e-6)
    assert np.all(run["micro_batches"] == 4)


def test_the_training_is_bitwise_the_unwatched_one(caught):
    watched = network()
    losses = loop(watched)
    state = torch.get_rng_state()
    caught.watcher.close()
    alone = network()
    assert loop(alone) == losses
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_stays_in_torch_after_it(tmp_path):
    from torch.optim import optimizer

    before = (torch.autograd.backward, torch.amp.GradScaler.scale, dict(optimizer._global_optimizer_pre_hooks))
    watcher = Watcher(tmp_path / "run", print, print)
    watcher.install()
    assert torch.autograd.backward is not before[0]
    watcher.close()
    assert before == (
        torch.autograd.backward, torch.amp.GradScaler.scale, dict(optimizer._global_optimizer_pre_hooks),
    )


def test_two_optimizers_of_one_loss_are_two_runs_with_the_same_loss(caught):
    body, head = nn.Linear(4, 8), nn.Linear(8, 3)
    optimizers = [torch.optim.SGD(body.parameters(), lr=0.1), torch.optim.Adam(head.parameters(), lr=0.01)]
    losses = []
    for _ in range(5):
        loss = functional.cross_entropy(head(body(X)), Y)
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    first, second = caught.runs()
    assert first.path.name == "run"
    assert second.path.name == "run.1"
    for run in (first, second):
        assert np.allclose(run["loss"], losses, rtol=1e-6)


def test_each_of_two_players_gets_the_losses_that_touched_it(caught):
    torch.manual_seed(0)
    maker, judge = nn.Linear(2, 4), nn.Linear(4, 1)
    optimizers = {"maker": torch.optim.Adam(maker.parameters()), "judge": torch.optim.Adam(judge.parameters())}
    losses: dict[str, list[float]] = {"maker": [], "judge": []}
    for _ in range(6):
        made = maker(torch.randn(16, 2))
        optimizers["judge"].zero_grad()
        real = functional.softplus(-judge(X[:16])).mean()
        false = functional.softplus(judge(made.detach())).mean()
        real.backward()
        false.backward()
        optimizers["judge"].step()
        losses["judge"].append(real.item() + false.item())
        optimizers["maker"].zero_grad()
        fooled = functional.softplus(-judge(made)).mean()
        fooled.backward()
        optimizers["maker"].step()
        losses["maker"].append(fooled.item())
    judged, made_run = caught.runs()
    assert np.allclose(judged["loss"], losses["judge"], rtol=1e-6)
    assert np.allclose(made_run["loss"], losses["maker"], rtol=1e-6)


def test_the_scale_of_a_grad_scaler_is_taken_out(caught):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(X), Y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    (run,) = caught.runs()
    assert np.allclose(run["loss"], losses, rtol=1e-6)


def test_losses_whose_gradients_were_thrown_away_do_not_count(caught):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()
    (100 * functional.cross_entropy(model(X), Y)).backward()  # as after an overflow: no step, gradients cleared
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    (run,) = caught.runs()
    assert np.isclose(run["loss"][1], loss.item(), rtol=1e-6)


def test_lbfgs_goes_on_unwatched_with_one_line(caught):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters())
    first = functional.cross_entropy(model(X), Y).item()

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert functional.cross_entropy(model(X), Y).item() < first
    assert caught.runs() == []
    (line,) = caught.lines
    assert "LBFGS is not watched" in line


def test_models_of_earlier_trainings_are_freed(caught, monkeypatch):
    monkeypatch.setattr("foreshock.script.watcher.IDLE_STEPS", 10)
    models = [network(seed) for seed in range(4)]
    alive = [weakref.ref(model[0].weight) for model in models]
    while models:
        loop(models.pop(0))
    gc.collect()
    assert [reference() is None for reference in alive] == [True, True, False, False]
    assert [len(run) for run in caught.runs()] == [12] * 4


def test_a_failure_inside_ends_the_watching_and_not_the_training(caught, monkeypatch):
    model = network()
    reference = copy.deepcopy(model)

    def broken(*_):
        raise RuntimeError("broken watcher")

    monkeypatch.setattr(caught.watcher, "_begin", broken)
    state = torch.get_rng_state()
    losses = loop(model)
    assert sum("watching stopped" in line for line in caught.lines) == 1
    assert "RuntimeError: broken watcher" in caught.lines[-1]
    torch.set_rng_state(state)
    assert loop(reference) == losses


def test_errors_of_backward_come_through(caught):
    loss = (nn.Linear(4, 1)(X)).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    with pytest.raises(RuntimeError, match="scalar"):
        nn.Linear(4, 1)(X).backward()


@pytest.mark.parametrize("parts", [1, 4])
def test_what_rounding_takes_from_the_softmax_is_seen_at_backward(caught, parts):
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(300.0)
    loop(model, parts=parts)
    (run,) = caught.runs()
    assert not [note for note in run.notes if "disabled" in note["kind"]]
    steps, absorbed = run.measured("softmax_absorbed")
    assert steps[0] == 1  # the first backward pass comes before there is an optimizer
    assert 0.0 < absorbed[0] < 1.0
    assert {"softmax_sensitivity", "softmax_cosine", "softmax_residual"} <= set(run.columns)


def test_the_scale_of_a_gradient_scaler_does_not_hide_the_softmax(caught):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(X), Y)).backward()
        scaler.step(optimizer)
        scaler.update()
    (run,) = caught.runs()
    assert run.measured("softmax_error")[1].max() < 1e-4


def test_each_softmax_goes_to_the_optimizer_that_has_its_head(caught):
    one, other = network(), nn.Linear(4, 2)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (one, other)]
    for _ in range(6):
        for model, optimizer in zip((other, one), optimizers[::-1], strict=True):
            optimizer.zero_grad()
            (functional.cross_entropy(model(X), Y) if model is one else model(X).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
    runs = caught.runs()
    assert len(runs) == 2
    assert ["softmax_wrong" in run.columns for run in runs] == [True, False]
