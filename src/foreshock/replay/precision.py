"""More digits for a while: the whole model in float64, its loss alone, or the exact gradient of its softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from foreshock import distributed
from foreshock.guard.softmax import ExactGradient
from foreshock.replay.arm import Arm
from foreshock.replay.course import differentiated
from foreshock.replay.scene import NotApplicable, Scene

NARROW = (torch.float16, torch.bfloat16, torch.float32)
CASTS_AWAY = frozenset({"float", "half", "bfloat16"})
CASTS = CASTS_AWAY | {"to", "type", "type_as"}
LOSSES: frozenset[Callable[..., Any]] = frozenset(
    {
        F.cross_entropy, F.nll_loss, F.log_softmax, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.kl_div,
        F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.gaussian_nll_loss, F.poisson_nll_loss,
        F.cosine_embedding_loss, F.multi_margin_loss, F.soft_margin_loss, F.hinge_embedding_loss, F.ctc_loss,
        torch.log_softmax, Tensor.log_softmax, torch.logsumexp, Tensor.logsumexp,
    }
)  # fmt: skip


def wider(value: Any) -> Any:
    """Returns a value with all floating-point tensors in it in float64; containers are made anew."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, Mapping):
        made = {key: wider(each) for key, each in value.items()}
        return made if type(value) is dict else _like(value, made)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(wider, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(wider, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: wider(getattr(value, each.name)) for each in fields(value) if each.init})
    return value


def _like(value: Mapping[Any, Any], made: dict[Any, Any]) -> Any:
    try:
        return type(value)(made)  # type: ignore[call-arg]
    except TypeError:
        return made


@contextmanager
def _wide_model(scene: Scene) -> Iterator[None]:
    """Turns parameters, buffers and the optimizer's state into float64, and the type of new tensors with them.

    Raises:
        NotApplicable: nothing is narrower, or the model is sharded.
    """
    params = scene.params if scene.model is None else [*{*scene.params, *scene.model.parameters()}]
    if any(distributed.sharded(param) for param in params):
        raise NotApplicable("the parameters are sharded")
    narrow = [param for param in params if param.dtype in NARROW]
    if not narrow:
        raise NotApplicable("the model is in float64 already")
    modules = [] if scene.model is None else list(scene.model.modules())
    buffers = [(module, name, each) for module in modules for name, each in module._buffers.items() if each is not None]
    held = [(param, param.data) for param in narrow]
    states = {param: dict(state) for param, state in scene.optimizer.state.items() if isinstance(state, dict)}
    default, kinds = torch.get_default_dtype(), _Kinds()
    try:
        for param, data in held:
            param.data = data.double()
        for module, name, buffer in buffers:
            module._buffers[name] = wider(buffer)
        for param, state in states.items():
            scene.optimizer.state[param] = {k: each if k == "step" else wider(each) for k, each in state.items()}
        torch.set_default_dtype(torch.float64)
        with kinds:
            yield
    finally:
        torch.set_default_dtype(default)
        for param, data in held:
            param.grad = None
            param.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for param in list(scene.optimizer.state):
            if param in states:
                scene.optimizer.state[param] = states[param]
            else:
                del scene.optimizer.state[param]


class _Kinds(TorchFunctionMode):
    """Keeps what is wide wide, where a model casts it, or has numbers of its own that are narrow."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in CASTS and args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            return args[0] if name in CASTS_AWAY else func(*_unnarrowed(args), **_unnarrowed(kwargs))
        kinds = {each.dtype for each in _tensors((args, kwargs))}
        if name.startswith("_amp_"):  # the factor of a GradScaler, which is to be in float32
            return func(args[0], *_as(args[1:], torch.float32), **kwargs)
        if torch.float64 not in kinds or kinds.isdisjoint(NARROW):
            return func(*args, **kwargs)
        if name.endswith("_") and not name.endswith("__"):  # in place: as what is written to
            kind = next(iter(_tensors(args))).dtype
            return func(*_as(args, kind), **_as(kwargs, kind))
        return func(*wider(args), **wider(kwargs))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in arguments."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


def _as(value: Any, kind: torch.dtype) -> Any:
    """Returns arguments with all floating-point tensors in them of one type; those that are stay themselves."""
    if isinstance(value, Tensor):
        return value.to(kind) if value.is_floating_point() and value.dtype != kind else value
    if type(value) in (list, tuple):
        return type(value)(_as(each, kind) for each in value)
    return {key: _as(each, kind) for key, each in value.items()} if type(value) is dict else value


def _unnarrowed(value: Any) -> Any:
    """Returns arguments of a cast in which it casts to float64 where it would to less."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    if type(value) is tuple:
        return tuple(_unnarrowed(each) for each in value)
    return {key: _unnarrowed(each) for key, each in value.items()} if type(value) is dict else value


class _WideLoss(TorchFunctionMode):
    """Computes losses in float64, wherever they are called from."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in LOSSES:
            wide_args, wide_kwargs = wider(args), wider(kwargs)
            self.used = True
            return func(*wide_args, **wide_kwargs)
        return func(*args, **kwargs)


@contextmanager
def _wide_loss(_: Scene) -> Iterator[None]:
    """Computes what torch knows as losses in float64, from the outputs as they are.

    Raises:
        NotApplicable: at the end, where none was met.
    """
    mode = _WideLoss()
    with mode:
        yield
    if not mode.used:
        raise NotApplicable("step_fn calls none of torch's losses in a way that can be seen")


@contextmanager
def _exact(_: Scene) -> Iterator[None]:
    """Makes the gradients of softmax losses exact in every backward pass.

    Raises:
        NotApplicable: at the end, where there was no softmax in any of them.
    """
    exact, met = ExactGradient(), [False]

    def told(loss: Tensor) -> None:
        met[0] = exact.arm(loss) or met[0]

    with differentiated(told):
        yield
    if not met[0]:
        raise NotApplicable("there is no softmax in the loss that can be seen")


def exact_softmax() -> Arm:
    """Returns the change of the exact gradient of every softmax loss, see `foreshock.numerics.exact_gradient`."""
    return Arm("exact_softmax", "exact gradient of the softmax", _exact)


def float64_loss() -> Arm:
    """Returns the change of losses computed in float64, from the outputs of the model as they are."""
    return Arm("float64_loss", "loss in float64", _wide_loss)


def float64() -> Arm:
    """Returns the change of a model, its optimizer and its data in float64."""
    return Arm("float64", "model, optimizer and data in float64", _wide_model, cast=wider)
