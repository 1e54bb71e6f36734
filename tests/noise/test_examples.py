"""Norms of examples' gradients by hooks are those of one backward pass for each example."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from foreshock.errors import UsageError
from foreshock.noise import PerExampleNorms
from foreshock.noise.uses import Direct, Lookup, Outer, dots, squares
from tests.noise.nets import Text, case, losses, slowly

COVERED = {
    "text": {"where.weight", "bare"}, "text untied": {"where.weight", "bare"}, "image": set(), "line": set(),
    "plain": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", COVERED)
def test_norms_are_those_of_one_backward_pass_for_each_example(name):
    model, x, y = case(name)
    reference = {key: rows.double().flatten(1).square().sum(1) for key, rows in slowly(model, x, y).items()}
    with PerExampleNorms(model) as norms:
        for _ in range(2):  # the first learns what is called again
            losses(model, x, y).mean().backward()
            found = norms.read()
    assert set(found.missing) == COVERED[name]
    assert set(found.by_parameter) == set(reference) - COVERED[name]
    for key, value in found.by_parameter.items():
        torch.testing.assert_close(value.double(), reference[key], rtol=1e-5, atol=1e-11, msg=key)
    covered = sum(reference[key] for key in found.by_parameter)
    torch.testing.assert_close(found.squares.double(), covered, rtol=1e-5, atol=1e-11)
    sizes = {key: param.numel() for key, param in model.named_parameters()}
    assert found.coverage == sum(sizes[key] for key in found.by_parameter) / sum(sizes.values())


@pytest.mark.parametrize(("layers", "kinds"), [("norm", {"1"}), ("linear", {"0", "3"}), ("all", {"0", "1", "3"})])
def test_only_the_layers_that_are_asked_for_are_measured(layers, kinds):
    model, x, y = case("plain")
    with PerExampleNorms(model, layers=layers) as norms:
        losses(model, x, y).mean().backward()
        found = norms.read()
    assert {name.split(".")[0] for name in found.by_parameter} == kinds
    assert all("not among" in why for why in found.missing.values())


def test_norms_mean_the_mean_loss_whatever_multiplies_it_and_the_gradient_is_left_alone():
    model, x, y = case("plain")
    losses(model, x, y).mean().backward()
    grads = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    with PerExampleNorms(model) as norms:
        losses(model, x, y).mean().backward()
        once = norms.read()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), grads, strict=True))
        (3 * losses(model, x, y).mean()).backward()
        thrice = norms.read()
    torch.testing.assert_close(thrice.squares, 9 * once.squares)
    for name, total in once.totals.items():
        torch.testing.assert_close(total, dict(zip(dict(model.named_parameters()), grads, strict=True))[name])


def test_sequences_may_come_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    x = torch.randn(7, 5, 4)
    reference = []
    for i in range(5):
        loss = model(x[:, i : i + 1]).square().mean()
        reference.append(sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()))))
    with PerExampleNorms(model, batch_dim=1) as norms:
        model(x).square().mean().backward()
        torch.testing.assert_close(norms.read().squares, torch.stack(reference))


def test_places_of_an_example_may_be_rows_of_their_own():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.reshape(-1, 4)).reshape(*x.shape[:2], 3)

    x = torch.randn(4, 5, 4)
    found = []
    for model in (inner, Flat()):
        with PerExampleNorms(model) as norms:
            model(x).square().mean().backward()
            found.append(norms.read().squares)
    torch.testing.assert_close(*found)


def test_a_table_of_positions_is_not_taken_for_examples_though_it_has_as_many_rows():
    model, x, y = case("text", n=5)
    assert x.shape == (5, 5)
    reference = slowly(model, x, y)
    with PerExampleNorms(model) as norms:
        for _ in range(2):
            losses(model, x, y).mean().backward()
            found = norms.read()
    assert found.missing["where.weight"] == "its output is not split by examples"
    for key, value in found.by_parameter.items():
        torch.testing.assert_close(value, reference[key].flatten(1).square().sum(1), rtol=1e-4, atol=1e-9)
    with PerExampleNorms(model, prove=False) as norms:
        losses(model, x, y).mean().backward()
        assert "where.weight" in norms.read().by_parameter  # by its shape


def test_a_checkpointed_block_is_measured_as_it_is_without():
    model, x, y = case("plain")
    with PerExampleNorms(model) as norms:
        losses(model, x, y).mean().backward()
        plainly = norms.read().squares
        F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
        torch.testing.assert_close(norms.read().squares, plainly)


def test_autocast_rounds_what_comes_in_as_the_layer_does():
    model, x, y = case("plain")
    reference = slowly(model, x, y)
    exact = sum(rows.flatten(1).square().sum(1) for rows in reference.values())
    with PerExampleNorms(model) as norms:
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(model, x, y).mean()
        loss.backward()
        found = norms.read()
    assert found.squares.dtype == torch.float32
    torch.testing.assert_close(found.squares, exact, rtol=0.05, atol=0)


def test_a_model_that_is_called_twice_for_one_loss_adds_up_its_parts():
    model, x, _ = case("plain")
    other = torch.randn(len(x), 4)
    params = list(model.parameters())
    reference = []
    for i in range(len(x)):
        loss = (model(x[i : i + 1]) * model(other[i : i + 1])).mean()
        reference.append(sum(g.square().sum() for g in torch.autograd.grad(loss, params)))
    with PerExampleNorms(model) as norms:
        for _ in range(2):
            (model(x) * model(other)).mean().backward()
            found = norms.read()
    assert not found.missing
    torch.testing.assert_close(found.squares, torch.stack(reference))


def test_frozen_parameters_do_not_count():
    model, x, y = case("plain")
    model[0].weight.requires_grad_(False)
    with PerExampleNorms(model) as norms:
        losses(model, x, y).mean().backward()
        found = norms.read()
    assert "0.weight" not in found.by_parameter
    assert found.coverage == 1.0


def test_statistics_of_the_batch_are_refused():
    model, x, y = case("image")
    with PerExampleNorms(model.train()) as norms:
        losses(model, x, y).mean().backward()
        with pytest.raises(UsageError, match=r"batch uses statistics of the batch"):
            norms.read()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4).requires_grad_(False)], ids=repr)
def test_statistics_of_the_batch_are_refused_also_where_they_have_nothing_to_learn(norm):
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for layers in ("all", "linear"):
        with PerExampleNorms(model, layers=layers) as norms:
            model(x).square().mean().backward()
            with pytest.raises(UsageError, match="statistics of the batch"):
                norms.read()


def test_what_was_not_seen_is_said():
    model, _, _ = case("plain")
    with pytest.raises(UsageError, match="one of norm, linear, all"):
        PerExampleNorms(model, layers="attention")
    with pytest.raises(UsageError, match="no such layer"):
        PerExampleNorms(nn.Linear(3, 2), layers="norm")
    with PerExampleNorms(model) as norms, pytest.raises(UsageError, match="no gradient of these layers was seen"):
        norms.read()


def test_hooks_go_as_they_came_and_copies_of_the_model_take_deaf_ones_along():
    model, x, y = case("plain")
    with PerExampleNorms(model) as norms:
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for twin in twins:
            losses(twin, x, y).mean().backward()
        with pytest.raises(UsageError, match="no gradient"):
            norms.read()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_measured_needs_no_more_random_numbers_and_changes_no_buffer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    found = []
    for watched in (False, True):
        torch.manual_seed(1)
        norms = PerExampleNorms(model)
        if watched:
            norms.listen()
        found.append((model(x).sum().item(), torch.rand(()).item()))
        norms.stop()
    assert found[0] == found[1]


def test_weights_count_each_squared_entry():
    model, x, y = case("text")
    reference = slowly(model, x, y)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(param.shape, generator=generator) for name, param in model.named_parameters()}
    with PerExampleNorms(model, weights=weights) as norms:
        for _ in range(2):
            losses(model, x, y).mean().backward()
            found = norms.read()
    for key, value in found.by_parameter.items():
        wanted = (reference[key].square() * weights[key]).flatten(1).sum(1)
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-10, msg=key)


@pytest.mark.parametrize("long", [False, True])
def test_each_form_of_a_norm_is_that_of_the_gradient_itself(long):
    """Short sequences take the Gram form, long ones the gradients: of one use, of two, and of a tied embedding."""
    generator = torch.Generator().manual_seed(0)
    n, t, width, rows = 3, 40 if long else 2, 5, 17
    a, e = (torch.randn(n, 1, t, size, generator=generator) for size in (width, rows))
    outer = Outer(a, e, (rows, width))
    lookup = Lookup(torch.randint(0, rows, (n, t), generator=generator), a[:, 0] * 2, (rows, width))
    direction = torch.randn(rows, width, generator=generator)
    for uses in ([outer], [lookup], [outer, lookup], [outer, outer, lookup], [lookup, Direct(outer.dense())]):
        dense = sum(use.dense() for use in uses)
        torch.testing.assert_close(squares(uses), dense.square().flatten(1).sum(1))
        torch.testing.assert_close(dots(uses, direction), (dense * direction).flatten(1).sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sum(use.total() for use in uses), dense.sum(0), rtol=1e-4, atol=1e-4)


def test_a_head_that_borrows_the_embedding_without_owning_it_shows_in_the_totals():
    torch.manual_seed(0)

    class Borrowing(Text):
        def forward(self, x):
            return F.linear(self.embed(x), self.embed.weight)

    model = Borrowing(tied=False)
    x = torch.randint(0, 11, (4, 5))
    with PerExampleNorms(model) as norms:
        norms.checking = True
        model(x).square().mean().backward()
        found = norms.read()
    off = found.totals["embed.weight"] - model.embed.weight.grad
    assert off.norm() > 0.1 * model.embed.weight.grad.norm()
