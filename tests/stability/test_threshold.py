"""Closed forms against the optimizers' own recursions, published values, and what is said beside the number."""

from __future__ import annotations

import doctest
import inspect
import math
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.optimizer_steps import STEPS, growth, matrix

from foreshock.errors import UsageError
from foreshock.stability import gain, optimizers, rule, stability_threshold, table, threshold, wording
from foreshock.stability.filters import cascade
from foreshock.stability.table import stepwise
from foreshock.stability.table.stepwise import rectification

LINEAR = sorted(set(optimizers()) - {"SAM"})
UNIT = {"beta", "beta1", "beta2", "beta3", "momentum", "c"}
DRAWN = {
    "lr": st.floats(-4, 0).map(lambda power: float(f"{10**power:.3g}")),
    "weight_decay": st.sampled_from([0.0, 0.1, 1.3]), "dampening": st.sampled_from([0.0, 0.5, 0.9]),
    "step": st.integers(1, 400), "alpha": st.sampled_from([0.0, 0.5, 0.9]),
    "nu": st.sampled_from([0.0, 0.3, 0.7, 1.0]), "momentum_decay": st.sampled_from([0.0, 4e-3, 0.1]),
    "r": st.sampled_from([0.0, 1.0]), "rows": st.integers(1, 64), "columns": st.integers(1, 64),
    "grafting": st.sampled_from([0.3, 1.0, 4.0]), "trust_ratio": st.sampled_from([0.2, 1.0]),
    "rms": st.sampled_from([1e-4, 0.2, 1.0]), "update_rms": st.sampled_from([0.5, 3.0]),
    "lambd": st.sampled_from([0.0, 1e-4, 0.5]), "lr_decay": st.sampled_from([0.0, 0.01]),
}
KEPT = {"mu_product", "c", "p", "nu2", "d", "eps2", "beta2_decay", "rho"}


@st.composite
def asked(draw, name):
    """Draws settings of a row; three digits, so that the printed numbers are the numbers."""
    given_settings = {}
    for setting, usual in table.RULES[name].settings.items():
        if setting in KEPT:
            continue
        if isinstance(usual, bool):
            given_settings[setting] = draw(st.booleans())
        elif setting in UNIT or (setting, name) == ("alpha", "RMSprop"):
            given_settings[setting] = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.95, 0.99, 0.995]))
        else:
            given_settings[setting] = draw(DRAWN[setting])
    if given_settings.get("nesterov") and given_settings.get("dampening"):
        given_settings["dampening"] = 0.0  # as torch demands
    return given_settings


def curvatures(found, *factors):
    """Returns the eigenvalue of H, P = 1, at the given multiples of the threshold."""
    l2 = found.settings.get("weight_decay", 0.0)
    if " I)" in found.quantity:
        return [factor * found.value - l2 for factor in factors]
    if "weight_decay" in found.formula and found.decay == 0:
        return [factor * (found.value + l2) - l2 for factor in factors]
    return [factor * found.value for factor in factors]


@pytest.mark.parametrize("module", [threshold, wording, stepwise])
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_the_package_example():
    import foreshock.stability

    assert doctest.testmod(foreshock.stability).failed == 0


def test_every_optimizer_in_the_table_has_a_recursion_to_be_held_against():
    assert set(LINEAR) == set(STEPS)


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=25)
@given(data=st.data())
def test_stable_2_percent_below_and_unstable_2_percent_above(name, data):
    asked_for = data.draw(asked(name))
    found = stability_threshold(name, **asked_for)
    below, above = (growth(STEPS[name], curvature, found.settings) for curvature in curvatures(found, 0.98, 1.02))
    assert below <= 1 + 1e-9 < above, found.derivation
    assert gain(name, **asked_for) == found.gain


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=10)
@given(data=st.data())
def test_the_derivation_adds_up(name, data):
    found = stability_threshold(name, **data.draw(asked(name)))
    for part in found.derivation.split("; "):
        *steps, result = part.split(" = ")
        for step in steps:
            if not re.fullmatch(r"[A-Za-z]\w*", step):
                assert evaluated(step) == pytest.approx(float(result.replace(",", "")), rel=2e-4), part
    assert float(result.replace(",", "")) == pytest.approx(found.value, rel=1e-5)


