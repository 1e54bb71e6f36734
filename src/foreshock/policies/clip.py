"""Clips the update where a gradient is far above what the second moment expects."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from foreshock.errors import UsageError
from foreshock.policies.compose import first_of
from foreshock.policies.nonfinite import refuse_nonfinite
from foreshock.policies.past import because, first, kinds, said
from foreshock.policies.sight import Policy
from foreshock.run.action import Action, ClipUpdate, Proceed
from foreshock.run.event import Event


def clip_update(limit: float = 1.0, *, on: str | Collection[str] | None = None, signal: str | None = None) -> Policy:
    """Returns the policy that bounds each tensor's update to a root mean square of `limit` learning rates.

    The rule of StableAdamW (Wortsman et al. 2023, arXiv 2304.13013, algorithm 2, after Adafactor, Shazeer and Stern
    2018, arXiv 1804.04235): a tensor's update is divided by max(1, RMS / limit), RMS that of g / sqrt(v), so a burst
    of the gradient moves each tensor about as far as any step does. Adam's own updates have an RMS below 1 in calm
    times, so a limit of 1 leaves them alone. Without `on` it is a standing bound, at each step; with it, the answer
    to some events. What is not finite cannot be clipped: see `refuse_nonfinite`.

    Deviation: the update that is measured is the one about to be made, momentum and all, not g / sqrt(v).

    Args:
        limit: in learning rates.
        on: kind of event, or kinds, e.g. "precursor": acts on those alone.
        signal: and on this signal alone, e.g. "grad_norm".

    Raises:
        UsageError: a limit that is not positive and finite, or no event of that kind.

    >>> clip_update()([], []).limit, clip_update(on="precursor")([], []).kind
    (1.0, 'proceed')
    """
    if not (limit > 0.0 and math.isfinite(limit)):
        raise UsageError(f"clip_update: limit={limit}; it is a positive number of learning rates, 1.0 by default")
    wanted = None if on is None else kinds(on)
    bound = f"each tensor's update is held to a root mean square of {limit:g} learning rates"

    def clip(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        if wanted is None:
            return ClipUpdate(limit=limit, reason=bound)
        event = first(events, wanted, signal)
        if event is None:
            return Proceed()
        return because(ClipUpdate(limit=limit), f"{said(event, events)}, so {bound}", event)

    return first_of(refuse_nonfinite(), clip)
