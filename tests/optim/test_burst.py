"""The response of a live optimizer: its closed form is what a pushed copy does, and nothing of it is touched."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import random

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from foreshock.errors import UsageError
from foreshock.optim import S3, burst_response
from foreshock.optim.pushed import early, pushed
from tests.reference import optimizers as others


def weights(*shape: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*(shape or (3, 2)), generator=generator))]


QUICK = {"lr": 0.1, "betas": (0.7, 0.9)}
KNOWN = [
    (optim.Adam, {}),
    (optim.AdamW, {**QUICK, "weight_decay": 0.3}),
    (optim.Adam, {**QUICK, "amsgrad": True}),
    (optim.Adam, {**QUICK, "lr": torch.tensor(0.1), "maximize": True}),
    (optim.NAdam, {**QUICK, "decoupled_weight_decay": True}),
    (optim.RAdam, QUICK),
    (optim.Adamax, QUICK),
    (optim.RMSprop, {}),
    (optim.RMSprop, {"momentum": 0.7, "alpha": 0.9}),
    (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    (optim.Adagrad, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.7, "nesterov": True}),
    (S3, {"lr": 0.1}),
    (S3, {"lr": 0.1, "p": 2.0, "beta": 0.7}),
    (S3, {"lr": 0.1, "p": 6.0, "beta": 0.8}),
    (S3, {"lr": 0.1, "p": 1.0}),
    (S3, {"lr": 0.1, "nesterov": False, "beta": 0.8}),
    (S3, {"lr": 0.1, "beta": 0.7, "beta2": 0.99}),
    (others.Lion, {}),
    (others.QHM, {"lr": 0.1, "momentum": 0.7}),
    (others.AdaBelief, QUICK),
    (others.Yogi, QUICK),
]


@pytest.mark.parametrize(("kind", "settings"), KNOWN, ids=lambda value: getattr(value, "__name__", None))
def test_the_closed_form_is_what_a_pushed_copy_does(kind, settings):
    made = kind(weights(), **settings)
    told, seen = burst_response(made), pushed(made, made.param_groups[0])
    assert told.method == "closed form"
    assert seen.peak == pytest.approx(told.peak, rel=1e-3)
    assert seen.displacement == pytest.approx(told.displacement, rel=1e-3)
    young = burst_response(made, step=6)
    course = [*young.course, *[0.0] * 20][:20]
    if math.isfinite(young.peak):
        np.testing.assert_allclose(early(made, made.param_groups[0], step=6, updates=20), course, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [others.QHAdam, others.AdEMAMix], ids=lambda kind: kind.__name__)
def test_those_that_remember_for_long_are_held_against_a_young_copy(kind):
    made = kind(weights())
    told, seen = burst_response(made, step=4), early(made, made.param_groups[0], step=4, updates=60)
    assert told.method == "closed form"
    np.testing.assert_allclose(seen, told.course[:60], rtol=1e-3)


def test_adadelta_and_adafactor_are_counted_in_their_own_steps():
    made = optim.Adadelta(weights())
    seen = early(made, made.param_groups[0], step=60, updates=1)
    usual = pushed(made, made.param_groups[0], ratio=1.0, step=60)
    assert burst_response(made).unit == "usual moves"
    assert seen[0] / usual.course[0] == pytest.approx(burst_response(made).first, rel=0.25)
    alone = optim.Adafactor(weights(1), lr=0.1)
    assert burst_response(alone).displacement == 1
    assert burst_response(alone).unit == "relative steps of the tensor"


@pytest.mark.parametrize("kind", [optim.AdamW, S3], ids=lambda kind: kind.__name__)
def test_a_finite_burst_is_measured_as_it_is_told(kind):
    made = kind(weights(), lr=0.1, **({"betas": (0.7, 0.95)} if kind is optim.AdamW else {"beta": 0.8}))
    told, seen = burst_response(made, ratio=30), pushed(made, made.param_groups[0], ratio=30)
    assert seen.course[0] == pytest.approx(told.first, rel=1e-2)
    assert seen.displacement == pytest.approx(told.displacement, rel=2e-2)


def test_nothing_of_a_live_optimizer_is_touched():
    for kind in (others.Padam, optim.Adam):
        made = kind(weights(), lr=0.1)
        for _ in range(3):
            made.param_groups[0]["params"][0].grad = torch.ones(3, 2)
            made.step()
        heard = []
        hook = made.register_step_post_hook(lambda *_, heard=heard: heard.append(1))
        every = register_optimizer_step_post_hook(lambda *_, heard=heard: heard.append(2))
        param = made.param_groups[0]["params"][0]
        before = copy.deepcopy((made.state_dict(), param.detach(), param.grad))
        streams = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].tolist()
        burst_response(made)
        pushed(made, made.param_groups[0])
        after = made.state_dict(), param.detach(), param.grad
        assert str(before) == str(after)
        assert all(torch.equal(one, two) for one, two in zip(before[1:], after[1:], strict=True))
        assert torch.equal(streams[0], torch.get_rng_state())
        assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        assert heard == []
        hook.remove()
        every.remove()


class Halving(optim.Optimizer):
    """Moves by lr along the sign, then half of it, a quarter, ...: D = 2, known to nobody."""

    def __init__(self, params, lr=1e-3, keep=0.5):
        super().__init__(params, {"lr": lr})
        self.keep = keep

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                old = self.state[param].get("move", torch.zeros_like(param))
                size = param.grad.abs()
                top = torch.maximum(self.state[param].get("top", torch.zeros_like(param)), size)
                move = old * self.keep + torch.where(size >= top, param.grad.sign(), 0) * (size > 0)
                self.state[param].update(move=move, top=top)
                param.sub_(move, alpha=group["lr"])


def test_an_optimizer_that_nobody_described_is_measured():
    found = burst_response(Halving(weights(), lr=0.3))
    assert found.method == "simulated"
    assert found.first == pytest.approx(1)
    assert found.displacement == pytest.approx(2)
    assert burst_response(Halving(weights(), keep=0.75)).displacement == pytest.approx(4)
    assert math.isnan(found.sup)
    assert found.text == "Halving moves a coordinate 2 learning rates after one burst, 1 of them in its largest step."


class Cautious(optim.Adam):
    """An Adam whose step is another one's."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(param.grad.clamp(-0.1, 0.1), alpha=group["lr"])