def evaluated(text: str) -> float:
    code = re.sub(r"(?<=\d)\((?!-)|(?<=\))\(", "*(", text.replace("^", "**"))
    return eval(code, {"sqrt": math.sqrt, "max": max, "min": min, "inf": math.inf})


def test_the_characteristic_polynomials_of_the_recursions_are_the_published_ones():
    import numpy as np

    k, b, mu, tau, a = 1.7, 0.9, 0.8, 0.3, 0.85
    cases = {
        "SGD": ({"momentum": mu, "dampening": tau}, [1, -(1 + mu - (1 - tau) * k), mu]),
        "Adam": ({"beta1": b}, [1, -(1 + b - (1 - b) * k), b]),
        "AdamW": ({"beta1": b, "weight_decay": 1 - a}, [1, -(a + b - (1 - b) * k), a * b]),
        "Lion": ({"beta1": b, "beta2": mu}, np.convolve([1, -1], [1, -mu]) + k * np.array([0, 1 - b, b - mu])),
    }
    for name, (asked_for, polynomial) in cases.items():
        found = stability_threshold(name, lr=1.0, **asked_for)
        have = np.poly(matrix(STEPS[name], k, found.settings, size=4))
        assert have[: len(polynomial)] == pytest.approx(polynomial), name
        assert have[len(polynomial) :] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "asked_for", "times_lr"),
    [
        ("sgd", {}, 2), ("sgd", {"momentum": 0.9}, 3.8), ("sgd", {"momentum": 0.9, "dampening": 0.9}, 38),
        ("nesterov", {}, 1.357), ("rmsprop", {}, 2), ("rmsprop", {"momentum": 0.9}, 3.8), ("adagrad", {}, 2),
        ("adam", {}, 38), ("adam", {"beta1": 0.95}, 78), ("adam", {"beta1": 0.5}, 6), ("adam", {"beta1": 0}, 2),
        ("amsgrad", {}, 38), ("radam", {"step": 3}, 38), ("adamax", {}, 38), ("adadelta", {}, 2), ("nadam", {}, 13.57),
        ("qhm", {"momentum": 0.9, "nu": 0.7}, 5.938), ("qhadam", {"nus": (0.7, 1.0)}, 5.938),
        ("ademamix", {"alpha": 8}, 37.71), ("s3", {"beta": 0.9}, 13.57), ("S3", {"beta": 0.95}, 26.9),
        ("lion", {"weight_decay": 0.0}, 20.95), ("muon", {"weight_decay": 0.0}, 26.9), ("cascade", {}, 0.6807),
        ("soap", {"weight_decay": 0.0, "beta1": 0.9}, 38), ("shampoo", {"momentum": 0.9}, 3.8), ("lamb", {}, 38),
        ("schedule-free", {}, 20), ("AdamW-Schedule_Free", {"beta1": 0.98}, 100), ("padam", {}, 38), ("yogi", {}, 38),
        ("Adafactor", {"step": 1}, 2), ("signSGD", {}, 2), ("adam-mini", {}, 38), ("adabelief", {}, 38),
    ],
)
def test_published_thresholds(name, asked_for, times_lr):
    assert stability_threshold(name, lr=2e-3, **asked_for).value * 2e-3 == pytest.approx(times_lr, rel=5e-4)


def test_nadam_follows_the_published_table():
    published = {1: 1.94, 10: 3.49, 100: 3.53, 1000: 3.93, 6000: 6.51, 20_000: 12.22, math.inf: 13.57, 1e9: 13.57}
    for step, times_lr in published.items():
        assert stability_threshold("nadam", lr=1.0, step=step).value == pytest.approx(times_lr, abs=6e-3)
    assert "the limit of many steps" in " ".join(stability_threshold("nadam", lr=1.0).assumptions)


def test_nadam_takes_the_product_of_momenta_that_the_optimizer_holds():
    held = gain("nadam", step=5, mu_product=0.5)
    assert held != gain("nadam", step=5)
    product = math.prod(0.9 * (1 - 0.5 * 0.96 ** (i * 4e-3)) for i in range(1, 6))
    assert gain("nadam", step=5, mu_product=product) == pytest.approx(gain("nadam", step=5), rel=1e-12)


