"""The response to a burst in closed form: the published table, direct sums, streams that reach the bounds."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import foreshock.bursts
from foreshock.bursts import BurstResponse, burst_response, known, of_group
from foreshock.cli.bursts import USUAL
from foreshock.errors import UsageError

TABLE = [  # optimizer, settings, sup, first, displacement
    ("adam", {"betas": (0.9, 0.999)}, 7.270, 3.162, 31.77),
    ("adam", {"betas": (0.9, 0.99)}, 2.345, 1.0, 10.47),
    ("adam", {"betas": (0.9, 0.95)}, 1.165, 0.4472, 5.837),
    ("adam", {"betas": (0.95, 0.95)}, 1.0, 0.2236, 8.831),
    ("s3", {"p": 1}, 1.0, 1.0, math.inf),
    ("s3", {"p": 1.5}, 1.0, 0.4603, 21.46),
    ("s3", {"p": 2}, 1.0, 0.3122, 8.70),
    ("s3", {"p": 3}, 1.0, 0.2118, 3.982),
    ("s3", {"p": 6}, 1.0, 0.1437, 1.951),
    ("s3", {"p": 3, "nesterov": False}, 1.0, 0.1357, 4.037),
    ("s3", {"p": 3, "beta": 0.9, "beta2": 0.999}, 3.61, 1.508, 9.638),
    ("s3", {"p": 3, "beta": 0.9, "beta2": 0.95}, 1.0915, 0.4128, 3.106),
]


@pytest.mark.parametrize(("name", "settings", "sup", "first", "displacement"), TABLE)
def test_the_published_table_holds(name, settings, sup, first, displacement):
    found = burst_response(name, **settings)
    assert found.sup == pytest.approx(sup, rel=1e-3)
    assert found.first == found.peak == pytest.approx(first, rel=1e-3)
    assert found.displacement == pytest.approx(displacement, rel=1e-3)


def adam_stream(g: np.ndarray, beta1: float, beta2: float) -> np.ndarray:
    """Returns Adam's updates for a stream of gradients, by its own recursion, bias-corrected."""
    m = v = 0.0
    moves = []
    for t, each in enumerate(g, 1):
        m, v = beta1 * m + (1 - beta1) * each, beta2 * v + (1 - beta2) * each**2
        moves.append(m / (1 - beta1**t) / math.sqrt(v / (1 - beta2**t)))
    return np.array(moves)


def s3_stream(g: np.ndarray, beta: float, beta2: float, p: float) -> np.ndarray:
    m = s = 0.0
    moves = []
    for each in g:
        m, s = beta * m + (1 - beta) * each, beta2 * s + (1 - beta2) * abs(each) ** p
        moves.append((beta * m + (1 - beta) * each) / (beta2 * s + (1 - beta2) * abs(each) ** p) ** (1 / p))
    return np.array(moves)


@pytest.mark.parametrize("step", [1, 2, 7, 100])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9)])
def test_a_young_adam_answers_as_its_recursion_does(step, betas):
    g = np.zeros(step + 40)
    g[: step - 1] = 1e-6 * (-1.0) ** np.arange(step - 1)
    g[step - 1] = 1.0
    found = burst_response("adamw", betas=betas, step=step)
    course = np.zeros(40)
    course[: len(found.course)] = found.course[:40]
    np.testing.assert_allclose(course, np.abs(adam_stream(g, *betas)[step - 1 : step + 39]), rtol=1e-4, atol=2e-5)


def test_the_first_step_of_adam_is_1_whatever_the_gradient():
    for name in ("adam", "adamw", "amsgrad", "lamb"):
        assert burst_response(name, step=1).first == pytest.approx(1)
        assert burst_response(name, step=1).sup == pytest.approx(1)


@pytest.mark.parametrize("ratio", [0.5, 3.0, 40.0])
def test_a_finite_burst_is_the_mean_over_the_signs_of_the_noise(ratio):
    """The noise drops out of the numerator exactly, where streams with opposite noise are averaged."""
    t, after = 4000, 300
    noise = np.random.default_rng(0).choice([-1.0, 1.0], t + after)
    streams = []
    for sign in (1, -1):
        g = sign * noise
        g[t - 1] = ratio
        streams.append(g)
    for name, moves in (
        ("adam", [adam_stream(g, 0.9, 0.99) for g in streams]), ("s3", [s3_stream(g, 0.95, 0.95, 3) for g in streams]),
    ):  # fmt: skip
        settings = {"betas": (0.9, 0.99)} if name == "adam" else {}
        course = np.mean(moves, axis=0)[t - 1 :]
        found = burst_response(name, ratio=ratio, **settings)
        np.testing.assert_allclose(found.course[:60], course[:60], rtol=1e-6, atol=1e-9)
        assert found.displacement == pytest.approx(course.sum(), rel=1e-3)


