"""Re-centring takes the class mean out of a head and nothing out of its predictions; moments follow."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from foreshock.errors import UsageError
from foreshock.numerics.recentre import recentre_


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(classes: int = 7, width: int = 5, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    """Returns a layer whose common mode is as large as the rest, as numerical inflation leaves it."""
    layer = nn.Linear(width, classes, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, width, generator=seeded(0)) + torch.randn(width, generator=seeded(1)))
        if bias:
            layer.bias.copy_(torch.randn(classes, generator=seeded(2)) - 3)
    return layer


def stepped(layer: nn.Linear, kind: type[torch.optim.Optimizer], **settings: object) -> torch.optim.Optimizer:
    """Returns an optimizer that has taken three steps."""
    optimizer = kind(layer.parameters(), **settings)
    x, target = torch.randn(16, layer.in_features, generator=seeded(3)) + 2, torch.arange(16) % layer.out_features
    for _ in range(3):
        optimizer.zero_grad()
        (F.cross_entropy(layer(x.to(layer.weight.dtype)), target) + layer(x.to(layer.weight.dtype)).mean()).backward()
        optimizer.step()
    return optimizer


def test_the_docstring_holds() -> None:
    assert doctest.testmod(sys.modules[recentre_.__module__]).failed == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 0.1), (torch.float16, 0.02),
])
@pytest.mark.parametrize("bias", [True, False])
def test_predictions_stay_what_they_were_to_rounding(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    layer = head(dtype=dtype, bias=bias)
    wide = head(dtype=torch.float64, bias=bias)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(30, 5, generator=seeded(4), dtype=torch.float64)
    before = wide(x).softmax(1)
    recentre_(layer)
    wide.load_state_dict(layer.state_dict())
    assert (wide(x).softmax(1) - before).abs().max() < tolerance


def test_the_class_mean_is_gone_and_is_what_comes_back() -> None:
    layer = head(dtype=torch.float64)
    mean = layer.weight.detach().mean(0)
    rest = layer.weight.detach() - mean
    assert torch.allclose(recentre_(layer), mean, atol=1e-15)
    assert torch.allclose(layer.weight, rest, atol=1e-15)
    assert layer.bias.mean().abs() < 1e-15
    assert recentre_(layer).abs().max() < 1e-15


def test_a_weight_and_a_bias_may_be_given_by_themselves() -> None:
    layer, twin = head(), head()
    recentre_(layer)
    recentre_(twin.weight, twin.bias)
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


def test_half_precision_is_averaged_in_float32() -> None:
    """In bfloat16 a sum of 4096 ones stops at 256."""
    layer = nn.Linear(3, 4096, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    assert torch.equal(recentre_(layer), torch.ones(3, dtype=torch.bfloat16))
    assert not layer.weight.any()


@pytest.mark.parametrize(("kind", "settings", "names"), [
    (torch.optim.Adam, {"lr": 1e-3}, ["exp_avg"]),
    (torch.optim.AdamW, {"lr": 1e-3, "amsgrad": True, "foreach": True}, ["exp_avg"]),
    (torch.optim.Adam, {"lr": 1e-3, "fused": True}, ["exp_avg"]),
    (torch.optim.NAdam, {}, ["exp_avg"]), (torch.optim.RAdam, {}, ["exp_avg"]), (torch.optim.Adamax, {}, ["exp_avg"]),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, ["momentum_buffer"]),
    (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9}, ["momentum_buffer"]),
    (torch.optim.SGD, {"lr": 0.1}, []), (torch.optim.Adagrad, {}, []),
])
def test_first_moments_are_centred_and_the_other_state_left_alone(
    kind: type[torch.optim.Optimizer], settings: dict[str, object], names: list[str]
) -> None:
    layer = head()
    optimizer = stepped(layer, kind, **settings)
    before = {p: {k: v.clone() for k, v in s.items() if isinstance(v, Tensor)} for p, s in optimizer.state.items()}
    recentre_(layer, optimizer=optimizer)
    for param, old in before.items():
        for name, value in old.items():
            now = optimizer.state[param][name]
            if name in names:
                assert value.mean(0).abs().max() > 1e-4
                assert now.mean(0).abs().max() < 1e-6
                assert torch.allclose(now, value - value.mean(0), atol=1e-6)
            else:
                assert torch.equal(now, value), name


def test_with_the_moments_centred_the_next_step_of_momentum_leaves_no_mean() -> None:
    """SGD: without them, the momentum alone drives the mean again."""
    means = []
    for given in (True, False):
        layer = head(dtype=torch.float64)
        optimizer = stepped(layer, torch.optim.SGD, lr=0.1, momentum=0.9)
        recentre_(layer, optimizer=optimizer if given else None)
        for param in layer.parameters():
            param.grad.zero_()
        optimizer.step()
        means.append(float(layer.weight.detach().mean(0).norm()))
    assert means[0] < 1e-14
    assert means[1] > 1e-3


def test_before_the_first_step_there_are_no_moments() -> None:
    layer = head()
    optimizer = torch.optim.Adam(layer.parameters())
    recentre_(layer, optimizer=optimizer)
    assert not optimizer.state[layer.weight]


def test_nothing_else_is_left_behind() -> None:
    layer = head()
    stepped(layer, torch.optim.SGD, lr=0.1)
    gradients = [param.grad.clone() for param in layer.parameters()]
    state = torch.get_rng_state()
    recentre_(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(param.requires_grad and param.is_leaf for param in layer.parameters())
    assert all(torch.equal(param.grad, old) for param, old in zip(layer.parameters(), gradients, strict=True))
    assert torch.is_grad_enabled()


def adam_without(layer: nn.Linear) -> torch.optim.Optimizer:
    return torch.optim.Adam([layer.bias])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: recentre_(torch.zeros(5)), r"\(5,\)"),
    (lambda: recentre_(torch.zeros(1, 5)), "K >= 2"),
    (lambda: recentre_(torch.zeros(3, 5, 1)), "K >= 2"),
    (lambda: recentre_(torch.zeros(3, 5, dtype=torch.long)), "floating"),
    (lambda: recentre_(nn.Conv1d(3, 4, 1)), "nn.Linear"),
    (lambda: recentre_(torch.zeros(3, 5), torch.zeros(5)), r"bias has shape \(5,\)"),
    (lambda: recentre_(head(), torch.zeros(7)), "brings its own bias"),
    (lambda: recentre_(parametrizations.weight_norm(head())), "parametrization"),
    (lambda: recentre_(head().weight * 2), "computed from other tensors"),
    (lambda: recentre_(head(), optimizer=adam_without(head())), "Adam does not hold"),
])
def test_what_is_no_head_is_refused_and_left_as_it_was(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_refused_call_has_changed_nothing() -> None:
    layer = head()
    before = layer.weight.detach().clone()
    with pytest.raises(UsageError, match="does not hold"):
        recentre_(layer, optimizer=torch.optim.Adam([layer.weight]))
    assert torch.equal(layer.weight, before)