def test_radam_is_rectified_as_published():
    for step, r in {6: 0.026, 20: 0.085, 1000: 0.645, 1e6: 1, math.inf: 1}.items():
        assert rectification(step) == pytest.approx(r, abs=6e-4)
    assert all(rectification(step) is None for step in range(1, 6))
    assert "P = (1-beta1^t)I, as rho_t <= 5" in stability_threshold("radam", step=5).quantity
    assert "r_t = 0.02" in stability_threshold("radam", step=6).quantity


def test_asgd_depends_on_the_step_and_its_own_decay():
    first = stability_threshold("asgd", lr=0.1, lambd=0.5)
    assert first.value == pytest.approx((2 - 0.05) / 0.1)
    eta = 0.1 / (1 + 0.5 * 0.1 * 99) ** 0.75
    assert stability_threshold("asgd", lr=0.1, lambd=0.5, step=100).value == pytest.approx((2 - 0.5 * eta) / eta)
    assert stability_threshold("asgd", lr=0.1, lambd=0.5, weight_decay=3).value == pytest.approx(first.value - 3)


def test_decay_is_coupled_or_decoupled_as_the_optimizer_has_it():
    assert stability_threshold("sgd", lr=0.1, weight_decay=3).value == pytest.approx(17)
    assert stability_threshold("sgd", lr=0.1, weight_decay=3).quantity == "lambda_max(H)"
    coupled = stability_threshold("adam", lr=0.1, weight_decay=3)
    assert coupled.value == pytest.approx(380)
    assert "P^-1 (H + 3 I)" in coupled.quantity
    flagged = stability_threshold("adam", lr=0.1, weight_decay=8, decoupled_weight_decay=True)
    assert flagged.value == pytest.approx(stability_threshold("adamw", lr=0.1, weight_decay=8).value)
    assert flagged.value == pytest.approx(380 - 8 * 19)
    assert stability_threshold("schedulefree", lr=0.1, weight_decay=2).value == pytest.approx(198)


def test_muon_adjusts_the_lr_but_not_the_decay():
    plain = stability_threshold("muon", lr=0.1, shape=(400, 100), weight_decay=0.5)
    assert (plain.lr, plain.decay) == pytest.approx((0.2, 0.05))
    matched = stability_threshold("muon", lr=0.1, shape=(400, 100), adjust_lr_fn="match_rms_adamw")
    assert matched.lr == pytest.approx(0.1 * 0.2 * 20)


def test_where_the_step_is_bounded_the_threshold_says_it_is_no_alarm():
    formal = {name for name in optimizers() if stability_threshold(name, lr=0.01).formal}
    assert formal == {"S3", "Lion", "Muon", "SignSGD", "Rprop"}
    assert "formal" in " ".join(stability_threshold("lion").assumptions)


def test_lion_with_a_faster_buffer_than_readout_leaves_the_circle_elsewhere():
    found = stability_threshold("lion", lr=0.1, betas=(0.99, 0.9))
    assert found.period > 2
    assert "leaves the unit circle with period" in " ".join(found.assumptions)
    assert found.derivation.startswith("k = ")


@pytest.mark.parametrize(
    ("asked_for", "said"),
    [
        (("rmsprop", {"alpha": 0.9}), "approximate: 1-alpha = 0.1"), (("adam", {"beta2": 0.9}), "approximate: 1-beta2"),
        (("sgd", {"momentum": 0.9, "dampening": 0.9}), "stores the raw gradient: step 1 is 1/(1-dampening) = 10 times"),
        (("rmsprop", {}), "no bias correction"), (("adamw", {"lr": 1.0, "weight_decay": 2.5}), "no step is stable"),
        (("adadelta", {}), "default is 1"),
    ],
)
def test_traps_are_told(asked_for, said):
    name, given_settings = asked_for
    assert said in " ".join(stability_threshold(name, **given_settings).assumptions)
    assert "approximate" not in " ".join(stability_threshold("adam", beta2=0.95).assumptions)


