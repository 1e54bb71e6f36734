"""Reads each parameter's step off an optimizer: by a rule somebody registered, by one that ships, or by a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability import rules
from foreshock.stability.frozen import NothingFrozenError
from foreshock.stability.group import groups, host
from foreshock.stability.nyquist import nyquist_probe
from foreshock.stability.registry import Reading, Rule, factor, own_rule
from foreshock.stability.twins import parameters, twin

__all__ = ["readings", "speaks"]

THIN = 32  # entries of each tensor on which a rule is compared with a probe
AGREE = 1e-2  # relative difference at which it counts as right

_agreed: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()


def readings(optimizer: Optimizer, grads: Sequence[Tensor | None] | None) -> list[Reading | None]:
    """Returns a reading for each parameter of an optimizer, None for those that its step leaves alone.

    The denominators are the caller's to overwrite. Errors: see `edge_weights`.
    """
    kind = type(optimizer)
    rule = own_rule(kind)
    if rule is not None:
        return _by_own_rule(rule, optimizer, grads)
    shipped = rules.find(kind)
    if isinstance(shipped, str):
        raise UsageError(shipped)
    if shipped is None:
        return _by_probe(optimizer, grads, f"{kind.__name__} is not known by name: measured by a Nyquist probe")
    if not speaks(shipped, optimizer, grads):
        return _by_probe(
            optimizer,
            grads,
            f"{kind.__name__} does not step by the convention known under its name: measured by a Nyquist probe",
        )
    return _by_shipped_rule(shipped, optimizer, grads)


def _by_shipped_rule(
    shipped: rules.Shipped, optimizer: Optimizer, grads: Sequence[Tensor | None] | None
) -> list[Reading | None]:
    result: list[Reading | None] = [None] * len(parameters(optimizer))
    for group in groups(optimizer, grads, stateless=shipped.stateless):
        for place, reading in zip(group.places, shipped.read(group), strict=True):
            result[place] = reading
    return result


def _by_own_rule(rule: Rule, optimizer: Optimizer, grads: Sequence[Tensor | None] | None) -> list[Reading | None]:
    result: list[Reading | None] = [None] * len(parameters(optimizer))
    for group in groups(optimizer, grads, stateless=True):
        given: Sequence[Tensor | None] = group.grads or [None] * len(group.params)
        for place, param, state, grad in zip(group.places, group.params, group.states, given, strict=True):
            with torch.no_grad():
                reading = rule(optimizer, group.settings, param, state, grad)
            if not isinstance(reading, Reading):
                raise UsageError(
                    f"the rule registered for {type(optimizer).__name__} returned {type(reading).__name__}; "
                    "it must return a foreshock.stability.registry.Reading"
                )
            P = reading.denominator
            result[place] = replace(reading, denominator=P.detach().clone()) if isinstance(P, Tensor) else reading
    return result


def _by_probe(optimizer: Optimizer, grads: Sequence[Tensor | None] | None, note: str) -> list[Reading | None]:
    found = nyquist_probe(optimizer, grads, filters=True)
    own = [group.get("lr") or 1.0 for group in optimizer.param_groups]  # None where it is found by the optimizer
    lrs = [lr for lr, group in zip(host(own), optimizer.param_groups, strict=True) for _ in group["params"]]
    result: list[Reading | None] = []
    for param, response, lr, l2, decay, filter in zip(
        parameters(optimizer), found.tensors, lrs, found.l2, found.decays, found.filters, strict=True
    ):
        working = torch.promote_types(param.dtype, torch.float32)
        reading = Reading(
            denominator=(lr / response).to(working),  # Q/Q(-1) has unit gain: q stays in P
            lr=lr,
            gain=filter,
            l2=l2,
            decay=decay,
            notes=(note,),
        )
        result.append(reading if bool(response.any()) else None)
    moved = [
        param.numel() and (param.requires_grad if grads is None else grads[place] is not None)
        for place, param in enumerate(parameters(optimizer))
    ]
    if any(moved) and not any(result) and any(host(own)):
        raise UsageError(
            f"a copy of {type(optimizer).__name__} does not move when pushed by small gradients, so there is nothing "
            "to read; register a rule for its class with foreshock.stability.register"
        )
    return result


def speaks(shipped: rules.Shipped, optimizer: Optimizer, grads: Sequence[Tensor | None] | None = None) -> bool:
    """Returns whether a shipped rule speaks for an optimizer, compared with a probe where the name alone is no proof.

    The comparison is of a few entries of each tensor, once for each optimizer; before its first step, without
    gradients, the name has to do.
    """
    if own_rule(type(optimizer)) is not None:
        return False
    if not (shipped.checked and shipped.linear):
        return True
    if optimizer not in _agreed:
        if grads is None and not shipped.stateless and not any(optimizer.state.values()):
            return True
        try:
            _agreed[optimizer] = _agrees(shipped, *_thinned(optimizer, grads))
        except NothingFrozenError:  # a first step whose moments are the gradient itself: ask again at the next
            return True
    return _agreed[optimizer]


def _agrees(shipped: rules.Shipped, optimizer: Optimizer, grads: Sequence[Tensor | None] | None) -> bool:
    try:
        read = _by_shipped_rule(shipped, optimizer, grads)
        probed = nyquist_probe(optimizer, grads)
    except NothingFrozenError:
        raise
    except (UsageError, KeyError, TypeError, ValueError):  # states or settings of other names, or no linear step
        return False
    for reading, seen, l2, decay in zip(read, probed.tensors, probed.l2, probed.decays, strict=True):
        if reading is None or not isinstance(reading.denominator, (Tensor, float, int)):
            continue
        told = factor(reading) * (2.0 - reading.decay) / torch.as_tensor(reading.denominator, dtype=seen.dtype)
        near = torch.isclose(told, seen, rtol=AGREE, atol=0.0)
        apart = abs(reading.decay - decay) <= AGREE * reading.decay and abs(reading.l2 - l2) <= AGREE * reading.l2
        # without momentum or denominators the two kinds of decay are one
        together = torch.isclose(reading.decay + reading.l2 * told, decay + l2 * seen, rtol=AGREE, atol=0.0)
        if not bool(near.all()) or not (apart or bool(together.all())):
            return False
    return True


def _thinned(
    optimizer: Optimizer, grads: Sequence[Tensor | None] | None
) -> tuple[Optimizer, list[Tensor | None] | None]:
    """Returns a copy of an optimizer on the first entries of each of its parameters, and their gradients."""
    made, clones = twin(optimizer)
    for clone in clones:
        shape = clone.shape
        for key, value in list((made.state.get(clone) or {}).items()):
            if isinstance(value, Tensor) and value.shape == shape:
                made.state[clone][key] = value.reshape(-1)[:THIN].clone()
        clone.data = clone.detach().reshape(-1)[:THIN].clone()
    if grads is None:
        return made, None
    dense = [None if each is None else (each.to_dense() if each.is_sparse else each) for each in grads]
    return made, [None if each is None else each.detach().reshape(-1)[:THIN].clone() for each in dense]
