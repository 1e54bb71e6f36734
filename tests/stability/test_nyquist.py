"""The Nyquist probe reads optimizers that nobody has described, and says so when it cannot."""

from __future__ import annotations

import math

import pytest
import torch
from tests.nightly import thinned
from tests.reference import optimizers as others
from tests.reference.optimizers import Slow, moment
from tests.stability.live_cases import OTHERS, TORCH, built, label, stepped
from torch import optim

from foreshock.errors import UsageError
from foreshock.stability import Reading, edge_weights, nyquist_probe, register, registry, stability_threshold
from foreshock.stability.filters import cascade, critical_step

torch.set_num_threads(1)
NOT_ELEMENTWISE = ("Rprop", "Adafactor", "Adadelta", "Lion", "Lamb", "S3", "AdamWScheduleFree", "SGDScheduleFree")


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("dtype", thinned([torch.float32, torch.float64]))
@pytest.mark.parametrize("case", [c for c in TORCH + OTHERS if c[0].__name__ not in NOT_ELEMENTWISE], ids=label)
def test_the_probe_agrees_with_the_closed_forms_in_running_optimizers(case, dtype, planned):
    if case[0] is optim.ASGD and not planned:
        pytest.skip("ASGD does not store the step size of its last step")
    optimizer, params, gradients = built(case, dtype=dtype)
    for _ in range(5):
        stepped(optimizer, params, gradients())
    grads = gradients() if planned else None
    weights, probed = edge_weights(optimizer, grads), nyquist_probe(optimizer, grads)
    for W, seen, lr, omega in zip(weights.tensors, probed, weights.lrs, weights.omega, strict=True):
        assert seen.dtype == torch.float64
        torch.testing.assert_close((W * (2 - lr * omega)).double(), seen, rtol=1e-5, atol=0)
    assert probed.error < 1e-7


@pytest.mark.parametrize("shapes", [((4, 3), (1,), ()), ((1,), (), (1, 1))], ids=["others", "alone"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [
    (optim.RMSprop, {"lr": 0.05, "weight_decay": 0.3}), (optim.Adam, {"lr": 0.01, "weight_decay": 0.3}),
    (optim.Adagrad, {"lr": 0.1, "weight_decay": 0.4}), (optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}),
], ids=label)
def test_a_parameter_of_one_entry_decays_as_the_others_do(case, seed, shapes):
    """By itself it shows no difference between decay through the gradient, past the denominator, and direct decay."""
    optimizer, params, gradients = built(case, shapes=shapes, seed=seed)
    for _ in range(6):
        stepped(optimizer, params, gradients())
    grads = gradients()
    weights, probed = edge_weights(optimizer, grads), nyquist_probe(optimizer, grads)
    assert probed.l2 == pytest.approx(weights.l2, rel=1e-4)
    assert probed.decays == pytest.approx([lr * o for lr, o in zip(weights.lrs, weights.omega, strict=True)], rel=1e-4)


class Unknown(Slow):
    """Two averages in a row over a second moment, coupled and decoupled decay: nothing the table knows."""

    usual = {"lr": 0.1, "poles": (0.7, 0.85), "beta2": 0.99, "l2": 0.0, "shrink": 0.0}  # noqa: RUF012

    def update(self, group, param, grad, state):
        v, (one, two) = moment(state, "power", param), group["poles"]
        grad = grad + group["l2"] * param
        v.mul_(group["beta2"]).addcmul_(grad, grad, value=1 - group["beta2"])
        m, n = moment(state, "first", param), moment(state, "second", param)
        m.mul_(one).add_(grad, alpha=1 - one)
        n.mul_(two).add_(m, alpha=1 - two)
        param.mul_(1 - group["shrink"])
        param.addcdiv_(n, v.sqrt() + 1e-4, value=-group["lr"])