def test_a_filter_of_ones_own_has_a_threshold():
    found = stability_threshold(cascade(0.7, 0.85), lr=0.1)
    assert found.value == pytest.approx(6.807, abs=1e-3)
    half = stability_threshold(0.5 * cascade(0.2), lr=0.1, weight_decay=1)
    assert half.value == pytest.approx(1.9 / (0.5 * 2 / 3 * 0.1))


def test_a_class_stands_for_its_name_and_maximize_turns_the_hessian_round():
    class AdamW: ...

    assert stability_threshold(AdamW, lr=0.1, weight_decay=0.0).value == pytest.approx(380)
    assert "-H" in stability_threshold("adam", maximize=True).quantity


def test_a_whole_param_group_is_accepted():
    group = {
        "params": [], "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
        "decoupled_weight_decay": False,
    }
    assert stability_threshold("Adam", **group).value == pytest.approx(38_000)


def test_an_lr_of_zero_never_goes_unstable():
    found = stability_threshold("adam", lr=0)
    assert found.value == math.inf
    assert any("nothing moves" in each for each in found.assumptions)


def test_a_decay_that_overshoots_by_itself_is_said():
    found = stability_threshold("sgd", lr=0.1, weight_decay=100)
    assert found.value == pytest.approx(2 / 0.1 - 100)
    assert any("decay alone overshoots" in each for each in found.assumptions)


def test_of_an_ascent_the_negative_hessian_counts():
    assert stability_threshold("adam", lr=1e-3, maximize=True).quantity.startswith("lambda_max(P^-1 (-H))")
    assert stability_threshold("sgd", lr=1e-3, maximize=True).quantity == "lambda_max(-H)"


@pytest.mark.parametrize(
    ("name", "asked_for", "said"),
    [
        ("adamm", {}, "did you mean 'adam'"), ("adam", {"beta_1": 0.9}, "did you mean beta1"),
        ("adam", {"beta1": 1.0}, "beta1 must be at least 0 and below 1; given 1"),
        ("lion", {"momentum": 0.9}, "no setting"),
        ("sgd", {"lr": -1.0}, "lr must be at least 0; given -1"), ("sgd", {"lr": "fast"}, "must be a number"),
        ("sgd", {"nesterov": 2}, "nesterov is True or False"), ("nadam", {"step": 0}, "step must be at least 1"),
        ("s3", {}, "S3 has no usual lr: give lr=..."), ("lbfgs", {}, "no filter and no threshold"),
        ("adam", {"betas": (0.9, 0.99, 0.9)}, "no setting 'beta3'"), ("adam", {"betas": 0.9}, "betas is a pair"),
        ("muon", {"adjust_lr_fn": "x"}, "match_rms_adamw"),
        ("sgd", {"lr": math.inf}, "given inf"), ("adam", {"lr": math.nan}, "given nan"),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "dampening": 0.1}, "nesterov needs dampening = 0"),
    ],
)
def test_a_wrong_question_is_answered_with_the_right_one(name, asked_for, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        stability_threshold(name, **asked_for)


def test_every_row_says_where_it_comes_from_and_shows_itself_in_one_line():
    for name in optimizers():
        found = stability_threshold(name, lr=0.01)
        assert found.reference
        assert found.assumptions
        assert str(found).startswith(f"{name}: lambda_max(")
        assert "\n" not in str(found) + found.derivation


def test_rows_name_what_they_use():
    for row in table.RULES.values():
        known = {*row.settings, *(where.name for where in row.where), "q", "k"}
        for each in [row.formula, *(where.text for where in row.where)]:
            if isinstance(each, str):
                assert wording.names_in(each.replace("{two}", "2")) <= known, row.name
        assert isinstance(row, rule.Rule)
        assert inspect.signature(row.filter)


def test_all_of_it_works_with_torch_blocked():
    code = """
import sys
sys.modules["torch"] = None
import foreshock.stability as stability
for name in stability.optimizers():
    assert stability.stability_threshold(name, lr=0.01).value > 0
    assert stability.gain(name) > 0
assert stability.filters.critical_step(stability.filters.cascade(.7, .85)).k < 1
assert {"edge_weights", "register", "twin"} <= set(dir(stability))
from foreshock.cli import main
main(["threshold", "adam", "--lr", "3e-4"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "126,667" in done.stdout
