"""What a snapshot holds of a training, frozen and put back section by section."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.guard.freeze import Freezer
from foreshock.guard.thaw import Thawer


@dataclass(frozen=True, slots=True)
class Holding:
    """The live objects of a training; None for what it does not have.

    Attributes:
        model: its parameters and all its buffers are held.
        optimizer: its parameters, options and state.
        scheduler: one scheduler, or a list, tuple or dict of them.
        scaler: a GradScaler.
        ema: averaged weights: a module, or whatever has `state_dict` and `load_state_dict`.
        data: what knows the position in the data.
    """

    model: nn.Module | None
    optimizer: Optimizer
    scheduler: Any = None
    scaler: Any = None
    ema: Any = None
    data: Any = None


def checked(holding: Holding) -> Holding:
    """Returns the same, if all of it can be held.

    Raises:
        UsageError: what is not what it should be, by name.
    """
    if holding.model is not None and not isinstance(holding.model, nn.Module):
        raise UsageError(f"attach(model): must be a torch module or None, got {type(holding.model).__name__}")
    if not hasattr(holding.optimizer, "param_groups") or not hasattr(holding.optimizer, "state"):
        raise UsageError(f"attach(optimizer): must be a torch optimizer, got {type(holding.optimizer).__name__}")
    for name in ("scheduler", "scaler", "ema", "data"):
        for each in _each(getattr(holding, name)).values():
            if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
                raise UsageError(
                    f"attach({name}=...): a {type(each).__name__} has no state_dict() and load_state_dict(), so it "
                    "cannot be brought back; give it both, or leave it out"
                )
    return holding


def freeze(holding: Holding, freezer: Freezer) -> dict[str, Any]:
    """Returns the tree of everything, by section; nothing is written, and no random number is drawn."""
    tree: dict[str, Any] = {"optimizer": freezer.optimizer(holding.optimizer, "optimizer")}
    if holding.model is not None:
        tree["model"] = freezer.module(holding.model, "model")
    tree |= freeze_beside(holding, freezer, ("scheduler", "scaler", "ema", "data"))
    tree["rng"] = freezer.value(_rng(), "rng")
    return tree


def freeze_beside(holding: Holding, freezer: Freezer, names: Sequence[str]) -> dict[str, Any]:
    """Returns the trees of what there is beside model and optimizer, of the sections named."""
    tree: dict[str, Any] = {}
    for name in names:
        found = _each(getattr(holding, name))
        if found:
            tree[name] = {key: _freeze_one(freezer, each, f"{name}{key}") for key, each in found.items()}
    return tree


def thaw(tree: Mapping[str, Any], holding: Holding, thawer: Thawer, *, rng: bool, data: bool) -> None:
    """Plans the restoration of everything; of random streams and the position in the data only where asked for.

    Raises:
        UsageError: the live objects are not those, nor like those, of which the tree was taken.
    """
    thawer.optimizer(tree["optimizer"], holding.optimizer, "optimizer")
    if "model" in tree and holding.model is not None:
        thawer.module(tree["model"], holding.model, "model")
    thaw_beside(tree, holding, thawer, ("scheduler", "scaler", "ema", *(("data",) if data else ())))
    if rng:
        state = thawer.value(tree["rng"], {}, "rng", fresh=True)
        thawer.writes.append(partial(_set_rng, state))


def thaw_beside(tree: Mapping[str, Any], holding: Holding, thawer: Thawer, names: Sequence[str]) -> None:
    """Plans the restoration of what there is beside model and optimizer, of the sections named.

    Raises:
        UsageError: there are others than when the tree was taken.
    """
    for name in names:
        found, frozen = _each(getattr(holding, name)), tree.get(name, {})
        if sorted(found) != sorted(frozen):
            raise UsageError(
                f"restore: the snapshot holds {len(frozen)} of {name}, and {len(found)} were given to attach(); "
                "attach the same objects as when it was taken"
            )
        for key, each in found.items():
            _thaw_one(thawer, frozen[key], each, f"{name}{key}")


def _each(value: Any) -> dict[str, Any]:
    """Returns the objects of a section by the ending of their name."""
    if value is None:
        return {}
    if isinstance(value, (list, tuple)):
        return {f".{at}": each for at, each in enumerate(value)}
    if type(value) is dict:
        return {f".{key}": each for key, each in value.items()}
    return {"": value}


def _freeze_one(freezer: Freezer, value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        return {"module": freezer.module(value, name)}
    if isinstance(value, torch.amp.GradScaler):  # its state_dict() would wait for the device
        return {"attributes": freezer.attributes(value, name)}
    return {"state": freezer.value(value.state_dict(), name)}


def _thaw_one(thawer: Thawer, node: Mapping[str, Any], live: Any, name: str) -> None:
    if "module" in node:
        thawer.module(node["module"], live, name)
    elif "attributes" in node:
        thawer.attributes(node["attributes"], live, name)
    else:
        state = thawer.value(node["state"], live.state_dict(), name, fresh=True)
        thawer.writes.append(partial(live.load_state_dict, state))


def _rng() -> dict[str, Any]:
    """Returns the states of all random streams of this process."""
    version, words, spare = random.getstate()
    state: dict[str, Any] = {
        "python": [version, np.frombuffer(struct.pack(f"<{len(words)}I", *words), "<u4"), spare],
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng(state: Mapping[str, Any]) -> None:
    version, words, spare = state["python"]
    random.setstate((version, tuple(map(int, words)), spare))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for device, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, device)
