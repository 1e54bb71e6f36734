"""Attribution of one step: complete, exact on quadratics, and against 100 gradients along the path."""

from __future__ import annotations

import doctest
import itertools
import random

import pytest
import torch
from torch import nn

import foreshock.attribution.step
from foreshock.attribution import attribute
from foreshock.attribution.result import concentration
from foreshock.errors import UsageError
from tests.attribution.cases import batch, classifier, losses_of, trained
from tests.reference.attribution import path_gradient

WIDE = torch.float64


def moved(net: nn.Module, size: float = 0.3, seed: int = 5):
    """Returns values of a net's parameters before and after a step in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    before = [p.detach().clone() for p in net.parameters()]
    after = [b + size * torch.randn(b.shape, generator=generator, dtype=WIDE).to(b) for b in before]
    return before, after


def test_docstrings():
    assert not doctest.testmod(foreshock.attribution.step).failed


@pytest.mark.parametrize("nodes", [1, 2, "auto"])
def test_one_node_is_exact_on_a_quadratic(nodes):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 5, generator=generator, dtype=WIDE)
    b = torch.randn(7, generator=generator, dtype=WIDE)
    w = torch.randn(5, generator=generator, dtype=WIDE, requires_grad=True)
    end = torch.randn(5, generator=generator, dtype=WIDE)
    start = w.detach().clone()
    found = attribute(lambda: (a @ w - b).square(), [w], [start], [end], nodes=nodes)
    exact = ((a @ end - b).square() - (a @ start - b).square()) / 7
    assert found.total == pytest.approx(float(exact.sum()), rel=1e-12)
    assert sum(found.columns.values()) == pytest.approx(float(exact.sum()), rel=1e-12)
    assert found.measured == pytest.approx(float(exact.sum()), rel=1e-12)
    assert torch.allclose(found.rows, exact, rtol=1e-12)
    assert nodes == "auto" or found.nodes == nodes


def test_columns_are_those_of_a_hundred_gradients():
    net = classifier()
    params, losses = list(net.parameters()), losses_of(net, batch(9))
    before, after = moved(net)
    found = attribute(losses, params, before, after, names=net)
    e = path_gradient(losses, params, before, after)
    for (name, value), g, a, b in zip(found.columns.items(), e, before, after, strict=True):
        assert value == pytest.approx(float((g * (b - a)).sum()), abs=1e-3 * abs(found.measured)), name
    assert found.completeness <= 1e-3
    assert list(found.columns) == [name for name, _ in net.named_parameters()]
    assert found.modules["4"] == pytest.approx(found.columns["4.weight"] + found.columns["4.bias"])


def test_victims_are_differences_of_losses():
    net, data = classifier(), batch(3)
    before, after = moved(net)
    losses = losses_of(net, data)
    found = attribute(losses, list(net.parameters()), before, after)
    values = []
    for end in (before, after):
        for param, value in zip(net.parameters(), end, strict=True):
            param.data.copy_(value)
        values.append(losses().detach())
    assert torch.allclose(found.rows, (values[1] - values[0]) / 12, rtol=1e-12)
    assert float(found.rows.sum()) == found.measured
    assert found.loss == pytest.approx(float(values[0].mean()))


def test_weights_take_the_place_of_the_mean():
    net, data = classifier(), batch(3)
    before, after = moved(net)
    params, losses = list(net.parameters()), losses_of(net, data)
    plain = attribute(losses, params, before, after)
    summed = attribute(losses, params, before, after, weights=torch.ones(12))
    assert summed.total == pytest.approx(12 * plain.total)
    assert torch.allclose(summed.rows, 12 * plain.rows)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_columns_add_up_to_the_change_also_across_kinks(activation, dtype):
    for seed, size in ((0, 0.01), (1, 0.5), (2, 0.5)):
        net = classifier(seed, activation=activation, dtype=dtype)
        before, after = moved(net, size, seed)
        found = attribute(losses_of(net, batch(seed, 50, dtype)), list(net.parameters()), before, after)
        assert found.completeness <= (2e-2 if activation is nn.ReLU else 3e-3), (seed, size)


def test_the_path_ends_at_kinks_and_says_how_well_it_adds_up():
    """|w| along a path through its kink at an irrational place."""
    w = torch.tensor([-(2.0**0.5)], dtype=WIDE, requires_grad=True)
    x = torch.linspace(0.5, 1.5, 3, dtype=WIDE)
    found = attribute(lambda: (x * w).abs(), [w], [w.detach().clone()], [torch.tensor([2.0**0.5 + 1e-4])])
    assert found.nodes <= 128
    assert found.completeness > 1e-3
    assert any("kinks" in note for note in found.notes)


def test_first_order_has_the_sign_wrong_where_the_path_has_it_right():
    """An overshooting step: downhill at its start, uphill in all."""
    w = torch.tensor([1.0], dtype=WIDE, requires_grad=True)
    found = attribute(lambda: w.square() * torch.ones(3), [w], [torch.ones(1, dtype=WIDE)], [torch.full((1,), -1.5)])
    assert found.total == pytest.approx(1.25, rel=1e-9)  # the gradient at the start times the step: -5


def test_a_faint_change_is_computed_in_float64():
    net = classifier(dtype=torch.float32)
    x, y = batch(1, 20, torch.float32)
    before = [p.detach().clone() for p in net.parameters()]
    after = [b + 1e-8 * torch.sign(b) for b in before]
    after[0] = before[0] * (1 + 3e-7)
    shifted = lambda: losses_of(net, (x, y))() + 100.0  # noqa: E731
    found = attribute(shifted, list(net.parameters()), before, after)
    wide = classifier(dtype=torch.float32).to(WIDE)
    ends = [[v.to(WIDE) for v in values] for values in (before, after)]
    exact = attribute(losses_of(wide, (x.to(WIDE), y)), list(wide.parameters()), *ends)
    assert any("float64" in note for note in found.notes)
    assert found.measured == pytest.approx(exact.measured, rel=1e-4)
    assert found.total == pytest.approx(exact.total, rel=1e-4)
    assert all(p.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_walked_in_float32(dtype):
    net = classifier(dtype=dtype)
    before, after = moved(net, 0.05)
    x, y = batch(1, 20, dtype)
    found = attribute(losses_of(net, (x, y)), list(net.parameters()), before, after)
    wide = classifier(dtype=dtype).to(WIDE)
    exact = attribute(
        losses_of(wide, (x.to(WIDE), y)), list(wide.parameters()), *([v.to(WIDE) for v in e] for e in (before, after))
    )
    assert found.total == pytest.approx(exact.total, rel=1e-3)
    assert found.completeness <= 1e-3


def test_everything_is_put_back_bitwise():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))
    x, y = batch(0, 16, torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses_of(net, (x, y))().mean().backward()
    before = [p.detach().clone() for p in net.parameters()]
    state = optimizer.state_dict()
    optimizer.step()
    after = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    seen = snapshot(net)
    losses, params = losses_of(net, (x, y)), list(net.parameters())
    for dtype in (None, WIDE):
        attribute(losses, params, before, after, optimizer=state, names=net, dtype=dtype, nodes=4)
        assert same(snapshot(net), seen)

    count = itertools.count()

    def failing():
        if next(count) == 4:
            raise ZeroDivisionError
        return losses_of(net, (x, y))()

    for dtype in (None, WIDE):
        count = itertools.count()
        with pytest.raises(ZeroDivisionError):
            attribute(failing, list(net.parameters()), before, after, names=net, dtype=dtype)
        assert same(snapshot(net), seen)


def snapshot(net: nn.Module):
    values = [t.detach().clone() for t in (*net.parameters(), *net.buffers())]
    values += [torch.tensor(t.data_ptr()) for t in (*net.parameters(), *net.buffers())]
    values += [torch.tensor(p._version) for p in net.parameters()]
    values += [torch.zeros(0) if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    return values, modes, torch.get_rng_state(), random.getstate()


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True)) and (
        one[1] == two[1] and torch.equal(one[2], two[2]) and one[3] == two[3]
    )


def test_dropout_drops_the_same_at_every_node():
    net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 4)).to(WIDE)
    before, after = moved(net)
    found = attribute(losses_of(net, batch(0)), list(net.parameters()), before, after, names=net)
    assert found.completeness <= 1e-3
    assert any("dropout" in note for note in found.notes)


def test_values_may_be_the_live_parameters():
    net = classifier()
    params, losses = list(net.parameters()), losses_of(net, batch(2))
    before, after = moved(net)
    expected = attribute(losses, params, before, after)
    for param, value in zip(params, after, strict=True):
        param.data.copy_(value)
    assert attribute(losses, params, before, params).total == expected.total


def test_no_more_gradients_than_nodes_and_two():
    net = classifier()
    steps = trained(net, torch.optim.AdamW(net.parameters(), lr=0.1))
    graphs = 0

    def counted():
        nonlocal graphs
        graphs += torch.is_grad_enabled()
        return losses_of(net, batch(3))()

    for nodes in (1, 8, "auto"):
        graphs = 0
        step = steps[-1]
        found = attribute(counted, step.params, step.before, step.after, names=net, optimizer=step, nodes=nodes)
        assert graphs <= found.nodes + 2


def test_a_step_of_nothing_changes_nothing():
    net = classifier()
    values = [p.detach().clone() for p in net.parameters()]
    found = attribute(losses_of(net, batch(0)), list(net.parameters()), values, values)
    assert found.total == found.measured == 0.0
    assert found.completeness == 0.0
    assert not found.rows.any()


def test_frozen_parameters_are_no_obstacle():
    net = classifier()
    net[0].weight.requires_grad_(False)
    before, after = moved(net)
    after[0] = before[0]
    found = attribute(losses_of(net, batch(0)), list(net.parameters()), before, after, names=net)
    assert found.columns["0.weight"] == 0.0
    assert found.completeness <= 1e-3
    assert not net[0].weight.requires_grad


def test_concentration_counts_the_rows_that_carry_ninety_percent():
    assert concentration([5.0, 4.0, 0.5, 0.5, -3.0]) == 2
    assert concentration([1.0] * 10) == 9
    assert concentration([-1.0, 0.0]) == 0


def test_what_does_not_belong_together_is_refused():
    net = classifier()
    params, losses = list(net.parameters()), losses_of(net, batch(0))
    before, after = moved(net)
    for arguments, message in [
        ((lambda: losses().mean(), params, before, after), "reduction='none'"),
        ((lambda: losses().detach(), params, before, after), "no graph"),
        ((losses, params, before[:-1], after), "before"),
        ((losses, [], [], []), "params"),
        ((lambda: losses() * float("nan"), params, before, after), "not finite"),
        ((lambda: 3.0, params, before, after), "shape"),
    ]:
        with pytest.raises(UsageError, match=message):
            attribute(*arguments)
    for options, message in [
        ({"nodes": 0}, "nodes"),
        ({"dtype": torch.float16}, "dtype"),
        ({"names": ["a"]}, "names"),
        ({"weights": torch.ones(3)}, "weights"),
        ({"grads": before}, "grads"),
        ({"optimizer": 3}, "optimizer"),
        ({"directions": {"u": ("nobody", torch.ones(2))}}, "nobody"),
        ({"directions": {"u": ("params.0", torch.ones(5))}}, "directions"),
    ]:
        with pytest.raises(UsageError, match=message):
            attribute(losses, params, before, after, **({"names": None} | options))


def test_plain_values_go_to_the_record():
    import json

    net = classifier()
    step = trained(net, torch.optim.Adam(net.parameters(), lr=0.1))[-1]
    found = attribute(losses_of(net, batch(3)), step.params, step.before, step.after, names=net, optimizer=step)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["measured"] == found.measured
    assert told["culprits"][0]["index"] == found.top(1)[0]
    assert told["batch"] + told["history"] + told["decay"] + told["l2"] + told["rest"] == pytest.approx(told["total"])
