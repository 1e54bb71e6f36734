"""Another state of the optimizer: denominators held up, a shorter memory, moments put back or cleared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.replay.arm import Arm
from foreshock.replay.course import around
from foreshock.replay.scene import NotApplicable, Scene

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "exp_inf", "max_exp_avg_sq", "sum")
SUSPECT = 3  # steps up to the one after the trigger before which the optimizer's state is put right


def floor() -> Arm:
    """Returns the change of denominators that may not fall below what they were at the first step."""

    @contextmanager
    def held(scene: Scene) -> Iterator[None]:
        floors: list[tuple[Any, str, Tensor]] = []
        for param, state in scene.optimizer.state.items():
            for name in SECOND_MOMENTS if isinstance(state, dict) else ():
                if isinstance(state.get(name), Tensor) and state[name].is_floating_point() and _steps(state) != 0:
                    floors.append((param, name, state[name].detach() / _corrected(scene, param, name)))
        if not floors:
            raise NotApplicable("the optimizer has no second moments at the first step")

        def raise_them() -> None:
            for param, name, least in floors:
                live = scene.optimizer.state[param].get(name)
                if isinstance(live, Tensor):
                    live.copy_(torch.maximum(live, (least * _corrected(scene, param, name)).to(live.dtype)))

        with around(scene, raise_them):
            yield

    return Arm("floor", "denominators not below what they were at the first of these steps", held)


def beta2(value: float = 0.95) -> Arm:
    """Returns the change of a second moment that forgets faster."""
    if not 0 < value < 1:
        raise UsageError(f"what_if.beta2(value): must be between 0 and 1, got {value!r}")

    def change(scene: Scene) -> None:
        changed = False
        for group in scene.optimizer.param_groups:
            betas, alpha = group.get("betas"), group.get("alpha")
            if isinstance(betas, (tuple, list)) and len(betas) > 1 and float(betas[1]) > value and _second(scene):
                group["betas"] = type(betas)([betas[0], value, *betas[2:]])
                changed = True
            elif isinstance(alpha, float) and alpha > value and _second(scene):
                group["alpha"], changed = value, True
        if not changed:
            raise NotApplicable(f"the optimizer has no beta2 above {value:g}")

    return Arm("beta2", f"beta2 {value:g}", change)


def repair_moments() -> Arm:
    """Returns the change of an optimizer's state that is put back to what it was a few steps before the onset."""

    @contextmanager
    def repaired(scene: Scene) -> Iterator[None]:
        suspect = range(max(scene.start, scene.trigger + 1 - SUSPECT), scene.trigger + 2)
        kept: dict[Tensor, dict[str, Any]] = {}

        def before() -> None:
            if scene.step < suspect.start or not kept:
                if scene.step >= suspect.start - SUSPECT:  # the last of these that is taken
                    kept.clear()
                    kept.update({param: _cloned(state) for param, state in scene.optimizer.state.items()})
            elif scene.step in suspect:
                for param, state in kept.items():
                    scene.optimizer.state[param] = _cloned(state)

        if not any(scene.optimizer.state.values()):
            raise NotApplicable("the optimizer keeps no state")
        with around(scene, before):
            yield

    return Arm("repair_moments", "the optimizer's state of a few steps before put back at the onset", repaired)


def reset_moments() -> Arm:
    """Returns the change of an optimizer that begins the window as a new one, without moments."""

    def change(scene: Scene) -> None:
        if not any(scene.optimizer.state.values()):
            raise NotApplicable("the optimizer keeps no state")
        with torch.no_grad():
            for state in scene.optimizer.state.values():
                for name, value in state.items():
                    if isinstance(value, Tensor) and (value.is_floating_point() or name == "step"):
                        value.zero_()
                    elif name == "step" and isinstance(value, (int, float)):
                        state[name] = type(value)(0)

    return Arm("reset_moments", "the optimizer's state zeroed at the first of these steps", change)


def _second(scene: Scene) -> bool:
    return any(name in state for state in scene.optimizer.state.values() for name in SECOND_MOMENTS)


def _steps(state: Mapping[str, Any]) -> float:
    return float(state["step"]) if "step" in state else 1.0


def _corrected(scene: Scene, param: Any, name: str) -> float:
    """Returns the bias correction of a second moment before the step that is about to be taken; 1 without one."""
    state = scene.optimizer.state[param]
    group = next((each for each in scene.optimizer.param_groups if any(param is p for p in each["params"])), {})
    betas = group.get("betas")
    if not name.endswith("exp_avg_sq") or betas is None or "step" not in state:
        return 1.0
    return max(1.0 - float(float(betas[1]) ** _steps(state)), 1e-12)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: each.clone() if isinstance(each, Tensor) else copy.deepcopy(each) for k, each in state.items()}
