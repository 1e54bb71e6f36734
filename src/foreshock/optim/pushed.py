"""The response to a burst of an optimizer that nobody has described: measured on a fresh copy, pushed once."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.hooks import global_hooks_muted

__all__ = ["Pushed", "early", "pushed"]

SIDE = 4  # entries of a stand-in along each of its dimensions
BURST = 1e9  # a burst beside which noise of size 1 does not count, and an eps of 1e-3 neither
WEAKER = 1e-3  # times it: an optimizer whose update grows with the gradient is found by a second one
GROWS = 0.02  # power of the burst from which its update grows with it
LONGER = 0.03  # part of the sum that the stronger one brings more, where only its size ends the course, as with signs
FIRST, LATER = 30, 1_000_000  # steps before a burst that dwarfs them, then what their counters are set on by
LIVES, LEAST, MOST = 5.0, 200, 5000  # steps before a finite burst: lives of the slowest average, within limits
LONGEST, STILL, NEAR = 2000, 1e-6, 1e-3  # updates after it, at most; part of the sum from which they do not count
LATE = 50  # updates that the last factor per step is read from
EVEN, SAME = 150, 1e-9  # updates in a row that are the same, from which they are taken to stay so
ENDLESS = 1 - 2e-4  # the factor per step from which the updates do not fall in any time
PAIRS = 8  # of tensors with opposite noise, over which a finite burst is averaged
QUIET = 20  # updates in a row that must not count
SEED = 2507_06464
SLOW = ("fused", "foreach", "capturable", "differentiable")  # options whose other paths give the same updates


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was measured, in learning rates.

    Attributes:
        course: size of each update from the burst on.
        displacement: their sum, with what is left of them; inf where they do not end.
        peak: the largest; inf where they grow.
        power: the update grows with the burst to this power; 0 where it does not.
    """

    course: tuple[float, ...]
    displacement: float
    peak: float
    power: float


def pushed(
    optimizer: Optimizer, group: Mapping[str, Any], *, ratio: float = math.inf, step: float = math.inf
) -> Pushed:
    """Returns the response of a parameter group to a burst, measured; optimizer and random streams stay as they are.

    A fresh copy on small stand-ins for a parameter, at zero, in float64, without weight decay, gets gradients of size 1
    and random sign, then one burst of one entry, then nothing; what counts steps is set on before, as in the long run.
    A finite burst comes when the averages have filled, and the noise goes on. Stand-ins come in pairs with opposite
    noise, over which moves are averaged, and are set back to zero before each step; to one where nothing moves at zero.

    Args:
        optimizer: any torch optimizer whose step needs no loss.
        group: one of its parameter groups.
        ratio: size of the burst in usual gradients.
        step: number of the step of the burst; by default it comes when the averages have filled.

    Errors: UsageError where no copy can be made, or stepped.
    """
    at = 0.0
    course = _course(optimizer, group, ratio=ratio, step=step, updates=LONGEST)
    if not any(course):  # steps that go by the size of the parameter
        course, at = _course(optimizer, group, ratio=ratio, step=step, updates=LONGEST, at=1.0), 1.0
    if math.isfinite(ratio) or not any(course):
        return Pushed(tuple(course), math.fsum(course), max(course), 0.0)
    weaker = _course(optimizer, group, ratio=BURST * WEAKER, step=step, updates=len(course), alone=True, at=at)
    power = math.log(course[0] / weaker[0]) / math.log(1 / WEAKER) if course[0] and weaker[0] else 0.0
    if power > GROWS:
        return Pushed(tuple(each and math.inf for each in course), math.inf, math.inf, round(power, 3))
    factor, total = _last_factor(course), math.fsum(course)
    if factor > 2 - ENDLESS:
        return Pushed(tuple(course), math.inf, math.inf, 0.0)
    ends = factor < ENDLESS and math.fsum(weaker) > (1 - LONGER) * total
    total += course[-1] * factor / (1 - factor) if ends else math.inf
    return Pushed(tuple(course), total, max(course), 0.0)


def early(optimizer: Optimizer, group: Mapping[str, Any], *, step: int, updates: int) -> list[float]:
    """Returns the first updates after a burst that comes at one of the first steps; errors as for `pushed`."""
    return _course(optimizer, group, ratio=math.inf, step=step, updates=updates)


def _last_factor(course: Sequence[float]) -> float:
    """Returns what an update is multiplied by from step to step in the end."""
    if len(course) <= LATE or not course[-1] or not course[-1 - LATE]:
        return 0.0
    return float((course[-1] / course[-1 - LATE]) ** (1 / LATE))


