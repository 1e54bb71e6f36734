"""Other data: batches left out, or those of earlier steps in their place."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from foreshock.replay.alike import alike
from foreshock.replay.arm import Arm
from foreshock.replay.scene import CALM, NotApplicable, Scene


def skip() -> Arm:
    """Returns the change of batches left out, from the one before the onset to the peak; those after it are taken."""

    def suspects(scene: Scene) -> list[int]:
        return [step for step in scene.window.steps if scene.trigger <= step <= max(scene.onset, scene.event.peak)]

    def change(scene: Scene) -> None:
        after = [step for step in scene.window.steps if step > max(scene.onset, scene.event.peak)]
        if len(after) < CALM:
            raise NotApplicable(f"there are batches of only {len(after)} steps after the peak")

    return Arm("skip", "batches from before the onset to the peak left out", change, left_out=suspects)


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

    return Arm("other_batches", "from before the onset on, batches of earlier steps", batches=others)
