"""Windows of steps: momentum followed to the examples, complete, and one step of a window the same as a step."""

from __future__ import annotations

import doctest

import pytest
import torch

import foreshock.attribution.captured
import foreshock.attribution.consumed
import foreshock.attribution.naming
import foreshock.attribution.path
import foreshock.attribution.result
import foreshock.attribution.terms
from foreshock.attribution import attribute, attribute_steps
from foreshock.errors import UsageError
from tests.attribution.cases import batch, classifier, losses_of, trained
from tests.attribution.test_split import OPTIMIZERS, made
from tests.reference.attribution import path_gradient, per_example_gradients, put

WIDE = torch.float64


@pytest.mark.parametrize("name", ["captured", "consumed", "naming", "path", "result", "terms"])
def test_docstrings(name):
    assert not doctest.testmod(getattr(foreshock.attribution, name), verbose=False).failed


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lion"])
def test_rows_of_all_steps_history_and_decay_add_up_to_the_window(name):
    net = classifier()
    steps = trained(net, made(name, net), 5)[2:]
    own = [losses_of(net, batch(i)) for i in range(2, 5)]
    found = attribute_steps(steps, losses_of(net, batch(9)), own, numbers=[2, 3, 4], names=net, nodes=2)
    sides = float(found.culprits.sum()) + found.history + found.decay + found.l2
    assert sides == pytest.approx(found.total, rel=1e-6, abs=1e-12)
    assert sum(found.columns.values()) == pytest.approx(found.total, rel=1e-9)
    assert found.labels == tuple((step, i) for step in (2, 3, 4) for i in range(12))
    assert found.nodes == 6


def test_a_window_of_one_step_is_a_step():
    net = classifier()
    step = trained(net, made("adamw", net), 3)[-1]
    losses = losses_of(net, batch(2))
    one = attribute(losses, step.params, step.before, step.after, names=net, optimizer=step)
    window = attribute_steps([step], losses, [losses], names=net)
    assert torch.equal(one.culprits, window.culprits)
    assert torch.equal(one.rows, window.rows)
    assert one.columns == window.columns
    assert (one.history, one.decay, one.rest) == pytest.approx((window.history, window.decay, window.rest))


@pytest.mark.parametrize(("name", "gone"), [("momentum", 0.9), ("adam", 0.9)])
def test_an_example_has_what_its_gradient_does_later(name, gone):
    """Written out: row_i of step s is -sum_t <e_t, weight of g_s in step t * g_i>/n."""
    net = classifier()
    kind, settings = OPTIMIZERS[name]
    steps = trained(net, kind(net.parameters(), **settings), 4)
    params, seen = steps[0].params, losses_of(net, batch(9))
    found = attribute_steps(steps, seen, [losses_of(net, batch(i)) for i in range(4)], names=net, nodes=8)
    slopes = [path_gradient(seen, params, step.before, step.after, 60) for step in steps]
    rows = []
    for s, step in enumerate(steps):
        put(params, step.before)
        each = per_example_gradients(losses_of(net, batch(s)), params)
        row = torch.zeros(12, dtype=WIDE)
        for t in range(s, 4):
            for j, terms in enumerate(steps[t].split.terms):
                first = name == "momentum" and s == 0
                admit = 1.0 if first else steps[s].split.terms[j].admit
                weight = terms.through * gone ** (t - s) * admit
                row -= torch.stack([(slopes[t][j] * weight * g[j]).sum() / 12 for g in each])
        rows.append(row)
    expected = torch.cat(rows)
    assert torch.allclose(found.culprits, expected, atol=1e-3 * float(expected.abs().max()))
    assert found.history == 0.0  # all there is was put there in the window


def test_what_changed_the_parameters_between_steps_is_in_the_rest():
    net = classifier()
    optimizer = made("adamw", net)
    steps = trained(net, optimizer, 2)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        net[0].weight[0, 0] += 3.0
    after = [p.detach().clone() for p in net.parameters()]
    steps += trained(net, optimizer, 1)
    seen = losses_of(net, batch(9))
    own = [losses_of(net, batch(i)) for i in (0, 1, 0)]
    found = attribute_steps(steps, seen, own, names=net)
    outside = attribute(seen, list(net.parameters()), before, after, names=net)
    assert found.rest == pytest.approx(outside.total, rel=1e-6)
    assert found.completeness <= 1e-3
    assert any("something else changed" in note for note in found.notes)


def test_steps_that_do_not_go_together_are_refused():
    net, other = classifier(), classifier(1)
    steps = trained(net, made("adam", net), 2)
    losses = losses_of(net, batch(0))
    with pytest.raises(UsageError, match="as many"):
        attribute_steps(steps, losses, [losses])
    with pytest.raises(UsageError, match="as many"):
        attribute_steps([], losses, [])
    with pytest.raises(UsageError, match="other parameters"):
        attribute_steps([steps[0], trained(other, made("adam", other), 1)[0]], losses, [losses] * 2)
