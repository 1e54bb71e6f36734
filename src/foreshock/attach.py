"""What a monitor asks of a model, an optimizer and a loss before it attaches to them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.errors import RunError, UsageError
from foreshock.probes import Every, Part, name_of
from foreshock.run import RunWriter

ASLEEP = -1  # in place of the process that a monitor serves: it takes no notice of anything
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")


def usable(optimizer: Any) -> Optimizer:
    """Returns the torch optimizer, taken out of a wrapper that holds it as `.optimizer`.

    Raises:
        UsageError: it is none, it has no parameters, or its step evaluates the loss several times (LBFGS).
    """
    inner = innermost(optimizer)
    if not isinstance(inner, Optimizer):
        raise UsageError(
            f"Monitor(model, optimizer): the optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if not any(group["params"] for group in inner.param_groups):
        raise UsageError(f"Monitor(model, optimizer): the {type(inner).__name__} has no parameters to watch")
    closure = inspect.signature(type(inner).step).parameters.get("closure")
    if isinstance(inner, torch.optim.LBFGS) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise UsageError(
            f"Monitor(model, optimizer): {type(inner).__name__} needs a closure, which it may call several times in "
            "one step, so a step has no single loss and gradient to measure. Use an optimizer that takes one gradient "
            "a step (SGD, Adam, ...), or record the loss yourself with Run.from_arrays."
        )
    return inner


def innermost(optimizer: Any) -> Any:
    """Returns what wrappers such as accelerate's hold as `.optimizer`."""
    while not isinstance(optimizer, Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def parameter_names(
    model: nn.Module | Iterable[tuple[str, Tensor]] | None, optimizer: Optimizer
) -> tuple[dict[int, str], list[int]]:
    """Returns id -> name of the model's parameters, and their ids in model order.

    Raises:
        UsageError: the model is neither a module nor (name, tensor) pairs, or holds none of the optimizer's parameters.
    """
    if model is None:
        return {}, []
    try:
        pairs = list(model.named_parameters() if isinstance(model, nn.Module) else model)
        names = {id(tensor): _clean(name) for name, tensor in pairs}
    except (TypeError, ValueError) as error:
        raise UsageError(
            "Monitor(model, optimizer): the model must be a torch.nn.Module, (name, tensor) pairs or None, got "
            f"{type(model).__name__}"
        ) from error
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if not held & names.keys():
        raise UsageError(
            "Monitor(model, optimizer): none of the optimizer's parameters belongs to this model. Was it replaced "
            "or moved after the optimizer was made?"
        )
    return names, [id(tensor) for _, tensor in pairs]


def renamed(
    model: nn.Module | None, optimizer: Optimizer, known: tuple[dict[int, str], list[int]]
) -> tuple[dict[int, str], list[int]]:
    """Returns the same once tensors have come or gone; what is `known` where the model cannot be asked again."""
    try:
        return known if model is None else parameter_names(model, optimizer)
    except UsageError:  # none of them is the model's any more
        return known


def _clean(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def sort_probes(probes: Sequence[Any], model: Any = None) -> tuple[list[Part | Every], list[Any]]:
    """Returns the probes that look at every element, which share one pass, and the others, which are called.

    Those that name parts of the model are held against it (`fits`).
    """
    parts: list[Part | Every] = []
    functions: list[Any] = []
    if isinstance(probes, (str, Mapping)) or not isinstance(probes, Iterable):
        raise UsageError(f"Monitor(probes=...): a list of probes is wanted, got {type(probes).__name__}")
    for probe in probes:
        made = probe() if isinstance(probe, type) else probe
        inner = made.probe if isinstance(made, Every) else made
        if isinstance(inner, Part):
            parts.append(made)
        elif callable(made):
            functions.append(made)
            if hasattr(made, "fits"):
                made.fits(model)
        else:
            raise UsageError(
                f"Monitor(probes=...): a probe is a function of a Step or of foreshock.probes, got {name_of(made)!r}"
            )
    return parts, functions


def positive(name: str, value: Any) -> int:
    """Returns a positive integer argument."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"Monitor({name}=...): must be a positive integer, got {value!r}")
    return value


def check_state(state: Any, owner: str, version: int) -> None:
    """Raises a UsageError where a state is not what this owner's `state_dict` of this version returns."""
    if not isinstance(state, dict) or state.get("version") != version:
        found = state.get("version") if isinstance(state, dict) else type(state).__name__
        raise UsageError(f"not the state of a {owner} of version {version}: found {found!r}")


def restore(owners: Iterable[Any], saved: Iterable[tuple[str, Any]]) -> None:
    """Gives each owner the first state that was saved under its name and is not taken; the others start afresh."""
    waiting = list(saved)
    for owner in owners:
        for i, (name, kept) in enumerate(waiting):
            if name == name_of(owner):
                owner.load_state_dict(kept)
                del waiting[i]
                break


def open_writer(path: str | os.PathLike[str], meta: dict[str, Any], resumes: str | None) -> RunWriter:
    """Returns an open writer: going on with run `resumes` where the directory holds it, else starting a new one."""
    rank, ranks = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    meta = {"name": Path(path).name, "ranks": ranks} | meta
    if resumes is not None and (Path(path) / "run.json").exists():
        return RunWriter(path, meta, rank=rank, resume=resumes).open()
    if resumes is not None:
        meta["resumed_from"] = resumes
    try:
        return RunWriter(path, meta, rank=rank).open()
    except RunError as error:
        if "already holds" in str(error):
            raise RunError(
                f"{error} To go on with it here, call monitor.load_state_dict(checkpoint) before `with monitor:`."
            ) from error
        raise


def as_loss(loss: Any) -> Tensor | None:
    """Returns a loss as a detached 0-D tensor, or None where it is not one number."""
    if isinstance(loss, Tensor):
        if loss.dim() == 0 and loss.dtype.is_floating_point:
            return loss.detach()
        if loss.numel() != 1 or loss.is_complex():
            return None
        value = loss.detach().reshape(())
        return value if value.is_floating_point() else value.to(torch.float64)
    try:
        return torch.tensor(float(loss), dtype=torch.float64)
    except (TypeError, ValueError):
        return None


def shape_of(value: Any) -> str:
    """Returns how an error message describes a value that is not one number."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def learning_rates(optimizer: Optimizer, host: dict[str, float], device: dict[str, Tensor]) -> None:
    """Writes `lr`, of the first parameter group, and `lr/group0`, ... where there are several."""
    groups = optimizer.param_groups
    names = ["lr"] if len(groups) == 1 else ["lr", *(f"lr/group{i}" for i in range(len(groups)))]
    for name, group in zip(names, [groups[0], *groups] if len(groups) > 1 else groups, strict=True):
        rate = group.get("lr")
        if isinstance(rate, Tensor):
            device[name] = rate.detach().clone()
        elif rate is not None:
            host[name] = float(rate)


def scale_of(optimizer: Optimizer) -> Tensor | None:
    """Returns the loss scale that a GradScaler has left to this fused optimizer, if any."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def veto_of(optimizer: Optimizer) -> Tensor | None:
    """Returns whether a GradScaler has told this fused optimizer to skip the step, if it told anything."""
    found = getattr(optimizer, "found_inf", None)
    return found if isinstance(found, Tensor) else None


class Quiet:
    """A context in which no gradients are recorded and no autocast changes the type of what is computed.

    `torch.no_grad` and `torch.autocast` build Python objects at every use, which a step of a few milliseconds feels.
    """

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._recorded = True
        self._cast: torch.autocast | None = None

    def __enter__(self) -> None:
        self._recorded = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        if torch.is_autocast_enabled(self._kind):
            self._cast = torch.autocast(self._kind, enabled=False)
            self._cast.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        if self._cast is not None:
            self._cast.__exit__(None, None, None)
            self._cast = None
        torch._C._set_grad_enabled(self._recorded)
