"""The cause `not_reproducible`: weights changed that no update changed, as a fault of memory or hardware does.

A replay that does not give the same numbers twice says so too; that is for `foreshock.diagnose.proof` to read.
"""

from __future__ import annotations

from foreshock.detect.series import near
from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.outside import Outside, likeness, outside, watched
from foreshock.diagnose.wording import count, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "not_reproducible"
KINDS = frozenset({"spike", "divergence", "drift", "nonfinite"})
NEEDS = ("param_norm",)
BETTER = ("outside_norm", "outside_count", "update_norm", "grad_norm", "lr")
STILL = 0.03  # score where the weights moved by their updates alone
REFERENCES = ("Dixit et al. 2021, Silent data corruptions at scale, arXiv 2102.11245",)
ADVICE = (
    "Go back to a checkpoint from before that step, and train on from there on another device: "
    "`foreshock.Guard(monitor)` with a policy that rolls back does so by itself.",
    "Run the steps before it twice, `foreshock.replay(monitor, event, step_fn)`: if the rise does not come again, test "
    "memory and device (ECC counts, `nvidia-smi -q -d ECC`, a memory test).",
    "Search the program for writes to these weights beside the optimizer's: `load_state_dict`, `copy_`, `.data`.",
)
CONTRADICTS = (
    "A replay of the steps before, unchanged, that gives the same rise bit for bit.",
    "A line of the program that writes to these weights at that step.",
)


def not_reproducible(run: Run, event: Event) -> Cause | None:
    """Returns how likely a fault moved the weights; None where their norms were not recorded.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    here = near(run, event)
    read = tuple(name for name in (*NEEDS, *BETTER) if name in here)
    if "outside_norm" not in here and not (here.tensors("param_norm") or "param_norm" in here):
        return None
    found = outside(run, event)
    if found is None:
        if not watched(run, event):
            return None
        calm = "Before the rise no weights moved by more than their updates."
        return Cause(NAME, STILL, (calm,), CONTRADICTS, (), REFERENCES, read)
    score = max(STILL, found.strength * found.fault)
    said = [found.told(), *_looks(found)]
    return Cause(NAME, score, tuple(said), CONTRADICTS, ADVICE if score >= RULED_OUT else (), REFERENCES, read)


def _looks(found: Outside) -> list[str]:
    """Returns what the change looks like, in sentences."""
    first, said = found.tensors[0], []
    elements = sum(each.elements for each in found.tensors)
    if elements <= 1:
        said.append("A single number changed: a bit that flipped.")
    elif elements <= 16:
        said.append(f"{count(int(elements), 'number')} changed: bits that flipped.")
    elif alike := likeness(first):
        said.append(alike)
    if found.fault < 0.5:
        said.append(f"That is how weights look that the program has drawn again; a fault: {percent(found.fault)}.")
    return said