@pytest.mark.parametrize(("l2", "shrink"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2)])
def test_an_unknown_optimizer_is_measured_with_its_cascade_and_its_decay(l2, shrink):
    optimizer, params, gradients = built((Unknown, {"l2": l2, "shrink": shrink}))
    for _ in range(4):
        stepped(optimizer, params, gradients())
    weights = edge_weights(optimizer)
    assert any("Unknown is not known" in note for note in weights.notes)
    k = critical_step(cascade(0.7, 0.85), shrink).k
    for W, param in zip(weights.tensors, params, strict=True):
        P = optimizer.state[param]["power"].sqrt() + 1e-4
        torch.testing.assert_close(W, 0.1 / (k * P), rtol=1e-5, atol=0)
    assert weights.l2 == pytest.approx([l2] * 4, rel=1e-6, abs=1e-12)
    assert [lr * omega for lr, omega in zip(weights.lrs, weights.omega, strict=True)] == pytest.approx([shrink] * 4)
    [threshold] = stability_threshold(optimizer)
    assert threshold.value == pytest.approx(min(1 / (W.max().item()) for W in [torch.tensor(weights.factors)]))


def test_filters_are_told_at_any_frequency():
    optimizer, params, gradients = built((Unknown, {}))
    stepped(optimizer, params, gradients())
    measured, true = nyquist_probe(optimizer, filters=True).filters[0], cascade(0.7, 0.85)
    for w in (0.05, 0.3, 1.0, 2.0, 3.1):
        z = complex(math.cos(w), math.sin(w))
        assert measured.response(z) == pytest.approx(true.response(z) / true.gain(), rel=1e-5)


@pytest.mark.parametrize(("beta3", "alpha"), [(0.9999, 8.0), (0.99, 3.0)])
def test_slow_averages_do_not_hide(beta3, alpha):
    case = (type("Renamed", (others.AdEMAMix,), {}), {"betas": (0.9, 0.999, beta3), "alpha": alpha})
    optimizer, params, gradients = built(case)
    for _ in range(60):
        stepped(optimizer, params, gradients())
    told = edge_weights(optimizer)
    probed = nyquist_probe(optimizer)
    torch.testing.assert_close(told.tensors[0] * 2, probed[0], rtol=1e-5, atol=0)
    assert probed.steps < 60


