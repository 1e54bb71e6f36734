"""chi along the unchanged course, read often: whether it passed the edge before the loss rose, and what drove it there.

A live monitor reads chi as seldom as its budget asks. A replay has the time: it watches the same steps once more with a
monitor of its own, and parts the growth of ln chi into denominators, landscape and learning rate.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from foreshock.diagnose.approach import Approach, approach
from foreshock.diagnose.edge import asked
from foreshock.errors import ForeshockWarning
from foreshock.monitor import Monitor
from foreshock.probes import Curvature
from foreshock.replay import course
from foreshock.replay.result import ArmResult
from foreshock.replay.scene import Scene, StepFunction

READINGS = 60  # of chi when all is calm; near the edge the probe reads at every step
SHARE = 1.0  # of the time of this course that they may take: no bound, some ten gradients a step at the most

OTHERS = ("hold_lr", "skip", "other_batches", "exact_softmax", "float64_loss")  # remove what curvature did not make

Edge = dict[str, Any]


def curved(rows: Sequence[ArmResult]) -> bool:
    """Returns whether arms speak for curvature: half the learning rate helps, and nothing that is another cause's."""
    verdicts = {row.name: row.verdict for row in rows}
    helped = verdicts.get("cut_lr") in ("removed", "weakened")
    return helped and not any(verdicts.get(name) == "removed" for name in OTHERS)


def measured(scene: Scene, step_fn: StepFunction, *, candidate: int = 0) -> Edge | None:
    """Returns what chi did in the steps around the event, as plain values; None where it cannot be read.

    Keys: "steps" and "chi" of the readings; "verdict" and "shares" of the approach (see
    `foreshock.diagnose.Approach`); "passed", the step at which chi passed 1, and "lead", the steps from there to the
    turn of the loss, None where it did not.

    Args:
        scene: where.
        step_fn: one step of the loop.
        candidate: which of the states of the random streams a step begins with.
    """
    if not asked(scene.event):
        return None
    every = max(1, len(scene.steps) // READINGS)
    own = Monitor(scene.model, scene.optimizer, probes=[Curvature()], every=every, max_overhead=SHARE, detectors=[])
    own._step = scene.start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ForeshockWarning)
        with own, observed(own), sdpa_kernel(SDPBackend.MATH):  # whose gradient has a derivative
            course.run(scene, step_fn, candidate=candidate)
        run = own.run
    if "chi" not in run:
        return None
    steps, chi = run.measured("chi")
    how = approach(run, scene.event)
    return {"steps": steps.tolist(), "chi": chi.tolist()} | _told(how)


def _told(how: Approach | None) -> Edge:
    if how is None:
        return {"verdict": "not split", "shares": {}, "passed": None, "lead": None}
    return {
        "verdict": how.verdict, "shares": dict(how.shares), "passed": how.marks.crossing, "lead": how.lead_turn,
    }  # fmt: skip


def observed(monitor: Monitor) -> AbstractContextManager[None]:
    """Shows a monitor each loss that is differentiated inside."""

    def told(loss: Tensor) -> None:
        if loss.numel() == 1:
            monitor.observe(loss)

    return course.differentiated(told)
