"""Other data: batches left out, or those of earlier steps in their place."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from foreshock.replay.alike import alike
from foreshock.replay.arm import Arm
from foreshock.replay.scene import CALM, NotApplicable, Scene

BRIEF = 20  # steps from the peak to an end that still belongs to what struck


def skip() -> Arm:
    """Returns the change of batches left out, from what made the event to its end; those after it are taken.

    As many steps have to follow as are left out: an unstable state would bring the event then. Where an event lasts
    long, or too few follow its end, only the batches up to the peak are left out.
    """

    def change(scene: Scene) -> None:
        _suspects(scene)

    return Arm("skip", "batches from what made it to its end left out", change, left_out=_suspects)


def _suspects(scene: Scene) -> list[int]:
    """Returns the steps to leave out.

    Raises:
        NotApplicable: there are too few batches after them.
    """
    steps, peak, end = scene.window.steps, max(scene.onset, scene.event.peak), scene.event.end
    lasts = [] if end is None or not peak < end <= peak + BRIEF else [end]
    for last in (*lasts, peak):
        left_out = [step for step in steps if scene.trigger <= step <= last]
        after = sum(step > last for step in steps)
        if after >= max(CALM, len(left_out)):
            return left_out
    raise NotApplicable(f"there are batches of only {after} steps after the peak")


def other_batches(seed: int = 0) -> Arm:
    """Returns the change of other batches from before the onset on: those of the steps before, in another order."""

    def others(scene: Scene) -> Mapping[int, Any]:
        pool = [step for step in scene.before if scene.window.taken(step)]
        if len(pool) < CALM:
            raise NotApplicable(f"there are batches of only {len(pool)} steps before the onset")
        batches = [scene.window.batch(step) for step in pool[-CALM:]]
        if all(alike(batches[0], each) for each in batches[1:]):
            raise NotApplicable("every step sees the same data")
        draw, order = random.Random(seed), list[int]()
        chosen, trigger = {}, scene.trigger
        for step in scene.window.steps:
            if step >= trigger:
                if not order:
                    order = draw.sample(pool, len(pool))
                chosen[step] = scene.window.batch(order.pop())
        return chosen

    return Arm("other_batches", "batches of earlier steps from what made it on", batches=others)
