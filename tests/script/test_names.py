"""Names for an optimizer's tensors come from the modules that are alive."""

from __future__ import annotations

import gc

import torch
from torch import nn

from foreshock.script.names import live_roots, name_parameters


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


class OptimizedModule(nn.Module):
    """What torch.compile returns, without the seconds that its first import takes."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner


def names(optimizer, roots):
    return [name for name, _ in name_parameters(optimizer, roots)]


def test_names_are_those_of_the_model_in_its_order():
    model = Model()
    backwards = torch.optim.SGD([{"params": model.head.parameters()}, {"params": model.body.parameters()}])
    assert names(backwards, [model]) == ["body.weight", "body.bias", "head.weight", "head.bias"]


def test_the_root_that_is_alive_is_found():
    model = Model()
    gc.collect()
    assert any(root is model for root in live_roots())
    assert not any(root is model.body for root in live_roots())
    assert names(torch.optim.SGD(model.parameters()), None) == [name for name, _ in model.named_parameters()]


def test_wrappers_leave_no_trace_in_the_names():
    model = Model()
    wrapped = nn.DataParallel(OptimizedModule(model))
    assert names(torch.optim.SGD(model.parameters()), [wrapped]) == [name for name, _ in model.named_parameters()]


def test_a_second_model_and_loose_tensors_stay_apart():
    actor, critic, loose = Model(), nn.Linear(2, 1), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([loose, *actor.parameters(), *critic.parameters()])
    assert names(optimizer, [critic, actor]) == [
        "body.weight", "body.bias", "head.weight", "head.bias", "Linear.weight", "Linear.bias", "group0.0",
    ]


def test_twins_get_different_names():
    twins = [nn.Linear(2, 1) for _ in range(3)]
    optimizer = torch.optim.SGD([tensor for twin in twins for tensor in twin.parameters()])
    found = names(optimizer, twins)
    assert found == ["weight", "bias", "Linear.weight", "Linear.bias", "Linear.weight#2", "Linear.bias#2"]
