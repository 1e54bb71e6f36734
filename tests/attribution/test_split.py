"""Steps split into batch, history and decay: against the textbook, and against torch for every optimizer known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from foreshock.attribution import attribute, capture
from foreshock.attribution.split import source_of, split_step
from foreshock.errors import UsageError
from foreshock.optim import S3
from tests.attribution.cases import batch, classifier, losses_of, trained
from tests.reference.attribution import adam_parts, path_gradient, per_example_gradients, put, sgd_parts

WIDE = torch.float64

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.8, "nesterov": True}),
    "sgd up": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.05}),
    "adam l2": (torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, "betas": (0.7, 0.5)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
    "adamw up": (torch.optim.AdamW, {"lr": 0.05, "maximize": True, "foreach": False}),
    "adamw fused": (torch.optim.AdamW, {"lr": 0.05, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop all": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.7}),
    "adamax": (torch.optim.Adamax, {"lr": 0.05}),
    "nadam": (torch.optim.NAdam, {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam": (torch.optim.RAdam, {"lr": 0.05, "betas": (0.9, 0.9)}),
    "asgd": (torch.optim.ASGD, {"lr": 0.1, "lambd": 0.1}),
    "s3": (S3, {"lr": 0.05, "weight_decay": 0.3}),
    "s3 plain": (S3, {"lr": 0.05, "nesterov": False, "p": 1.5, "beta2": 0.9, "maximize": True}),
    "s3 sign": (S3, {"lr": 0.05, "beta": 0.0, "p": 2.0}),
}


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                beta1, beta2 = group["betas"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(m * beta1 + p.grad * (1 - beta1)), alpha=-group["lr"])
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Odd(torch.optim.Optimizer):
    """An optimizer nobody has described."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(torch.tanh(p.grad))


def made(name, net):
    if name == "lion":
        return Lion(net.parameters())
    kind, settings = OPTIMIZERS[name]
    return kind(net.parameters(), **settings)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lion"])
