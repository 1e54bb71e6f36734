"""Arms in processes of their own: each is forked from the training as it stands, and sends back what it found."""

from __future__ import annotations

import math
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from foreshock.errors import UsageError
from foreshock.replay.arm import Arm
from foreshock.replay.result import ArmResult


def run(tried: Callable[[Arm], ArmResult], arms: Sequence[Arm], processes: int) -> list[ArmResult]:
    """Returns what `tried` gives for each arm, at most `processes` of them at once.

    A forked process has the memory of this one, shared until it is written to, so nothing is copied that an arm does
    not change; and nothing that it does is seen here. Each computes with one thread: threads do not survive a fork.

    Raises:
        UsageError: there is no fork, or an accelerator is in use, whose state a forked process cannot share.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError("replay(processes=...): this system cannot fork; leave processes at 1")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UsageError("replay(processes=...): CUDA is in use, which forked processes cannot share; leave it at 1")
    context = multiprocessing.get_context("fork")
    results: dict[int, ArmResult] = {}
    waiting, running = list(enumerate(arms)), dict[Connection, tuple[int, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                place, arm = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(there, tried, arm), daemon=True)
                with warnings.catch_warnings():  # Python 3.12 warns of threads, which the child has no use for
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child.start()
                there.close()
                running[here] = place, child
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                place, child = running.pop(ready)
                try:
                    results[place] = ready.recv()
                except EOFError:
                    child.join()
                    why = f"its process ended with exit code {child.exitcode}"
                    lost = arms[place]
                    results[place] = ArmResult(lost.name, lost.what, math.nan, math.nan, "failed", why, {})
                ready.close()
                child.join()
    finally:
        for _, child in running.values():
            child.kill()
    return [results[place] for place in range(len(arms))]


def _child(there: Connection, tried: Callable[[Arm], ArmResult], arm: Arm) -> None:
    torch.set_num_threads(1)
    there.send(tried(arm))
    there.close()
