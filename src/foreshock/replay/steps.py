"""Steps taken otherwise: with another learning rate, a shorter update or gradient, or as a guard would take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.guard.update import clipped, learning_rate, scaled
from foreshock.replay import data, precision, state
from foreshock.replay.arm import Arm
from foreshock.replay.course import around, grad_norm
from foreshock.replay.scene import CALM, NotApplicable, Scene
from foreshock.run.action import Action, ClipUpdate, CutLr, ExactSoftmax, RepairMoments, Scale, Skip

BESIDE = ("kind", "step", "reason", "cause")  # fields of an action that do not say what it does
RISEN = 1.05  # growth of a learning rate that is worth holding it


def cut_lr(factor: float = 0.5) -> Arm:
    """Returns the change of a learning rate that is `factor` of what it was, at every step."""
    if not 0 < factor < 1:
        raise UsageError(f"what_if.cut_lr(factor): must be between 0 and 1, got {factor!r}")

    @contextmanager
    def cut(scene: Scene) -> Iterator[None]:
        with ExitStack() as stack:
            enter = lambda: stack.enter_context(learning_rate(scene.optimizer, factor))  # noqa: E731
            with around(scene, enter, stack.close):
                yield

    return Arm("cut_lr", f"learning rate times {factor:g}", cut)


def hold_lr() -> Arm:
    """Returns the change of learning rates that rise no more after the first step."""

    @contextmanager
    def hold(scene: Scene) -> Iterator[None]:
        first = scene.rates[min(scene.rates)]
        grown = [max(rates) for rates in zip(*scene.rates.values(), strict=False)]
        if not any(most > RISEN * rate for most, rate in zip(grown, first, strict=False)):
            raise NotApplicable("the learning rate does not rise in these steps")
        groups = scene.optimizer.param_groups
        kept: list[Any] = []

        def enter() -> None:
            kept[:] = [_copied(group.get("lr")) for group in groups]
            for group, rate in zip(groups, first, strict=False):
                if "lr" in group and float(group["lr"]) > rate:
                    _set_rate(group, rate)

        def leave() -> None:
            for group, rate in zip(groups, kept, strict=False):
                if rate is not None:
                    _set_rate(group, rate)

        with around(scene, enter, leave):
            yield

    return Arm("hold_lr", "learning rate as at the first of these steps", hold)


def clip_update(times: float = 1.5) -> Arm:
    """Returns the change of updates held, tensor by tensor, at `times` their largest RMS before the onset."""

    @contextmanager
    def held(scene: Scene) -> Iterator[None]:
        calm = [scene.moves[step] for step in scene.before if step in scene.moves]
        if len(calm) < CALM:
            raise NotApplicable(f"there are only {len(calm)} steps before the onset that tell what is usual")
        limits = [times * max(column) for column in zip(*calm, strict=False)]
        old: list[Tensor] = []

        def before() -> None:
            old[:] = [param.detach().clone() for param in scene.params]

        def after() -> None:
            with torch.no_grad():
                for param, was, limit in zip(scene.params, old, limits, strict=False):
                    size = float((param - was).double().square().mean().sqrt()) if param.numel() else 0.0
                    if limit > 0 and size > limit:  # false for NaN, which no factor cures
                        param.copy_(was + (param - was) * (limit / size))
            old.clear()

        with around(scene, before, after):
            yield

    return Arm("clip_update", f"no tensor's update longer than {times:g} times the longest before the onset", held)


def clip_grad(times: float = 1.5) -> Arm:
    """Returns the change of gradients clipped at `times` the largest norm of the steps before the onset."""

    @contextmanager
    def held(scene: Scene) -> Iterator[None]:
        calm = [scene.norms[step] for step in scene.before if math.isfinite(scene.norms.get(step, math.nan))]
        if len(calm) < CALM:
            raise NotApplicable(f"there are only {len(calm)} steps before the onset that tell what is usual")
        limit = times * max(calm)

        def before() -> None:
            size = grad_norm(scene)
            if size > limit:
                factor = limit / size if math.isfinite(size) else 0.0
                for param in scene.params:
                    if param.grad is not None:
                        param.grad = torch.nan_to_num(param.grad, 0.0, 0.0, 0.0) if not factor else param.grad * factor

        with around(scene, before):
            yield

    return Arm("clip_grad", f"gradient no longer than {times:g} times the longest before the onset", held)


def action(answer: Action) -> Arm:
    """Returns the change that a guard's action makes, from the step before the onset to the peak.

    Args:
        answer: a `Skip`, `Scale`, `ClipUpdate`, `CutLr`, `RepairMoments` or `ExactSoftmax` of `foreshock.policies`.

    Raises:
        UsageError: it is another one: what it does depends on a reading of curvature, or it takes no step.
    """
    if isinstance(answer, (Skip, ExactSoftmax)):
        return data.skip() if isinstance(answer, Skip) else precision.exact_softmax()
    if not isinstance(answer, (Scale, ClipUpdate, CutLr, RepairMoments)):
        raise UsageError(
            f"what_if.action(answer): {type(answer).__name__} cannot be tried step by step; give Skip, Scale, "
            "ClipUpdate, CutLr, RepairMoments or ExactSoftmax, or take what_if.floor()"
        )

    @contextmanager
    def acted(scene: Scene) -> Iterator[None]:
        last = max(scene.onset, scene.event.peak, scene.onset - 2 + (answer.steps if isinstance(answer, CutLr) else 0))
        stack, change = ExitStack(), list[Callable[[], None]]()

        def before() -> None:
            if not scene.onset - 1 <= scene.step <= last:
                return
            if isinstance(answer, CutLr):
                stack.enter_context(learning_rate(scene.optimizer, answer.factor))
            elif isinstance(answer, RepairMoments) and scene.step == scene.onset - 1:
                scene.optimizer.state.clear()
            elif isinstance(answer, Scale):
                change.append(scaled(scene.optimizer, answer.factor))
            elif isinstance(answer, ClipUpdate):
                change.append(clipped(scene.optimizer, answer.limit))

        def after() -> None:
            stack.close()
            while change:
                change.pop()()

        with stack, around(scene, before, after):
            yield

    if isinstance(answer, RepairMoments) and answer.how == "restore":
        return state.repair_moments()
    fields = {name: value for name, value in answer.to_dict().items() if name not in BESIDE}
    told = ", ".join(f"{name} {value}" for name, value in fields.items())
    what = f"the guard's {answer.kind.replace('_', ' ')} ({told}) from before the onset to the peak"
    return Arm(answer.kind, what, acted)


def _copied(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate) if not isinstance(rate, Tensor) else group["lr"].copy_(rate)
    else:
        group["lr"] = rate
