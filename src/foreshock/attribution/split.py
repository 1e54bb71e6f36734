"""The split of an executed step into what the batch, momentum and decay did, checked against the step itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.attribution.split_rules import Kept, find
from foreshock.attribution.terms import Terms
from foreshock.errors import UsageError

__all__ = ["Source", "StepSplit", "source_of", "split_step", "thinned"]

# What a rule may miss of a step, relative to its length, before it is said not to describe it: rounding of the written
# parameters is 6e-8/lr of a step in float32, 1e-3 and less for the rates in use.
FITS = 1e-2


@dataclass(frozen=True, slots=True)
class Source:
    """What an optimizer knew of each parameter around a step.

    Attributes:
        kind: the class, or its name.
        groups: the settings of each parameter's group, None for parameters it does not have.
        states: each parameter's state.
        taken: whether the state is that after the step, None where that is to be found out.
        lying: what lies in `.grad`, which may be what was consumed; empty where that is not to be looked at.
    """

    kind: type | str
    groups: tuple[Mapping[str, Any] | None, ...]
    states: tuple[Mapping[str, Any], ...]
    taken: bool | None
    lying: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True, slots=True)
class StepSplit:
    """How the tensors' steps were made.

    Attributes:
        optimizer: the name of its class.
        terms: one for each tensor; None where no rule tells, or the tensor was left alone.
        grads: the gradients as the optimizer consumed them, None where there was none.
        missed: |executed step - sum of the pieces| / |executed step| over all tensors.
        taken: whether it was read off the state after the step.
        notes: sentences for the user.
    """

    optimizer: str
    terms: tuple[Terms | None, ...]
    grads: tuple[Tensor | None, ...]
    missed: float
    taken: bool = False
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether any tensor's step was split."""
        return any(terms is not None for terms in self.terms)


def source_of(optimizer: Any, params: Sequence[Tensor], kind: type | str | None = None) -> Source:
    """Returns what an optimizer, or its `state_dict()`, knows of the parameters.

    Args:
        optimizer: a torch optimizer, or the dictionary that its `state_dict()` gave, whose parameters are then those
            of `params`, in their order.
        params: the parameters.
        kind: the class, or its name, for a dictionary; guessed from its settings where not given.

    Raises:
        UsageError: neither of both, or of other parameters.
    """
    inner = optimizer
    while not isinstance(inner, (Optimizer, Mapping)) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    lying = tuple(param.grad for param in params)
    if isinstance(inner, Optimizer):
        owner = {id(param): group for group in inner.param_groups for param in group["params"]}
        groups = tuple(owner.get(id(param)) for param in params)
        if not any(group is not None for group in groups):
            raise UsageError("attribute(optimizer=...): it has none of `params`; give the one that took the step")
        states = tuple(inner.state.get(param) or {} for param in params)
        return Source(kind or type(inner), groups, states, None, lying)
    if isinstance(inner, Mapping) and "param_groups" in inner and "state" in inner:
        order = [(index, group) for group in inner["param_groups"] for index in group["params"]]
        if len(order) != len(params):
            raise UsageError(
                f"attribute(optimizer=...): the state is of {len(order)} parameters, `params` has {len(params)}; give "
                "the optimizer itself, or the parameters in its order"
            )
        states = tuple(inner["state"].get(index) or {} for index, _ in order)
        return Source(kind or _guess(order[0][1], states), tuple(group for _, group in order), states, None, lying)
    raise UsageError(
        "attribute(optimizer=...): the optimizer, its state_dict(), or the step that attribution.capture kept, got "
        f"{type(optimizer).__name__}"
    )


