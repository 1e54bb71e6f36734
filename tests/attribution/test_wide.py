"""Models computed in a wider type than their own, against the same model converted."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foreshock.attribution.wide import widened

WIDE = torch.float64


class Attention(nn.Module):
    """Embeddings, attention with a mask made on the way, a tied head; casts of its own in between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.mix, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, ids):
        x = self.norm(self.tokens(ids) + self.places)
        q, k, v = self.mix(x).chunk(3, -1)
        mask = torch.zeros(5, 5, dtype=torch.float32).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        buffer = torch.zeros_like(out, dtype=torch.float32)
        buffer[:] = out.float()
        return (F.linear(buffer, self.tokens.weight) * torch.tensor(0.5)).softmax(-1, dtype=torch.float32)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(F.gelu(self.norm(self.conv(x))).flatten(1).type_as(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(4, 5, batch_first=True), nn.GRU(5, 3)

    def forward(self, x):
        return self.gru(self.lstm(x)[0], torch.zeros(1, x.shape[1], 3, dtype=x.dtype))[0]


def inputs(kind):
    if kind is Attention:
        return torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(0))
    shape = (4, 1, 4, 4) if kind is Image else (4, 6, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Attention, Image, Recurrent])
def test_what_is_computed_is_that_of_the_converted_model(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
    exact, x = copy.deepcopy(model).to(WIDE), inputs(kind)
    params = list(model.parameters())
    kept = [(p.data_ptr(), p.detach().clone()) for p in params]
    with widened(params, WIDE, list(model.modules())):
        found = model(x)
        grads = torch.autograd.grad(found.square().sum(), params, allow_unused=True)
    if kind is Attention:  # casts of its own: the reference without them
        exact.forward = lambda ids: plain_attention(exact, ids)
    expected = exact(x.to(WIDE) if x.is_floating_point() else x)
    slopes = torch.autograd.grad(expected.square().sum(), list(exact.parameters()), allow_unused=True)
    assert found.dtype == WIDE
    tolerance = 1e-6 if kind is Attention else 1e-12  # it writes into a float32 buffer
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    for a, b in zip(grads, slopes, strict=True):
        assert torch.allclose(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    assert all(p.data_ptr() == at and torch.equal(p, old) for p, (at, old) in zip(params, kept, strict=True))
    assert torch.get_default_dtype() == torch.float32
    assert not any(module._forward_pre_hooks for module in model.modules())


def plain_attention(model, ids):
    x = model.norm(model.tokens(ids) + model.places)
    q, k, v = model.mix(x).chunk(3, -1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return (F.linear(out, model.tokens.weight) * 0.5).softmax(-1)


def test_parameters_that_are_wide_enough_are_left_alone():
    layer = nn.Linear(2, 2).to(WIDE)
    with widened(list(layer.parameters()), WIDE):
        assert torch.get_default_dtype() == torch.float32
        assert layer(torch.ones(1, 2, dtype=WIDE)).dtype == WIDE


def test_all_is_put_back_after_an_error():
    layer = nn.LSTM(2, 2)
    where = [p.data_ptr() for p in layer.parameters()]
    with pytest.raises(ZeroDivisionError), widened(list(layer.parameters()), WIDE, [layer]):
        raise ZeroDivisionError
    assert [p.data_ptr() for p in layer.parameters()] == where
    assert torch.get_default_dtype() == torch.float32
    assert not layer._forward_pre_hooks
