"""S3's state and groups: saved, loaded, copied, added to, refused, all as torch's own optimizers have it."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn, optim

from foreshock.errors import UsageError
from foreshock.optim import S3


def weights(dtype=torch.float32, sizes=((4, 3), (3,))):
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=draw).to(dtype)) for size in sizes]


def go(optimizer, params, steps):
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=draw).to(param.dtype)
        optimizer.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kinds", ["float32", "float64", "float32 bfloat16", "bfloat16 float32"])
def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(kinds):
    dtype, *others = (getattr(torch, name) for name in kinds.split())
    state_dtype = others[0] if others else None
    settings = {"lr": 0.1, "weight_decay": 0.1, "beta2": 0.9, "state_dtype": state_dtype}
    params = weights(dtype)
    optimizer = S3(params, **settings)
    go(optimizer, params, range(3))
    others = [nn.Parameter(each.detach().clone()) for each in params]
    other = S3(others, lr=1.0)  # its settings come with the state
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for a, b in ((optimizer, params), (other, others)):
        go(a, b, range(3, 6))
    for one, two in zip(params, others, strict=True):
        assert torch.equal(one, two)
        for name in ("exp_avg", "exp_avg_root"):
            assert torch.equal(optimizer.state[one][name], other.state[two][name])
            assert other.state[two][name].dtype is (state_dtype or dtype)
    assert other.param_groups[0]["lr"] == 0.1


def test_what_was_loaded_is_not_shared_with_what_it_was_loaded_from():
    params = weights()
    optimizer = S3(params, lr=0.1, state_dtype=torch.bfloat16)
    go(optimizer, params, range(2))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other = S3(weights(), lr=0.1, state_dtype=torch.bfloat16)
    other.load_state_dict(saved)
    go(other, other.param_groups[0]["params"], range(2))
    assert torch.equal(saved["state"][0]["exp_avg"], kept["state"][0]["exp_avg"])


def test_the_state_begins_with_the_first_gradient_and_says_in_which_form_it_is():
    params = weights()
    optimizer = S3(params, lr=0.1)
    assert not optimizer.state
    params[1].grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.state) == [params[1]]
    assert set(optimizer.state[params[1]]) == {"exp_avg", "exp_avg_root"}
    assert optimizer.state[params[1]]["exp_avg_root"].tolist() == pytest.approx([0.05 ** (1 / 3)] * 3)


def test_parameters_without_a_gradient_are_passed_over():
    params = weights()
    optimizer = S3(params, lr=0.1, weight_decay=0.5)
    go(optimizer, params, range(1))
    before, state = params[0].detach().clone(), copy.deepcopy(optimizer.state[params[0]])
    params[0].grad = None
    optimizer.step()
    assert torch.equal(params[0], before)
    assert all(torch.equal(optimizer.state[params[0]][name], state[name]) for name in state)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_go_on_as_the_original_does(again):
    params = weights()
    optimizer = S3(params, lr=0.1, state_dtype=torch.bfloat16)
    go(optimizer, params, range(2))
    other = again(optimizer)
    assert other.transfers == ()
    for each in (optimizer, other):
        go(each, each.param_groups[0]["params"], range(2, 4))
    for one, two in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(one, two)


def test_groups_have_settings_of_their_own_and_can_be_added_later():
    params = weights()
    optimizer = S3([{"params": params[:1], "p": 1.0}], lr=0.1)
    go(optimizer, params[:1], range(1))
    optimizer.add_param_group({"params": params[1:], "lr": 0.5, "beta": 0.5, "p": 2.0})
    starts = [each.detach().clone() for each in params]
    go(optimizer, params, range(1, 2))
    alone = nn.Parameter(starts[1].clone())
    alone.grad = params[1].grad
    S3([alone], lr=0.5, beta=0.5, p=2.0).step()
    assert torch.equal(alone, params[1])
    assert optimizer.param_groups[0]["p"] == 1.0


def test_checkpoints_that_lack_settings_are_completed():
    params = weights()
    optimizer = S3(params, lr=0.1)
    go(optimizer, params, range(2))
    saved = optimizer.state_dict()
    for name in ("beta2", "nesterov", "maximize", "foreach", "fused", "capturable", "state_dtype"):
        del saved["param_groups"][0][name]
    other = S3(weights(), lr=1.0)
    other.load_state_dict(saved)
    assert other.param_groups[0]["nesterov"] is True
    go(other, other.param_groups[0]["params"], range(1))


def test_the_state_of_another_optimizer_is_refused():
    params = weights()
    adam = optim.AdamW(params)
    go(adam, params, range(1))
    with pytest.raises(UsageError, match=r"exp_avg_sq.*from_adamw"):
        S3(params, lr=0.1).load_state_dict(adam.state_dict())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": None}, "lr must be a number"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"lr": torch.tensor(-0.1)}, "lr"),
        ({"beta": None}, "beta must be a number"),
        ({"beta": (0.9, 0.95)}, "one coefficient for both"),
        ({"p": None}, "p must be a number"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"beta": 1.0}, r"beta .*\[0, 1\)"),
        ({"beta2": -0.1}, "beta2"),
        ({"p": 0.5}, "at least 1"),
        ({"p": math.inf}, "largest gradient there ever was"),
        ({"p": math.nan}, "p must"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"foreach": True, "fused": True}, "one of them"),
        ({"state_dtype": torch.int8}, "state_dtype"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(settings, said):
    with pytest.raises(UsageError, match=said):
        S3(weights(), **{"lr": 0.1, **settings})
    optimizer = S3(weights(), lr=0.1)
    with pytest.raises(UsageError, match=said):
        optimizer.add_param_group({"params": weights(), **settings})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_and_sparse_gradients_are_refused_with_a_way_out():
    with pytest.raises(UsageError, match=r"complex64.*view_as_real"):
        S3([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], lr=0.1)
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    optimizer = S3(table.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"sparse=False.*SparseAdam"):
        optimizer.step()
    assert not optimizer.state


def test_maximizing_mirrors_minimizing():
    one, two = weights(), weights()
    down, up = S3(one, lr=0.1), S3(two, lr=0.1, maximize=True)
    start = [each.detach().clone() for each in one]
    for optimizer, params in ((down, one), (up, two)):
        go(optimizer, params, range(3))
    for a, b, c in zip(one, two, start, strict=True):
        assert torch.allclose(a - c, c - b, atol=1e-6)