def test_an_average_that_nothing_reads_does_no_harm():
    class Averaging(optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for param in self.param_groups[0]["params"]:
                self.state[param]["average"] = self.state[param].get("average", 0) * 0.5 + param.detach()
                self.state[param]["last"] = param.detach().clone()

    optimizer, params, gradients = built((Averaging, {"lr": 0.1}))
    stepped(optimizer, params, gradients())
    torch.testing.assert_close(nyquist_probe(optimizer)[0], torch.full((4, 3), 0.1, dtype=torch.float64))


def test_attributes_that_count_are_held():
    class Counting(Slow):
        usual = {"lr": 0.1}  # noqa: RUF012
        count = 0

        def __init__(self, params, **settings):
            super().__init__(params, **settings)
            self.count = 0

        @torch.no_grad()
        def step(self, closure=None):
            self.count += 1
            super().step(closure)

        def update(self, group, param, grad, state):
            param.add_(grad, alpha=-group["lr"] / self.count)

    optimizer, params, gradients = built((Counting, {}))
    for _ in range(4):
        stepped(optimizer, params, gradients())
    grads = gradients()
    torch.testing.assert_close(nyquist_probe(optimizer)[0], torch.full((4, 3), 0.1 / 4, dtype=torch.float64))
    torch.testing.assert_close(nyquist_probe(optimizer, grads)[0], torch.full((4, 3), 0.1 / 5, dtype=torch.float64))
    assert optimizer.count == 4


class Sign(Slow):
    usual = {"lr": 0.1}  # noqa: RUF012

    def update(self, group, param, grad, state):
        param.add_(grad.sign(), alpha=-group["lr"])


class Normalized(Sign):
    def update(self, group, param, grad, state):
        param.add_(grad / grad.norm(), alpha=-group["lr"])


class Coupled(Sign):
    def update(self, group, param, grad, state):
        param.add_(grad + grad.flip(-1) if grad.dim() else grad, alpha=-group["lr"])


class Relative(Sign):
    def update(self, group, param, grad, state):
        param.add_(grad, alpha=-group["lr"] * max(1e-3, param.norm().item()))


class Forgetful(Sign):
    def update(self, group, param, grad, state):
        v = moment(state, "v", param)
        v.copy_(grad**2)
        param.addcdiv_(grad, v.sqrt() + 1e-8, value=-group["lr"])


class Averaged(Sign):
    """Dual averaging: parameters follow from the sum of all gradients."""

    def update(self, group, param, grad, state):
        total = moment(state, "total", param).add_(grad)
        param.copy_(state.setdefault("start", param.clone()) - group["lr"] * total)


class Leaky(Sign):
    """Steps, and is drawn to the average of where it has been."""

    def update(self, group, param, grad, state):
        param.add_(grad, alpha=-group["lr"])
        where = state.setdefault("where", param.clone())
        where.lerp_(param, 0.3)
        param.lerp_(where, 0.5)


class Drifting(Sign):
    def update(self, group, param, grad, state):
        param.add_(param.abs() + grad, alpha=-group["lr"])


class Deaf(Sign):
    def update(self, group, param, grad, state):
        state["seen"] = 1.0


class Aggregated(Sign):
    """Several momenta in a dictionary of the state, as AggMo keeps them."""

    def update(self, group, param, grad, state):
        buffers = state.setdefault("buffers", {beta: [torch.zeros_like(param)] for beta in (0.0, 0.9, 0.99)})
        for beta, [buffer] in buffers.items():
            buffer.mul_(beta).add_(grad)
            param.add_(buffer, alpha=-group["lr"] / 3)


class Rounding(Sign):
    """Computes in single precision whatever it is given."""

    def update(self, group, param, grad, state):
        v, m = moment(state, "v", param.float()), moment(state, "m", param.float())
        state["v"] = v.float().mul_(0.99).addcmul_(grad.float(), grad.float(), value=0.01)
        state["m"] = m.float().mul_(0.9).add_(grad.float(), alpha=0.1)
        param.copy_(param.float().addcdiv_(state["m"], state["v"].sqrt() + 1e-8, value=-group["lr"]))


class Single(Sign):
    """Refuses double precision, as kernels do."""

    def update(self, group, param, grad, state):
        if param.dtype != torch.float32:
            raise RuntimeError("float32 only")
        m = moment(state, "m", param)
        m.mul_(0.9).add_(grad, alpha=0.1)
        param.add_(m, alpha=-group["lr"])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Sign, "not linear"),
        (Normalized, "not linear"),
        (Coupled, "not elementwise"),
        (Relative, "size of the parameters"),
        (Forgetful, "too fast"),
        (Averaged, "move by themselves"),
        (Leaky, "a position of its own"),
        (Drifting, "move by themselves"),
        (others.SGDScheduleFree, "a position of its own"),
        (others.Lion, "not linear"),
        (others.Lamb, "too fast"),
    ],
)
def test_what_the_probe_cannot_read_is_refused_with_a_way_out(kind, why):
    kind = type(kind.__name__ + "X", (kind,), {})
    optimizer, params, gradients = built((kind, {}))
    for _ in range(3):
        stepped(optimizer, params, gradients())
    with pytest.raises(UsageError, match=why) as caught:
        nyquist_probe(optimizer)
    assert "register" in str(caught.value)


def test_a_single_precision_optimizer_is_probed_in_single_precision():
    optimizer, params, gradients = built((Single, {}), dtype=torch.float32)
    stepped(optimizer, params, gradients())
    probed = nyquist_probe(optimizer)
    assert probed[0].dtype == torch.float32
    torch.testing.assert_close(probed[0], torch.full((4, 3), 0.1 / 19), rtol=1e-5, atol=0)


def test_momenta_in_nested_states_are_found():
    optimizer, params, gradients = built((Aggregated, {}))
    stepped(optimizer, params, gradients())
    q = sum(1 / (1 + beta) for beta in (0.0, 0.9, 0.99)) / 3
    torch.testing.assert_close(nyquist_probe(optimizer)[0], torch.full((4, 3), 0.1 * q, dtype=torch.float64))


def test_a_step_that_rounds_to_single_precision_is_read_to_single_precision():
    optimizer, params, gradients = built((Rounding, {"lr": 1e-3}), dtype=torch.float32)
    for _ in range(3):
        stepped(optimizer, params, gradients())
    weights = edge_weights(optimizer)
    for W, param in zip(weights.tensors, params, strict=True):
        P = optimizer.state[param]["v"].sqrt() + 1e-8
        torch.testing.assert_close(W, 1e-3 / 19 / (2 * P), rtol=1e-5, atol=0)
    assert set(weights.omega) == {0.0}