@pytest.mark.parametrize("steps", [1, 7])
def test_rows_history_and_decay_add_up_to_the_step(name, steps):
    net = classifier()
    step = trained(net, made(name, net), steps)[-1]
    found = attribute(
        losses_of(net, batch(steps - 1)), step.params, step.before, step.after, names=net, optimizer=step, nodes=2
    )
    sides = float(found.culprits.sum()) + found.history + found.decay + found.l2
    assert sides == pytest.approx(found.total, rel=1e-6, abs=1e-12)
    assert abs(found.rest) <= 1e-6 * abs(found.total) + 1e-12
    assert step.split.missed <= 1e-6
    assert not found.notes


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lion"])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_state_after_the_step_tells_the_same_as_the_one_before(name, steps):
    net = classifier()
    optimizer = made(name, net)
    step = trained(net, optimizer, steps)[-1]
    losses = losses_of(net, batch(steps - 1))
    options = {"names": net, "nodes": 2}
    kept = attribute(losses, step.params, step.before, step.after, optimizer=step, **options)
    live = attribute(losses, step.params, step.before, step.after, optimizer=optimizer, **options)
    told = attribute(losses, step.params, step.before, step.after, optimizer=optimizer.state_dict(), **options)
    for found in (live, told) if name != "lion" or steps > 1 else (live,):
        assert torch.allclose(found.culprits, kept.culprits, rtol=1e-6, atol=1e-12)
        assert found.history == pytest.approx(kept.history, rel=1e-6, abs=1e-12)
        assert found.decay == pytest.approx(kept.decay, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adam l2", "adamw"])
@pytest.mark.parametrize("t", [1, 4])
def test_rows_are_the_textbooks(name, t):
    net = classifier()
    kind, settings = OPTIMIZERS[name]
    steps = trained(net, kind(net.parameters(), **settings), t)
    step, params = steps[-1], list(net.parameters())
    losses = losses_of(net, batch(t - 1))
    found = attribute(losses, params, step.before, step.after, names=net, optimizer=step, nodes=8)
    e = path_gradient(losses, params, step.before, step.after)
    put(params, step.before)
    each = per_example_gradients(losses, params)
    decay_of = 0.0 if kind is torch.optim.AdamW else settings.get("weight_decay", 0.0)
    rows, history, l2, decay = torch.zeros(12, dtype=WIDE), 0.0, 0.0, 0.0
    for j, slope in enumerate(e):
        past = [s.grads[j] + decay_of * s.before[j] for s in steps[:-1]]
        mine = [g[j] for g in each]
        if kind is torch.optim.SGD:
            parts = (*sgd_parts(mine, step.before[j], t, past, **settings), torch.zeros(()))
        else:
            defaults = {"betas": (0.9, 0.999), "eps": 1e-8}
            decoupled = kind is torch.optim.AdamW
            parts = adam_parts(mine, step.before[j], t, past, **(defaults | settings), decoupled=decoupled)
        rows += torch.stack([(slope * part).sum() for part in parts[0]])
        history += float((slope * parts[1]).sum())
        l2 += float((slope * parts[2]).sum())
        decay += float((slope * parts[3]).sum())
    scale = float(rows.abs().max())
    assert torch.allclose(found.culprits, rows, atol=1e-4 * scale)
    assert found.history == pytest.approx(history, rel=1e-4, abs=1e-4 * scale)
    assert found.l2 == pytest.approx(l2, rel=1e-4, abs=1e-4 * scale)
    assert found.decay == pytest.approx(decay, rel=1e-4, abs=1e-4 * scale)


def test_without_momentum_the_history_is_exactly_zero():
    for kind, settings in [(torch.optim.Adam, {"betas": (0.0, 0.99)}), (torch.optim.SGD, {"lr": 0.1})]:
        net = classifier()
        step = trained(net, kind(net.parameters(), **settings))[-1]
        found = attribute(losses_of(net, batch(3)), step.params, step.before, step.after, names=net, optimizer=step)
        assert found.history == 0.0


def test_two_examples_of_a_quadratic_get_their_shapley_values():
    """SGD: v(S) = L(theta - lr sum_S g_i/2) - L(theta); the second-order term splits with the factor 1/2."""
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(2, 4, generator=generator, dtype=WIDE)
    b = torch.randn(2, generator=generator, dtype=WIDE)
    w = torch.randn(4, generator=generator, dtype=WIDE, requires_grad=True)
    losses = lambda: (A @ w - b).square()  # noqa: E731
    start, lr = w.detach().clone(), 0.4
    g = per_example_gradients(losses, [w])

    def value(of: tuple[int, ...]) -> float:
        theta = start - lr * sum((g[i][0] / 2 for i in of), torch.zeros(4, dtype=WIDE))
        return float((A @ theta - b).square().mean() - (A @ start - b).square().mean())

    optimizer = torch.optim.SGD([w], lr=lr)
    losses().mean().backward()
    with capture(optimizer, ["w"]) as step:
        optimizer.step()
    found = attribute(losses, [w], step.before, step.after, optimizer=step, nodes=1)
    both = value((0, 1))
    for i, other in ((0, 1), (1, 0)):
        shapley = (value((i,)) + both - value((other,))) / 2
        assert float(found.culprits[i]) == pytest.approx(shapley, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_clipping_is_found_whether_gradients_were_kept_or_not(name):
    net = classifier()
    step = trained(net, made(name, net), 3, clip=0.05)[-1]
    losses = losses_of(net, batch(2))
    found = attribute(losses, step.params, step.before, step.after, names=net, optimizer=step)
    assert 0 < found.clipped < 0.5
    assert abs(found.rest) <= 1e-6 * abs(found.total)
    assert any("multiplied by" in note for note in found.notes)
    guessed = attribute(losses, step.params, step.before, step.after, names=net, optimizer=kept_state(step))
    assert guessed.clipped == pytest.approx(found.clipped, rel=1e-3)
    assert torch.allclose(guessed.culprits, found.culprits, rtol=2e-3, atol=1e-9)


def test_what_lies_in_grad_tells_the_clipping_of_a_step_that_was_taken():
    net = classifier()
    optimizer = made("adamw", net)
    step = trained(net, optimizer, 3, clip=0.05)[-1]
    losses = losses_of(net, batch(2))
    kept = attribute(losses, step.params, step.before, step.after, names=net, optimizer=step)
    live = attribute(losses, step.params, step.before, step.after, names=net, optimizer=optimizer)
    assert live.clipped == pytest.approx(kept.clipped, rel=1e-9)
    assert torch.allclose(live.culprits, kept.culprits, rtol=1e-6, atol=1e-12)
    optimizer.zero_grad()
    blind = attribute(losses, step.params, step.before, step.after, names=net, optimizer=optimizer)
    assert any("was not kept" in note for note in blind.notes)
    other = attribute(losses_of(net, batch(9)), step.params, step.before, step.after, optimizer=optimizer)
    assert float(other.culprits.sum()) + other.history + other.decay + other.rest == pytest.approx(other.total)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scalers_scale_is_not_part_of_what_was_consumed(fused):
    net = classifier(dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = losses_of(net, batch(0, dtype=torch.float32))
    scaler.scale(losses().mean()).backward()
    with capture(optimizer, net) as step:
        scaler.step(optimizer)
    scaler.update()
    found = attribute(losses, step.params, step.before, step.after, names=net, optimizer=step)
    assert found.clipped == 1.0
    assert abs(found.rest) <= 1e-4 * abs(found.total)


def kept_state(step):
    """Returns what `step` was taken with as a state_dict."""
    source = step.source
    groups = [{**group, "params": [i]} for i, group in enumerate(source.groups)]
    return {"state": dict(enumerate(source.states)), "param_groups": groups}


def test_a_gradient_that_was_scaled_by_a_fault_is_the_batchs_still():
    net = classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    trained(net, optimizer, 3)
    optimizer.zero_grad()
    (1000 * losses_of(net, batch(7))().mean()).backward()
    with capture(optimizer, net) as step:
        optimizer.step()
    found = attribute(losses_of(net, batch(7)), step.params, step.before, step.after, names=net, optimizer=step)
    assert found.clipped == pytest.approx(1000, rel=1e-9)
    assert abs(found.rest) <= 1e-6 * abs(found.total)


def test_values_clipped_one_by_one_are_split_too():
    net = classifier()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses_of(net, batch(0))().mean().backward()
    nn.utils.clip_grad_value_(net.parameters(), 0.02)
    with capture(optimizer, net) as step:
        optimizer.step()
    found = attribute(losses_of(net, batch(0)), step.params, step.before, step.after, names=net, optimizer=step)
    assert abs(found.rest) <= 1e-6 * abs(found.total)
    assert any("values were clipped" in note for note in found.notes)


def test_another_batch_than_the_steps_own_is_said_to_be_one():
    net = classifier()
    step = trained(net, made("adamw", net), 3)[-1]
    found = attribute(losses_of(net, batch(50)), step.params, step.before, step.after, names=net, optimizer=step)
    assert any("not this batch's" in note for note in found.notes)
    total = float(found.culprits.sum()) + found.history + found.decay + found.rest
    assert total == pytest.approx(found.total, rel=1e-9)


def test_victims_may_be_of_another_batch_than_culprits():
    net = classifier()
    step = trained(net, made("adamw", net), 3)[-1]
    own, other = losses_of(net, batch(2)), losses_of(net, batch(8, 30))
    found = attribute(
        other, step.params, step.before, step.after, names=net, optimizer=step, culprit_loss=own
    )  # fmt: skip
    assert len(found.rows) == 30
    assert len(found.culprits) == 12
    assert abs(found.rest) <= 1e-6 * abs(found.total)
    assert found.completeness <= 1e-3


def test_an_optimizer_nobody_has_described_leaves_all_in_the_rest():
    net = classifier()
    step = trained(net, Odd(net.parameters()), 2)[-1]
    found = attribute(losses_of(net, batch(1)), step.params, step.before, step.after, names=net, optimizer=step)
    assert found.culprits is None
    assert found.rest == pytest.approx(found.total)
    assert any("Odd" in note for note in found.notes)


def test_batch_normalisation_couples_examples_and_rows_add_up_all_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)).to(WIDE)
    step = trained(net, torch.optim.SGD(net.parameters(), lr=0.5), 2)[-1]
    found = attribute(losses_of(net, batch(1)), step.params, step.before, step.after, names=net, optimizer=step)
    assert found.completeness <= 1e-3
    assert any("statistics" in note for note in found.notes)
    assert abs(found.rest) <= 1e-6 * abs(found.total)
    net.eval()
    found = attribute(losses_of(net, batch(1)), step.params, step.before, step.after, names=net)
    assert not found.notes


def test_groups_and_frozen_tensors_keep_their_own_settings():
    net = classifier()
    net[2].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([
        {"params": net[0].parameters(), "lr": 0.1, "weight_decay": 0.5}, {"params": net[2].parameters(), "lr": 0.01},
        {"params": list(net[4].parameters())},
    ], lr=torch.tensor(0.03))  # fmt: skip
    step = trained(net, optimizer, 3)[-1]
    params = list(net.parameters())[::-1]
    ends = [values[::-1] for values in (step.before, step.after)]
    found = attribute(losses_of(net, batch(2)), params, *ends, names=net, optimizer=step)
    assert abs(found.rest) <= 1e-6 * abs(found.total)
    assert found.columns["2.bias"] == 0.0


def test_capture_leaves_the_training_as_it_is():
    one, two = classifier(), classifier()
    trained(one, made("adamw", one), 4)
    optimizer = made("adamw", two)
    for i in range(4):
        optimizer.zero_grad()
        losses_of(two, batch(i))().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not optimizer._optimizer_step_pre_hooks


def test_capture_keeps_copies_of_the_first_step_alone():
    net = classifier()
    optimizer = made("adam", net)
    with capture(optimizer, net) as step:
        trained(net, optimizer, 1)
        kept = copy.deepcopy((step.before, step.after, step.grads))
        trained(net, optimizer, 3)
    for now, then in zip((step.before, step.after, step.grads), kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    assert step.names == tuple(name for name, _ in net.named_parameters())


def test_capture_without_a_step_says_so():
    net = classifier()
    with capture(made("adam", net), net) as step:
        pass
    assert not step.taken
    with pytest.raises(UsageError, match="no step"):
        _ = step.before
    with pytest.raises(UsageError, match="optimizer"), capture(3):
        pass


def test_a_state_of_other_parameters_is_refused():
    net, other = classifier(), classifier(1)
    with pytest.raises(UsageError, match="optimizer"):
        source_of(made("adam", net), list(other.parameters()))
    with pytest.raises(UsageError, match="parameters"):
        source_of(made("adam", net).state_dict(), list(net.parameters())[:2])


def test_a_rule_that_does_not_hold_is_found_out():
    """An Adam that somebody changed: the step is not what the rule says, and the report says how much is missing."""

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.9)

    net = classifier()
    step = trained(net, Adam(net.parameters(), lr=0.05), 2)[-1]
    split = split_step(step.source, step.before, step.after, step.grads)
    assert split.missed > 0.05
    assert any("Adam" in note for note in split.notes)
