"""What to change, in one paragraph and, where it can be said, a line of code; what a replay proved comes first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.detect.second_moment import betas, groups, optimizer
from foreshock.diagnose import Advice, Cause, Diagnosis
from foreshock.diagnose.reach import reach
from foreshock.diagnose.wording import percent
from foreshock.report.experiments import Arm, Attributed, Example, Replayed
from foreshock.report.wording import count, listing
from foreshock.run import Run
from foreshock.run.event import Event

FITTING: Mapping[str, tuple[str, ...]] = {
    "softmax_absorption": ("exact_softmax", "float64_loss", "float64"),
    "preconditioner": ("floor", "beta2", "clip_update", "cut_lr"),
    "landscape": ("cut_lr", "hold_lr", "clip_update", "clip_grad"),
    "update_burst": ("clip_update", "repair_moments", "clip_grad", "beta2"),
    "outlier_batch": ("skip", "other_batches", "clip_update", "clip_grad"),
    "schedule": ("hold_lr", "cut_lr"),
    "cold_start": ("new_rows", "clip_update", "cut_lr"),
    "nonfinite": ("nonfinite", "float64_loss", "float64", "exact_softmax", "skip", "clip_grad"),
    "not_reproducible": ("deterministic",),
}
"""cause -> the changes that fit it, the first where nothing is proved."""
GENTLE = (
    "exact_softmax", "skip", "clip_update", "floor", "repair_moments", "hold_lr", "clip_grad", "beta2", "float64_loss",
    "cut_lr", "reset_moments", "other_batches", "float64",
)  # fmt: skip
"""Arms in the order in which they are advised where none fits the cause: what leaves calm steps alone comes first."""
SAID: Mapping[str, str] = {
    "exact_softmax": "Take the loss from a softmax that does not round: its value stays, its gradient is right at "
    "every margin.",
    "float64_loss": "Take the loss in float64; the network may stay as it is.",
    "float64": "It lacks precision: give the part that overflows or rounds more of it, the loss first.",
    "floor": "Keep a floor under the denominator, so that the step cannot grow while the second moment decays.",
    "beta2": "Let the second moment follow the gradient sooner.",
    "cut_lr": "Take shorter steps from there on; the landscape may sharpen up to them again, so look once more.",
    "hold_lr": "Let the learning rate rise over more steps, or by less.",
    "clip_update": "Bound the update of each tensor: a gradient that the second moment has not seen then moves it by "
    "one learning rate, not by several.",
    "clip_grad": "Clip the gradient before the step.",
    "skip": "The state is sound, the batch is not: refuse such steps. The batch comes again later, and is put away "
    "for good when it stays bad.",
    "other_batches": "From the same state other batches do not rise: look at these examples, and refuse such steps "
    "until the data are clean.",
    "repair_moments": "The optimizer's state did not fit the weights: save and load it with them, and leave it alone "
    "in between.",
    "reset_moments": "What the optimizer remembers does not fit what it is fed now: begin its state anew where data or "
    "parameters change.",
    "new_rows": "What is new does not fit what is trained: take new rows of a head from data, by least squares, so "
    "that the loss does not leap and old classes stay known; give other new tensors a smaller learning rate of their "
    "own for a while.",
    "nonfinite": "Refuse steps whose loss or gradient is not finite, and give what overflowed a wider type.",
    "deterministic": "The same steps from the same state gave something else: ask for deterministic kernels; where it "
    "still differs then, test the machine before anything else is changed.",
    "history": "Keep what a replay needs, so that the next one can be tried out with one thing changed at a time.",
}
"""change -> what it is, in a sentence or two."""
OWN: Mapping[str, int] = {"schedule": 1, "nonfinite": 2, "not_reproducible": 1, "outlier_batch": 1, "update_burst": 1}
"""cause -> how many of its rule's advices say it better than the table, because they know the event."""
ADDED = frozenset({"outlier_batch", "update_burst"})  # the table's words follow where the rule's hold no code
BRINGS = frozenset({"schedule", "not_reproducible"})  # causes of many kinds: code only where the rule's words end in it
SNIPPET = re.compile(r": `([^`]*\([^`]*)`\.$")
IN_PLACE = "guard.step() in place of optimizer.step()"
CODE: Mapping[str, str] = {
    "exact_softmax": "loss = foreshock.cross_entropy(logits, target)    # in place of F.cross_entropy(logits, target)",
    "float64_loss": "loss = F.cross_entropy(logits.double(), target)",
    "float64": "model.double()    # or the one layer that needs it, with its input",
    "hold_lr": "scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=2000)",
    "clip_update": f"guard = foreshock.Guard(monitor, foreshock.policies.clip_update(1.0))    # {IN_PLACE}",
    "skip": f"guard = foreshock.Guard(monitor, data=foreshock.Requeue(loader))    # {IN_PLACE}",
    "other_batches": f"guard = foreshock.Guard(monitor, data=foreshock.Requeue(loader))    # {IN_PLACE}",
    "repair_moments": 'optimizer.load_state_dict(checkpoint["optimizer"])    # beside model.load_state_dict(...)',
    "reset_moments": "optimizer.state.clear()    # where data or parameters change",
    "new_rows": "foreshock.init_new_rows(head, statistics, new_classes)    # statistics: foreshock.HeadStatistics(dim)",
    "nonfinite": f"guard = foreshock.Guard(monitor)    # {IN_PLACE}",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "history": "history = foreshock.History(monitor)    # and monitor.observe(loss, batch=batch)",
}
FLOOR = f"guard = foreshock.Guard(monitor, foreshock.policies.floor(0.9))    # {IN_PLACE}"
HALF = 'for group in optimizer.param_groups: group["lr"] *= 0.5    # once; where a scheduler sets it, there'
BETA2 = 0.95  # where the run does not tell: the usual choice of those who had such spikes
NOTHING = 0.005  # share of the rise below which nothing is left of it
CLIP = 2.0  # times the usual gradient norm: lets calm steps pass
RECENT = 200  # records before the event whose gradient norm is the usual one
GUILTY = 0.5  # share of the rise from which its examples are named in the advice
NAMED = 4  # and at most so many


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to change.

    Attributes:
        text: one paragraph; names in backticks.
        code: one line; empty where it cannot be said in one.
        change: its name, that of the replay's arm where there is one.
        proved: whether a replay has shown that this alone removes the event.
    """

    text: str
    code: str
    change: str
    proved: bool


def remedy(
    run: Run, event: Event, found: Diagnosis, *, held: Advice | None, proof: Replayed | None, blame: Attributed | None
) -> Remedy:
    """Returns what to change so that such an event does not come again.

    Args:
        run: the run.
        event: the event.
        found: its diagnosis.
        held: what would have held it, for events of the curvature family; None where nothing is known.
        proof: its replay; None where there was none.
        blame: its attribution; likewise.
    """
    differs = proof is not None and not proof.returns
    cures = () if proof is None or differs else proof.cures
    change = "deterministic" if differs else _change(found.best.name, cures)
    text, code = _said(found.best, change, proof)
    said = [_proved(event, proof, change), text, _shorter(run, found.best, change), _examples(blame)]
    return Remedy(" ".join(filter(None, said)), _code(run, event, change, held) if code is None else code, change,
                  change in cures)  # fmt: skip


def _said(best: Cause, change: str, proof: Replayed | None) -> tuple[str, str | None]:
    """Returns what to do, in words, and a line of code where the words bring their own; None where they do not.

    Where the change fits the cause, the rule's own words know more of this event than those of the table.
    """
    if change == "new_rows" and best.advice and not SNIPPET.search(best.advice[0]):  # rows that were well chosen
        return best.advice[0], ""
    own = SAID.get(change, "")
    if not own and proof is not None and (arm := proof.arm(change)) is not None:
        own = f"Change it so for good: {arm.what or arm.name}."
    count = OWN.get(best.name, 0 if best.name in FITTING or best.name == "unexplained" else 1)
    fits = change in FITTING.get(best.name, ("history",))
    words = " ".join(best.advice[:count]) if fits else ""
    if not words:
        return own, None
    if best.name in ADDED and "`" not in words:
        return f"{words} {own}", None
    if best.name not in BRINGS:
        return words, None
    found = SNIPPET.search(words)
    return (words, "") if found is None else (f"{words[: found.start()]}.", found[1])


def _change(cause: str, cures: Sequence[str]) -> str:
    fitting = FITTING.get(cause, ())
    for name in (*fitting, *GENTLE, *cures):
        if name in cures:
            return name
    return fitting[0] if fitting else "history"


def _proved(event: Event, proof: Replayed | None, change: str) -> str:
    """Returns what the replay says for the change, or against all of them; empty where there was none."""
    if proof is None:
        return ""
    if not proof.returns:
        at = "" if proof.differs_at is None else f", from step {proof.differs_at:,} on"
        return f"The replay with nothing changed went another way than the training{at}."
    since = "" if proof.start is None else f" from step {proof.start:,}"
    arm = proof.arm(change)
    if change in proof.cures:
        others = [f"`{name}`" for name in proof.cures if name != change]
        also = f"; so did {listing(others[:3])}" if others else ""
        rest = f": {_left(arm)}" if arm is not None else ""
        return f"In the replay{since} `{change}` alone removed the {event.kind}{rest}{also}."
    tried = [each for each in proof.arms if each.verdict in ("weakened", "stays", "worse")]
    if not tried:
        return ""
    best = tried[0]
    most = f" `{best.name}` weakened it most: {_left(best)}." if best.verdict == "weakened" else ""
    return f"In the replay{since} none of {count(len(tried), 'single change')} removed the {event.kind}.{most}"


def _left(arm: Arm) -> str:
    """Returns how much of the rise an arm has left."""
    if not np.isfinite(arm.share):
        return "nothing finite of the rise is left"
    return f"{percent(arm.share) if arm.share >= NOTHING else 'nothing'} of the rise is left"


def _shorter(run: Run, best: Cause, change: str) -> str:
    """Returns how far the run's optimizer goes after a burst, and what goes less far; empty where that is no answer."""
    known = reach(run) if best.name == "update_burst" and change in ("clip_update", "beta2") else None
    return "" if known is None else known.text