def test_an_optimizer_that_answers_to_nothing_is_refused():
    optimizer, params, gradients = built((Deaf, {}))
    stepped(optimizer, params, gradients())
    with pytest.raises(UsageError, match="does not move"):
        edge_weights(optimizer)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (others.Lamb, {"fixed_decay": True}, "known versions of LAMB"),
        (others.Lamb, {"caution": True}, "known versions of LAMB"),
        (others.SOAP, {"normalize_grads": True}, "normalized updates"),
        (others.Shampoo, {}, "unknown names"),
        (others.S3, {}, "unknown name"),
    ],
)
def test_a_known_name_with_unknown_ways_is_refused(kind, settings, why):
    optimizer, params, gradients = built((kind, {}), shapes=((4, 3),))
    for _ in range(2):
        stepped(optimizer, params, gradients())
    optimizer.param_groups[0].update(settings)
    for renamed in ("preconditioners", "exp_avg_p"):
        if renamed in optimizer.state[params[0]]:
            optimizer.state[params[0]]["other"] = optimizer.state[params[0]].pop(renamed)
    with pytest.raises(UsageError, match=why):
        edge_weights(optimizer, gradients())


def test_before_the_first_step_only_momentum_can_be_probed():
    weight = torch.nn.Parameter(torch.ones(3))
    torch.testing.assert_close(
        nyquist_probe(optim.SGD([weight], lr=0.1, momentum=0.9))[0], torch.full((3,), 0.1 / 1.9, dtype=torch.float64)
    )
    with pytest.raises(UsageError, match="pass grads"):
        nyquist_probe(optim.Adam([weight]))
    grads = [torch.tensor([1.0, 0.0, -1e-3])]
    told, probed = edge_weights(optim.Adam([weight], lr=0.1), grads), nyquist_probe(optim.Adam([weight], lr=0.1), grads)
    torch.testing.assert_close(told.tensors[0].double() * 2, probed[0], rtol=1e-5, atol=0)


class Halved(optim.Adam):
    """Called a kind of Adam, but its step is another one."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] /= 2
        super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2


class Plain(optim.Adam):
    """Brings a step that changes nothing."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(("kind", "factor", "noted"), [(Plain, 1.0, False), (Halved, 0.5, True)])
def test_a_subclass_with_a_step_of_its_own_is_checked_against_a_probe(kind, factor, noted):
    ours, params, gradients = built((kind, {"lr": 0.1}))
    theirs, others_params, _ = built((optim.Adam, {"lr": 0.1}))
    for _ in range(3):
        grads = gradients()
        stepped(ours, params, grads)
        stepped(theirs, others_params, grads)
    one, two = edge_weights(ours), edge_weights(theirs)
    torch.testing.assert_close(one.tensors[0], factor * two.tensors[0], rtol=1e-5, atol=0)
    assert any("does not step by the convention" in note for note in one.notes) is noted


def test_a_registered_rule_speaks_for_a_class_and_its_heirs():
    class Mine(Sign):
        pass

    class Heir(Mine):
        pass

    seen = []

    def rule(optimizer, group, param, state, grad):
        seen.append((group["lr"], grad))
        return Reading(denominator=2.0 * torch.ones_like(param), lr=group["lr"], gain=cascade(0.7, 0.85), decay=0.1)

    register(Mine, rule)
    try:
        weight = torch.nn.Parameter(torch.ones(2))
        weights = edge_weights(Heir([weight], lr=torch.tensor(0.25)), [torch.ones(2)])
        k = critical_step(cascade(0.7, 0.85), 0.1).k
        torch.testing.assert_close(weights.tensors[0], torch.full((2,), 0.25 / k / 2))
        assert seen[0][0] == 0.25
        assert seen[0][1].tolist() == [1.0, 1.0]
        [threshold] = stability_threshold(Heir([weight], lr=0.25))
        assert threshold.value == pytest.approx(k / 0.25)
        register("Mine", lambda *_: "no reading")
        register(Mine, lambda *_: "no reading")
        with pytest.raises(UsageError, match="must return"):
            edge_weights(Heir([weight]))
        register(Mine, lambda optimizer, group, param, state, grad: Reading(denominator=torch.ones(5), lr=0.1))
        with pytest.raises(UsageError, match="shape"):
            edge_weights(Heir([weight]))
    finally:
        registry._BY_CLASS.clear()
        registry._BY_NAME.clear()


@pytest.mark.parametrize(("what", "rule"), [(int, lambda *_: None), (optim.SGD, "rule"), (3, lambda *_: None)])
def test_only_classes_and_functions_are_registered(what, rule):
    with pytest.raises(UsageError):
        register(what, rule)
