"""S3's step: its bound, its first step, its size under noise, its scale invariance, Adam as a special case."""

from __future__ import annotations

import doctest
import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import optim

from foreshock.optim import S3, native
from foreshock.optim.transfer import s3_rms
from foreshock.testing import check_optimizer
from tests.optim.s3_cases import trained

STEPS = 120


def streams(seed):
    """Returns gradients (steps, 7): usual ones and those that optimizers were made to stumble over."""
    random = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    sign = random.choice([-1.0, 1.0], STEPS)
    return np.stack(
        [
            random.standard_normal(STEPS),
            random.standard_cauchy(STEPS),
            np.where(steps < 80, 1e-6 * random.standard_normal(STEPS), 1e4 * sign),  # quiet, then bursts
            np.ones(STEPS),
            1e-15 * random.standard_normal(STEPS),
            (0.999 / 0.9) ** steps,  # what drives Adam(.9, .999) furthest
            np.where(steps % 10 == 0, 1e8, 1e-8) * sign,
        ],
        axis=1,
    )


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("fused", [False, None])
def test_no_history_of_gradients_makes_a_step_above_the_bound(p, fused):
    seen = np.abs(trained(streams(int(10 * p)), p=p, eps=1e-30, fused=fused))
    bound = (1 - 0.95 ** np.arange(2, STEPS + 2)) ** (1 - 1 / p)
    assert (seen <= bound[:, None] + 1e-4).all()
    assert np.allclose(seen[:, 3], bound, rtol=1e-5)  # all gradients equal: the bound itself


@pytest.mark.parametrize(("p", "first"), [(3.0, 0.2118), (2.0, 0.3122), (1.0, 1.0)])
def test_the_first_step_is_the_same_for_every_gradient_that_is_not_zero(p, first):
    seen = trained([[1e-7, -3.0, 1e6, 0.0, 2e-20]], p=p, eps=0.0)[0]
    assert np.allclose(seen, [first, -first, first, 0, first], atol=5e-5)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 7.3, 10.0])
def test_the_step_does_not_depend_on_the_scale_of_gradients(p):
    grads = np.random.default_rng(3).standard_normal((30, 40))
    usual = trained(grads, p=p, eps=0.0)
    for scale in (1e-15, 1e-4, 1e8, 1e15):
        assert np.allclose(trained(grads * scale, p=p, eps=0.0), usual, rtol=2e-5, atol=1e-6)
    tiny = trained(1e-20 * np.sign(grads), p=p, eps=0.0)
    assert np.allclose(tiny, trained(np.sign(grads), p=p, eps=0.0), rtol=2e-5, atol=1e-6)


def test_p_of_2_without_nesterov_is_adam_with_equal_betas_and_no_bias_correction():
    grads = np.random.default_rng(4).standard_normal((60, 50))
    mine = trained(grads, p=2.0, nesterov=False, eps=1e-8, dtype=torch.float64)
    m, v, beta = np.zeros(50), np.zeros(50), 0.95
    for grad, seen in zip(grads, mine, strict=True):
        m, v = beta * m + (1 - beta) * grad, beta * v + (1 - beta) * grad**2
        assert np.allclose(seen, m / (np.sqrt(v) + 1e-8), rtol=1e-12)


@pytest.mark.parametrize(("p", "beta", "nesterov"), [(3.0, 0.95, True), (2.0, 0.95, True), (3.0, 0.9, False)])
def test_the_typical_step_under_noise_is_what_its_closed_form_says(p, beta, nesterov):
    grads = np.random.default_rng(5).standard_normal((120, 4000))
    size = math.sqrt(np.square(trained(grads, p=p, beta=beta, nesterov=nesterov)[100:]).mean())
    assert size == pytest.approx(s3_rms(beta, p, nesterov=nesterov), rel=0.025)
    if (p, beta, nesterov) == (3.0, 0.95, True):
        assert size == pytest.approx(0.149, abs=0.003)


@pytest.mark.parametrize("settings", [{"fused": False}, {"foreach": False}, {}], ids=str)
def test_beta_of_0_is_sign_descent_also_after_gradients_of_another_size(settings):
    grads = np.array([[1.0, -1e10, 1e-3], [-1e-9, 1e-9, 1.0], [1e-18, -1e-12, -1e-9]])
    assert np.allclose(trained(grads, beta=0.0, eps=0.0, **settings), np.sign(grads), rtol=1e-6)


def test_gradients_of_zero_leave_parameters_and_state_alone():
    param = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = S3([param], lr=0.1, eps=0.0)
    for _ in range(3):
        param.grad = torch.zeros(2)
        optimizer.step()
    assert param.tolist() == [1.0, -2.0]
    assert not any(each.any() for each in optimizer.state[param].values())


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_own_coordinate_for_good_and_in_no_other(bad, fused):
    grads = np.ones((5, 40))
    usual = trained(grads, fused=fused)
    grads[2, 7] = bad
    seen = trained(grads, fused=fused)
    others = np.arange(40) != 7
    assert np.isnan(seen[2:, 7]).all()
    assert np.array_equal(seen[:, others], usual[:, others])


@pytest.mark.parametrize("fused", [False, None])
def test_subnormal_gradients_make_finite_steps_within_the_bound(fused):
    seen = trained(np.array([[1e-45, -1e-40, 3e38, 1e-38]] * 4), eps=0.0, fused=fused)
    assert (np.abs(seen) <= 1).all()  # nor is any NaN
    assert seen[0, 2] == pytest.approx(0.2118, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"fused": False, "weight_decay": 0.1}, {"foreach": False}, {"p": 2.5}, {"nesterov": False}, {"beta2": 0.99},
        {"state_dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_the_contract_of_optimizers_holds(settings):
    check_optimizer(lambda params: S3(params, **{"lr": 0.05, **settings}))


@pytest.mark.skipif(native.library() is None, reason="no C compiler when it was installed")
def test_the_contract_of_optimizers_holds_for_the_compiled_loop():
    check_optimizer(lambda params: S3(params, lr=0.05, fused=True))


def test_decay_is_decoupled_and_adamws():
    param = torch.tensor([2.0], requires_grad=True)
    other = torch.tensor([2.0], requires_grad=True)
    for each, kind in ((param, S3), (other, optim.AdamW)):
        optimizer = kind([each], lr=0.1, weight_decay=0.5)
        each.grad = torch.zeros(1)
        optimizer.step()
    assert param.tolist() == other.tolist() == pytest.approx([1.9])


@pytest.mark.parametrize("name", ["s3", "blocks", "update", "paths", "settings", "transfer"])
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(f"foreshock.optim.{name}")).failed == 0


def test_the_page_on_s3_runs_from_top_to_bottom(capsys):
    page = (Path(__file__).parents[2] / "docs" / "s3.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, "s3.md", "exec"), names)
    assert "so that the typical step under noise stays what it is" in capsys.readouterr().out
