"""Second moments are raised so that the step really taken is below the edge, and nothing else is touched."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import optim
from torch.nn import Parameter

from foreshock.curvature import Hessian, counterfactual, edge
from foreshock.errors import UsageError
from foreshock.guard.denominators import floor_, refill_
from foreshock.stability import edge_weights
from foreshock.stability.rules.moments import rectification
from tests.nightly import thinned
from tests.reference import optimizers as others

torch.set_num_threads(1)

SIZES = (8, 4)


def adam(state, group):
    (beta1, beta2), t = group["betas"], float(state["step"])
    v = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    P = (v / (1 - beta2**t)).sqrt() + group["eps"]
    return group["lr"] * (1 - beta1) / (1 + beta1) / (1 - beta1**t) / P


def radam(state, group):
    (beta1, beta2), t = group["betas"], float(state["step"])
    P = (state["exp_avg_sq"].sqrt() + group["eps"]) / math.sqrt(1 - beta2**t) / rectification(beta2, t)
    return group["lr"] * (1 - beta1) / (1 + beta1) / (1 - beta1**t) / P


def adamax(state, group):
    beta1, t = group["betas"][0], float(state["step"])
    return group["lr"] * (1 - beta1) / (1 + beta1) / (1 - beta1**t) / state["exp_inf"]


def rmsprop(state, group):
    v = state["square_avg"] - (state["grad_avg"].square() if group["centered"] else 0.0)
    return group["lr"] / (1 + group["momentum"]) / (v.sqrt() + group["eps"])


def adagrad(state, group):
    return group["lr"] / (state["sum"].sqrt() + group["eps"])


CASES = [
    (optim.Adam, {}, adam),
    (optim.Adam, {"amsgrad": True}, adam),
    (optim.Adam, {"eps": 1e-2, "betas": (0.8, 0.97)}, adam),
    (optim.Adam, {"lr": torch.tensor(0.1, dtype=torch.float64), "foreach": False}, adam),
    (optim.Adam, {"fused": True, "amsgrad": True}, adam),
    (optim.AdamW, {"weight_decay": 1e-9}, adam),
    (optim.RAdam, {"betas": (0.9, 0.99)}, radam),
    (optim.Adamax, {}, adamax),
    (optim.RMSprop, {"alpha": 0.98, "momentum": 0.5}, rmsprop),
    (optim.RMSprop, {"alpha": 0.98, "centered": True}, rmsprop),
    (optim.Adagrad, {}, adagrad),
]


def named(case):
    return case[0].__name__ + "".join(f"-{key}" for key in case[1])


def problem(seed=1, crowded=1.0):
    """Returns a quadratic with one mode far above the others, its parameters in two tensors, and its Hessian."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(SIZES)
    basis = torch.randn(n, n, generator=generator, dtype=torch.float64)
    H = basis @ basis.T / n * crowded + 8 * torch.outer(basis[0], basis[0])
    params = [Parameter(torch.randn(size, generator=generator, dtype=torch.float64)) for size in SIZES]

    def loss():
        theta = torch.cat(params)
        return 0.5 * theta @ H @ theta

    return loss, params, H


def beyond(kind, settings, chi=1.3, *, seed=1, crowded=1.0, steps=30):
    """Returns an optimizer some steps into its training whose next step has this chi, by its learning rates."""
    loss, params, H = problem(seed, crowded)
    settings = {"lr": 0.1, **settings}
    optimizer = kind([{"params": params[:1]}, {"params": params[1:], "lr": settings["lr"] * 2}], **settings)
    for _ in range(steps):
        backward(optimizer, loss)
        optimizer.step()
    backward(optimizer, loss)
    reading = edge(loss, optimizer, tol=1e-8)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * (chi / reading.chi)
    return loss, params, H, optimizer, edge(loss, optimizer, tol=1e-8)


def backward(optimizer, loss):
    optimizer.zero_grad()
    loss().backward()


def dense(optimizer, H, weight):
    """Returns chi of the step just taken, from the state it left, by the formula of that optimizer."""
    W = torch.cat([
        (0.5 * weight(optimizer.state[param], group)).reshape(-1)
        for group in optimizer.param_groups for param in group["params"]
    ])
    return float(torch.linalg.eigvalsh(W.sqrt()[:, None] * H * W.sqrt())[-1])


@pytest.mark.parametrize("raise_", [floor_, refill_])
@pytest.mark.parametrize("case", thinned(CASES), ids=named)
def test_chi_of_the_step_really_taken_is_at_most_kappa(case, raise_):
    kind, settings, weight = case
    loss, params, H, optimizer, reading = beyond(kind, settings)
    done = raise_(reading, optimizer, Hessian(loss, params), kappa=0.8)
    optimizer.step()
    assert done.before == reading.chi > 1.29
    assert done.measured
    assert 0.79 < dense(optimizer, H, weight) <= 0.8 * (1 + 1e-3)
    assert dense(optimizer, H, weight) == pytest.approx(done.after, rel=1e-3)


