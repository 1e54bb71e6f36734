"""Policies made of policies. They keep no memory of their own, so a resumed run decides as the first one would."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from foreshock.errors import UsageError
from foreshock.policies.past import first, kinds, narrowed, since
from foreshock.policies.sight import Policy, seen
from foreshock.run.action import Action, Proceed, Stop
from foreshock.run.event import Event


def first_of(*policies: Policy) -> Policy:
    """Returns the policy that asks others in their order and takes the first answer that is not to proceed.

    Where all would proceed, the first acceptance that has a reason is the answer, so that it is not lost.

    Raises:
        UsageError: no policy was given.

    >>> from foreshock.policies import clip_update, ling
    >>> first_of(ling(), clip_update())([], []).kind
    'clip_update'
    """
    if not policies:
        raise UsageError("first_of: no policy was given; name at least one, e.g. first_of(ling(), floor())")

    def policy(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        accepted: Action | None = None
        for each in policies:
            answer = each(events, actions)
            if not isinstance(answer, Proceed):
                return answer
            accepted = accepted or (answer if answer.reason else None)
        return accepted or Proceed()

    return policy


def only(policy: Policy, on: str | Collection[str], *, signal: str | None = None) -> Policy:
    """Returns a policy that is shown events of some kinds alone, and asked only where there is one.

    Args:
        on: kind of event, or kinds, e.g. "spike" or ("watch", "imminent").
        signal: of one signal alone, e.g. "grad_norm".

    Raises:
        UsageError: no event is called so.

    >>> from foreshock.policies import clip_update
    >>> only(clip_update(), on="precursor", signal="grad_norm")([], []).kind
    'proceed'
    """
    wanted = kinds(on)

    def chosen(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        left = narrowed(events, wanted, signal)
        return policy(left, actions) if len(left) else Proceed()

    return chosen


def capped(policy: Policy, most: int, within: int, *, otherwise: Policy | None = None) -> Policy:
    """Returns a policy that intervenes at most `most` times within `within` steps, each kind of action counted alone.

    Args:
        otherwise: is asked beyond that. Without one the step is then taken with the reason logged; what is not
            finite is never taken, it ends the training.

    Raises:
        UsageError: `most` is negative or `within` not positive.

    >>> from foreshock.policies import Skip
    >>> skip_twice = capped(lambda events, actions: Skip(), 2, 100)
    >>> [skip_twice([], [Skip(step=0)] * n).kind for n in range(4)]
    ['skip', 'skip', 'proceed', 'proceed']
    """
    if most < 0 or within < 1:
        raise UsageError(f"capped: most={most} within={within}; `most` is at least 0 and `within` at least 1 step")

    def bounded(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        answer = policy(events, actions)
        if isinstance(answer, (Proceed, Stop)):
            return answer
        done = sum(past.kind == answer.kind for past in since(actions, seen(events).step - within + 1))
        if done < most:
            return answer
        if otherwise is not None:
            return otherwise(events, actions)
        why = f"{answer.kind} was done {done} times within {within} steps, the most that is allowed"
        if first(events, ("nonfinite",)) is not None:
            return Stop(reason=f"{why}, and a step that is not finite cannot be taken", cause=answer.cause)
        return Proceed(reason=f"{why}; the step is taken as it is", cause=answer.cause)

    return bounded


def cooldown(policy: Policy, steps: int) -> Policy:
    """Returns a policy that does not do the same kind of thing again within so many steps; it then lets the step pass.

    What is not finite is no matter of patience: it is answered at each attempt.

    Raises:
        UsageError: `steps` is negative.

    >>> from foreshock.policies import Scale, Sight
    >>> halve = cooldown(lambda events, actions: Scale(factor=0.5), 20)
    >>> [halve(Sight(step=step), [Scale(factor=0.5, step=0)]).kind for step in (19, 20)]
    ['proceed', 'scale_update']
    """
    if steps < 0:
        raise UsageError(f"cooldown: steps={steps}; it cannot be negative")

    def patient(events: Sequence[Event], actions: Sequence[Action]) -> Action:
        answer = policy(events, actions)
        if isinstance(answer, (Proceed, Stop)) or first(events, ("nonfinite",)) is not None:
            return answer
        last = next((past for past in since(actions, seen(events).step - steps + 1) if past.kind == answer.kind), None)
        if last is None:
            return answer
        why = f"{answer.kind} was done at step {last.step}, and {steps} steps have to pass before it is done again"
        return Proceed(reason=why, cause=answer.cause)

    return patient
