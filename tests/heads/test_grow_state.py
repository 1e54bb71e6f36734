"""Rows that are added, tied weights that stay tied, and the optimizer's state beside new rows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from foreshock.errors import UsageError
from foreshock.heads import fresh_state, grow_rows, grown_state, init_new_rows
from tests.heads.test_rows import NEW, OLD, linear, statistics, trained


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.config = type("Config", (), {"vocab_size": 9})()

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def stepped(model, optimizer, tokens):
    optimizer.zero_grad()
    model(tokens).square().sum().backward()
    optimizer.step()


def test_tied_weights_grow_together_with_their_state():
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    stepped(model, optimizer, torch.arange(9))
    before, state = model.embed.weight.detach().clone(), copy.deepcopy(optimizer.state[model.embed.weight])
    logits = model(torch.arange(9))
    assert grow_rows(model.head, 3, model=model, optimizer=optimizer) == range(9, 12)
    assert model.head.weight is model.embed.weight
    assert (model.embed.num_embeddings, model.head.out_features, model.config.vocab_size) == (12, 12, 12)
    assert torch.equal(model.embed.weight[:9], before)
    torch.testing.assert_close(model.embed.weight[9:], before.mean(0).expand(3, 4))
    assert torch.equal(model(torch.arange(9))[:, :9], logits)
    (param,) = optimizer.param_groups[0]["params"]
    assert param is model.embed.weight
    assert len(optimizer.state) == 1
    held = optimizer.state[param]
    assert held["step"] == state["step"]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(held[name][:9], state[name])
    assert not held["exp_avg"][9:].any()
    torch.testing.assert_close(held["exp_avg_sq"][9:], state["exp_avg_sq"].mean(0).expand(3, 4))
    stepped(model, optimizer, torch.arange(12))  # training goes on


@pytest.mark.parametrize("make", [linear, lambda: parametrizations.weight_norm(linear()), lambda: nn.Conv2d(10, 6, 1)])
def test_layers_grow_and_keep_their_old_rows(make):
    layer = make()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.weight.sum().backward()
    assert grow_rows(layer, 2) == range(6, 8)
    for name, value in layer.state_dict().items():
        assert torch.equal(value[:6], before[name])
        assert len(value) == 8
    assert getattr(layer, "out_features", getattr(layer, "out_channels", 0)) == 8
    shape = (3, 10, 1, 1) if isinstance(layer, nn.Conv2d) else (3, 10)
    assert layer(torch.ones(shape)).shape[1] == 8
    assert all(param.grad is None or param.grad.shape == param.shape for param in layer.parameters())
    assert torch.equal(layer.bias[6:], torch.zeros(2))


def test_what_cannot_grow_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        grow_rows(linear(), 0)
    with pytest.raises(UsageError, match="no parameters"):
        grow_rows(nn.ReLU(), 1)
    with pytest.raises(UsageError, match=r"\[3, 6\] rows"):
        grow_rows(nn.Sequential(linear(), nn.Linear(6, 3)), 1)
    with pytest.raises(UsageError, match="cannot grow"):
        grown_state(torch.optim.SGD([torch.zeros(1)]), nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 2)))


OPTIMIZERS = {
    "Adam": (lambda params: torch.optim.Adam(params, amsgrad=True), {"exp_avg"}, {"exp_avg_sq", "max_exp_avg_sq"}),
    "SGD": (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), {"momentum_buffer"}, set()),
    "RMSprop": (lambda params: torch.optim.RMSprop(params), set(), {"square_avg"}),
    "Adagrad": (lambda params: torch.optim.Adagrad(params), set(), {"sum"}),
    "Adamax": (lambda params: torch.optim.Adamax(params), {"exp_avg"}, {"exp_inf"}),
    "Adadelta": (lambda params: torch.optim.Adadelta(params), set(), {"square_avg", "acc_delta"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_rows_have_no_momentum_and_the_mean_of_the_old_sizes(name):
    make, directions, sizes = OPTIMIZERS[name]
    head = linear()
    optimizer = make(head.parameters())
    stepped(head, optimizer, torch.randn(20, 10, generator=torch.Generator().manual_seed(0)))
    before = {param: copy.deepcopy(optimizer.state[param]) for param in head.parameters()}
    assert fresh_state(optimizer, head, NEW) >= 2 * len(directions | sizes)
    for param in head.parameters():
        for key, value in optimizer.state[param].items():
            if key not in directions | sizes:
                assert value is None or torch.equal(torch.as_tensor(value), torch.as_tensor(before[param][key]))
                continue
            assert torch.equal(value[:OLD], before[param][key][:OLD])
            expected = before[param][key][:OLD].mean(0) if key in sizes else torch.zeros_like(value[0])
            torch.testing.assert_close(value[OLD:], expected.expand_as(value[OLD:]))


def test_the_first_update_of_new_rows_is_shorter_than_with_zeros():
    updates = []
    for zero in (True, False):
        head, optimizer = trained(linear())
        init_new_rows(head, statistics(), NEW)
        fresh_state(optimizer, head, NEW, zero=zero)
        before = head.weight.detach().clone()
        optimizer.zero_grad()
        (1e-3 * head.weight).sum().backward()
        optimizer.step()
        updates.append(float((head.weight.detach() - before)[OLD:].abs().max()) / 0.05)
    kept = 1 - 0.999**121  # bias correction, after 120 steps of the old rows
    assert updates[0] == pytest.approx(0.1 * (kept / 0.001) ** 0.5, rel=1e-3)
    assert updates[1] < updates[0] / 2


def test_an_optimizer_given_is_seen_to():
    head, optimizer = trained(linear())
    init_new_rows(head, statistics(), NEW, optimizer=optimizer)
    assert not optimizer.state[head.weight]["exp_avg"][OLD:].any()
    assert optimizer.state[head.weight]["exp_avg"][:OLD].any()