def test_a_large_finite_burst_becomes_the_infinite_one():
    for name in ("adam", "nadam", "s3", "rmsprop", "adamax", "adan", "adabelief", "adagrad"):
        limit, large = burst_response(name), burst_response(name, ratio=1e8)
        assert large.displacement == pytest.approx(limit.displacement, rel=1e-4)
        assert large.peak == pytest.approx(limit.peak, rel=1e-6)


def test_a_burst_no_larger_than_the_noise_moves_less():
    sizes = [burst_response("adam", ratio=ratio).displacement for ratio in (1, 3, 10, 100, 1e4)]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(1.0)  # (1-b1)(1 + b1 + ...): all of one usual gradient


@pytest.mark.parametrize("name", known())
def test_the_course_sums_up_to_the_closed_form(name):
    found = burst_response(name)
    if math.isfinite(found.displacement):
        assert sum(found.course) == pytest.approx(found.displacement, rel=1e-6)
        assert found.peak == max(found.course)
    assert found.first == found.course[0]
    assert not found.sup < found.peak
    assert found.text.startswith(found.optimizer)


@pytest.mark.parametrize("name", [*known(), "amsgrad"])
def test_the_formulas_are_the_numbers(name):
    for settings in ({}, {"beta1": 0.8}, {"nesterov": False}, {"p": 2.5}, {"momentum": 0.5}, {"centered": True}):
        try:
            found = burst_response(name, **settings)
        except UsageError:
            continue
        for what, text in found.formulas.items():
            value = eval(text.replace("^", "**"), {"sqrt": math.sqrt}, dict(found.settings))
            assert getattr(found, what) == pytest.approx(value, rel=1e-9), (what, text)


def test_no_stream_exceeds_the_bound_and_growing_gradients_come_near():
    rng = np.random.default_rng(1)
    sup = burst_response("adam").sup
    growing = (0.999 / 0.9) ** np.arange(300)
    stream = np.concatenate([1e-3 * rng.standard_normal(9000), growing])
    assert 0.999 * sup < adam_stream(stream, 0.9, 0.999).max() < sup
    one = burst_response("s3", beta=0.9, beta2=0.999)
    weights = np.array([1 - 0.9**2, *0.1 * 0.9 ** np.arange(2, 400)])
    below = np.array([1 - 0.999**2, *0.001 * 0.999 ** np.arange(2, 400)])
    worst = ((weights / below) ** 0.5)[::-1]  # Hoelder's equality: a_k proportional to c_k g_k^(p-1)
    moves = s3_stream(worst, 0.9, 0.999, 3)
    assert 0.999 * one.sup < moves.max() <= one.sup * (1 + 1e-9)
    for heavy in (rng.standard_cauchy(3000), np.repeat([1e-3, 1e3], 400), rng.standard_normal(3000)):
        assert np.abs(s3_stream(heavy, 0.95, 0.95, 3)).max() <= 1 + 1e-12
        assert np.abs(s3_stream(heavy, 0.9, 0.999, 3)).max() <= one.sup * (1 + 1e-12)


@pytest.mark.parametrize("step", [1, 2, 5, 40])
def test_the_bound_at_a_step_is_reached_there(step):
    """By Hoelder's equality in the weights of that step."""
    k = np.arange(step)[::-1]
    moves = adam_stream((0.9 / 0.999) ** k, 0.9, 0.999)
    assert moves[-1] == pytest.approx(burst_response("adam", step=step).sup, rel=1e-9)
    assert s3_stream(np.ones(step), 0.95, 0.95, 3)[-1] == pytest.approx(burst_response("s3", step=step).sup, rel=1e-9)


@pytest.mark.parametrize("p", [1.0, 1.001, 40.0, 1000.0])
def test_any_order_of_s3_is_finite_where_it_ends(p):
    for ratio in (1e-3, 3.0, math.inf):
        found = burst_response("s3", p=p, ratio=ratio, beta=0.9, beta2=0.95)
        assert 0 < found.first <= found.peak < 10
        assert found.displacement > 0
        assert 1 <= found.sup < 10


def test_the_peak_may_come_after_the_burst():
    late = burst_response("adam", betas=(0.99, 0.9), ratio=1e4)
    assert late.peak > 2 * late.first
    assert late.peak == max(late.course)
    assert "not the first" in late.text
    assert math.isfinite(late.displacement)
    endless = burst_response("adam", betas=(0.99, 0.9))
    assert endless.peak == endless.displacement == endless.sup == math.inf
    assert "ever faster" in endless.text
    even = burst_response("adam", betas=(0.9, 0.81))
    assert even.displacement == math.inf
    assert even.peak == pytest.approx(even.first)


