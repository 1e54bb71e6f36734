from __future__ import annotations

import doctest
import importlib
import math
from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import foreshock as fs
import foreshock.testing
from foreshock.errors import UsageError
from foreshock.requeue import Requeue
from foreshock.testing import faults

Pair = namedtuple("Pair", "inputs targets")


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 90, (4, 12), generator=torch.Generator().manual_seed(seed))


def train(steps=12, fault=(), *, how="calls", adam=True, schedule=None, seed=0, model=None):
    """Trains a small net with the fault and returns model, optimizer, injector and the losses."""
    model = model or net()
    make = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = make(model.parameters(), lr=0.01)
    scheduler = schedule(optimizer) if schedule else None
    injector = faults.Injector(fault, model, optimizer, seed=seed)
    data = torch.Generator().manual_seed(7)
    take = injector.around(optimizer.step) if how == "around" else optimizer.step
    losses, rates = [], []

    def once(step):
        x = torch.randn(16, 3, generator=data)
        x, y = injector.batch(step, (x, x.sum(1, keepdim=True))) if how != "hooks" else (x, x.sum(1, keepdim=True))
        loss = nn.functional.mse_loss(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if how == "calls":
            injector.gradients(step)
            injector.before_step(step)
        rates.append(optimizer.param_groups[0]["lr"])
        take()
        if how == "calls":
            injector.after_step(step)
        if scheduler:
            scheduler.step()

    if how == "hooks":
        with injector:
            for step in range(steps):
                once(step)
    else:
        for step in range(steps):
            once(step)
    return model, optimizer, injector, losses, rates


def weights(model) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("make", [faults.random_batch, faults.constant_batch])
@pytest.mark.parametrize(
    "batch",
    [
        tokens(),
        (tokens()[:, :-1], tokens()[:, 1:]),
        (torch.randn(6, 1, 8, 8), torch.randint(10, (6,))),
        (torch.randn(6, 3, dtype=torch.float64), torch.randn(6)),
        {"a": [tokens().to(torch.int32), Pair(torch.randn(2), None)], "name": "x"},
        UserDict(input_ids=tokens(), attention_mask=torch.ones(4, 12, dtype=torch.int64)),
        Sample(torch.randn(3, 2, 2).half(), torch.arange(3)),
        np.arange(12.0).reshape(3, 4),
        torch.randn(3, 2, dtype=torch.complex64),
        torch.randint(0, 255, (2, 5), dtype=torch.uint8),
    ],
    ids=["tokens", "pair", "images", "regression", "nested", "mapping", "dataclass", "numpy", "complex", "bytes"],
)
def test_a_spoilt_batch_has_the_structure_of_the_sound_one(make, batch):
    def outline(part):
        if isinstance(part, torch.Tensor):
            return part.shape, part.dtype, part.device
        if isinstance(part, np.ndarray):
            return part.shape, part.dtype
        if isinstance(part, (dict, UserDict)):
            return type(part), {key: outline(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return type(part), [outline(each) for each in part]
        if isinstance(part, Sample):
            return Sample, outline(part.image), outline(part.label)
        return part

    before = repr(batch)
    spoilt = faults.Injector(make(3)).batch(3, batch)
    assert outline(spoilt) == outline(batch)
    assert repr(spoilt) != before
    assert repr(batch) == before
    assert faults.Injector(make(3)).batch(2, batch) is batch


def test_random_tokens_are_uniform_over_the_ids_seen_or_the_vocabulary():
    seen = torch.tensor([2, 3, 50]).repeat_interleave(torch.tensor([900, 60, 40])).reshape(50, 20)
    noise = faults.Injector(faults.random_batch(0)).batch(0, seen)
    counts = torch.bincount(noise.flatten(), minlength=51)
    assert counts[[2, 3, 50]].sum() == 1000
    assert counts[[2, 3, 50]].min() > 250
    wide = faults.Injector(faults.random_batch(0, vocabulary=400)).batch(0, seen)
    assert wide.min() >= 0
    assert 390 > len(wide.unique()) > 330  # 1000 draws out of 400 leave 33 out


def test_random_floats_have_the_mean_and_the_deviation_of_the_batch_and_labels_are_seen_ones():
    x, y = 3.0 + 2.0 * torch.randn(64, 3, 8, 8), torch.randint(4, 9, (64,))
    noise, labels = faults.Injector(faults.random_batch(0, vocabulary=5)).batch(0, (x, {"y": y}))
    assert noise.mean() == pytest.approx(3.0, abs=0.1)
    assert noise.std() == pytest.approx(2.0, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([x.flatten(), noise.flatten()]))[0, 1]) < 0.1
    assert set(labels["y"].tolist()) <= set(range(5))  # they are the largest integer tensor there is
    _, labels = faults.Injector(faults.random_batch(0)).batch(0, (x, {"y": y}))
    assert set(labels["y"].tolist()) <= set(y.tolist())
    assert not torch.equal(labels["y"], y)


def test_a_constant_batch_repeats_one_value_of_each_tensor():
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    same, label = faults.Injector(faults.constant_batch(0)).batch(0, (x, y))
    assert len(same.unique()) == len(label.unique()) == 1
    assert same.flatten()[0] in x
    assert label[0] in y


@pytest.mark.parametrize("seed", range(5))
def test_constant_tokens_and_their_targets_are_the_same_token(seed):
    text = tokens(seed)
    x, y = faults.Injector(faults.constant_batch(0), seed=seed).batch(0, (text[:, :-1], text[:, 1:]))
    assert len({*x.flatten().tolist(), *y.flatten().tolist()}) == 1


@pytest.mark.parametrize("make", [faults.random_batch, faults.constant_batch])
def test_masks_and_ignored_positions_stay(make):
    mask = torch.rand(4, 12) < 0.5
    labels = tokens().masked_fill(mask, -100)
    batch = {"input_ids": tokens(), "attention_mask": mask.long(), "position_ids": torch.arange(12), "labels": labels}
    spoilt = faults.Injector(make(0)).batch(0, batch | {"drop": mask})
    assert torch.equal(spoilt["attention_mask"], mask.long())
    assert torch.equal(spoilt["position_ids"], torch.arange(12))
    assert torch.equal(spoilt["drop"], mask)
    assert torch.equal(spoilt["labels"] == -100, mask)
    assert not torch.equal(spoilt["labels"], labels)


def test_what_is_drawn_depends_on_seed_place_step_and_batch_only():
    def drawn(*, seed=0, step=4, batch=None, place=0):
        sound = [faults.raised_lr(90)] * place
        injector = faults.Injector([*sound, faults.random_batch(3, steps=9)], None, SGD, seed=seed)
        injector.batch(3, tokens())
        return injector.batch(step, tokens() if batch is None else batch)

    SGD = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    state = torch.get_rng_state()
    assert torch.equal(drawn(), drawn())
    for other in (drawn(seed=1), drawn(step=5), drawn(place=1), drawn(batch=tokens().flip(0))):
        assert not torch.equal(drawn(), other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_wrong_mixture_comes_from_a_function_a_sequence_or_any_iterable():
    def got(source):
        injector = faults.Injector(faults.wrong_mixture(5, source, steps=4))
        return [injector.batch(step, -1) for step in range(4, 10)]

    assert got(lambda step: 10 * step) == [-1, 50, 60, 70, 80, -1]
    assert got([1, 2, 3]) == [-1, 1, 2, 3, 1, -1]
    assert got({1: "a", 2: "b"}) == [-1, 1, 2, 1, 2, -1]


@pytest.mark.parametrize("source", [[], {}, (i for i in range(2))], ids=["list", "dict", "generator"])
def test_a_mixture_that_runs_out_is_an_error(source):
    injector = faults.Injector(faults.wrong_mixture(0, source, steps=4))
    with pytest.raises(UsageError, match=r"source: the batches of the wrong mixture have run out at step [0-3]"):
        _ = [injector.batch(step, -1) for step in range(4)]


def test_batches_are_counted_over_the_epochs_and_come_back_the_same():
    loader = torch.utils.data.DataLoader(torch.arange(40).reshape(20, 2), batch_size=4)
    data = faults.Injector(faults.random_batch(7)).batches(loader)
    assert len(data) == 5
    first, second = list(data), list(data)
    assert all(torch.equal(a, b) for a, b in zip(first, loader, strict=True))
    assert [torch.equal(a, b) for a, b in zip(second, loader, strict=True)] == [True, True, False, True, True]


@pytest.mark.parametrize("how", ["calls", "around", "hooks"])
def test_gradients_are_scaled_once(how):
    sound, struck = train(6, how=how, adam=False), train(6, faults.scaled_gradient(3), how=how, adam=False)
    assert struck[2].injected == [(3, "scaled_gradient")]
    before, after = train(3, how=how, adam=False)[0], train(4, how=how, adam=False)[0]
    moved = weights(train(4, faults.scaled_gradient(3), how=how, adam=False)[0]) - weights(before)
    torch.testing.assert_close(moved, 1000 * (weights(after) - weights(before)), rtol=1e-2, atol=1e-4)
    assert sound[3][:4] == struck[3][:4]
    assert struck[3][4] > 2 * sound[3][4]


def test_the_gradient_element_that_becomes_nan_is_one_of_all():
    where = set()
    for seed in range(12):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(2, 3)).sum().backward()
        faults.Injector(faults.nan_gradient(0), model, optimizer, seed=seed).gradients(0)
        bad = torch.cat([p.grad.flatten() for p in model.parameters()]).isnan()
        assert bad.sum() == 1
        where.add(int(bad.nonzero()))
    assert len(where) > 4


def test_named_tensors_counts_and_values_of_gradient_elements_can_be_chosen():
    model = net()
    model(torch.ones(2, 3)).sum().backward()
    injector = faults.Injector(faults.nan_gradient(0, count=3, parameter="2.weight", value=math.inf), model)
    injector.gradients(0)
    assert [int((~p.grad.isfinite()).sum()) for p in model.parameters()] == [0, 0, 3, 0]
    assert model[2].weight.grad.isinf().sum() == 3
    model.zero_grad()
    with pytest.raises(UsageError, match="after backward"):
        injector.gradients(0)
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(UsageError, match=r"no '2.weigth'.*2\.weight"):
        faults.Injector(faults.nan_gradient(0, parameter="2.weigth"), model).gradients(0)
    with pytest.raises(UsageError, match="count: 5 elements"):
        faults.Injector(faults.nan_gradient(0, parameter="2.weight", count=5), model).gradients(0)


def test_sparse_gradients_are_struck_where_they_are_stored():
    table = nn.Embedding(50, 4, sparse=True)
    table(torch.tensor([3, 9])).sum().backward()
    injector = faults.Injector([faults.nan_gradient(0), faults.scaled_gradient(0, factor=10.0)], table)
    injector.gradients(0)
    stored = table.weight.grad.coalesce().values()
    assert stored.isnan().sum() == 1
    assert (stored == 10.0).sum() == 7


@pytest.mark.parametrize("how", ["calls", "around", "hooks"])
def test_the_learning_rate_is_raised_for_four_steps(how):
    *_, optimizer, injector, _, rates = train(12, faults.raised_lr(5), how=how)
    if how == "calls":
        assert rates == [0.01] * 5 + [0.6] * 4 + [0.01] * 3
    assert injector.injected == [(step, "raised_lr") for step in range(5, 9)]
    assert optimizer.param_groups[0]["lr"] == 0.01
    once = train(6, faults.raised_lr(5), how=how, adam=False)[0], train(5, adam=False)[0], train(6, adam=False)[0]
    faulty, before, sound = map(weights, once)
    torch.testing.assert_close(faulty - before, 60 * (sound - before), rtol=1e-3, atol=1e-5)


SCHEDULES = {
    "recursive": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, eta_min=1e-3),
    "closed": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("how", ["calls", "around", "hooks"])
def test_a_scheduler_goes_on_as_if_the_rate_had_not_been_raised(schedule, how):
    sound, struck = train(12, how=how, schedule=schedule), train(12, faults.raised_lr(5), how=how, schedule=schedule)
    assert struck[1].param_groups[0]["lr"] == sound[1].param_groups[0]["lr"]
    if how == "calls":
        assert struck[4] == [60 * r if 5 <= i < 9 else r for i, r in enumerate(sound[4])]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_scheduler_inside_the_guards_step_is_respected(schedule):
    """Also where the guard refuses the update and steps the scheduler all the same."""

    def rates(refuse):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler, seen = schedule(optimizer), []
        injector = faults.Injector(faults.raised_lr(2), model, optimizer)

        def guard(step):
            seen.append(optimizer.param_groups[0]["lr"])
            if not refuse or not injector.faults[0].active(step):
                optimizer.step()
            scheduler.step()

        for step in range(9):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            injector.before_step(step)
            guard(step)
            injector.after_step(step)
        return seen

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler, sound = schedule(optimizer), []
    for _ in range(9):
        sound.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [60 * rate if 2 <= i < 6 else rate for i, rate in enumerate(sound)]
    assert rates(refuse=False) == pytest.approx(expected, rel=1e-12)
    assert rates(refuse=True) == pytest.approx(expected, rel=1e-2)


def test_rates_that_are_tensors_come_back():
    model = net()
    rate = torch.tensor(0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    injector = faults.Injector(faults.raised_lr(0, factor=4.0), model, optimizer)
    injector.before_step(0)
    assert optimizer.param_groups[0]["lr"] == 1.0
    injector.after_step(0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.25


def test_a_monitor_sees_every_fault_as_a_real_one():
    """In the order in which it matters: the monitor is attached first, and would look first."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    kinds = [faults.raised_lr(5), faults.nan_gradient(11), faults.scaled_gradient(8)]
    injector = faults.Injector(kinds, model, optimizer)
    draw = torch.Generator().manual_seed(0)
    with fs.Monitor(model, optimizer) as monitor, injector:
        for _ in range(13):
            loss = model(torch.randn(8, 3, generator=draw)).square().mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run = monitor.run
    assert run["lr"] == pytest.approx([0.01] * 5 + [0.6] * 4 + [0.01] * 4)
    assert run["grad_norm"][8] > 100 * run["grad_norm"][7]
    assert not math.isfinite(run["grad_norm"][11])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bit", ["top", "exponent", "any", 0])
@pytest.mark.parametrize("how", ["calls", "hooks"])
def test_one_bit_of_one_weight_is_flipped_before_the_forward(dtype, bit, how):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(dtype)
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    injector = faults.Injector(faults.bit_flip(2, bit=bit), model, optimizer, seed=3)
    before = weights(model).view(width)
    changed = []
    with injector if how == "hooks" else torch.enable_grad():
        for step in range(4):
            if how == "calls":
                injector.batch(step, torch.zeros(1))
            out = model(torch.ones(1, 3, dtype=dtype))
            changed.append(weights(model).view(width) ^ before)
            if how == "hooks":
                out.sum().backward()
                for p in model.parameters():
                    p.grad.zero_()
                optimizer.step()
    assert not changed[0].any()
    assert not changed[1].any()
    assert (changed[2] != 0).sum() == 1
    assert torch.equal(changed[3], changed[2])  # it stays, and is not flipped back
    flipped = int(changed[2].sum()) % 2 ** (8 * dtype.itemsize)
    assert flipped.bit_count() == 1
    if bit == "top":
        assert flipped == 1 << (8 * dtype.itemsize - 2)
        assert weights(model).double().abs().max() > 100
    if bit == 0:
        assert flipped == 1


def test_weights_can_be_named_and_many_and_of_any_layout():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    model[0].weight = nn.Parameter(torch.rand(4, 6).t())  # not contiguous
    before = [p.detach().clone() for p in model.parameters()]
    faults.Injector(faults.bit_flip(0, parameter="0.weight", count=5), model).batch(0, None)
    changed = [int((p != b).sum()) for p, b in zip(model.parameters(), before, strict=True)]
    assert changed == [5, 0, 0, 0]
    sign = nn.Linear(1, 1, bias=False)
    value = sign.weight.item()
    faults.Injector(faults.bit_flip(0, bit=31), sign).batch(0, None)
    assert sign.weight.item() == -value
    with pytest.raises(UsageError, match="bit: must be below 32"):
        faults.Injector(faults.bit_flip(0, bit=32), sign).batch(0, None)


def test_a_reset_empties_or_zeroes_the_state():
    model, optimizer, *_ = train(8)
    faults.Injector(faults.state_reset(8, how="zero"), model, optimizer).before_step(8)
    for state in optimizer.state.values():
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
        assert state["step"] == 8
    faults.Injector(faults.state_reset(8), model, optimizer).before_step(8)
    assert not optimizer.state
    cleared, zeroed = (weights(train(9, faults.state_reset(8, how=how))[0]) for how in ("clear", "zero"))
    before = weights(train(8)[0])
    assert (cleared - before).abs().max() == pytest.approx(0.01, rel=1e-3)  # Adam's first step
    ratio = (1 - 0.9) / math.sqrt(1 - 0.999) * math.sqrt(1 - 0.999**9) / (1 - 0.9**9)  # what the count corrects for
    assert (zeroed - before).abs().max() == pytest.approx(0.01 * ratio, rel=1e-3)


@pytest.mark.parametrize("how", ["calls", "around", "hooks"])
def test_without_a_fault_that_is_due_a_run_is_bitwise_the_unwatched_one(how):
    kit = faults.standard(99, source=[(torch.zeros(2, 3), torch.zeros(2, 1))])
    assert len(kit) == 8
    assert all(kind == fault.kind for kind, fault in kit.items())
    model, optimizer, injector, losses, _ = train(10, kit.values(), how=how)
    plain = train(10)
    assert losses == plain[3]
    assert torch.equal(weights(model), weights(plain[0]))
    assert injector.injected == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not model._forward_pre_hooks


def test_every_standard_fault_does_something():
    plain = train(12)[3]
    for kind, fault in faults.standard(6, source=[(torch.ones(16, 3), torch.ones(16, 1))]).items():
        *_, injector, losses, _ = train(12, fault)
        assert {name for _, name in injector.injected} == {kind}
        assert losses[:6] == plain[:6]
        assert losses[6:] != plain[6:]


def test_around_counts_refused_steps_and_passes_results_on():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    injector = faults.Injector(faults.raised_lr(1, steps=2), model, optimizer)
    take = injector.around(lambda given: (given, optimizer.param_groups[0]["lr"]))  # takes no step at all
    assert [take(given=i) for i in range(4)] == [(0, 0.5), (1, 30.0), (2, 30.0), (3, 0.5)]
    assert injector.step == 4
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: faults.random_batch(-1), "at: must be a whole number of at least 0, got -1"),
        (lambda: faults.random_batch(1.5), "at: must be a whole number"),
        (lambda: faults.constant_batch(1, steps=0), "steps: .* at least 1"),
        (lambda: faults.raised_lr(1, factor=0.0), "factor: must be positive"),
        (lambda: faults.scaled_gradient(1, factor=math.nan), "factor: must be finite"),
        (lambda: faults.nan_gradient(1, count=0), "count: "),
        (lambda: faults.bit_flip(1, bit="sign"), "bit: "),
        (lambda: faults.state_reset(1, how="drop"), 'how: must be "clear" or "zero"'),
        (lambda: faults.wrong_mixture(1, 7), "source: must be batches or a function of the step, got int"),
        (lambda: faults.random_batch(1, vocabulary=0), "vocabulary: "),
        (lambda: faults.Injector("nan"), "faults: must be faults"),
        (lambda: faults.Injector(faults.raised_lr(1)), "optimizer: raised_lr needs one"),
        (lambda: faults.Injector(faults.bit_flip(1)), "model: bit_flip needs one"),
        (lambda: faults.Injector(()).__enter__(), "optimizer: "),
        (lambda: faults.Injector(faults.random_batch(0)).batch(0, ["a"]), "batch: there is no tensor of data in this"),
    ],
)
def test_what_cannot_work_is_refused_with_the_argument_named(wrong, says):
    with pytest.raises(UsageError, match=says):
        wrong()


@pytest.mark.parametrize("name", ["faults", "batches", "cells"])
def test_the_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"foreshock.testing.{name}"))
    assert result.attempted
    assert not result.failed


def test_a_batch_spoilt_by_its_own_number_is_as_bad_when_it_comes_back():
    data = Requeue([tokens(seed) for seed in range(6)])
    injector = faults.Injector(faults.random_batch(3))
    came = {}
    for batch in data:
        number = data.current[-1]
        came.setdefault(number, []).append(injector.batch(number, batch))
        data.settle("retry" if number == 3 and data.tries([3]) < 2 else "accepted")
    assert [len(came[i]) for i in range(6)] == [1, 1, 1, 3, 1, 1]
    assert not torch.equal(came[3][0], tokens(3))
    assert torch.equal(came[3][0], came[3][1])
    assert torch.equal(came[3][0], came[3][2])


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_guard_may_cut_the_raised_rate_for_its_update(schedule):
    """The hook then sees another rate than the raised one, and the guard puts the raised one back after it."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler, seen = schedule(optimizer), []
    injector = faults.Injector(faults.raised_lr(2), model, optimizer)

    def guarded():
        group = optimizer.param_groups[0]
        seen.append(group["lr"])
        if group["lr"] > 0.1:
            was, group["lr"] = group["lr"], group["lr"] / 50
            optimizer.step()
            group["lr"] = was
        else:
            optimizer.step()
        scheduler.step()

    take = injector.around(guarded)
    for _ in range(9):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        take()
    other = torch.optim.SGD(net().parameters(), lr=0.01)
    plan, sound = schedule(other), []
    for _ in range(9):
        sound.append(other.param_groups[0]["lr"])
        other.step()
        plan.step()
    assert seen == pytest.approx([60 * rate if 2 <= i < 6 else rate for i, rate in enumerate(sound)], rel=1e-2)


def test_the_rate_is_the_usual_one_after_a_raise_under_a_foreshock_guard():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    injector = faults.Injector(faults.raised_lr(40), model, optimizer)
    draw = torch.Generator().manual_seed(0)
    with fs.Monitor(model, optimizer) as monitor:
        take = injector.around(fs.Guard(monitor, scheduler=scheduler).step)
        for _ in range(60):
            x = torch.randn(16, 3, generator=draw)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            take()
    taken = scheduler.last_epoch
    assert taken > 40
    usual = 0.005 * (1 + math.cos(math.pi * taken / 200))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(usual, rel=0.02)
    assert [step for step, _ in injector.injected] == [40, 41, 42, 43]


def test_the_faults_are_reached_through_their_package(monkeypatch):
    monkeypatch.delattr(foreshock.testing, "faults")  # as it is before anybody has imported them
    assert foreshock.testing.faults is faults