def split_step(
    source: Source, before: Sequence[Tensor], after: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> StepSplit:
    """Returns how a step was made, by the rule of its optimizer.

    Where it is not known whether the state is that before or after the step, both are tried, and the one that
    reproduces the step is taken.

    Args:
        source: what the optimizer knew.
        before, after: the parameters' values.
        grads: the gradients consumed.
    """
    if source.taken is not None:
        return _split(source, source.taken, before, after, grads)
    early, late = (_split(source, taken, before, after, grads) for taken in (False, True))
    # after a first step the state looks, to the rule, as if another like it came next: both fit, and it is the later
    if early.missed < late.missed / 2.0 or not any(source.states):
        return early
    return late


def _split(
    source: Source, taken: bool, before: Sequence[Tensor], after: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> StepSplit:
    rule, name = find(source.kind), source.kind if isinstance(source.kind, str) else source.kind.__name__
    found: list[Terms | None] = []
    notes: list[str] = []
    missed = length = 0.0
    for group, state, start, end, grad in zip(source.groups, source.states, before, after, grads, strict=True):
        theta = working(start)
        moved = end.detach().to(theta) - theta
        terms = None
        if rule is not None and group is not None and grad is not None:
            felt = dense(grad).to(theta)
            try:
                terms = rule(group, theta, Kept(state, taken, theta), felt)
            except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
                notes.append(f"{name} does not keep what is known under its name ({type(error).__name__}: {error})")
        found.append(terms)
        length += float(moved.double().square().sum())
        if terms is not None:
            moved = moved - sum(terms.pieces(theta, felt))
        missed += float(moved.double().square().sum())
    share = (missed / length) ** 0.5 if length else 0.0
    if rule is None:
        notes.append(f"{name}: how it makes a step is not known, so the step is not split")
    elif not share <= FITS:
        notes.append(
            f"{share:.1%} of the step's length is not what {name} does with its state and this gradient; that part is "
            "reported as the rest"
        )
    return StepSplit(name, tuple(found), tuple(grads), share, taken, tuple(dict.fromkeys(notes)))


def thinned(
    source: Source, before: Sequence[Tensor], after: Sequence[Tensor], grads: Sequence[Tensor | None], most: int = 2048
) -> tuple[Source, list[Tensor], list[Tensor], list[Tensor | None]]:
    """Returns the same of at most so many entries of each tensor, evenly spaced; rules are entry by entry.

    Args:
        source: what the optimizer knew.
        before, after: the parameters' values.
        grads: the gradients.
        most: entries.
    """
    shapes = [start.shape for start in before]

    def thin(tensor: Any, shape: torch.Size) -> Any:
        if not isinstance(tensor, Tensor) or tensor.shape != shape or not shape:
            return tensor
        flat = dense(tensor).reshape(-1)
        return flat[:: max(1, -(-len(flat) // most))]

    states = tuple(
        {key: thin(value, shape) for key, value in state.items()}
        for state, shape in zip(source.states, shapes, strict=True)
    )
    start, end, slope = (
        [thin(tensor, shape) for tensor, shape in zip(each, shapes, strict=True)] for each in (before, after, grads)
    )
    return replace(source, states=states), start, end, slope


def dense(grad: Tensor) -> Tensor:
    """Returns a gradient as a dense detached tensor."""
    grad = grad.detach()
    return grad.to_dense() if grad.layout is not torch.strided else grad


def working(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32, or wider if it is."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _guess(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> str:
    """Returns the optimizer's name that a group's settings and the states go with, "" where none does."""
    keys = set(group)
    names: set[Any] = {name for state in states for name in state}
    if "momentum_decay" in keys:
        return "NAdam"
    if {"nesterov", "dampening"} <= keys:
        return "SGD"
    if "lambd" in keys:
        return "ASGD"
    if "lr_decay" in keys:
        return "Adagrad"
    if "rho" in keys:
        return "Adadelta"
    if "alpha" in keys:
        return "RMSprop"
    if {"beta", "p"} <= keys:
        return "S3"
    if "exp_inf" in names:
        return "Adamax"
    if "amsgrad" in keys:
        return "Adam" if not group.get("decoupled_weight_decay") else "AdamW"
    if "betas" in keys:
        return "Lion" if names == {"exp_avg"} else "RAdam" if "eps" in keys and "exp_avg_sq" in names else ""
    return ""