def test_what_is_proportional_to_the_gradient_is_bounded_by_nothing():
    for name in ("sgd", "nesterov", "qhm", "padam", "asgd"):
        found = burst_response(name)
        assert found.peak == found.displacement == found.sup == math.inf
        assert not found.bounded
        assert "nothing bounds it" in found.text
    assert burst_response("sgd", momentum=0.9, ratio=7).displacement == pytest.approx(70)
    assert burst_response("sgd", momentum=0.9, dampening=0.9, ratio=7).displacement == pytest.approx(7)
    assert burst_response("sgd", momentum=0.9, nesterov=True, ratio=7).peak == pytest.approx(7 * 1.9)


def test_signs_go_on_until_noise_drowns_them():
    assert burst_response("lion").displacement == math.inf
    assert burst_response("lion").peak == 1
    few, many = burst_response("lion", ratio=10), burst_response("lion", ratio=1000)
    assert 10 < few.displacement < many.displacement < 1000
    assert burst_response("signsgd").displacement == 1


def test_eps_counts_beside_gradients_of_its_size():
    plain = burst_response("adam", ratio=10)
    assert burst_response("adam", ratio=10, usual=1.0, eps=1e-8).displacement == pytest.approx(plain.displacement)
    damped = burst_response("adam", ratio=10, usual=1e-8, eps=1e-8)
    assert damped.first == pytest.approx(1 / (math.sqrt(0.999 + 0.1) + 1))
    assert burst_response("adam", usual=1e-8, eps=1e-8) == burst_response("adam", eps=1e-8)


def test_names_and_settings_are_read_as_people_write_them():
    assert burst_response("Adam_W", betas=[0.9, 0.95]).displacement == burst_response("adam", beta2=0.95).displacement
    assert burst_response("SoftSignSGD").optimizer == "S3"
    assert burst_response("amsgrad").displacement == burst_response("adam", amsgrad=True).displacement
    assert burst_response("adamw", lr=1e-3, weight_decay=0.1, foreach=None, maximize=True) == burst_response("adamw")
    assert "AdamW(0.9, 0.999, amsgrad)" in burst_response("AdamW", amsgrad=True).text

    class Adam: ...

    assert burst_response(Adam).displacement == burst_response("adam").displacement


def test_groups_of_a_run_are_read_with_whatever_they_hold():
    group = {"lr": 0.1, "betas": [0.9, 0.95], "eps": 1e-8, "odd": object(), "params": [1]}
    assert of_group("AdamW", group).displacement == pytest.approx(5.837, rel=1e-3)
    assert of_group("Adafactor", {"eps": [None, 1e-3], "d": 1.0}).displacement == 1
    assert of_group("Novograd", group) is None
    assert of_group("Adam", {"betas": ["a", "b"]}) is None
    assert of_group("LBFGS", {}) is None


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("adm", {}, "did you mean 'adam'"),
        ("lbfgs", {}, "searches for the length"),
        ("adam", {"beta3": 0.9}, "Adam has no setting 'beta3'; did you mean"),
        ("adam", {"beta1": 1.0}, "beta1 must be at least 0 and below 1; given 1"),
        ("adam", {"betas": 0.9}, "betas is a pair"),
        ("adam", {"beta2": "big"}, "beta2 must be a number; given 'big'"),
        ("s3", {"p": 0.5}, "p must be at least 1"),
        ("s3", {"nesterov": 0.3}, "nesterov is True or False"),
        ("adam", {"ratio": 0}, "ratio must be a number above 0"),
        ("adam", {"ratio": math.nan}, "ratio must be"),
        ("adam", {"step": 0}, "step must be a number of at least 1"),
        ("adam", {"usual": -1.0}, "usual must be"),
    ],
)
def test_a_wrong_question_is_answered(name, settings, said):
    with pytest.raises(UsageError, match=said):
        burst_response(name, **settings)


def test_what_is_no_name_is_sent_to_the_live_side():
    with pytest.raises(UsageError, match=r"foreshock.optim.burst_response\(optimizer\)"):
        burst_response(3)


def test_a_response_is_a_value():
    one, two = burst_response("adam"), burst_response("adam")
    assert one == two
    assert isinstance(one, BurstResponse)
    assert str(one) == one.text
    with pytest.raises(AttributeError):
        one.peak = 1.0


@pytest.mark.parametrize("module", [each.name for each in pkgutil.iter_modules(foreshock.bursts.__path__)])
def test_the_docstrings_hold(module):
    assert doctest.testmod(importlib.import_module(f"foreshock.bursts.{module}")).failed == 0


def test_the_table_of_the_guide_is_the_numbers():
    page = (Path(__file__).parents[2] / "docs" / "s3.md").read_text(encoding="utf-8")
    told = {burst_response(name, **settings).label: burst_response(name, **settings) for name, settings in USUAL}
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \| (\S+) \| (\S+) \|$", page, flags=re.MULTILINE)
    assert {name for name, *_ in rows} == set(told)
    for name, *numbers in rows:
        found = told[name]
        assert numbers == [f"{each:.3g}" for each in (found.sup, found.peak, found.displacement)], name
