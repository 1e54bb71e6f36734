"""What is known of a step before it is taken, brought to the host by one transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import distributed

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "max_exp_avg_sq")
"""What torch calls second moments, and those that do as it does."""

SMALL = 1 << 20  # entries up to which one copy and one norm cost less than a norm for each tensor

Numbers = dict[str, float]


class Glance:
    """Measures `loss`, `grad_norm`, `moments`, `weights`, `lr`, `steps` and `tensors` of an attempt, if there are any.

    Norms are taken in float32 (float64 where all is), of the gradients as they are; sharded ones count with all their
    shards. With a group of ranks the loss is their mean, and all ranks get the same numbers, by one collective. All
    of it comes to the host together.

    Args:
        optimizer: whose gradients, state and parameters these are.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._params: list[Tensor] = []
        self._counted: Tensor | None = None  # the parameter whose steps are counted
        self._lengths: list[int] = []
        self._plain = False  # dense, real and whole tensors on one device
        self._sparse = True  # whether gradients may be
        self._flat = False  # of one type, and small
        self._type = torch.float32

    def __call__(
        self, loss: Tensor | None, *, moments: bool = True, weights: bool = True,
        group: distributed.Group | None = None, beside: Sequence[float] = (),
    ) -> tuple[Numbers, tuple[float, ...]]:  # fmt: skip
        """Returns the signals, and the sums over the ranks of `beside`.

        Args:
            loss: () on its device.
            moments: whether to take the norm of the second moments.
            weights: whether to take that of the parameters.
            group: ranks that share the training.
            beside: further numbers, to be added up.
        """
        self._refresh()
        optimizer, params = self._optimizer, self._params
        grads = [grad for param in params if (grad := param.grad) is not None]
        states = [optimizer.state[param] for param in params if param in optimizer.state] if moments else []
        squared = _second_moments(states)
        parts = [grads, squared, params if weights else []]
        rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
        waiting = [rate.detach() for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
        if group is None and self._plain and not (self._sparse and any(grad.is_sparse for grad in grads)):
            value, squares, brought = self._at_once(loss, parts, waiting)
            sums = tuple(beside)
        else:
            value, squares, sums = self._in_turn(loss, parts, group, beside)
            brought = [float(rate) for rate in waiting]
        found: Numbers = {"steps": self._count(), "tensors": float(len(params))}
        if loss is not None:
            found["loss"] = value
        there = bool(grads), moments and (bool(squared) or not states), weights
        for name, square, known in zip(("grad_norm", "moments", "weights"), squares, there, strict=True):
            if known:
                found[name] = math.sqrt(square) if square >= 0.0 else square
        here = [float(rate) for rate in rates if not isinstance(rate, Tensor) or rate.device.type == "cpu"]
        rate = max([*here, *brought], default=math.nan)
        if math.isfinite(rate):
            found["lr"] = rate
        return found, sums

    def _refresh(self) -> None:
        lengths = [len(group["params"]) for group in self._optimizer.param_groups]
        if lengths == self._lengths and self._params[0] is self._optimizer.param_groups[0]["params"][0]:
            return
        self._lengths = lengths
        self._params = [param for group in self._optimizer.param_groups for param in group["params"]]
        first = self._params[0]
        self._plain = all(
            param.device == first.device and param.layout is torch.strided and not param.is_complex()
            and not distributed.sharded(param) for param in self._params
        )  # fmt: skip
        double = all(param.dtype == torch.float64 for param in self._params)
        self._type = torch.float64 if double else torch.float32
        self._sparse = any(grad.is_sparse for param in self._params if (grad := param.grad) is not None)
        kinds = {param.dtype for param in self._params}
        self._flat = len(kinds) == 1 and sum(param.numel() for param in self._params) <= SMALL

    def _count(self) -> float:
        """Returns the optimizer's own count of steps: of one parameter, where that takes no waiting for a device."""
        state = self._optimizer.state
        if self._counted is None or all(param is not self._counted for param in self._params):
            self._counted = next((param for param in self._params if "step" in state.get(param, {})), None)
        if self._counted is None:
            return math.nan
        count = state.get(self._counted, {}).get("step", 0.0)
        if isinstance(count, Tensor):
            return float(count) if count.device.type == "cpu" else math.nan
        return float(count)

    @torch.no_grad()
    def _at_once(
        self, loss: Tensor | None, parts: Sequence[list[Tensor]], beside: Sequence[Tensor]
    ) -> tuple[float, list[float], list[float]]:
        """Returns the loss, the sums of squares, and the numbers that wait on the device beside, by one transfer."""
        found = [self._norms(part) for part in parts]
        norms = [norm for each in found for norm in each]
        norms += [number.reshape(()).to(device=self._params[0].device, dtype=self._type) for number in beside]
        if loss is not None:
            norms.append(loss.detach().to(device=self._params[0].device, dtype=self._type))
        values: list[float] = torch.stack(norms).tolist() if norms else []
        value = values.pop() if loss is not None else math.nan
        squares, begin = [], 0
        for each in found:
            squares.append(sum(norm * norm for norm in values[begin : begin + len(each)]))
            begin += len(each)
        return value, squares, values[begin:]

    def _norms(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """Returns norms, the sum of whose squares is that of all entries."""
        if not tensors:
            return ()
        if not self._flat:
            return torch._foreach_norm(tensors, 2.0, dtype=self._type)
        flat = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
        return (torch.linalg.vector_norm(flat, dtype=self._type),)

    @torch.no_grad()
    def _in_turn(
        self, loss: Tensor | None, parts: Sequence[list[Tensor]], group: distributed.Group | None,
        beside: Sequence[float],
    ) -> tuple[float, list[float], tuple[float, ...]]:  # fmt: skip
        """The same for any tensors, and over the ranks of a group."""
        device = self._params[0].device
        ranks = 1 if group is None else distributed.place(group)[1]
        wide = torch.float32 if device.type == "mps" else torch.float64
        mine = torch.zeros((), device=device) if loss is None else loss.detach().to(device)
        numbers = [mine / ranks, *(squares(part, device, ranks) for part in parts)]
        numbers += [torch.tensor(float(each)) for each in beside]
        packed = torch.stack([number.to(device=device, dtype=wide) for number in numbers])
        if group is not None:
            packed = distributed.sum_(packed, group)
        value, *rest = packed.tolist()
        return value, rest[: len(parts)], tuple(rest[len(parts) :])


def squares(tensors: Sequence[Tensor], device: torch.device, ranks: int = 1) -> Tensor:
    """Returns the sum of all squares, () on the device, of this rank's shards.

    What every rank holds a copy of counts by its share, so that a sum over the ranks is right for both.
    """
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=wide, device=device)
    alike: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for tensor in tensors:
        held = _held(tensor)
        alike.setdefault((held.device, held.dtype, distributed.sharded(tensor)), []).append(held)
    for (_, dtype, sharded), those in alike.items():
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        part = torch.stack(torch._foreach_norm(those, 2.0, dtype=kept)).to(device=device, dtype=wide).square().sum()
        total += part if sharded else part / ranks
    return total


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Returns whether every entry is finite; waits for the device."""
    floats = [_held(tensor) for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    largest = [each.abs().amax().float().cpu() for each in floats if each.numel()]
    return not largest or bool(torch.stack(largest).isfinite().all())


def _held(tensor: Tensor) -> Tensor:
    """Returns the values that this rank holds of a tensor, as a dense real one."""
    held = tensor.detach()
    held = held.to_local() if distributed.sharded(held) else held  # type: ignore[attr-defined]
    held = held.coalesce().values() if held.is_sparse else held
    return torch.view_as_real(held) if held.is_complex() else held


def _second_moments(states: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [state[name] for state in states for name in SECOND_MOMENTS if isinstance(state.get(name), Tensor)]
