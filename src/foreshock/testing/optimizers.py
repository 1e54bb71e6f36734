"""The contract of optimizers: what a guard needs of one, and what torch promises of all."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.testing.contract import ContractError
from foreshock.testing.trials import Factory, Trial, first_difference, maker, name_of, put, same, state_of, take, values

STEPS = 4
WAY_OUT = (
    "Use guard.step() in place of optimizer.step(): a step it refuses is not called at all; where others call step() "
    "for you, let it pass over parameters whose grad is None, as torch's optimizers do"
)


def check_optimizer(
    factory: Factory | Optimizer,
    *,
    shapes: Sequence[tuple[int, ...]] = ((4, 3), (3,), (2, 3)),
    sparse: bool = False,
    bound: float | None = None,
    strict: bool = False,
) -> None:
    """Runs the contract of optimizers on what `factory(params)` returns: a fresh optimizer of these parameters.

    - step: it is a `torch.optim.Optimizer`; `step()` needs no closure, and one that is given is called once, with
      gradients enabled, its value returned; parameters stay the same tensors, changed in place.
    - skip: with all gradients dropped (`p.grad = None`), `step()` leaves parameters and state as they are, bit for
      bit, and nothing of it shows at later steps. A guard can then refuse a step wherever it is called.
    - none: so it is for single parameters without a gradient.
    - gradients: they are read, not changed, and not made anew where they were dropped.
    - deterministic: the same gradients give the same steps; nothing is drawn from the global random stream.
    - state: 2n steps == n, `state_dict`, a file, `load_state_dict` into a fresh one, n more; and into itself, which is
      what a rollback does. All bits and types of the state come back.
    - lr: groups have `lr`, and a smaller one makes a smaller first update.
    - hooks: those of a step fire once, before and after it.
    - apart: a gradient that is zero or NaN does not reach other tensors.
    - variants: `foreach`, `fused`, `capturable` and a tensor as lr, where its groups know or take them, agree with the
      loop to rounding; `maximize` steps as the negative gradients do.
    - bound: no history of gradients makes a coordinate's step longer than `bound` learning rates, where that is given.
    - strict: complex parameters, and sparse gradients of dense parameters, are refused or stepped as their real pairs
      and dense gradients are; only where asked for, as torch makes no such promise.

    Args:
        factory: a class such as `torch.optim.AdamW`, a function of the list of parameters, or an optimizer, which is
            made anew with its class and its first group's settings.
        shapes: of the parameters, for optimizers that take some shapes only.
        sparse: gradients are sparse (parameters must be matrices then).
        bound: the longest step of a coordinate that the optimizer claims, in learning rates: 1 for S3 and Lion.
        strict: whether it must also be right, or refuse, where it may not have been meant for.

    Raises:
        ContractError: at the first broken clause; an AssertionError, so test runners show it as a failure.
        UsageError: the factory makes no optimizer out of a list of parameters.

    >>> check_optimizer(lambda params: torch.optim.AdamW(params, lr=1e-2))
    """
    with torch.random.fork_rng(devices=[]):
        trial = Trial(maker(factory), shapes, sparse)
        _check_step(trial)
        _check_skip(trial)
        _check_none(trial)
        _check_gradients(trial)
        _check_deterministic(trial)
        _check_state(trial)
        _check_lr(trial)
        _check_hooks(trial)
        _check_apart(trial)
        _check_variants(trial)
        _check_maximize(trial)
        if bound is not None:
            _check_bound(trial, bound)
        if strict:
            _check_unmeant(trial)


def _check_step(trial: Trial) -> None:
    params, optimizer = trial.start()
    if trial.start()[1] is optimizer:
        raise ContractError("step: the factory returned the same optimizer twice; it must make a fresh one")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ContractError(
            f"step: {name_of(optimizer)} asks for a closure and takes losses and gradients itself, as often as it "
            "likes; a guard decides about one update whose gradient is known, so this optimizer cannot be guarded"
        )
    trial.go(params, optimizer, range(2))
    held = [each for group in optimizer.param_groups for each in group["params"]]
    if len(held) != len(params) or any(a is not b or not a.is_leaf for a, b in zip(held, params, strict=True)):
        raise ContractError("step: parameters were replaced by other tensors; they must be changed in place")
    if all(torch.equal(a, b) for a, b in zip(params, trial.start()[0], strict=True)):
        raise ContractError("step: two steps with gradients changed no parameter")
    calls: list[bool] = []

    def loss() -> Tensor:
        calls.append(torch.is_grad_enabled())
        for each, gradient in zip(params, trial.gradients(2), strict=True):
            each.grad = gradient
        return torch.tensor(1.5)

    try:
        value: Any = optimizer.step(loss)  # type: ignore[arg-type]
    except TypeError as error:
        raise ContractError(f"step: it takes no closure ({error}); declare step(self, closure=None)") from error
    if calls != [True] or value is None or float(value) != 1.5:
        raise ContractError(
            f"step: a closure must be called once with gradients enabled and its value be returned; it was called "
            f"{len(calls)} times, gradients enabled {calls}, and step returned {value}"
        )
    if not same(params, trial.after(range(3))[0]):
        raise ContractError("step: a step with a closure is another one than a step without, on the same gradients")


def _check_skip(trial: Trial) -> None:
    for done in (0, STEPS):
        params, optimizer = trial.after(range(done))
        before, state = values(params), state_of(optimizer)
        moved = f"{name_of(optimizer)} after {done} steps, all gradients dropped, then step():"
        try:
            take(params, optimizer, [None] * len(params))
        except Exception as error:
            raise ContractError(f"skip: {moved} it raised {type(error).__name__}: {error}. {WAY_OUT}") from error
        place = first_difference(params, before)
        if place is not None:
            change = (params[place].detach() - before[place]).abs().max().item()
            raise ContractError(f"skip: {moved} parameter {place} moved by {change:.3g}. {WAY_OUT}")
        if not same(state_of(optimizer), state):
            raise ContractError(f"skip: {moved} its state changed. {WAY_OUT}")
        if any(each.grad is not None for each in params):
            raise ContractError(f"gradients: {moved} gradients were made anew. {WAY_OUT}")
        trial.go(params, optimizer, range(done, done + 2))
        if not same(params, trial.after(range(done + 2))[0]):
            raise ContractError(f"skip: {moved} later steps are other ones, so something was counted. {WAY_OUT}")


def _check_none(trial: Trial) -> None:
    params, optimizer = trial.after(range(STEPS))
    before = values(params)
    for place in range(len(params)):
        gradients: list[Tensor | None] = [*trial.gradients(STEPS + place)]
        gradients[place] = None
        kept, memory = values(params), copy.deepcopy(optimizer.state.get(params[place], {}))
        try:
            take(params, optimizer, gradients)
        except Exception as error:
            what = f"none: a step where parameter {place} has no gradient raised {type(error).__name__}: {error}"
            raise ContractError(what) from error
        if not same(params[place], kept[place]) or not same(optimizer.state.get(params[place], {}), memory):
            raise ContractError(f"none: parameter {place} had no gradient, and it or its state changed at the step")
    if len(params) > 1 and any(same(a, b) for a, b in zip(params, before, strict=True)):
        raise ContractError("none: where one parameter has no gradient, the others were not stepped either")


def _check_gradients(trial: Trial) -> None:
    params, optimizer = trial.after(range(1))
    given = trial.gradients(1)
    take(params, optimizer, given)
    for place, (each, own, first) in enumerate(zip(params, given, trial.gradients(1), strict=True)):
        if each.grad is not own or not same(own, first):
            raise ContractError(
                f"gradients: the gradient of parameter {place} was changed or replaced by the step; what is measured "
                "of it after the step would be wrong. Work on a copy: grad = grad.add(p, alpha=weight_decay)"
            )


def _check_deterministic(trial: Trial) -> None:
    stream = torch.random.get_rng_state()
    one = trial.after(range(STEPS))
    if not torch.equal(torch.random.get_rng_state(), stream):
        raise ContractError("deterministic: the global random stream was drawn from; take a torch.Generator instead")
    two = trial.after(range(STEPS))
    if not same(one[0], two[0]) or not same(state_of(one[1]), state_of(two[1])):
        raise ContractError("deterministic: two fresh optimizers made different steps of the same gradients")


def _check_state(trial: Trial) -> None:
    whole, last = trial.after(range(2 * STEPS))
    for cut in (0, 1, STEPS):
        params, optimizer = trial.after(range(cut))
        there, state = values(params), state_of(optimizer)
        fresh, other = trial.start()
        put(fresh, there)
        other.load_state_dict(_through_a_file(state))
        trial.go(fresh, other, range(cut, 2 * STEPS))
        if not same(fresh, whole) or not same(state_of(other), state_of(last)):
            raise ContractError(
                f"state: {cut} steps, state_dict, load_state_dict into a fresh optimizer and the other steps are not "
                "the whole run; something that step uses is not in the state"
            )
        trial.go(params, optimizer, range(100, 100 + STEPS))  # what is to be undone
        put(params, there)
        optimizer.load_state_dict(state)
        trial.go(params, optimizer, range(cut, 2 * STEPS))
        if not same(params, whole):
            raise ContractError(
                f"state: going back to step {cut} by load_state_dict and taking the other steps again is not the whole "
                "run; something that step uses is kept outside of the state, so a rollback would not undo it"
            )


def _check_lr(trial: Trial) -> None:
    lengths = []
    for factor in (1.0, 0.5):
        params, optimizer = trial.start()
        for group in optimizer.param_groups:
            if "lr" not in group:
                raise ContractError(f"lr: the groups of {name_of(optimizer)} have no lr that could be lowered")
            group["lr"] = group["lr"] * factor
        before = values(params)
        trial.go(params, optimizer, range(1))
        lengths.append(sum(float((a.detach() - b).square().sum()) for a, b in zip(params, before, strict=True)) ** 0.5)
    if not lengths[1] < 0.95 * lengths[0]:
        raise ContractError(
            f"lr: half of the learning rate in every group makes a first update of {lengths[1]:.3g} instead of "
            f"{lengths[0]:.3g}; read group['lr'] at each step"
        )


def _check_hooks(trial: Trial) -> None:
    params, optimizer = trial.start()
    calls: list[str] = []
    moved: list[bool] = []
    start = values(params)

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls.append(name)
            moved.append(not same(params, start))

        return hook

    try:
        optimizer.register_step_pre_hook(note("before"))
        optimizer.register_step_post_hook(note("after"))
    except AttributeError as error:
        raise ContractError(f"hooks: {error}; call super().__init__(params, defaults) in its constructor") from error
    trial.go(params, optimizer, range(1))
    if calls != ["before", "after"] or moved != [False, True]:
        raise ContractError(
            f"hooks: a step fired {calls or 'none'}, and parameters had moved then: {moved}; each fires once, around "
            "the update. An instance's own `step`, or one that calls another's, goes past torch's hooks"
        )


def _check_apart(trial: Trial) -> None:
    for what, value in (("zero", 0.0), ("NaN", float("nan"))):
        for place in range(len(trial.shapes)):
            params, optimizer = trial.after(range(2))
            expected = trial.after(range(3))[0]
            gradients = trial.gradients(2)
            gradients[place] = gradients[place] * value
            take(params, optimizer, gradients)
            for other in range(len(params)):
                if other != place and not torch.equal(params[other], expected[other]):
                    raise ContractError(f"apart: a gradient of {what} in tensor {place} changed the step of {other}")


def _check_variants(trial: Trial) -> None:
    plain = _variant(trial, {"foreach": False, "fused": False})
    rates: list[tuple[float, Tensor]] = []

    def tensor(rate: Any) -> Tensor:
        rates.append((float(rate), torch.tensor(float(rate), dtype=torch.float64)))
        return rates[-1][1]

    for name, changed in (("foreach", True), ("fused", True), ("capturable", True), ("lr", tensor)):
        try:
            other = _variant(trial, {"foreach": False, "fused": False, name: changed})
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError):
            continue  # refuses aloud: not on this device, or not with these settings
        what = "a tensor as lr" if name == "lr" else f"{name}=True"
        for place, (a, b) in enumerate(zip(plain, other, strict=True)):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                worst = (a - b).abs().max().item()
                raise ContractError(f"variants: {what} differs from the loop by {worst:.3g} in parameter {place}")
        if name == "lr" and any(float(now) != before for before, now in rates):
            raise ContractError("variants: the step wrote to the tensor that is its lr")


def _check_maximize(trial: Trial) -> None:
    if "maximize" not in trial.start()[1].param_groups[0]:
        return
    down = _variant(trial, {"maximize": False}, sign=-1.0)
    for place, (a, b) in enumerate(zip(down, _variant(trial, {"maximize": True}), strict=True)):
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
            raise ContractError(
                f"variants: maximize=True is another step than the negative gradients make, by "
                f"{(a - b).abs().max().item():.3g} in parameter {place}"
            )


def _variant(trial: Trial, settings: Mapping[str, Any], sign: float = 1.0) -> list[Tensor]:
    """Returns parameters after some steps with changed settings: values, or functions of what was there."""
    params, optimizer = trial.start()
    for group in optimizer.param_groups:
        for name, value in settings.items():
            if name in group:
                group[name] = value(group[name]) if callable(value) else value
    for step in range(STEPS):
        take(params, optimizer, [each * sign for each in trial.gradients(step)])
    return values(params)


def _check_bound(trial: Trial, bound: float) -> None:
    draw = torch.Generator().manual_seed(0)
    size = torch.Generator().manual_seed(1)
    courses: dict[str, Callable[[int], float]] = {
        "of one size": lambda step: 1.0,
        "that grow": lambda step: 1.12**step,
        "that shrink": lambda step: 0.9**step,
        "quiet, then huge": lambda step: 1e-4 if step < 40 else 1e4,
        "of heavy tails": lambda step: float(torch.randn((), generator=draw) / torch.randn((), generator=size).abs()),
    }
    for name, course in courses.items():
        params, optimizer = trial.start()
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        for step in range(60):
            put(params, [torch.zeros_like(each) for each in params])  # where no decay moves them
            take(params, optimizer, [torch.full_like(each, course(step)) for each in params])
            longest = max((float(each.detach().abs().max()) for each in params if each.numel()), default=0.0)
            if not longest <= bound * rate * (1 + 1e-4):
                raise ContractError(
                    f"bound: gradients {name} made a step of {longest / rate:.4g} learning rates at step {step + 1}, "
                    f"and {bound:g} is the bound that was claimed"
                )


def _check_unmeant(trial: Trial) -> None:
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(6, 2, generator=draw)
    grads = [torch.randn(6, 2, generator=draw) for _ in range(3)]
    sparse = [grad * torch.tensor([1.0, 0.0] * 3)[:, None] for grad in grads]  # every second row
    pairs: tuple[tuple[str, Tensor, Sequence[Tensor], Callable[[Tensor], Tensor]], ...] = (
        ("a complex parameter", torch.view_as_complex(real.clone()), grads, torch.view_as_complex),
        ("a sparse gradient", real.clone(), sparse, lambda grad: grad.to_sparse(1)),
    )
    for what, start, given, turned in pairs:
        plain, other = real.clone().requires_grad_(), start.requires_grad_()
        optimizer = trial.make([plain])
        for grad in given:
            take([plain], optimizer, [grad])
        try:
            odd = trial.make([other])
            for grad in given:
                take([other], odd, [turned(grad)])
        except Exception:  # refused aloud
            continue
        seen = torch.view_as_real(other.detach()) if other.is_complex() else other.detach()
        if not torch.allclose(seen, plain.detach(), rtol=1e-4, atol=1e-5):
            raise ContractError(
                f"strict: {what} is taken and stepped otherwise than its real, dense form, by "
                f"{(seen - plain.detach()).abs().max().item():.3g}; refuse it, or step as the other does"
            )


def _through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
