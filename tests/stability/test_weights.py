"""Edge weights: which moments, which parameters, which precision; nothing of the optimizer is touched."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from tests.reference import optimizers as others
from tests.stability.live_cases import MATRICES, OTHERS, TORCH, built, label, stepped
from torch import optim

from foreshock.errors import UsageError
from foreshock.stability import edge_weights, nyquist_probe, planned_step, stability_threshold
from foreshock.stability.blocks import KroneckerBlock

torch.set_num_threads(1)


def dense(weight):
    return weight if isinstance(weight, torch.Tensor) else weight.dense()


# what the stored state does not hold: the squared moves before the last, the last gradient, the last clipping
UNPROBED = (optim.Rprop, optim.Adafactor, optim.Muon, *(getattr(others, name) for name in (
    "Lion", "Lamb", "S3", "SGDScheduleFree", "AdamWScheduleFree")))
STALE = (optim.Adadelta, optim.Adafactor, others.Lion, others.S3)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("case", [each for each in TORCH + OTHERS + MATRICES if each[0] not in STALE], ids=label)
def test_weights_with_gradients_are_those_after_the_step(case, steps):
    if case[0] is optim.Muon and case[1].get("nesterov", True):
        pytest.skip("Muon does not store the last gradient")
    optimizer, params, gradients = built(case)
    for _ in range(steps):
        stepped(optimizer, params, gradients())
    grads = gradients()
    planned = edge_weights(optimizer, grads)
    lrs = [group["lr"] for group in optimizer.param_groups]
    stepped(optimizer, params, grads)
    stored = edge_weights(optimizer)
    what = "denominators" if case[0] is others.Lamb else "tensors"  # its trust ratio moves with the parameters
    for one, two in zip(getattr(planned, what), getattr(stored, what), strict=True):
        torch.testing.assert_close(dense(one), dense(two), rtol=1e-6, atol=0)
    assert planned.gains == pytest.approx(stored.gains, rel=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == lrs


@pytest.mark.parametrize("case", TORCH + OTHERS + MATRICES, ids=label)
def test_reading_touches_nothing(case):
    optimizer, params, gradients = built(case)
    for _ in range(3):
        stepped(optimizer, params, gradients())
    params[0].grad = torch.ones_like(params[0])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    grads = gradients()
    before = everything(optimizer, params, grads)
    keys = {id(param): list(optimizer.state[param]) for param in params}
    edge_weights(optimizer, grads)
    edge_weights(optimizer)
    edge_weights(optimizer, grads, max_norm=0.1)
    stability_threshold(optimizer)
    planned_step(optimizer, grads)
    with contextlib.suppress(UsageError) if case[0] in UNPROBED else contextlib.nullcontext():
        nyquist_probe(optimizer, grads)
    after = everything(optimizer, params, grads)
    assert before == after
    assert keys == {id(param): list(optimizer.state[param]) for param in params}
    assert not calls


def everything(optimizer, params, grads):
    """Bits, versions, identities and flags of all that could be written to."""
    tensors = [*params, *grads, *(param.grad for param in params if param.grad is not None)]
    plain = []
    for owner in [*optimizer.param_groups, *(optimizer.state[param] for param in params), vars(optimizer)]:
        for key, value in owner.items():
            if isinstance(value, torch.Tensor):
                tensors.append(value)
            elif isinstance(value, (int, float, str, tuple)):
                plain.append((str(key), value))
            elif isinstance(value, list):
                tensors += [each for each in value if isinstance(each, torch.Tensor)]
    bits = [(id(each), each._version, each.detach().numpy().tobytes(), each.requires_grad) for each in tensors]
    return bits, plain, torch.random.get_rng_state().numpy().tobytes()


def test_parameters_without_gradient_do_not_move():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(4)]
    params[3].requires_grad_(False)
    optimizer = optim.Adam(params, lr=0.1)
    stepped(optimizer, params, [torch.ones(3), torch.ones(3), None, None])
    for weights in (edge_weights(optimizer), edge_weights(optimizer, [torch.ones(3), torch.ones(3), None, None])):
        assert [bool(each.any()) for each in weights.tensors] == [True, True, False, False]
        assert all(torch.isinf(each).all() for each in weights.denominators[2:])
        assert all(torch.equal(each, torch.zeros(3)) for each in weights.apply([torch.ones(3)] * 4, -0.5)[2:])
        assert weights.gains[2] == 0.0
    sgd = edge_weights(optim.SGD(params, lr=0.1, momentum=0.9))
    assert [bool(each.any()) for each in sgd.tensors] == [True, True, True, False]


def test_groups_begin_at_different_times():
    early, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([{"params": [early]}, {"params": [late], "lr": 0.2}], lr=0.1, eps=0.0)
    for _ in range(3):
        stepped(optimizer, [early, late], [torch.ones(2), None])
    weights = edge_weights(optimizer, [torch.ones(2)] * 2)  # constant gradients: the corrected v is 1 at any step
    firsts = [(1 - 0.9**4), (1 - 0.9)]
    for P, first in zip(weights.denominators, firsts, strict=True):
        torch.testing.assert_close(P, torch.full((2,), first), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", TORCH, ids=label)
def test_dead_coordinates_have_finite_weights(case):
    optimizer, params, _ = built(case, dtype=torch.float32)
    grads = [torch.zeros_like(param) for param in params]
    if case[1].get("weight_decay"):
        with torch.no_grad():
            for param in params:
                param.zero_()
    for _ in range(3):
        stepped(optimizer, params, grads)
    weights = edge_weights(optimizer, grads)
    assert all(bool(torch.isfinite(each).all()) for each in weights.tensors)
    for power in (1.0, 0.5, -0.5, -1.0):
        assert all(bool((each == 0).all()) for each in weights.apply(grads, power))
        assert all(bool(torch.isfinite(each).all()) for each in weights.apply([g + 1e-6 for g in grads], power))
    if case[0] in (optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.NAdam, optim.Adamax, optim.Adafactor):
        assert all(bool(each.all()) for each in weights.floored)


def test_an_entry_with_neither_denominator_nor_floor_does_not_move():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([weight], lr=0.1, eps=0.0)
    [W] = edge_weights(optimizer, [torch.tensor([0.0, 1.0])]).tensors
    assert W[0] == 0
    assert W[1] > 0


def test_floored_entries_are_those_within_twice_eps():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.RMSprop([weight], lr=0.1, alpha=0.0, eps=1e-3)
    [mask] = edge_weights(optimizer, [torch.tensor([0.0, 0.9e-3, 1.1e-3])]).floored
    assert mask.tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", [(optim.AdamW, {}), (optim.SGD, {"momentum": 0.9}), (optim.Adafactor, {})], ids=label)
def test_weights_are_in_single_precision_at_least(case, dtype):
    optimizer, params, gradients = built(case, dtype=torch.float64, shapes=((4, 3), (5,)))
    exact = edge_weights(optimizer, gradients())
    optimizer, params, gradients = built(case, dtype=torch.float64, shapes=((4, 3), (5,)))
    low = [torch.nn.Parameter(param.detach().to(dtype)) for param in params]
    grads = [grad.to(dtype) for grad in gradients()]
    weights = edge_weights(case[0](low, **case[1]), grads)
    for one, two in zip(weights.tensors, exact.tensors, strict=True):
        assert one.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(one.double(), two, rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=0)


def test_awkward_shapes_have_weights_like_themselves():
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((), (0,), (0, 3), (1, 1, 1))]
    for kind in (optim.SGD, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam,
                 optim.RAdam, optim.Adafactor, optim.ASGD, optim.Rprop):
        weights = edge_weights(kind(params), [torch.ones_like(param) for param in params])
        assert [each.shape for each in weights.tensors] == [param.shape for param in params]
        assert all(bool(torch.isfinite(each).all()) for each in weights.tensors)


def test_sparse_gradients_read_like_dense_ones():
    table = torch.nn.Embedding(6, 3, sparse=True)
    table(torch.tensor([1, 4, 4])).square().sum().backward()
    sparse, dense = table.weight.grad, table.weight.grad.to_dense()
    for kind in (optim.SGD, optim.Adagrad):
        one, two = (edge_weights(kind([table.weight], lr=0.1), [grad]).tensors[0] for grad in (sparse, dense))
        assert torch.equal(one, two)


def test_sparse_adam_leaves_untouched_rows_their_moments():
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = optim.SparseAdam([table.weight], lr=0.1)
    for rows in ([0, 1], [1, 1, 2], [2]):
        optimizer.zero_grad()
        table(torch.tensor(rows)).sum().backward()
        grad = table.weight.grad.clone()
        planned = edge_weights(optimizer, [grad])
        optimizer.step()
        torch.testing.assert_close(planned.tensors[0], edge_weights(optimizer).tensors[0], rtol=1e-6, atol=0)
    v, step = optimizer.state[table.weight]["exp_avg_sq"], 3
    P = (1 - 0.9**step) * (v.sqrt() + 1e-8) / math.sqrt(1 - 0.999**step)
    torch.testing.assert_close(planned.denominators[0], P, rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_shrinks_weights_by_the_common_norm(max_norm):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    grads = [torch.full((3,), 2.0), torch.full((2,), -2.0)]
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    factor = min(1.0, max_norm / math.sqrt(20))
    free, clipped = edge_weights(optimizer, grads), edge_weights(optimizer, grads, max_norm=max_norm)
    for one, two in zip(free.tensors, clipped.tensors, strict=True):
        torch.testing.assert_close(two, factor * one, rtol=1e-6, atol=0)
    assert clipped.thresholds == pytest.approx([each / factor for each in free.thresholds])


def test_moments_see_the_clipped_gradients():
    weight, grad = torch.nn.Parameter(torch.ones(3)), torch.tensor([3.0, 0.0, 4.0])
    optimizer = optim.RMSprop([weight], lr=0.1)
    clipped = edge_weights(optimizer, [grad], max_norm=1.0)
    torch.testing.assert_close(clipped.denominators[0], edge_weights(optimizer, [grad / 5]).denominators[0])


def test_an_adaptive_step_clips_adafactor():
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer = optim.Adafactor([weight], lr=0.01)
    for _ in range(5):
        stepped(optimizer, [weight], [torch.full((4,), 1e-3)])
    size = weight.detach().square().mean().sqrt().item()
    weights = edge_weights(optimizer, [torch.full((4,), 1.0)])
    v = optimizer.state[weight]["variance"].lerp(torch.ones(4), 6**-0.8)
    update = v.rsqrt().square().mean().sqrt().item()
    assert update > 1
    assert weights.lrs[0] == pytest.approx(size * 0.01 / update, rel=1e-5)
    assert weights.thresholds[0] == pytest.approx(2 * update / (size * 0.01), rel=1e-5)


def test_bounded_methods_are_marked_as_formal():
    optimizer, params, gradients = built((others.Lion, {"lr": 0.1, "weight_decay": 0.5}))
    for _ in range(3):
        stepped(optimizer, params, gradients())
    grads = gradients()
    weights = edge_weights(optimizer, grads)
    assert weights.formal
    assert any("generalized_sharpness" in note for note in weights.notes)
    for P, param, grad in zip(weights.denominators, params, grads, strict=True):
        torch.testing.assert_close(P, (0.9 * optimizer.state[param]["exp_avg"] + 0.1 * grad).abs())
    assert weights.thresholds[0] == pytest.approx((2 - 0.05) * 1.99 / (0.19 * 0.1))
    rprop = optim.Rprop(params, lr=0.1)
    rprop_weights = edge_weights(rprop, grads)
    assert rprop_weights.formal
    torch.testing.assert_close(rprop_weights.denominators[0], grads[0].abs() / 0.1)


def test_s3_divides_by_the_mix_of_moment_and_gradient():
    optimizer, params, gradients = built((others.S3, {"lr": 0.1}))
    for _ in range(3):
        stepped(optimizer, params, gradients())
    grads = gradients()
    weights = edge_weights(optimizer, grads)
    assert weights.formal
    assert weights.thresholds[0] == pytest.approx(26.9 / 0.1, rel=1e-3)
    for P, param, grad in zip(weights.denominators, params, grads, strict=True):
        s = 0.95 * optimizer.state[param]["exp_avg_p"] + 0.05 * grad.abs() ** 3
        torch.testing.assert_close(P, (0.95 * s + 0.05 * grad.abs() ** 3) ** (1 / 3))
        optimizer.state[param] = {"exp_avg_root": optimizer.state[param]["exp_avg_p"] ** (1 / 3)}
    for one, two in zip(weights.tensors, edge_weights(optimizer, grads).tensors, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_divides_by_the_polar_part_of_its_update(nesterov):
    case = (optim.Muon, {"lr": 0.01, "weight_decay": 3.0, "nesterov": nesterov, "momentum": 0.95})
    optimizer, params, gradients = built(case)
    for _ in range(3):
        stepped(optimizer, params, gradients())
    grads = gradients()
    weights = edge_weights(optimizer, grads)
    assert weights.formal
    for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
        buffer = optimizer.state[param]["momentum_buffer"].lerp(grad, 0.05)
        update = grad.lerp(buffer, 0.95) if nesterov else buffer
        left, _, right = torch.linalg.svd(update, full_matrices=False)
        block = weights.denominators[place]
        assert isinstance(block, KroneckerBlock)
        torch.testing.assert_close(block.power(update, -1.0), left @ right)
        rows, columns = param.shape
        eta = 0.01 * math.sqrt(max(1, rows / columns))
        q = 0.05 * (1 + 1.9 * nesterov) / 1.95
        assert weights.thresholds[place] == pytest.approx((2 - 0.03) / (q * eta))
        applied = weights.apply([update if i == place else torch.zeros_like(p) for i, p in enumerate(params)])[place]
        torch.testing.assert_close(applied, left @ right * q * eta / (2 - 0.03))


def test_formal_parameters_are_set_aside():
    matrix, vector = torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(3))
    optimizers = [optim.Muon([matrix], lr=0.1), optim.AdamW([vector], lr=0.1)]
    weights = edge_weights(optimizers, [torch.randn(3, 3), torch.randn(3)])
    assert weights.formals == (True, False)
    rest = weights.linear()
    assert not rest.formal
    assert not rest.tensors[0].any()
    assert rest.tensors[1] is weights.tensors[1]
    assert rest.thresholds == (math.inf, weights.thresholds[1])


def test_the_first_dampened_step_is_told_to_be_too_long():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9, dampening=0.9)
    assert any("10 times too long" in note for note in edge_weights(optimizer).notes)
    stepped(optimizer, [weight], [torch.ones(2)])
    assert not edge_weights(optimizer).notes


def test_powers_compose():
    optimizer, _, gradients = built((optim.Adam, {"lr": 0.1}))
    grads = gradients()
    weights = edge_weights(optimizer, grads)
    twice = weights.apply(weights.apply(grads, 0.5), 0.5)
    back = weights.apply(twice, -1.0)
    for one, two, three, grad in zip(twice, weights.apply(grads), back, grads, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(three, grad)
    for W, P, lr, q in zip(weights.tensors, weights.denominators, weights.lrs, weights.gains, strict=True):
        torch.testing.assert_close(W * P, torch.full_like(P, lr * q / 2))
    assert all(each.dtype == torch.float64 for each in weights.apply([g.double() for g in grads]))


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Muon])
def test_a_warm_up_that_begins_at_zero_keeps_its_denominators(kind):
    weight, grad = torch.nn.Parameter(torch.ones(2, 2)), torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    still, moving = (edge_weights(kind([weight], lr=lr), [grad]) for lr in (0.0, 0.1))
    assert not any(bool(each.any()) for each in still.apply([grad]))
    assert still.thresholds == (math.inf,)
    torch.testing.assert_close(dense(still.denominators[0]), dense(moving.denominators[0]))


def test_a_fast_second_moment_makes_chi_approximate():
    weight = torch.nn.Parameter(torch.ones(2))
    assert edge_weights(optim.Adam([weight], betas=(0.9, 0.9)), [torch.ones(2)]).approximate
    assert not edge_weights(optim.Adam([weight], betas=(0.9, 0.95)), [torch.ones(2)]).approximate


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda w: edge_weights(optim.Adam([w])), "pass grads"),
        (lambda w: edge_weights(optim.Adagrad([w])), "pass grads"),
        (lambda w: edge_weights(optim.LBFGS([w])), "line search"),
        (lambda w: edge_weights(optim.SGD([w], lr=0.1), []), "0 entries for 1 parameters"),
        (lambda w: edge_weights(optim.SGD([w], lr=0.1), [torch.ones(3)]), r"grads\[0\] has shape \(3,\)"),
        (lambda w: edge_weights(optim.SGD([w], lr=0.1), max_norm=1.0), "max_norm"),
        (lambda w: edge_weights([]), "empty"),
        (lambda w: edge_weights("adam"), "not str"),
        (lambda w: edge_weights(optim.SGD([torch.nn.Parameter(w.to(torch.complex64))], lr=0.1)), "complex"),
        (lambda w: edge_weights(type("AdamW8bit", (optim.AdamW,), {})([w]), [w]), "quantized"),
        (lambda w: edge_weights(optim.SGD([w], lr=0.1)).apply([]), "0 tensors for 1"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_out(ask, said):
    with pytest.raises(UsageError, match=said):
        ask(torch.nn.Parameter(torch.ones(2)))
