"""`foreshock threshold`: one optimizer on a card, all of them in a table, both as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foreshock.cli.threshold import OPTIONS
from foreshock.stability import optimizers, stability_threshold, table


def test_the_card_holds_value_formula_derivation_source_and_assumptions(foreshock):
    text = foreshock("threshold", "adam", "--lr", "3e-4").output
    assert "2(1+0.9)/((1-0.9)*3e-4) = 126,667" in text
    assert "2(1+beta1)/((1-beta1)*lr)" in text
    assert "lambda_max(P^-1 H), P = (1-beta1^t)(sqrt(v/(1-beta2^t))+eps)" in text
    assert "arXiv 2207.14484" in text
    assert "P and H change slowly" in text
    assert "lr=3e-4  usual: beta1=0.9" in text


def test_json_is_the_threshold(foreshock):
    facts = json.loads(foreshock("threshold", "nadam", "--lr", "1e-3", "--step", "100", "--json").output)
    found = stability_threshold("nadam", lr=1e-3, step=100)
    assert facts["value"] == found.value
    assert facts["settings"]["step"] == 100
    assert facts["formal"] is False
    assert facts["derivation"] == found.derivation


def test_infinity_is_a_string_in_json(foreshock):
    assert json.loads(foreshock("threshold", "sgd", "--lr", "0", "--json").output)["value"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("sgd", "--lr", "0.1", "--momentum", "0.9", "--nesterov"), {"momentum": 0.9, "nesterov": True}),
        (("nag", "--lr", "0.1", "--no-nesterov"), {"momentum": 0.9, "nesterov": False}),
        (("adam", "--lr", "0.1", "--set", "betas=0.5,0.99"), {"beta1": 0.5, "beta2": 0.99}),
        (("muon", "--lr", "0.1", "--set", "shape=(64, 16)"), {"rows": 64, "columns": 16}),
        (("muon", "--lr", "0.1", "--set", "adjust_lr_fn=match_rms_adamw"), {"match_rms_adamw": True}),
        (("nadam", "--lr", "1", "--set", "momentum-decay=0.1", "--set", "step=9"), {"momentum_decay": 0.1, "step": 9}),
        (("adam", "--lr", "0.1", "--set", "amsgrad=true", "--set", "foreach=none"), {"amsgrad": True}),
        (("sam", "--lr", "0.1", "--rho", "0.5", "--grad-norm", "2"), {"rho": 0.5, "grad_norm": 2}),
    ],
)
def test_settings_are_options_or_given_by_set(foreshock, arguments, settings):
    facts = json.loads(foreshock("threshold", *arguments, "--json").output)
    assert settings.items() <= facts["settings"].items()


def test_the_list_has_every_optimizer_with_its_formula(foreshock):
    text = foreshock("threshold").output
    assert text == foreshock("threshold", "--list").output
    for name in optimizers():
        assert name in text
    assert "38/lr" in text
    assert "P^-1 H, formal" in text
    listed = json.loads(foreshock("threshold", "--json").output)
    assert [each["name"] for each in listed] == list(optimizers())


def test_every_option_is_a_setting_of_some_optimizer():
    known = {setting for rule in table.RULES.values() for setting in rule.settings}
    assert set(OPTIONS) <= known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adm", "--lr", "1"), "error: 'adm' is no optimizer in the table; did you mean 'adam'"),
        (("adam", "--nu", "1"), "error: Adam has no setting 'nu'"),
        (("adam", "--set", "lr"), "'lr' is not of the form name=value"),
        (("adam", "--set", "lr=fast"), "lr must be a number; given 'fast'"),
        (("--lr", "1"), "but no optimizer"), (("adam", "--lr", "1", "--set", "lr=2"), "lr is given twice"),
        (("lion", "--set", "lr=nan"), "given nan"),
        (("s3",), "S3 has no usual lr"),
    ],
)
def test_a_wrong_question_is_answered(foreshock, arguments, said):
    assert said in foreshock("threshold", *arguments, code=2).output


def test_no_torch_is_imported():
    code = (
        "import sys; from foreshock.cli import main; main(['threshold', 'adam'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_completed():
    from foreshock.cli.threshold import _names

    assert _names(None, None, "ad") == [name.lower() for name in optimizers() if name.startswith("Ad")]
