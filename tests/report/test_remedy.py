"""What is advised: what a replay proved and fits the cause, in words that know the event, with a line of code."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from foreshock.diagnose import Cause, Diagnosis
from foreshock.report.experiments import attributed, replayed
from foreshock.report.remedy import CODE, FITTING, GENTLE, SAID, Remedy, remedy
from foreshock.run import Run

from .findings import attribution, replay
from .runs import spike, spiky

ADAM = {"class": "AdamW", "groups": [{"lr": 0.02, "betas": [0.9, 0.999], "eps": 1e-8}]}
EVENT = spike(200)


def advised(
    cause: str, *advice: str, removed: tuple[str, ...] | None = None, run: Run | None = None, **more: Any
) -> Remedy:
    """Returns what is advised for a cause, where a replay found that these arms remove the event; None for none."""
    run = spiky(optimizers=[ADAM]) if run is None else run
    if removed is not None:
        arms = [
            dict(replay(EVENT)["arms"][0], name=name, verdict="removed" if name in removed else "stays", share=0.02)
            for name in dict.fromkeys([*removed, *GENTLE])
        ]
        run.add_finding(replay(EVENT, arms=arms, cures=list(removed), **more))
    found = Diagnosis(EVENT, (Cause(cause, 0.9, ("so it looks",), (), advice),), (), (), "")
    return remedy(run, EVENT, found, held=None, proof=replayed(run, EVENT), blame=attributed(run, EVENT))


@pytest.mark.parametrize(
    ("cause", "removed", "change"),
    [
        ("preconditioner", ("cut_lr", "floor"), "floor"),
        ("landscape", ("cut_lr", "floor"), "cut_lr"),
        ("outlier_batch", ("clip_grad", "skip"), "skip"),
        ("schedule", ("cut_lr", "hold_lr", "skip"), "hold_lr"),
        ("softmax_absorption", ("float64", "exact_softmax"), "exact_softmax"),
        ("update_burst", ("beta2", "clip_update"), "clip_update"),
        ("unexplained", ("float64", "cut_lr"), "cut_lr"),
        ("landscape", ("skip",), "skip"),  # the replay knows better
    ],
)
def test_what_is_proved_and_fits_the_cause_comes_first(cause: str, removed: tuple[str, ...], change: str) -> None:
    found = advised(cause, removed=removed)
    assert (found.change, found.proved) == (change, True)
    assert found.text.startswith(f"In the replay from step 170 `{change}` alone removed the spike: 2")
    assert SAID[change] in found.text


def test_where_nothing_is_proved_the_cause_decides_and_nothing_is_said_to_be() -> None:
    found = advised("preconditioner")
    assert (found.change, found.proved) == ("floor", False)
    assert "replay" not in found.text
    none = advised("landscape", removed=())
    assert (none.change, none.proved) == ("cut_lr", False)
    assert none.text.startswith("In the replay from step 170 none of 13 single changes removed the spike.")


def test_a_rules_own_words_are_taken_where_they_know_the_event_and_bring_their_code() -> None:
    found = advised("schedule", "Divide each loss by the number of micro-batches: `(loss / n).backward()`.")
    assert (found.text, found.code) == ("Divide each loss by the number of micro-batches.", "(loss / n).backward()")
    assert advised("schedule", "Lower the rate with the batch.").code == ""
    batch = advised("outlier_batch", "Look at the batch of step 200.", removed=("skip",))
    assert "Look at the batch of step 200. The state is sound" in batch.text
    own = advised("moon_phase", "Train at new moon.")
    assert own.text == "Train at new moon."
    assert advised("moon_phase").text == SAID["history"]


def test_a_training_that_went_another_way_is_made_reproducible_first() -> None:
    found = advised("outlier_batch", removed=("skip",), reproducible=False, differs_at=185)
    assert (found.change, found.proved) == ("deterministic", False)
    assert found.text.startswith("The replay with nothing changed went another way than the training, from step 185")
    assert found.code == "torch.use_deterministic_algorithms(True)"


def test_an_arm_of_ones_own_is_advised_in_its_words() -> None:
    run = spiky()
    mine = dict(replay(EVENT)["arms"][0], name="mine", what="momentum 0.5", verdict="removed", share=0.0)
    run.add_finding(replay(EVENT, arms=[mine], cures=["mine"]))
    found = advised("landscape", run=run)
    assert found.text == (
        "In the replay from step 170 `mine` alone removed the spike: nothing of the rise is left. "
        "Change it so for good: momentum 0.5."
    )
    assert found.code == ""


def test_the_code_has_the_runs_own_optimizer_and_numbers() -> None:
    assert advised("preconditioner", removed=("beta2",)).code == (
        "optimizer = AdamW(model.parameters(), lr=0.02, betas=(0.9, 0.95))    # betas were (0.9, 0.999)"
    )
    assert advised("landscape").code == "optimizer = AdamW(model.parameters(), lr=0.01)    # lr was 0.02"
    assert advised("update_burst", removed=("clip_grad",)).code.startswith(
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 2"  # twice the usual norm, which is 1
    )
    bare = advised("landscape", run=spiky(tensors=0))
    assert bare.code.startswith("for group in optimizer.param_groups")


def test_every_line_of_code_is_python_and_every_change_has_words() -> None:
    cases = [(cause, None) for cause in FITTING] + [("unexplained", (change,)) for change in GENTLE]
    for cause, removed in cases:
        for optimizers in ([], [ADAM]):
            found = advised(cause, removed=removed, run=spiky(tensors=0, optimizers=optimizers))
            ast.parse(found.code)
            assert found.text
    assert set(CODE) <= set(SAID)
    assert {change for changes in FITTING.values() for change in changes} | set(GENTLE) <= set(SAID)


def test_examples_are_named_where_few_of_them_carry_the_rise() -> None:
    run = spiky()
    run.add_finding(attribution(EVENT))
    assert advised("outlier_batch", run=run).text.endswith(
        "Look first at examples 3, 10, 17 and 24 of step 200: they carry 82\N{NO-BREAK SPACE}% of the rise."
    )
    even = [{"index": i, "share": 1 / 64} for i in range(64)]
    run.add_finding(attribution(EVENT, culprits=even))
    assert "Look first" not in advised("outlier_batch", run=run).text


def test_a_burst_is_answered_with_how_far_the_runs_own_optimizer_goes() -> None:
    said = "Your AdamW(0.9, 0.999) moves a coordinate 31.8 learning rates after one burst, 3.16 of them in its largest"
    clipped, sooner = advised("update_burst"), advised("update_burst", removed=("beta2",))
    assert said in clipped.text
    assert "after the same burst, AdamW(0.9, 0.95) 5.84 and S3(0.95, p=3) 3.98" in sooner.text
    assert sooner.code.endswith("betas=(0.9, 0.95))    # betas were (0.9, 0.999)")
    assert "Your" not in advised("update_burst", run=spiky(optimizers=[{"class": "SGD", "groups": [{"lr": 0.1}]}])).text
    assert "Your" not in advised("preconditioner").text
