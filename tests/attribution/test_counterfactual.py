"""Steps taken again without some examples, against the optimizer itself on the smaller batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from foreshock.attribution import attribute, capture, counterfactual_rows
from foreshock.errors import UsageError
from tests.attribution.cases import batch, classifier, losses_of, trained
from tests.attribution.test_split import Odd, made


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "rmsprop all", "nadam", "lion"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_step_without_rows_is_the_optimizers(name, clip):
    net = classifier()
    optimizer = made(name, net)
    trained(net, optimizer, 3)
    twin = copy.deepcopy(net)
    twin_optimizer = made(name, twin)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step = trained(net, optimizer, 1, clip=clip)[0]
    seen, out = losses_of(net, batch(8)), [1, 5, 7]
    found = counterfactual_rows(step, seen, out, culprit_loss=losses_of(net, batch(0)), names=net)
    x, y = batch(0)
    keep = [i for i in range(12) if i not in out]
    twin_optimizer.zero_grad()
    losses_of(twin, (x[keep], y[keep]))().mean().backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(twin.parameters(), clip)
    twin_optimizer.step()
    assert found.without == pytest.approx(losses_of(twin, batch(8))().mean().item(), rel=1e-6)
    assert found.executed == pytest.approx(seen().mean().item())
    assert all(torch.equal(p, a) for p, a in zip(net.parameters(), step.after, strict=True))


def test_leaving_out_the_guilty_takes_the_rise_away_and_leaving_out_others_does_not():
    """Three of 40 examples are three times as large and wrongly labelled."""
    net = classifier(activation=nn.ReLU)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)

    def labelled(seed: int, n: int):
        x, _ = batch(seed, n)
        return x, x[:, :4].argmax(1)

    for i in range(150):
        optimizer.zero_grad()
        losses_of(net, labelled(i, 40))().mean().backward()
        optimizer.step()
    x, y = labelled(200, 40)
    x[[3, 17, 30]] *= 3
    y[[3, 17, 30]] = (y[[3, 17, 30]] + 1) % 4
    optimizer.zero_grad()
    losses_of(net, (x, y))().mean().backward()
    with capture(optimizer, net) as step:
        optimizer.step()
    clean, own = losses_of(net, labelled(500, 60)), losses_of(net, (x, y))
    blame = attribute(clean, step.params, step.before, step.after, names=net, optimizer=step, culprit_loss=own)
    assert set(blame.top(3)) == {3, 17, 30}
    found = counterfactual_rows(step, clean, blame.top(3), culprit_loss=own, names=net)
    assert found.executed > found.before
    assert found.removed > 0.5
    assert found.removed_at_random < 0.2
    assert len(found.random) == 5


def test_draws_come_from_the_generator_alone():
    net = classifier()
    step = trained(net, made("adam", net), 2)[-1]
    losses = losses_of(net, batch(1))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = (counterfactual_rows(step, losses, [0, 1], names=net).random for _ in range(2))
    other = counterfactual_rows(step, losses, [0, 1], generator=torch.Generator().manual_seed(7)).random
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_left_out_is_refused():
    net = classifier()
    step = trained(net, made("adam", net), 2)[-1]
    losses = losses_of(net, batch(1))
    for rows in ([], [12], [-1], list(range(12))):
        with pytest.raises(UsageError, match="rows"):
            counterfactual_rows(step, losses, rows)
    odd = trained(net, Odd(net.parameters()), 1)[0]
    with pytest.raises(UsageError, match="Odd"):
        counterfactual_rows(odd, losses, [0])