def test_a_class_that_changed_its_step_is_not_taken_for_its_ancestor():
    class Renamed(optim.AdamW): ...

    assert burst_response(Renamed(weights())).method == "closed form"
    found = burst_response(Cautious(weights()))
    assert found.method == "simulated"
    assert found.displacement == pytest.approx(0.1)


def test_a_name_with_other_conventions_gives_way_to_the_measurement():
    """The paper's Padam has p = partial / 2 of this one; a LAMB that clips gradients hides a burst."""
    assert burst_response(others.Padam(weights(), partial=0.25)).method == "simulated"
    clipped = burst_response(others.Lamb(weights(), lr=0.1))
    assert clipped.method == "simulated"
    assert clipped.displacement < 20


def test_signs_of_an_unknown_kind_do_not_end():
    class Signs(Halving):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for param in group["params"]:
                    m = self.state[param].setdefault("m", torch.zeros_like(param))
                    m.mul_(0.9).add_(param.grad)
                    param.sub_(m / (m.abs() + 1e-8), alpha=group["lr"])

    found = burst_response(Signs(weights()))
    assert (found.displacement, found.peak) == (math.inf, pytest.approx(1))

    class Raw(Halving):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for param in group["params"]:
                    param.sub_(param.grad, alpha=group["lr"])

    assert burst_response(Raw(weights())).sup == math.inf
    assert "nothing bounds it" in burst_response(Raw(weights())).text


def test_steps_that_go_by_the_size_of_the_parameter_are_measured_at_one():
    class Relative(Halving):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for param in group["params"]:
                    param.sub_(param.norm() / param.numel() ** 0.5 * param.grad.sign(), alpha=group["lr"])

    assert burst_response(Relative(weights(), lr=0.1)).displacement == pytest.approx(1)

    class Still(Halving):
        def step(self, closure=None): ...

    assert burst_response(Still(weights())).displacement == 0


def test_groups_that_differ_are_all_told_and_the_worst_speaks():
    one, two, three = weights(), weights(), weights()
    made = optim.AdamW(
        [{"params": one, "betas": (0.9, 0.95)}, {"params": two}, {"params": three, "lr": 0.5, "weight_decay": 0.0}]
    )
    found = burst_response(made)
    assert [round(each.displacement, 2) for each in found.groups] == [5.84, 31.77]
    assert found.displacement == max(each.displacement for each in found.groups)
    assert burst_response(optim.AdamW(one)).groups == ()


def test_names_are_answered_as_well():
    assert burst_response("adam", beta2=0.95).displacement == pytest.approx(5.837, rel=1e-3)
    assert burst_response(optim.AdamW).displacement == pytest.approx(31.77, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: burst_response(optim.LBFGS(weights())), "evaluates the loss inside"),
        (lambda: burst_response(optim.Adam(weights()), betas=(0.9, 0.9)), "brings its own settings"),
        (lambda: burst_response(weights()), "must be a torch.optim.Optimizer"),
        (lambda: burst_response(optim.Adam(weights()), ratio=-1), "ratio must be"),
        (lambda: burst_response(Halving(weights()), usual=1.0), "usual has no meaning"),
        (lambda: burst_response(Halving(weights(), keep=math.inf)), "no response"),
    ],
)
def test_a_wrong_question_is_answered(asked, said):
    with pytest.raises(UsageError, match=said):
        asked()


def test_what_cannot_step_says_so():
    class Broken(Halving):
        def step(self, closure=None):
            raise RuntimeError("no")

    with pytest.raises(UsageError, match="could not take a step"):
        burst_response(Broken(weights()))


def test_the_docstring_holds():
    assert doctest.testmod(importlib.import_module("foreshock.optim.burst")).failed == 0
