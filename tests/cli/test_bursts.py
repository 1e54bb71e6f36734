"""`foreshock bursts`: one optimizer on a card, the usual ones in a table, both as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foreshock.bursts import burst_response, known
from foreshock.cli.bursts import USUAL, _names


def test_the_card_holds_the_sentence_the_numbers_and_their_formulas(foreshock):
    text = foreshock("bursts", "adamw", "--beta2", "0.95").output
    assert "AdamW(0.9, 0.95) moves a coordinate 5.84 learning rates" in text
    assert "5.837  = (1-beta1)/sqrt(1-beta2)/(1-beta1/sqrt(beta2))" in text
    assert "1.165  = " in text
    assert "arXiv 2507.06464" in text
    assert "after 9 steps" in text


def test_the_table_has_the_usual_optimizers(foreshock):
    text = foreshock("bursts").output
    for line in ("7.27    3.162     3.162   31.77", "AdamW(0.9, 0.999) ", "S3(0.95, p=3) ", "Lion(0.9, 0.99) "):
        assert line in text
    listed = json.loads(foreshock("bursts", "--json").output)
    assert len(listed) == len(USUAL)
    assert listed[0]["displacement"] == burst_response("adamw").displacement


def test_json_is_the_response(foreshock):
    facts = json.loads(foreshock("bursts", "s3", "--p", "2", "--ratio", "30", "--step", "5", "--json").output)
    found = burst_response("s3", p=2, ratio=30, step=5)
    assert facts["displacement"] == found.displacement
    assert facts["course"] == list(found.course)
    assert facts["settings"]["p"] == 2
    assert (facts["ratio"], facts["step"]) == (30, 5)
    assert json.loads(foreshock("bursts", "sgd", "--json").output)["peak"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adm",), "did you mean 'adam'"),
        (("adam", "--beta1", "1.5"), "error: Adam: beta1 must be at least 0 and below 1"),
        (("s3", "--set", "p"), "'p' is not of the form name=value"),
        (("s3", "--p", "2", "--set", "p=3"), "p is given twice"),
        (("--p", "2"), "but no optimizer"),
        (("adam", "--ratio", "0"), "error: ratio must be a number above 0"),
        (("adam", "--step", "0"), "error: step must be a number of at least 1"),
        (("adam", "--set", "warmth=3"), "Adam has no setting 'warmth'"),
    ],
)
def test_a_wrong_question_is_answered(foreshock, arguments, said):
    assert said in foreshock("bursts", *arguments, code=2).output


def test_other_settings_are_given_by_set(foreshock):
    facts = json.loads(foreshock("bursts", "s3", "--set", "nesterov=false", "--json").output)
    assert facts["settings"]["nesterov"] is False
    facts = json.loads(foreshock("bursts", "adam", "--set", "betas=0.5,0.9", "--json").output)
    assert (facts["settings"]["beta1"], facts["settings"]["beta2"]) == (0.5, 0.9)


def test_neither_torch_nor_numpy_is_imported():
    code = (
        "import sys; from foreshock.cli import main; main(['bursts', 'adam', '--json'], standalone_mode=False);"
        "assert not {'torch', 'numpy'} & set(sys.modules), sorted({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_completed():
    assert _names(None, None, "ad") == [name.lower() for name in known() if name.startswith("Ad")]
