"""Windows on disk: read by another process, whole after a kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import ExitStack

import pytest
import torch

from foreshock import ForeshockWarning, RunError, UsageError
from foreshock.history import History, disk
from tests.history.loops import Training, exact, sgd, spike, two_groups

pytest.importorskip("safetensors")
Named = namedtuple("Named", "x y")


def raised(training, stack, folder, steps=60, **options):
    history = training.watched(range(steps), stack, spill=folder, **options)
    history.monitor._keep(spike(steps - 10))
    training.run(range(steps, steps + 40), history.monitor.observe)
    return history


READ = """
import sys
from foreshock.history import History
from tests.history.loops import Training, exact, two_groups
training = Training(two_groups, micro=2, noise=True)
stored = History.load(sys.argv[1])
stored.attach(training.model, training.optimizer, scheduler=training.scheduler)
window = stored.window(stored.events[0])
assert exact(window, training.step, 1) == len(window.steps) > 50, window
print(*[loss.hex() for step in window.steps for loss in window.losses(step)])
"""


def test_fresh_objects_go_through_the_same_losses(tmp_path):
    with ExitStack() as stack:
        history = raised(Training(two_groups, micro=2, noise=True), stack, tmp_path)
    window = history.window(spike(50))
    training = Training(two_groups, micro=2, noise=True, seed=5)
    stored = History.load(tmp_path)
    stored.attach(training.model, training.optimizer, scheduler=training.scheduler)
    read = stored.window(stored.events[0])
    assert read.checkpoints
    assert [read.losses(step) for step in read.steps] == [window.losses(step) for step in window.steps]
    assert [read.lr(step) for step in read.steps] == [window.lr(step) for step in window.steps]
    assert exact(read, training.step, 1) == len(window.steps) > 50
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.slow
def test_another_process_goes_through_the_same_losses(tmp_path):
    with ExitStack() as stack:
        history = raised(Training(two_groups, micro=2, noise=True), stack, tmp_path)
    window = history.window(spike(50))
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [loss.hex() for step in window.steps for loss in window.losses(step)]


def test_a_window_is_there_when_it_is_raised_and_when_it_is_whole(tmp_path):
    training = Training()
    with ExitStack() as stack:
        history = training.watched(range(42), stack, spill=tmp_path)
        history.monitor._keep(spike(40))
        assert History.load(tmp_path).window(spike(40)).steps == tuple(range(20, 42))
        training.run(range(42, 90), history.monitor.observe)
        assert History.load(tmp_path).window(spike(40)).steps == tuple(range(20, 71))


def test_a_window_that_is_held_no_more_leaves_the_disk(tmp_path):
    training = Training()
    with ExitStack() as stack:
        history = training.watched(range(42), stack, spill=tmp_path, keep=1)
        history.monitor._keep(spike(22, severity=7.0))
        history.monitor._keep(spike(41, severity=9.0))
        history.monitor._keep(spike(401, severity=8.0))
    assert [event.raised for event in History.load(tmp_path).events] == [22, 41]


def test_a_window_without_live_objects_says_what_to_do(tmp_path):
    with ExitStack() as stack:
        raised(Training(), stack, tmp_path)
    stored = History.load(tmp_path)
    assert stored.monitor is None
    window = stored.window(stored.events[0])
    assert window.loss(45) > 0
    with pytest.raises(UsageError, match=r"history.attach\(model, optimizer"):
        window.restore()
    with pytest.raises(UsageError, match="was written; there are: spike of 50"):
        stored.window(spike(3))
    with pytest.raises(UsageError, match="begins at step 20"):
        stored.window(spike(50), before=3)
    other = Training()
    stored.attach(torch.nn.Linear(3, 3), sgd(torch.nn.Linear(3, 3)), scheduler=other.scheduler)
    with pytest.raises(UsageError, match="restore"):
        stored.window(spike(50)).restore()


def test_batches_that_no_file_can_hold_are_named_and_the_rest_is_there(tmp_path):
    training = Training()
    with ExitStack() as stack:
        history = training.watched(range(0), stack, spill=tmp_path)
        training.run(range(60), lambda loss, batch: history.monitor.observe(loss, batch=(batch, object())))
        history.monitor._keep(spike(50))
    window = History.load(tmp_path).window(spike(50))
    assert window.losses(45) == history.window(spike(50)).losses(45)
    with pytest.raises(UsageError, match="it holds a object, which no file can hold"):
        window.batch(45)


def test_named_tuples_come_back_as_tuples(tmp_path):
    training = Training()
    with ExitStack() as stack:
        history = training.watched(range(0), stack, spill=tmp_path)
        training.run(range(40), lambda loss, batch: history.monitor.observe(loss, batch=Named(batch["x"], [1, "y"])))
        history.monitor._keep(spike(30))
    given = History.load(tmp_path).window(spike(30)).batch(25)
    assert type(given) is tuple
    assert torch.equal(given[0], training.batch(25)["x"])
    assert given[1] == [1, "y"]


def test_a_broken_file_is_left_out(tmp_path):
    with ExitStack() as stack:
        raised(Training(), stack, tmp_path)
    path, = tmp_path.iterdir()
    (tmp_path / "window-000000000009-spike-00000000.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.warns(ForeshockWarning, match="left out"):
        assert [event.raised for event in History.load(tmp_path).events] == [50]
    path.unlink()
    with pytest.warns(ForeshockWarning, match="left out"), pytest.raises(RunError, match="no window that can be read"):
        History.load(tmp_path)


def test_a_disk_that_cannot_be_written_is_said_once_and_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    training = Training()
    with ExitStack() as stack, pytest.warns(ForeshockWarning, match="it is in memory only") as said:
        history = raised(training, stack, tmp_path / "file")
    assert len(said) == 1
    assert len(training.losses) == 100
    assert exact(history.window(spike(50)), training.step) > 50


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 on; the child only writes
def test_a_kill_at_any_moment_leaves_whole_windows(tmp_path):
    with ExitStack() as stack:
        history = Training().watched(range(22), stack)
        history.monitor._keep(spike(21))
    pin, = history._pins
    for moment in range(12):
        folder = tmp_path / str(moment)
        disk.write(folder, pin)  # what follows replaces it again and again
        child = os.fork()
        if child == 0:
            try:
                while True:
                    disk.write(folder, pin)
            finally:
                os._exit(1)
        time.sleep(0.004 * moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        window = History.load(folder).window(spike(21))  # warnings are errors: every file is whole
        assert window.steps == tuple(range(22))
        assert window.losses(21) == history.window(spike(21)).losses(21)


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    (tmp_path / "window-000000000009-spike-00000000.draft").write_bytes(b"half")
    with ExitStack() as stack:
        raised(Training(), stack, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