@pytest.mark.parametrize("raise_", [floor_, refill_])
@pytest.mark.parametrize("case", [*CASES, (optim.NAdam, {}), (others.AdEMAMix, {}), (others.AdamWScheduleFree, {})],
                         ids=named)
def test_of_a_single_mode_the_bound_is_exact(case, raise_):
    loss, _, _, optimizer, reading = beyond(*case[:2], crowded=0.0)
    done = raise_(reading, optimizer, kappa=0.7)
    assert done.after == pytest.approx(0.7, rel=1e-6)
    assert not done.measured
    assert edge(loss, optimizer, tol=1e-8).chi == pytest.approx(0.7, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_without_the_hessian_chi_is_at_least_what_the_bound_says(seed):
    loss, _, _, optimizer, reading = beyond(optim.Adam, {}, seed=seed)
    done = refill_(reading, optimizer)
    assert done.after == pytest.approx(0.9, rel=1e-6)
    assert 0.9 <= edge(loss, optimizer, tol=1e-8).chi < 1.0


def apart(chi=1.2):
    """Returns Adam on two parameters that know nothing of each other, the first one beyond its edge."""
    w = Parameter(torch.tensor([1.0, 100.0], dtype=torch.float64))

    def loss():
        return 2.0 * w[0] ** 2 + 1e-4 * w[1] ** 2

    optimizer = optim.Adam([w], lr=0.1)
    for _ in range(20):
        backward(optimizer, loss)
        optimizer.step()
    backward(optimizer, loss)
    optimizer.param_groups[0]["lr"] *= chi / edge(loss, optimizer, tol=1e-8).chi
    return loss, w, optimizer, edge(loss, optimizer, tol=1e-8)


def test_a_refill_leaves_coordinates_that_are_not_in_the_mode_alone_and_a_floor_slows_them():
    kept, grown = [], []
    for raise_ in (refill_, floor_):
        loss, w, optimizer, reading = apart()
        before = optimizer.state[w]["exp_avg_sq"].clone()
        raise_(reading, optimizer, kappa=0.5)
        after = optimizer.state[w]["exp_avg_sq"]
        grown.append(float(after[0] / before[0]))
        kept.append(float(after[1] / before[1]))
        assert edge(loss, optimizer, tol=1e-8).chi == pytest.approx(0.5, rel=1e-4)
    assert kept[0] == 1.0
    assert kept[1] > 100.0
    assert grown[0] == pytest.approx(grown[1], rel=1e-6)


def test_the_floor_is_the_one_that_was_foretold():
    _, _, _, optimizer, reading = beyond(optim.Adam, {})
    foretold = counterfactual(reading, optimizer, kappa=0.8).floor
    floor_(reading, optimizer, kappa=0.8)
    planned = edge_weights(optimizer, [param.grad for group in optimizer.param_groups for param in group["params"]])
    assert min(float(P.min()) for P in planned.denominators) == pytest.approx(foretold, rel=1e-6)


def test_the_record_counts_what_grew():
    loss, w, optimizer, reading = apart()
    done = refill_(reading, optimizer, kappa=0.6)
    assert (done.how, done.kappa, done.entries, done.matvecs) == ("refill", 0.6, 1, 0)
    assert done.largest == pytest.approx(reading.chi / 0.6, rel=1e-4)
    del loss, w


def test_the_parabola_never_spikes_when_refilled_at_its_edge():
    def highest(guarded):
        theta = Parameter(torch.ones(1, dtype=torch.float64))
        optimizer, most, acts = optim.Adam([theta], lr=0.1, betas=(0.9, 0.99)), 0.0, 0
        for step in range(1, 1000):
            backward(optimizer, lambda: 0.5 * theta.square().sum())
            if guarded and step > 880 and step % 3 == 0:
                reading = edge(lambda: 0.5 * theta.square().sum(), optimizer, forms=False)
                acts += reading.chi > 1.0 and refill_(reading, optimizer).entries > 0
            optimizer.step()
            most = max(most, float(theta.detach().abs())) if step > 880 else 0.0
        return most, acts

    unguarded, _ = highest(False)
    guarded, acts = highest(True)
    assert unguarded > 1e-2
    assert guarded < 1e-7
    assert 1 <= acts <= 20


def state_of(optimizer):
    return copy.deepcopy(optimizer.state_dict()["state"])


def same(one, two):
    return all(torch.equal(torch.as_tensor(one[i][key]), torch.as_tensor(two[i][key])) for i in one for key in one[i])


def test_nothing_is_done_below_kappa():
    _, _, _, optimizer, reading = beyond(optim.Adam, {}, chi=0.7)
    before = state_of(optimizer)
    done = refill_(reading, optimizer)
    assert (done.entries, done.largest, done.after) == (0, 1.0, reading.chi)
    assert same(before, state_of(optimizer))


@pytest.mark.parametrize(
    "case",
    [(optim.SGD, {"momentum": 0.9}), (optim.Adadelta, {"lr": 1.0}), (others.Lion, {"lr": 0.1}), (others.Lamb, {}),
     (optim.Adafactor, {})],
    ids=named,
)
def test_optimizers_without_such_moments_are_refused_with_the_way_out(case):
    _, _, _, optimizer, reading = beyond(*case)
    before = state_of(optimizer)
    for raise_ in (floor_, refill_):
        with pytest.raises(UsageError, match=rf"{case[0].__name__}.*CutLr"):
            raise_(reading, optimizer, kappa=0.5)
    assert same(before, state_of(optimizer))


def test_before_the_first_step_there_is_nothing_to_raise():
    loss, params, _ = problem()
    optimizer = optim.Adam(params, lr=10.0)
    with pytest.raises(UsageError, match=r"Adam.*CutLr"):
        refill_(edge(loss, optimizer), optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("kappa", [0.0, 1.0, -1.0, math.nan])
def test_kappa_has_to_be_below_the_edge(kappa):
    _, _, _, optimizer, reading = beyond(optim.Adam, {}, steps=5)
    with pytest.raises(UsageError, match="kappa"):
        floor_(reading, optimizer, kappa=kappa)


def test_another_optimizer_than_the_one_that_was_read_is_refused():
    _, _, _, _, reading = beyond(optim.Adam, {}, steps=5)
    with pytest.raises(UsageError, match="does not hold"):
        floor_(reading, beyond(optim.Adam, {}, steps=5)[3])


def test_beside_sgd_the_moments_of_adam_are_raised_as_long_as_they_hold_enough_of_the_edge():
    loss, params, _ = problem()
    pair = [optim.Adam(params[:1], lr=0.1), optim.SGD(params[1:], lr=1e-4)]
    for _ in range(10):
        params[1].grad = None
        backward(pair[0], loss)
        for each in pair:
            each.step()
    reading = edge(loss, pair, tol=1e-8)
    for each in pair:
        each.param_groups[0]["lr"] *= 1.3 / reading.chi
    reading = edge(loss, pair, tol=1e-8)
    done = refill_(reading, pair, Hessian(loss, params), kappa=0.9)
    assert done.after <= 0.9
    assert edge(loss, pair, tol=1e-8).chi == pytest.approx(done.after, rel=1e-3)
    pair[1].param_groups[0]["lr"] *= 1e4
    with pytest.raises(UsageError, match="held by SGD"):
        refill_(edge(loss, pair, tol=1e-8), pair)


def test_moments_in_an_eigenbasis_are_raised_there():
    generator = torch.Generator().manual_seed(3)
    w = Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    stiff = torch.linspace(0.5, 20.0, 12, dtype=torch.float64).reshape(4, 3)

    def loss():
        return 0.5 * (stiff * w.square()).sum()

    optimizer = others.SOAP([w], weight_decay=0.0)
    optimizer.state[w].update(
        Q=[torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in w.shape], step=0
    )
    for _ in range(10):
        backward(optimizer, loss)
        optimizer.step()
    backward(optimizer, loss)
    optimizer.param_groups[0]["lr"] *= 1.3 / edge(loss, optimizer, tol=1e-8).chi
    for raise_ in (refill_, floor_):
        reading = edge(loss, optimizer, tol=1e-8)
        done = raise_(reading, optimizer, Hessian(loss, [w]), kappa=0.9 * min(1.0, reading.chi))
        assert edge(loss, optimizer, tol=1e-8).chi == pytest.approx(done.after, rel=1e-3)
        assert done.after <= done.kappa


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_few_bits_are_raised_as_far_as_their_rounding_lets(dtype):
    loss, params, _, optimizer, reading = beyond(optim.Adam, {})
    made = [Parameter(param.detach().to(dtype)) for param in params]
    other = optim.Adam([{"params": [param], "lr": group["lr"]}
                        for param, group in zip(made, optimizer.param_groups, strict=True)])
    for old, new in zip(params, made, strict=True):
        other.state[new] = {
            key: value.clone() if key == "step" else value.to(dtype) for key, value in optimizer.state[old].items()
        }
    grads = [param.grad.to(dtype) for param in params]
    shown = replace(reading, params=tuple(made), weights=edge_weights(other, grads))
    refill_(shown, other)
    aimed = refill_(reading, optimizer)
    rounding = torch.finfo(dtype).eps
    for old, new in zip(params, made, strict=True):
        wanted, found = optimizer.state[old]["exp_avg_sq"], other.state[new]["exp_avg_sq"].double()
        torch.testing.assert_close(found, wanted, rtol=20 * rounding, atol=0.0)
    assert aimed.entries > 0
    del loss
