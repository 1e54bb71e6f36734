"""What each example of a step's batch, momentum and decay did to a loss through the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock.attribution.consumed import Scaling, fitting, scaling
from foreshock.attribution.evaluate import Evaluation, Losses
from foreshock.attribution.rows import row_products
from foreshock.attribution.split import FITS, Source, StepSplit, split_step, thinned, working
from foreshock.attribution.terms import Factor

__all__ = ["Pushed", "consumption", "pushed", "rows_along"]

_HOW = {
    "scaled": "the gradient was multiplied by {whole:.4g} (clipping, or a scale) before the optimizer consumed it",
    "tensor by tensor": "the gradient was scaled tensor by tensor before the optimizer consumed it",
    "values clipped": "the gradient's values were clipped before the optimizer consumed it",
    "something else": (
        "{other:.1%} of the gradient that was consumed is not this batch's: other micro-batches or ranks, noise, or "
        "another batch; what it did is in the rest"
    ),
}


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the parts of one step did.

    Attributes:
        rows: of the batch's examples, shape (m,), float64 on the CPU; None where the step is not split.
        history, decay, l2: of momentum and both decays.
        coverage: of the batch's part by the rows.
        clipped: what the batch's gradient was multiplied by.
        carried: dL/dm_before, what steps before did through the momentum that this one found, tensor by tensor.
        notes: sentences.
    """

    rows: Tensor | None
    history: float
    decay: float
    l2: float
    coverage: float
    clipped: float | None
    carried: tuple[Tensor | None, ...]
    notes: tuple[str, ...]


def pushed(
    evaluation: Evaluation,
    losses: Losses,
    weights: Tensor,
    source: tuple[Source, Sequence[Tensor | None] | None],
    ends: tuple[Sequence[Tensor], Sequence[Tensor]],
    gradient: Sequence[Tensor | None],
    *,
    later: Sequence[Tensor | None] | None = None,
    model: nn.Module | None = None,
) -> Pushed:
    """Returns what each part of a step did along a path gradient e, and through momentum along the steps after it.

    With m = keep m_before + admit g' and delta = -(through m + direct g') - decay theta, the loss moves by -<a, m> with
    a = through e + keep_later a_later, the gradients by -<a admit + direct e, g'>, and -<keep a, m_before> is history.

    Two gradients: the batch's, for the factor by which it was scaled, and the rows.

    Args:
        evaluation: opened.
        losses, weights: of the batch that the step was taken on, with the weight of each.
        source: what the optimizer knew, and the gradients consumed where they were kept.
        ends: values before and after.
        gradient: e.
        later: `carried` of the step after, where that is to be followed.
        model: what is run.
    """
    before, after = ends
    split, scale, notes = consumption(evaluation, losses, weights, source, ends)
    if not split.known:
        return Pushed(None, 0.0, 0.0, 0.0, 0.0, None, (None,) * len(before), tuple(notes))
    history = decay = l2 = 0.0
    direction: list[Tensor | None] = []
    carried: list[Tensor | None] = []
    for i, (e, terms, grad) in enumerate(zip(gradient, split.terms, split.grads, strict=True)):
        found = None if later is None else later[i]
        if terms is None or grad is None or (e is None and found is None):
            direction.append(None)
            carried.append(found)  # momentum stays as it is where there is no gradient
            continue
        theta = working(before[i])
        e = torch.zeros_like(theta) if e is None else e
        along = _times(e, terms.through) if found is None else _times(e, terms.through) + found.to(e)
        felt = _times(along, terms.admit) + _times(e, terms.direct)
        direction.append(_times(felt, scale.factors[i]) * -terms.sign)
        decay -= terms.decay * inner(e, theta) if terms.decay else 0.0
        l2 -= terms.l2 * inner(felt, theta) if terms.l2 else 0.0
        history -= 0.0 if terms.momentum is None else terms.keep * inner(along, terms.momentum)
        carried.append(None if terms.momentum is None else along * terms.keep)
    evaluation.put(before, after, 0.0)
    rows, coverage, said = rows_along(evaluation, losses, weights, direction, model)
    return Pushed(rows, history, decay, l2, coverage, scale.whole, tuple(carried), (*notes, *said))


def _times(tensor: Tensor, factor: Factor) -> Tensor:
    return tensor * (factor.to(tensor) if isinstance(factor, Tensor) else factor)


def inner(a: Tensor, b: Tensor) -> float:
    """Returns <a, b>, summed in float64."""
    return float((a.double() * b.to(a.device).double()).sum())


def consumption(
    evaluation: Evaluation,
    losses: Losses,
    weights: Tensor,
    source: tuple[Source, Sequence[Tensor | None] | None],
    ends: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> tuple[StepSplit, Scaling, list[str]]:
    """Returns how a step was made, and what became of the batch's gradient before; one gradient.

    Where the gradient that the optimizer consumed was not kept, it is what lies in `.grad`, if that is the batch's but
    for a factor; else the batch's times the number that explains the step best.
    """
    known, consumed = source
    before, after = ends
    evaluation.put(before, after, 0.0)
    wanted = [group is not None for group in known.groups]
    found = evaluation.gradient(losses, weights, wanted)
    recomputed = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(found, before, strict=True)]
    scale = None if consumed is None else scaling(consumed, recomputed)
    if consumed is None and any(grad is not None for grad in known.lying):
        scale = scaling(known.lying, recomputed)
        consumed = known.lying if scale.how != "something else" else None
    if scale is not None and consumed is not None:
        split = split_step(known, before, after, consumed)
    else:

        def scaled(factor: float) -> list[Tensor | None]:
            return [None if g is None else g.detach() * factor for g in found]

        few, start, end, slope = thinned(known, before, after, scaled(1.0))

        def missed(factor: float) -> float:
            return split_step(few, start, end, [None if g is None else g * factor for g in slope]).missed

        split = split_step(known, before, after, scaled(1.0))
        whole = fitting(missed, FITS) if split.known and split.missed > FITS else 1.0
        if whole != 1.0:
            split = split_step(known, before, after, scaled(whole))
        scale = Scaling((whole,) * len(before), whole, 0.0, "as it is" if whole == 1.0 else "scaled")
    notes = list(split.notes)
    if split.taken and consumed is None:
        notes.append(
            "the optimizer's state is that after the step, and its gradient was not kept: how much of the momentum is "
            "this batch's is right only if the gradient was not clipped or scaled; keep the step with "
            "attribution.capture"
        )
    if split.known and scale.how in _HOW:
        notes.append(_HOW[scale.how].format(whole=scale.whole, other=scale.other))
    return split, scale, notes


def rows_along(
    evaluation: Evaluation, losses: Losses, weights: Tensor, direction: Sequence[Tensor | None],
    model: nn.Module | None,
) -> tuple[Tensor, float, list[str]]:  # fmt: skip
    """Returns w_i <U, g_i> at the parameters as they are, float64 on the CPU; the coverage, and notes."""
    leaves = [param for param, u in zip(evaluation.params, direction, strict=True) if u is not None]
    if not leaves:
        return torch.zeros(len(weights), dtype=torch.float64), 1.0, []
    for leaf in leaves:
        leaf.requires_grad_()
    found = row_products(losses, evaluation.params, direction, model=model, weights=weights)
    evaluation.gradients += 1
    notes = [found.note] if found.note else []
    if found.missing:
        notes.append(
            f"the culprits cover {found.coverage:.1%} of what the batch did: nothing is known of "
            f"{', '.join(found.missing[:8])}"
        )
    return found.values.detach().double().cpu(), found.coverage, notes
