"""The cause `softmax_absorption`: low precision rounded the right class's gradient to zero, and the rest followed.

Source: Liu, Cao, Li and Zhou 2026, arXiv 2605.06152; Prieto et al. 2025, arXiv 2501.04697.
"""

from __future__ import annotations

import math

from foreshock.detect.series import near, series
from foreshock.detect.softmax_levels import ABSORBED, COSINE, ERROR, FADED, GROWN, NATS, RESIDUAL
from foreshock.diagnose.absorption import HARM, Slide, slide
from foreshock.diagnose.base import Cause
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.event import Event, family
from foreshock.run.run import Run

NAME = "softmax_absorption"
KINDS = frozenset(
    {"spike", "divergence", "drift", "precursor", "absorbing", "inflating", "imminent", "watch", "transient"}
)
NEEDS = ("softmax_absorbed", "softmax_residual")
BETTER = ("softmax_error", "softmax_head_mean", "softmax_head_centred", "softmax_cosine", "softmax_sensitivity")
# Log-odds, added up: 0 where absorption was at work before the event and no more is known. All that the mechanism wants
# gives 0.98, absorption that never inflated nor shifted a logit 0.12: half of the rows of a healthy VGG are absorbed.
VERIFIED, LASTED, INFLATED, SHIFTED, STEADY, HARMLESS = 1.0, 0.5, 1.0, 1.5, -1.5, -1.5
LONG = 5  # readings at work that are no accident
SMALL = 0.1  # nats: so small a shift does not make a loss jump
RULED_OUT = 0.02
STOOD = 1.1  # growth that is worth a word
ROUNDED = 0.9  # where the loss is below what it would be exactly: its changes are those of rounding
REFERENCES = (
    "Liu, Cao, Li and Zhou 2026, arXiv 2605.06152", "Prieto et al. 2025, arXiv 2501.04697",
    "Thilak et al. 2022, arXiv 2206.04817",
)  # fmt: skip
ADVICE = (
    "`loss = foreshock.cross_entropy(logits, target)` in place of `F.cross_entropy`: the same loss, its gradient exact "
    "at every margin. This alone ends the mechanism.",
    "Where the loss must stay: `F.cross_entropy(foreshock.numerics.exact_gradient(logits, target), target)` repairs "
    "its gradient on the way back.",
    "Where the loss cannot be touched: `foreshock.numerics.recentre_(head, optimizer=optimizer)` after each step takes "
    "the common part out of the head; predictions stay, rows are still absorbed.",
    "`F.cross_entropy(logits.double(), target)` is exact up to margins of 36.7, at twice the memory of the logits.",
    "A larger `eps` (1e-6, 1e-5) makes the spikes rarer and leaves the gradient wrong.",
)


