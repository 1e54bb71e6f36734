"""What the guard knows of a step before it: norms as a float64 reference has them, for any kind of tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foreshock.guard.glance import SMALL, Glance, all_finite


def reference(tensors):
    return math.sqrt(sum(float(each.detach().to_dense().abs().double().square().sum()) for each in tensors))


def stepped(params, make=torch.optim.Adam):
    """Returns an optimizer that has taken a step, with fresh gradients."""
    optimizer = make(params, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        _ = optimizer.step() if not optimizer.state else None
    return optimizer


SMALL_ONES = [(each, False) for each in (torch.float32, torch.float64, torch.bfloat16, torch.complex64)]


@pytest.mark.parametrize(("dtype", "large"), [*SMALL_ONES, (torch.float32, True), (torch.bfloat16, True)])
def test_norms_agree_with_float64(dtype, large):
    shapes = [(7, 5), (3,), (), (SMALL + 8,) if large else (1,)]
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = stepped(params)
    found, _ = Glance(optimizer)(torch.tensor(2.5))
    close = {"rel": 1e-12 if dtype == torch.float64 else 1e-4 if large else 1e-6}
    assert found["loss"] == 2.5
    assert found["grad_norm"] == pytest.approx(reference(param.grad for param in params), **close)
    second = [optimizer.state[param]["exp_avg_sq"] for param in params]
    assert found["moments"] == pytest.approx(reference(second), **close)
    assert found["weights"] == pytest.approx(reference(params), **close)
    assert (found["steps"], found["lr"]) == (1.0, 1e-3)


def test_gradients_that_are_sparse_or_missing_or_of_several_types_count_as_they_are():
    table = nn.Embedding(10, 4, sparse=True)
    other, idle = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([table.weight, other, idle], lr=0.1)
    (table(torch.tensor([1, 1, 3])).sum() + 3 * other.sum()).backward()
    found, _ = Glance(optimizer)(None)
    assert found["grad_norm"] == pytest.approx(math.sqrt(4 * 4 + 4 + 3 * 9))
    assert "loss" not in found


def test_what_is_not_finite_shows_and_what_is_not_asked_for_is_left_out():
    param = nn.Parameter(torch.ones(4))
    optimizer = stepped([param])
    param.grad[2] = math.nan
    found, sums = Glance(optimizer)(torch.tensor(math.inf), moments=False, weights=False, beside=(1.0, 0.0))
    assert math.isnan(found["grad_norm"])
    assert found["loss"] == math.inf
    assert not {"moments", "weights"} & found.keys()
    assert sums == (1.0, 0.0)
    assert all_finite([param])
    assert not all_finite([param, param.grad, torch.ones(2, dtype=torch.int64)])


def test_a_lost_state_and_a_new_group_are_noticed():
    param, more = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = stepped([param])
    look = Glance(optimizer)
    assert look(None)[0]["moments"] > 0.0
    optimizer.state.clear()
    assert (look(None)[0]["moments"], look(None)[0]["steps"]) == (0.0, 0.0)
    optimizer.add_param_group({"params": [more], "lr": 0.5})
    more.grad = torch.full((4,), 3.0)
    assert look(None)[0]["grad_norm"] == pytest.approx(reference([param.grad, more.grad]))
    assert look(None)[0]["lr"] == 0.5


def test_numbers_that_wait_on_a_device_come_with_the_loss():
    param = nn.Parameter(torch.full((4,), 3.0))
    look = Glance(stepped([param]))
    look(None)
    loss, squares, beside = look._at_once(torch.tensor(2.0), [[param]], [torch.tensor(0.5), torch.tensor([7.0])])
    assert (loss, beside) == (2.0, [0.5, 7.0])
    assert squares == pytest.approx([reference([param]) ** 2])
