"""A twin steps as its original would, and planned steps are the real ones bit for bit."""

from __future__ import annotations

import pytest
import torch
from tests.stability.live_cases import MATRICES, OTHERS, TORCH, built, label, stepped
from torch import optim
from torch.optim import optimizer as torch_optimizer

from foreshock.errors import UsageError
from foreshock.stability import planned_step, twin, twins

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", TORCH + OTHERS + MATRICES, ids=label)
def test_the_planned_step_is_the_real_one_bit_for_bit(case, dtype):
    optimizer, params, gradients = built(case, dtype=dtype)
    for turn in range(3):
        grads = gradients()
        if turn:
            grads[1] = None
        planned = planned_step(optimizer, grads)
        before = [param.detach().clone() for param in params]
        stepped(optimizer, params, grads)
        for move, param, old in zip(planned, params, before, strict=True):
            assert torch.equal(move, param.detach() - old)


def test_a_twin_shares_nothing():
    optimizer, params, gradients = built((optim.AdamW, {"amsgrad": True}))
    stepped(optimizer, params, gradients())
    copy, clones = twin(optimizer)
    assert type(copy) is optim.AdamW
    shared = {each.data_ptr() for each in params} | {
        value.data_ptr() for param in params for value in optimizer.state[param].values()
    }
    own = {each.data_ptr() for each in clones} | {
        value.data_ptr() for clone in clones for value in copy.state[clone].values()
    }
    assert not shared & own
    assert copy.param_groups[0]["params"] == clones
    assert copy.param_groups[0] is not optimizer.param_groups[0]


def test_a_twin_in_double_precision_keeps_the_values():
    optimizer, params, gradients = built((optim.Adam, {"fused": True}), dtype=torch.float32)
    stepped(optimizer, params, gradients())
    copy, clones = twin(optimizer, torch.float64)
    for param, clone in zip(params, clones, strict=True):
        assert clone.dtype == torch.float64
        assert torch.equal(clone.detach().float(), param.detach())
        assert copy.state[clone]["exp_avg_sq"].dtype == torch.float64
    twins.advance(copy, gradients())


def test_no_hook_scheduler_or_random_stream_notices():
    optimizer, params, gradients = built((optim.SGD, {"lr": 0.1}))
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)  # counts through a wrapper of step on the instance
    stepped(optimizer, params, gradients())
    scheduler.step()
    handle = torch_optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("global"))
    calls.clear()
    try:
        planned_step(optimizer, gradients())
        assert calls == []
        stepped(optimizer, params, gradients())
        assert calls == ["global", "pre", "post"]
    finally:
        handle.remove()


class Noisy(optim.SGD):
    """Langevin dynamics: moves by noise from the global stream."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                param.data.add_(torch.randn_like(param), alpha=group["lr"])


def test_noise_of_the_planned_step_is_that_of_the_real_one_and_is_not_used_up():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = Noisy([weight], lr=0.1)
    planned = planned_step(optimizer, [torch.ones(4)])
    stepped(optimizer, [weight], [torch.ones(4)])
    assert torch.equal(planned[0], weight.detach())


class AcceleratedOptimizer(optim.Optimizer):
    """A framework's: shows the groups of the optimizer that it holds."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def test_wrappers_of_frameworks_are_taken_off():
    optimizer, _, gradients = built((optim.SGD, {"lr": 0.5}))
    grads = gradients()
    moves = planned_step(AcceleratedOptimizer(AcceleratedOptimizer(optimizer)), grads)
    assert torch.allclose(moves[0], -0.5 * grads[0])


class Outer(optim.Optimizer):
    """Looks ahead: an optimizer in an optimizer, on the same parameters."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups[0]["params"], {"lr": 1.0})
        self.slow = [param.detach().clone() for param in inner.param_groups[0]["params"]]

    def step(self, closure=None):
        self.inner.step()
        with torch.no_grad():
            for param, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                param.copy_(slow.lerp_(param, 0.5))


def test_nested_optimizers_are_copied_with_their_outer_one():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Outer(optim.Adam([weight], lr=0.1))
    for _ in range(2):
        planned = planned_step(optimizer, [torch.ones(3)])
        before = weight.detach().clone()
        stepped(optimizer, [weight], [torch.ones(3)])
        assert torch.equal(planned[0], weight.detach() - before)


def test_several_optimizers_share_out_the_gradients():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    pair = optim.SGD(weights[2:], lr=1.0), optim.SGD(weights[:2], lr=0.5)
    moves = planned_step(pair, [torch.full((2,), 1.0), None, torch.full((2,), 4.0)])
    assert [move.tolist() for move in moves] == [[-1.0, -1.0], [0.0, 0.0], [-2.0, -2.0]]


@pytest.mark.parametrize(
    ("kind", "said"), [(optim.LBFGS, "evaluates the loss"), (optim.SparseAdam, "could not take a step")]
)
def test_a_step_that_does_not_follow_from_gradients_is_refused(kind, said):
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match=said):
        planned_step(kind([weight]), [torch.ones(2)])


def test_what_cannot_be_copied_is_named():
    optimizer = optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.stream = (number for number in range(3))
    with pytest.raises(UsageError, match=r"SGD\.stream cannot be copied"):
        twin(optimizer)
