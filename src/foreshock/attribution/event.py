"""Who did it, for an event: goes back, to the step over which the loss rose most, and attributes that rise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from foreshock.attribution.captured import Step
from foreshock.attribution.course import Course, Rise
from foreshock.attribution.evaluate import Evaluation
from foreshock.attribution.examples import Decode, shown
from foreshock.attribution.result import Attribution, ranked
from foreshock.attribution.step import Nodes
from foreshock.attribution.steps import attribute_steps
from foreshock.errors import UsageError
from foreshock.history import Source, window_of
from foreshock.replay.aside import aside
from foreshock.replay.beside import beside
from foreshock.replay.slots import Structure
from foreshock.run.event import Event

__all__ = ["attribute_event"]

APART = 0.01  # relative difference of a loss and the mean of its examples' that is said
SPAN = 6  # steps that are attributed together: half of what a gradient does with a momentum of 0.9


def attribute_event(
    source: Source,
    event: Event,
    step_fn: Callable[[Any], Any],
    per_example_loss: Callable[[Any], Tensor],
    *,
    decode: Decode | None = None,
    top: int = 10,
    span: int = SPAN,
    directions: Mapping[str, Any] | None = None,
    nodes: Nodes = "auto",
    memory: int | None = None,
) -> Attribution:
    """Returns who made the loss rise in an event: examples as (step, index), tensors, momentum; kept with the run.

    The steps from a snapshot before the event are taken again. Where the loss rises most from a batch to the next, the
    rise is split, L_b(theta_b) - L_a(theta_a) = from_step + from_batch, into what the update did and what b has by
    itself. If updates did it, the victims are b's examples, and culprits those of the event's steps up to it. If b is
    odd (far above what is usual while a batch from before the event is not), `suspects` splits its excess over its
    examples; victims are then the examples from before the event, and culprits those of b and of the steps after it up
    to the one that hurt the victims most. `blamed` ranks by both. The live training stays what it was, bit for bit::

        found = fs.attribute_event(monitor, monitor.events[0], step, lambda batch: F.cross_entropy(
            model(batch[0]), batch[1], reduction="none"), decode=lambda batch, i: batch[0][i, 0])

    Args:
        source: the monitor, if a `History` is attached to it; that history, or one loaded from disk and attached to a
            fresh model and optimizer; or a window of it.
        event: one of `monitor.events`.
        step_fn: `step_fn(batch)` takes one step of the training on the live objects, as for `replay`.
        per_example_loss: `per_example_loss(batch)` returns the losses of a batch's examples, (n,).
        decode: `decode(batch, index)` or `decode(example)` returns a text or an image, (H, W) or (H, W, 3).
        top: how many examples are written down.
        span: how many steps are attributed together, at most; each takes six copies of the parameters meanwhile.
        directions: as for `attribute`.
        nodes: as for `attribute`.
        memory: bytes of host memory that the present state may take meanwhile.

    Raises:
        UsageError: there is no window for this event, or no rise in it.
    """
    if not callable(step_fn) or not callable(per_example_loss):
        raise UsageError("attribute_event(step_fn, per_example_loss): both must be functions of a batch")
    if span < 1 or top < 1:
        raise UsageError(f"attribute_event: span and top are at least 1, got {span} and {top}")
    window = window_of(source, event, call="attribute_event")
    monitor, kept_beside = window.monitor, [Structure(window.holding), *beside(step_fn, window.holding)]
    with aside(window.holding, monitor=monitor, memory=memory, beside=kept_beside):
        course = Course(window, step_fn, per_example_loss, kept_beside)
        rise = course.rise()
        steps = list(rise.pushing[:span] if rise.odd else rise.pushing[-span:])
        seen = rise.calm if rise.odd else rise.after
        kept = course.kept(steps)
        kept, steps = kept[-_alike(kept) :], steps[-_alike(kept) :]
        found = attribute_steps(
            kept, course.losses(seen), [course.losses(step) for step in steps], numbers=steps,
            names=window.holding.model, directions=directions, nodes=nodes,
        )  # fmt: skip
        notes = [*found.notes, *_said(course, steps)]
        suspects = _excess(course, rise, kept[0].before) if rise.odd else None
        found = replace(
            found, event=event.key, step=rise.after if rise.odd else rise.step, seen=seen, from_step=rise.from_step,
            from_batch=rise.from_batch, suspects=suspects, notes=tuple(notes),
        )  # fmt: skip
        found = replace(found, shown=_shown(found, course, decode, top))
    if monitor is not None:
        monitor.run.add_finding(found.to_dict())
    return found


def _alike(kept: Sequence[Step]) -> int:
    """Returns how many of the last steps are of the same parameters: some may have been added or replaced."""
    ids = [[id(param) for param in step.params] for step in kept]
    return next((i for i, each in enumerate(reversed(ids)) if each != ids[-1]), len(kept))


def _said(course: Course, steps: Sequence[int]) -> list[str]:
    """Returns notes where the steps, taken again, may not be those that were taken."""
    notes = []
    for step in steps:
        did = course.window.actions(step)
        if did:
            notes.append(f"at step {step} a guard did {', '.join(did)}, which step_fn does not do")
    for step, again in course.own.items():
        recorded = course.window.loss(step)
        if math.isfinite(recorded) and not abs(again - recorded) <= APART * abs(recorded):
            notes.append(
                f"from step {step} on, losses are not what was observed ({again:.6g}, not {recorded:.6g}): "
                "per_example_loss is not the loss that was trained, or the steps do not repeat, and what is said here "
                "may not be about this event"
            )
            break
    return notes


def _excess(course: Course, rise: Rise, before: Sequence[Tensor]) -> Tensor:
    """Returns the excess of each example of the odd batch over the mean of the one before, at the same weights."""
    evaluation = Evaluation(course.params, course.modules)
    with evaluation.opened():
        evaluation.put(before, before, 0.0)
        own, usual = evaluation.losses(course.losses(rise.after)), evaluation.losses(course.losses(rise.step))
    return ((own - usual.mean()) / len(own)).cpu()


def _shown(
    found: Attribution, course: Course, decode: Decode | None, top: int
) -> dict[tuple[int, int], dict[str, str]]:
    """Returns what the first of the culprits, victims and suspects look like."""
    if decode is None:
        return {}
    wanted: list[tuple[int, int]] = []
    if found.culprits is not None and found.labels is not None:
        wanted += [found.labels[i] for i in ranked(found.culprits, top)]
    if found.seen is not None:
        wanted += [(found.seen, i) for i in ranked(found.rows, top)]
    if found.suspects is not None and found.step is not None:
        wanted += [(found.step, i) for i in ranked(found.suspects, top)]
    window = course.window
    return {
        (step, index): shown(decode, window.batch(step), len(window.losses(step)), index)
        for step, index in dict.fromkeys(wanted)
    }