def _course(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    *,
    ratio: float,
    step: float,
    updates: int,
    alone: bool = False,
    at: float = 0.0,
) -> list[float]:
    """Returns the sizes of the moves of the burst's entry from the burst on, in learning rates, until they are still.

    Args:
        optimizer, group, ratio, step: as for `pushed`.
        updates: how many at most.
        alone: whether nothing comes after the burst, be it finite.
        at: value of the stand-ins before each step.
    """
    noise = math.isfinite(ratio) and not alone
    dims = max((param.dim() for param in group["params"]), default=1)
    made, params, lr = _copied(optimizer, group, (SIDE,) * dims, 2 * (PAIRS if noise else 1))
    signs = torch.Generator().manual_seed(SEED)
    course: list[float] = []
    total, quiet = 0.0, 0
    with global_hooks_muted(), torch.random.fork_rng(devices=[]), torch.no_grad():
        usual = _memory(group) if noise else FIRST
        before = int(step) - 1 if math.isfinite(step) else usual
        for k in range(-before, 0):
            _step(made, params, _noise(params, signs), at)
            if k == -2 and not noise and math.isinf(step):
                _set_on(made, params, _noise(params, signs), at)
        for k in range(updates):
            grads = [torch.zeros_like(param) for param in params] if k and not noise else _noise(params, signs)
            if k == 0:
                for grad in grads:
                    grad.view(-1)[0] = -(ratio if math.isfinite(ratio) else BURST)
            _step(made, params, grads, at)
            move = abs(float(torch.stack([param.view(-1)[0] - at for param in params]).mean())) / lr
            if not math.isfinite(move):
                raise UsageError(f"a copy of {type(made).__name__} was moved by {move} after a burst: no response")
            course.append(move)
            total += move
            quiet = quiet + 1 if move <= (NEAR if noise else STILL) * total else 0
            if quiet >= QUIET or _even(course):
                break
    return course


def _even(course: Sequence[float]) -> bool:
    last = course[-EVEN:]
    return len(last) == EVEN and last[-1] > 0 and abs(last[0] - last[-1]) <= SAME * last[-1]


def _noise(params: Sequence[Tensor], signs: torch.Generator) -> list[Tensor]:
    """Returns gradients of size 1 and random sign, opposite for neighbours."""
    half = [torch.randint(2, each.shape, generator=signs).to(each.dtype).mul_(2).sub_(1) for each in params[::2]]
    return [grad for each in half for grad in (each, -each)]


def _memory(group: Mapping[str, Any]) -> int:
    """Returns for how many steps noise comes first: `LIVES` of the slowest average that a group's numbers may be."""
    values = [_plain(value) for key, value in group.items() if key != "params"]
    numbers = [each for value in values for each in (value if isinstance(value, (list, tuple)) else [value])]
    slow = [each for each in numbers if isinstance(each, float) and 0.5 <= each < 1]
    return min(MOST, max([LEAST, *(math.ceil(LIVES / (1 - each)) for each in slow)]))


def _set_on(made: Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor], at: float) -> None:
    """Takes a step and adds `LATER` to all that it has counted on by 1, in state, settings and attributes."""
    holders = [*(made.state[param] for param in params), *made.param_groups, vars(made)]
    before = [{key: _count(value) for key, value in holder.items()} for holder in holders]
    _step(made, params, grads, at)
    for holder, old in zip(holders, before, strict=True):
        for key, value in holder.items():
            now, then = _count(value), old.get(key)
            if now is None or then is None or now - then != 1 or then < 1 or then != int(then):
                continue
            if isinstance(value, Tensor):
                value.add_(LATER)
            else:
                holder[key] = value + LATER


def _count(value: object) -> float | None:
    """Returns a number that may count steps; None for all else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _step(made: Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor], at: float) -> None:
    """Takes a step from `at` with these gradients."""
    for param, grad in zip(params, grads, strict=True):
        param.fill_(at)
        param.grad = grad
    try:
        made.step()
    except Exception as error:
        raise UsageError(
            f"a fresh copy of {type(made).__name__} could not take a step, so its response to a burst cannot be "
            f"measured: {error}"
        ) from error


def _copied(
    optimizer: Optimizer, group: Mapping[str, Any], shape: Sequence[int], copies: int
) -> tuple[Optimizer, list[Tensor], float]:
    """Returns (an optimizer of the same class without state and hooks, the stand-ins for its parameters, its lr)."""
    params: list[Tensor] = [torch.nn.Parameter(torch.zeros(*shape, dtype=torch.float64)) for _ in range(copies)]
    settings = {key: _plain(value) for key, value in group.items() if key != "params"}
    settings |= {key: False for key in SLOW if settings.get(key)}
    settings |= {key: 0.0 for key in ("weight_decay",) if settings.get(key)}
    lr = float(settings.get("lr", 1.0) or 1e-3)
    if "lr" in settings:
        settings["lr"] = lr
    made: Optimizer = object.__new__(type(optimizer))
    memo = {id(param): params[0] for each in optimizer.param_groups for param in each["params"]}
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups") or (callable(value) and hasattr(type(optimizer), name)):
            continue
        if name.endswith("_hooks"):
            made.__dict__[name] = OrderedDict()
            continue
        try:
            made.__dict__[name] = copy.deepcopy(value, memo)
        except Exception as error:
            raise UsageError(
                f"{type(optimizer).__name__}.{name} cannot be copied ({error}), so that its response to a burst cannot "
                "be measured; ask by name and settings"
            ) from error
    made.__dict__["state"] = defaultdict(dict)
    made.__dict__["param_groups"] = [{"params": params, **settings}]
    return made, params, lr


def _plain(value: Any) -> Any:
    """Returns a setting with numbers in the place of tensors, its own copy."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return copy.deepcopy(value)