def _examples(blame: Attributed | None) -> str:
    """Returns which examples to look at first, where few of them carry the rise."""
    if blame is None:
        return ""
    some: list[Example] = []
    for each in (blame.suspects or blame.culprits)[:NAMED]:
        if each.index is None or not each.share > 0 or sum(one.share for one in some) >= 0.9:
            break
        some.append(each)
    share = sum(each.share for each in some)
    if share < GUILTY:
        return ""
    names = listing([f"{each.index:,}" for each in some])
    where = "" if some[0].step is None else f" of step {some[0].step:,}"
    who, they = ("example", "it carries") if len(some) == 1 else ("examples", "they carry")
    of = "what its loss has more than others" if blame.suspects else "the rise"
    return f"Look first at {who} {names}{where}: {they} {percent(share)} of {of}."


def _code(run: Run, event: Event, change: str, held: Advice | None) -> str:
    """Returns the change as a line of code, with the run's own optimizer and numbers where it needs them."""
    if change == "floor":
        eps = _value(held, "eps")
        return FLOOR if eps is None else _optimizer(run, "eps", f"{eps:.2g}")
    if change == "beta2":
        value = _value(held, "beta2") or BETA2
        return _optimizer(run, "betas", f"({betas(run)[0] or 0.9:g}, {value:g})")
    if change == "cut_lr":
        rate, now = _value(held, "lr"), _setting(run, "lr")
        if rate is None and isinstance(now, int | float):
            rate = 0.5 * now
        return HALF if rate is None else _optimizer(run, "lr", f"{rate:.2g}")
    if change == "clip_grad":
        norm = _usual(run, event)
        return f"torch.nn.utils.clip_grad_norm_(model.parameters(), {1.0 if norm is None else CLIP * norm:.2g})"
    return CODE.get(change, "")


