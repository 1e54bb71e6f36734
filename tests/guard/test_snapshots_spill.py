"""Snapshots on disk: read in another process onto a fresh training, whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings

import pytest
import torch
from torch import nn

from foreshock.errors import ForeshockWarning, MissingExtraError, RunError, UsageError
from foreshock.guard import spill
from foreshock.guard.snapshots import Snapshots


def training(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)).to(torch.float32)
    optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.1}])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    return model, optimizer, scheduler


def advance(parts, steps):
    model, optimizer, scheduler = parts
    for _ in range(steps):
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return [value.tolist() for value in model.state_dict().values()] + [scheduler.get_last_lr()]


def attached(parts, **settings):
    snapshots = Snapshots(**settings)
    snapshots.attach(parts[0], parts[1], scheduler=parts[2])
    return snapshots


def in_a_child(work):
    """Runs `work(write)` in a forked process; returns its number and where to read what it writes."""
    if torch.cuda.is_available():
        pytest.skip("optimizers ask for the GPU, which a forked process cannot have")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        child = os.fork()
    if child == 0:
        try:
            work(lambda text: os.write(writer, text.encode()))
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_another_process_goes_on_from_the_disk_bit_for_bit(tmp_path):
    def work(write):
        parts = training(0)
        snapshots = attached(parts, spill=tmp_path / "ring", every=1)
        for step in range(6):
            snapshots.take(step)
            advance(parts, 1)
        write(str(advance(parts, 2)))

    child, reader = in_a_child(work)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        wanted = told.read()
    parts = training(99)
    snapshots = Snapshots.load(tmp_path / "ring")
    snapshots.attach(parts[0], parts[1], scheduler=parts[2])
    snapshots.restore(snapshots.before(5), rng=True)
    assert str(advance(parts, 3)) == wanted


def test_the_directory_holds_what_the_ring_holds(tmp_path):
    parts = training(0)
    snapshots = attached(parts, spill=tmp_path, every=1, keep=3)
    for step in range(9):
        snapshots.take(step)
        assert tuple(sorted(spill.files(tmp_path))) == snapshots.steps
    snapshots.drop_after(7)
    assert tuple(sorted(spill.files(tmp_path))) == snapshots.steps
    again = Snapshots.load(tmp_path)
    assert again.steps == snapshots.steps
    assert not again.due(snapshots.steps[-1])
    assert again.due(snapshots.steps[-1] + 1)


def test_names_and_types_in_the_file_are_those_of_the_model(tmp_path):
    from safetensors import safe_open

    parts = training(0)
    attached(parts, spill=tmp_path).take(7)
    with safe_open(spill.files(tmp_path)[7], "pt") as file:
        named = {key.partition(":")[2]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert torch.equal(named["model.1.running_mean"], parts[0][1].running_mean)
    assert torch.equal(named["optimizer.params.1.0"], parts[0][3].weight)


def test_a_snapshot_that_was_altered_is_left_out_with_a_warning(tmp_path):
    parts = training(0)
    snapshots = attached(parts, spill=tmp_path, every=1)
    for step in range(3):
        snapshots.take(step)
    for step, damage in ((1, lambda data: data[:-40]), (2, lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])):
        path = spill.files(tmp_path)[step]
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(ForeshockWarning, match="left out"):
        assert Snapshots.load(tmp_path).steps == (0,)
    spill.files(tmp_path)[0].write_bytes(b"")
    with pytest.warns(ForeshockWarning), pytest.raises(RunError, match="no snapshot"):
        Snapshots.load(tmp_path)


def test_a_directory_of_another_run_is_refused_and_a_resumed_one_is_put_right(tmp_path):
    parts = training(0)
    snapshots = attached(parts, spill=tmp_path, every=1)
    snapshots.take(0)
    snapshots.take(1)
    state = snapshots.state_dict()
    snapshots.take(2)
    with pytest.raises(UsageError, match="another run"):
        attached(parts, spill=tmp_path).take(0)
    assert len(spill.files(tmp_path)) == 3
    resumed = attached(parts, spill=tmp_path, every=1)
    resumed.load_state_dict(state)
    resumed.take(3)
    assert tuple(sorted(spill.files(tmp_path))) == resumed.steps == (0, 1, 3)


def test_a_disk_that_fails_is_said_once_and_nothing_half_written_is_read(tmp_path, monkeypatch):
    parts = training(0)
    snapshots = attached(parts, spill=tmp_path, every=1)
    snapshots.take(0)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.warns(ForeshockWarning, match="no space left"):
            assert snapshots.take(1)
        assert snapshots.take(2)
    assert list(tmp_path.glob("*.draft"))
    assert Snapshots.load(tmp_path).steps == (0,)
    snapshots.take(3)
    assert Snapshots.load(tmp_path).steps == (0, 1, 2, 3)
    assert not list(tmp_path.glob("*.draft"))


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'foreshock\[snapshots\]'"):
        Snapshots(spill=tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_instant_leaves_only_whole_snapshots(tmp_path):
    """All values of a snapshot are its step's number; the child is killed at a random place of its writing."""

    def work(write):
        model = nn.Linear(300, 300)
        snapshots = Snapshots(spill=folder, keep=3)
        snapshots.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(100_000):
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(step)
            snapshots.take(step)
            if step == 2:
                write(".")

    chooser = random.Random(0)
    for trial in range(8):
        folder = tmp_path / str(trial)
        child, reader = in_a_child(work)
        os.read(reader, 1)
        for _ in range(chooser.randrange(20_000)):
            os.getpid()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        model = nn.Linear(300, 300)
        snapshots = Snapshots.load(folder)
        snapshots.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert snapshots.steps
        for step in snapshots.steps:
            snapshots.restore(step)
            assert all((p == step).all() for p in model.parameters())
