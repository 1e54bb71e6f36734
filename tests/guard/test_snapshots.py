"""The ring of snapshots: what was taken comes back bit for bit, in place, and the training goes on from there."""

from __future__ import annotations

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock.errors import UsageError
from foreshock.guard.snapshots import Snapshots


class Net(nn.Module):
    """Dropout, batch statistics and tied weights: all that a step may leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.dropout(F.relu(self.norm(self.first(x))), 0.3, training=self.training)
        return self.head(x + self.third(torch.tanh(self.second(x))))


def two_groups(model, **first):
    bias = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": [p for p in model.parameters() if p.ndim > 1], **first}, {"params": bias, "lr": 0.003}]


OPTIMIZERS = {
    "adamw": lambda m: torch.optim.AdamW(two_groups(m), lr=0.01),
    "adamw foreach": lambda m: torch.optim.AdamW(two_groups(m), lr=0.01, foreach=True, amsgrad=True),
    "adamw fused": lambda m: torch.optim.AdamW(two_groups(m), lr=0.01, fused=True),
    "adam, a tensor for lr": lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda m: torch.optim.SGD(two_groups(m), lr=0.05, momentum=0.9, nesterov=True),
    "adagrad": lambda m: torch.optim.Adagrad(two_groups(m), lr=0.05),
    "nadam": lambda m: torch.optim.NAdam(two_groups(m), lr=0.01),
    "adafactor": lambda m: torch.optim.Adafactor(two_groups(m), lr=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(two_groups(m), lr=0.005, centered=True, momentum=0.5),
    "rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.005),
    "asgd": lambda m: torch.optim.ASGD(m.parameters(), lr=0.01),
}
SCHEDULERS = {
    "none": lambda o: None,
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=100),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.97**step),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 9, 9], gamma=0.5),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, total_iters=6), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [6],
    ),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1),
}


class Position:
    """Random batches, the position among which is its state."""

    def __init__(self) -> None:
        self.at = 0

    def __next__(self):
        self.at += 1
        g = torch.Generator().manual_seed(self.at)
        return torch.randn(5, 6, generator=g), torch.randint(3, (5,), generator=g)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Training:
    def __init__(self, optimizer="adamw", scheduler="none", *, scaler=False, ema=False, model=None):
        torch.manual_seed(0)
        self.model = Net() if model is None else model
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3) if scaler else None
        self.ema = torch.optim.swa_utils.AveragedModel(self.model, use_buffers=True) if ema else None
        self.data = Position()

    def attach(self, snapshots):
        snapshots.attach(
            self.model, self.optimizer, scheduler=self.scheduler, scaler=self.scaler, ema=self.ema, data=self.data
        )
        return snapshots

    def step(self):
        x, y = next(self.data)
        loss = F.cross_entropy(self.model(x), y) + 0.01 * random.random() * np.random.rand() * self.model.head.bias[0]
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.item())
        elif self.scheduler is not None:
            self.scheduler.step()

    def run(self, steps):
        for _ in range(steps):
            self.step()
        return self

    def state(self):
        """Everything there is, copied."""
        groups = self.optimizer.param_groups
        return copy.deepcopy(
            {
                "model": dict(self.model.named_parameters()) | dict(self.model.named_buffers()),
                "state": [[list(self.optimizer.state.get(p, {}).items()) for p in g["params"]] for g in groups],
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in groups],
                "scheduler": self.scheduler and self.scheduler.state_dict(),
                "scaler": self.scaler and self.scaler.state_dict(),
                "ema": self.ema and self.ema.state_dict(),
                "data": self.data.at,
                "rng": (random.getstate(), str(np.random.get_state()), torch.get_rng_state()),
            }
        )


def same(one, other):
    """Returns whether two nested values are equal in every bit, NaN and types included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def bits(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def seed():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def check_goes_on(**kinds):
    """Takes a snapshot in mid-training, trains on, restores, trains on again: twice the same."""
    training = Training(**kinds)
    seed()
    training.run(4)
    snapshots = training.attach(Snapshots())
    before = training.state()
    assert snapshots.take(4)
    assert same(training.state(), before)
    first = training.run(6).state()
    assert not same(first, before)
    where = {name: tensor.data_ptr() for name, tensor in training.model.state_dict().items()}
    snapshots.restore(4, rng=True, data=True)
    assert same(training.state(), before)
    assert where == {name: tensor.data_ptr() for name, tensor in training.model.state_dict().items()}
    assert same(training.run(6).state(), first)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_from_a_snapshot_bit_for_bit(optimizer):
    check_goes_on(optimizer=optimizer)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_scaler_and_averaged_model_come_back(scheduler):
    check_goes_on(optimizer="adamw foreach", scheduler=scheduler, scaler=True, ema=True)


def test_taking_snapshots_leaves_the_training_as_it_was():
    watched, plain = (Training(scheduler="onecycle", scaler=True, ema=True) for _ in range(2))
    snapshots = watched.attach(Snapshots(every=1, keep=3))
    states = []
    for training in (watched, plain):
        seed()
        for step in range(8):
            if training is watched:
                assert snapshots.due(step)
                snapshots.take(step)
            training.step()
        states.append(training.state())
    assert same(*states)


def test_restoring_writes_into_the_state_tensors_that_are_there():
    training = Training().run(3)
    snapshots = training.attach(Snapshots())
    snapshots.take(3)
    held = {id(v) for entry in training.optimizer.state.values() for v in entry.values()}
    training.run(2)
    snapshots.restore(3)
    assert held == {id(v) for entry in training.optimizer.state.values() for v in entry.values()}


def test_state_made_after_the_snapshot_goes_and_state_removed_comes_back():
    training = Training()
    snapshots = training.attach(Snapshots())
    snapshots.take(0)
    training.run(2)
    snapshots.take(2)
    then = training.state()
    snapshots.restore(0)
    assert not training.optimizer.state
    snapshots.restore(2, rng=True, data=True)
    assert same(training.state(), then)


def test_only_the_moments_are_restored():
    training = Training(scheduler="onecycle").run(3)
    snapshots = training.attach(Snapshots())
    snapshots.take(3)
    then = training.state()
    now = training.run(3).state()
    snapshots.restore_moments(3)
    after = training.state()
    assert same(after["state"], then["state"])
    assert same({k: v for k, v in after.items() if k != "state"}, {k: v for k, v in now.items() if k != "state"})


def test_random_streams_and_position_stay_unless_asked_for():
    training = Training().run(1)
    snapshots = training.attach(Snapshots())
    snapshots.take(1)
    then = training.run(3).state()
    snapshots.restore(1)
    assert same(training.state()["rng"], then["rng"])
    assert training.data.at == 4


def test_without_a_model_the_optimizers_parameters_are_held():
    training = Training().run(2)
    snapshots = Snapshots()
    snapshots.attach(None, training.optimizer)
    snapshots.take(2)
    before = [p.detach().clone() for p in training.model.parameters()]
    training.run(2)
    snapshots.restore(2)
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


def test_the_ring_is_as_long_as_asked_and_thins_out_with_age():
    training = Training().run(1)
    snapshots = training.attach(Snapshots(every=10, keep=6))
    for step in range(3000):
        if snapshots.due(step):
            snapshots.take(step)
    ages = [2990 - step for step in snapshots.steps]
    assert len(ages) == 6
    assert ages[-1] == 0
    assert ages[-2] == 10
    assert ages[0] >= 160
    assert all(2 * (newer + 10) >= 0.6 * (older + 10) for older, newer in pairwise(ages))
    assert snapshots.before(2985) == 2980
    assert snapshots.before(0) is None
    snapshots.drop_after(2985)
    assert snapshots.steps[-1] == 2980


def test_memory_is_a_bound_and_what_never_fits_is_refused_with_the_reason():
    training = Training().run(1)
    one = training.attach(Snapshots())
    one.take(0)
    snapshots = training.attach(Snapshots(memory=int(2.5 * one.nbytes), every=1))
    for step in range(5):
        assert snapshots.take(step)
        assert snapshots.nbytes <= 2.5 * one.nbytes
    assert len(snapshots.steps) == 2
    small = training.attach(Snapshots(memory=one.nbytes // 2))
    assert small.due(0)
    assert not small.take(0)
    assert "memory=" in small.refused
    assert not small.steps
    assert not small.due(1)


def test_a_steady_ring_allocates_nothing():
    training = Training().run(1)
    snapshots = training.attach(Snapshots(every=1, keep=3))
    seen = []
    for step in range(12):
        snapshots.take(step)
        seen.append({snapshot.buffer.flat.data_ptr() for snapshot in snapshots._ring})
    assert len(set().union(*seen[3:])) == 3


def test_the_state_of_the_ring_loads_with_weights_only_into_a_fresh_training(tmp_path):
    first = Training("adamw fused", "multistep", scaler=True, ema=True).run(3)
    snapshots = first.attach(Snapshots(every=2, keep=3))
    for step in range(3, 8):
        snapshots.take(step)
        first.step()
    torch.save(snapshots.state_dict(), tmp_path / "ring.pt")
    second = Training("adamw fused", "multistep", scaler=True, ema=True)
    again = Snapshots(every=2, keep=3)
    again.load_state_dict(torch.load(tmp_path / "ring.pt", weights_only=True))
    second.attach(again)
    assert again.steps == snapshots.steps
    for step in snapshots.steps:
        first.attach(snapshots)
        snapshots.restore(step, rng=True, data=True)
        wanted = first.state()
        again.restore(step, rng=True, data=True)
        assert same(second.state(), wanted)
    for step in range(8, 30):
        assert snapshots.due(step) == again.due(step)
        if snapshots.due(step):
            snapshots.take(step)
            again.take(step)
        assert snapshots.steps == again.steps


def test_a_ring_that_goes_on_does_not_change_the_state_it_gave():
    training = Training().run(1)
    snapshots = training.attach(Snapshots(every=1, keep=2))
    snapshots.take(0)
    snapshots.take(1)
    state = snapshots.state_dict()
    before = copy.deepcopy(state)
    for step in range(2, 8):
        training.step()
        snapshots.take(step)
    assert same(state, before)


def test_what_does_not_match_is_refused_and_nothing_is_written():
    training = Training().run(2)
    snapshots = training.attach(Snapshots())
    snapshots.take(2)
    other = Training()
    other.model.head = nn.Linear(8, 4)
    before = other.state()
    snapshots.attach(other.model, other.optimizer, data=other.data)
    with pytest.raises(UsageError, match=r"head\.weight"):
        snapshots.restore(2)
    assert same(other.state(), before)


def test_misuse_is_told_apart():
    snapshots = Snapshots()
    with pytest.raises(UsageError, match="attach"):
        snapshots.take(0)
    with pytest.raises(UsageError, match="every"):
        Snapshots(every=0)
    with pytest.raises(UsageError, match="max_overhead"):
        Snapshots(max_overhead=0.0)
    training = Training()
    with pytest.raises(UsageError, match="scheduler"):
        snapshots.attach(training.model, training.optimizer, scheduler=object())
    training.attach(snapshots)
    snapshots.take(5)
    with pytest.raises(UsageError, match="there are: 5"):
        snapshots.restore(4)
    with pytest.raises(UsageError, match="drop_after"):
        snapshots.take(4)
    with pytest.raises(UsageError, match="version"):
        snapshots.load_state_dict({})
