"""Where a closure is run so that its loss can be differentiated twice: math attention, eager, unwrapped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils import checkpoint

# How far functions are followed from a closure to the modules it runs.
_DEPTH = 3


@contextmanager
def surroundings(modules: Sequence[nn.Module], device: torch.device, *, exact: bool = True) -> Iterator[None]:
    """Lets a forward and a backward pass be differentiated twice where they could not.

    Gradients on; autocast off; compiled functions run eagerly (pytorch#91469); `DistributedDataParallel` modules call
    the module inside, since their hooks do not survive a second derivative (pytorch#47562); and for exact products
    attention by the math kernel (pytorch#116350). Checkpointing is of the kind that is not reentrant, gradients of
    embeddings are dense.

    Args:
        modules: the modules that are run, all of them.
        device: where.
        exact: whether second derivatives will be asked for; differences of gradients do without.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {device.type, "cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(_calling(module, module.module))
        if exact:
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in modules):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in modules:
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
                module.sparse = False
                stack.callback(setattr, module, "sparse", True)
        stack.enter_context(_no_reentrant_checkpoints())
        yield


@contextmanager
def _calling(wrapper: nn.Module, inner: nn.Module) -> Iterator[None]:
    """Makes a wrapper's forward the module's inside, passing by whatever the wrapper does."""
    own = wrapper.__dict__.get("forward")
    wrapper.__dict__["forward"] = inner.__call__
    try:
        yield
    finally:
        if own is None:
            del wrapper.__dict__["forward"]
        else:
            wrapper.__dict__["forward"] = own


class _NotReentrant:
    """Stands in for `torch.utils.checkpoint.CheckpointFunction`."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *inputs: Any) -> Any:
        return checkpoint.checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def _no_reentrant_checkpoints() -> Iterator[None]:
    """Replaces reentrant checkpointing, which allows neither `torch.autograd.grad` nor second derivatives."""
    reentrant = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _NotReentrant  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Returns the modules that a closure names, in its cells, its globals, its defaults or as its own object.

    A guess: modules kept in containers, or reached through attributes of other objects, are not found.
    """
    found: dict[int, nn.Module] = {}
    _follow(function, found, set(), _DEPTH)
    return list(found.values())


def _follow(thing: Any, found: dict[int, nn.Module], seen: set[int], depth: int) -> None:
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        found[id(thing)] = thing
    elif isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            _follow(part, found, seen, depth)
    elif isinstance(thing, MethodType):
        _follow(thing.__self__, found, seen, depth)
        _follow(thing.__func__, found, seen, depth)
    elif isinstance(thing, FunctionType):
        if str(thing.__module__).partition(".")[0] in ("torch", "foreshock"):
            return
        for part in _named_by(thing):
            if isinstance(part, (nn.Module, FunctionType, MethodType, partial)):
                _follow(part, found, seen, depth - 1)
            elif isinstance(part, (list, tuple)) and len(part) < 1000:
                for inner in part:
                    if isinstance(inner, nn.Module):
                        _follow(inner, found, seen, depth - 1)
    elif hasattr(thing, "__dict__") and not isinstance(thing, (type, torch.Tensor)):
        for part in list(vars(thing).values()):
            if isinstance(part, nn.Module):
                _follow(part, found, seen, depth - 1)
        called = vars(type(thing)).get("__call__")
        if isinstance(called, FunctionType):
            _follow(called, found, seen, depth - 1)


def _named_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