def softmax_absorption(run: Run, event: Event) -> Cause | None:
    """Returns how likely the event came of absorption; None where the softmax was not read close enough to it.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    found = slide(run, event)
    if found is None:
        return None
    if found.since is None:
        return Cause(NAME, RULED_OUT, _calm(found), references=REFERENCES, signals=NEEDS)
    rounded = _rounded(run, event, found)
    score = max(1 / (1 + math.exp(-_odds(event, found))), ROUNDED if rounded else 0.0)
    said = [*_absorbed(found, event), *([rounded] if rounded else []), *_inflated(found), *_order(found)]
    read = tuple(name for name in (*NEEDS, *BETTER, "softmax_wrong", "softmax_feature_mean") if name in run)
    return Cause(NAME, score, tuple(said), _contradicts(found, event), ADVICE, REFERENCES, read)


def _odds(event: Event, found: Slide) -> float:
    """Returns the log-odds: of the mechanism where it is asked about a spike, of absorption where it is about that."""
    total = VERIFIED * (found.verified is True) + LASTED * (found.readings >= LONG)
    if family(event) == "softmax":
        return 1.5 + total
    if "cosine" in found.end:
        total += INFLATED if found.inflating is not None else STEADY
    shift = found.most.get("sensitivity")
    if shift is not None:
        total += SHIFTED if shift > NATS else HARMLESS if shift < SMALL else 0.0
    return total


def _calm(found: Slide) -> tuple[str, ...]:
    most = found.most
    said = (
        f"In the last readings before, up to step {found.last:,}, at most {percent(most['absorbed'])} of the rows had "
        f"a right-class gradient of exactly 0, and the class sums held at most {number(most['residual'])} of the "
        f"gradient (absorption at work: above {percent(ABSORBED)} and {RESIDUAL:g})."
    )
    error = most.get("error")
    agrees = error is not None and error <= ERROR
    return (said, f"Float64 finds the same gradients to {number(error)}.") if agrees and error is not None else (said,)


def _absorbed(found: Slide, event: Event) -> list[str]:
    begin, end = found.begin, found.end
    ahead = "" if found.lead is None else f", {count(found.lead, 'step')} before the loss rose"
    if found.since == found.last:
        share, sums = percent(end["absorbed"]), number(end["residual"])
    else:
        share = f"{percent(begin['absorbed'])} and later {percent(end['absorbed'])}"
        sums = f"up to {number(found.most['residual'])}"
    mass = f" though the other classes held {number(end['wrong'])} of the probability" if "wrong" in end else ""
    said = [
        f"From step {found.since:,} on{ahead}, the right class's gradient of {share} of the rows was rounded to "
        f"exactly 0{mass}.",
        f"The class sums of the gradient, which vanish in exact arithmetic, held {sums} of it (healthy: below 1e-4).",
    ]
    if found.verified:
        said.append(
            "Recomputed in float64 from the same logits, the right class's gradients differ by "
            f"{percent(end.get('error', found.most['error']))}: rounding made them so, not the data."
        )
    return said


def _rounded(run: Run, event: Event, found: Slide) -> str:
    """Returns that the loss at its peak is below what it would be without rounding; empty where it is not."""
    wrong, loss = found.end.get("wrong"), series(near(run, event), "loss")
    if event.kind not in HARM or event.signal != "loss" or wrong is None or not len(loss):
        return ""
    peak = loss.at(event.peak)
    if not peak <= wrong:
        return ""
    return (
        f"The loss at the peak, {number(peak)}, is still below the {number(wrong)} that it would be without rounding: "
        "so small a rise is rounding itself."
    )


def _inflated(found: Slide) -> list[str]:
    """Returns what head and features did, and how far one step shifted a logit."""
    begin, end, said = found.begin, found.end, []
    if "head_mean" in end and math.isfinite(found.growth):
        now, rest = number(end["head_mean"]), percent(abs(found.rest - 1))
        mean = f"grew {found.growth:.2g}-fold, to {now}" if found.growth > STOOD else f"stood at {now}"
        said.append(f"The class mean of the head {mean}; the rest of the head changed by {rest}.")
    if "cosine" in begin and "cosine" in end:
        turned = f"Its cosine with the mean feature went from {begin['cosine']:.2f} to {end['cosine']:.2f}"
        first, last = (each.get("feature_mean", math.nan) for each in (begin, end))
        grew = f", while the feature grew from {number(first)} to {number(last)}" if last > STOOD * first else ""
        said.append(turned + grew + ".")
    shift = found.most.get("sensitivity")
    if shift is not None:
        said.append(f"One step shifted a logit by up to {number(shift, 2)} nats along the mean feature.")
    return said


def _order(found: Slide) -> list[str]:
    """Returns the levels in the order in which they came, where there are two of them."""
    steps = {"absorbed": found.since, "inflated": found.inflating, "more than a nat a step": found.imminent}
    steps["the loss rose"] = found.rise
    known = {name: step for name, step in steps.items() if step is not None}
    if len(known) < 3 or list(known.values()) != sorted(known.values()):
        return []
    return ["The order is the mechanism's: " + ", ".join(f"{name} at {step:,}" for name, step in known.items()) + "."]


def _contradicts(found: Slide, event: Event) -> tuple[str, ...]:
    """Returns what would speak against it, what does first."""
    end, shift = found.end, found.most.get("sensitivity")
    said = []
    if "cosine" in end and found.inflating is None:
        said.append(
            f"Here: head and features had not inflated (cosine {end['cosine']:.2f}, level {COSINE:g}; class mean of "
            f"the head {found.growth:.3g} times its smallest, level {GROWN:g})."
        )
    if shift is not None and shift < SMALL and family(event) != "softmax":
        said.append(f"Here: no step shifted a logit by more than {number(shift)} nats.")
    error = end.get("error")
    seen = f"; here it is {number(error)}" if error is not None else "; it was not recorded here"
    return (
        *said,
        f"A float64 recomputation that agrees (`softmax_error` below {ERROR:g}{seen}), or a residual below "
        f"{FADED * RESIDUAL:g} (here {number(end['residual'])}).",
        "The same event in a rerun from before it with `foreshock.cross_entropy`, or with logits in float64.",
    )