def _optimizer(run: Run, name: str, value: str) -> str:
    """Returns the line that makes the run's optimizer, with one setting changed."""
    now, rate = _setting(run, name), _setting(run, "lr")
    kept = f"lr={rate:g}, " if name != "lr" and isinstance(rate, int | float) else ""
    pair = f"({', '.join(f'{each:g}' for each in now)})" if isinstance(now, list | tuple) else ""
    was = pair or (f"{now:g}" if isinstance(now, int | float) else "")
    made = f"optimizer = {optimizer(run) or 'AdamW'}(model.parameters(), {kept}{name}={value})"
    return made + (f"    # {name} {'were' if pair else 'was'} {was}" if was else "")


def _setting(run: Run, name: str) -> object:
    return next((each[name] for each in groups(run) if name in each), None)


def _value(held: Advice | None, knob: str) -> float | None:
    return None if held is None else next((item.value for item in held.items if item.knob == knob), None)


def _usual(run: Run, event: Event) -> float | None:
    """Returns the median gradient norm before the event; None where it is not known."""
    if "grad_norm" not in run:
        return None
    steps, values = run.measured("grad_norm")
    before = values[: int(np.searchsorted(steps, event.onset))][-RECENT:]
    before = before[np.isfinite(before) & (before > 0)]
    return float(np.median(before)) if len(before) else None
