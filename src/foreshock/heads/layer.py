"""How a head makes logits of features, found by trying it, and how rows are written into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foreshock import distributed
from foreshock.errors import UsageError

Kind = Literal["linear", "unit rows", "cosine"]
_TRIED = 6  # random feature vectors that a head is tried on
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Layer:
    """A head, as far as its rows go.

    Attributes:
        module: it.
        kind: "linear": logits = factor * (W h) + b; "unit rows": the rows of W divided by their norms first
            (NormHead); "cosine": the features as well.
        factor: what the layer multiplies by.
        weight: (C, d) float64, a copy of the rows as they come to multiply the features, factor and all.
        bias: (C,) float64, zeros where the head has none.
        has_bias: whether it has one.
    """

    module: nn.Module
    kind: Kind
    factor: float
    weight: Tensor
    bias: Tensor
    has_bias: bool

    def logits(self, h: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Returns the head's logits (n, C) of features (n, d), float64, or those of some of its rows."""
        h = h.double()
        if self.kind == "cosine":
            h = nn.functional.normalize(h, dim=1)
        at = slice(None) if rows is None else list(rows)
        return h @ self.weight[at].mT + self.bias[at]

    def effective(self, rows: Tensor) -> Tensor:
        """Returns what rows (k, d) come to once written: themselves, or their directions at the head's own scale."""
        return rows if self.kind == "linear" else self.factor * nn.functional.normalize(rows, dim=1)


@torch.no_grad()
def layer(module: nn.Module, dim: int) -> Layer:
    """Returns how a head computes; its state is read, nothing is changed.

    Args:
        module: with `weight` (C, d) or (C, d, 1, 1), plain, weight-normalised or otherwise parametrised, and
            perhaps `bias` (C,).
        dim: d, of the features.

    Raises:
        UsageError: it has no such weight, its weight is split over ranks, or its logits are none of the known kinds.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    name = type(module).__name__
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not weight.is_floating_point():
        raise UsageError(
            f"head is {name}, without a weight of shape (classes, features): give the last layer itself, such as "
            "model.fc or model.lm_head"
        )
    if any(distributed.sharded(each) for each in module.parameters(recurse=True)):
        raise UsageError(
            f"the rows of this {name} are split over ranks (DTensor); initialise the rows before fully_shard or "
            "parallelize_module, or on the gathered state dict: rank 0's checkpoint"
        )
    if weight[0].numel() != dim:
        raise UsageError(
            f"the statistics are of {dim} features, but the head {name} has a weight of {tuple(weight.shape)}: "
            f"collect what this head reads, {weight[0].numel()} features"
        )
    rows = weight.detach().flatten(1).double()
    offset = rows.new_zeros(len(rows)) if bias is None else bias.detach().double()
    kind, factor = _kind(module, weight, rows, offset)
    rows = rows if kind == "linear" else nn.functional.normalize(rows, dim=1)
    return Layer(module, kind, factor, factor * rows, offset, bias is not None)


def _kind(module: nn.Module, weight: Tensor, rows: Tensor, bias: Tensor) -> tuple[Kind, float]:
    """Returns the kind of a head and its factor, by what it makes of some feature vectors."""
    if isinstance(module, nn.Embedding) or type(module).forward is nn.Linear.forward:
        return "linear", 1.0
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(_TRIED, rows.shape[1], generator=draw, dtype=torch.float64).to(weight.device)
    asked = h.to(weight.dtype)
    if weight.ndim > 2:
        asked = asked.reshape(*asked.shape, *[1] * (weight.ndim - 2))
    try:
        made = type(module).forward(module, asked)  # not module(...): hooks would take it for a step of the training
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"the head {type(module).__name__} cannot be tried on features of (n, d): {error}") from error
    made = made.flatten(1).double() if isinstance(made, Tensor) else made
    if not isinstance(made, Tensor) or made.shape != (_TRIED, len(rows)):
        raise UsageError(f"the head {type(module).__name__} does not turn features (n, d) into logits (n, classes)")
    h = asked.flatten(1).double()
    unit = nn.functional.normalize
    candidates: tuple[tuple[Kind, Tensor], ...] = (
        ("linear", h @ rows.mT),
        ("unit rows", h @ unit(rows, dim=1).mT),
        ("cosine", unit(h, dim=1) @ unit(rows, dim=1).mT),
    )
    close = _CLOSE.get(weight.dtype, 1e-4)
    for kind, plain in candidates:
        factor = float(((made - bias) * plain).sum() / plain.square().sum().clamp(min=1e-300))
        miss = (made - bias - factor * plain).norm() / made.norm().clamp(min=1e-300)
        if factor > 0 and float(miss) <= close:
            return kind, 1.0 if kind == "linear" and abs(factor - 1) <= close else factor
    raise UsageError(
        f"the head {type(module).__name__} is none of those known: factor * W h + b, the same with rows of norm 1, or "
        "with features of norm 1 as well; compute the rows with least_squares() and write them yourself"
    )


@torch.no_grad()
def write(head: Layer, new: list[int], rows: Tensor, bias: Tensor) -> None:
    """Writes rows (k, d) and biases (k,) of new classes where a head keeps them; no other number changes.

    Rows are those that are to multiply the features. A head with rows of norm 1 takes the direction, at the mean norm
    of its other rows; a weight-normalised one takes the direction in v and the norm in g.
    """
    module, weight = head.module, head.module.weight
    assert isinstance(weight, Tensor)
    rows = rows / head.factor if head.kind == "linear" else rows
    if head.kind != "linear":
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        others[new] = False
        norms = weight.detach().flatten(1).double().norm(dim=1)
        size = norms[others].mean() if bool(others.any()) else norms.mean()
        rows = nn.functional.normalize(rows, dim=1) * size
    split = _norm_and_direction(module)
    if split is None:
        _put(weight, new, rows)
    else:
        g, v = split
        norms = rows.norm(dim=1)
        # v as long as the others', so that its learning rate means the same
        _put(v, new, rows / norms.clamp(min=1e-300)[:, None] * v.detach().flatten(1).double().norm(dim=1).mean())
        _put(g, new, norms[:, None])
        for hook in module._forward_pre_hooks.values():  # the older nn.utils.weight_norm computes weight there
            if hasattr(hook, "compute_weight"):
                module.weight = hook.compute_weight(module)
    if head.has_bias:
        assert isinstance(module.bias, Tensor)
        _put(module.bias, new, bias)


def _norm_and_direction(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Returns g and v of a weight-normalised layer, None for a plain one.

    Raises:
        UsageError: the weight is parametrised in another way.
    """
    if parametrize.is_parametrized(module, "weight"):
        chain = module.get_submodule("parametrizations.weight")
        names = [type(each).__name__ for each in chain.children()]
        if names != ["_WeightNorm"] or chain.get_submodule("0").dim != 0:
            raise UsageError(
                f"the head's weight is parametrised by {', '.join(names)}; rows can be written into plain weights and "
                "into weight_norm(dim=0): remove the parametrisation, write the rows, and put it back"
            )
        return chain.get_parameter("original0"), chain.get_parameter("original1")
    g, v = getattr(module, "weight_g", None), getattr(module, "weight_v", None)
    return (g, v) if isinstance(g, Tensor) and isinstance(v, Tensor) else None


def _put(tensor: Tensor, new: list[int], rows: Tensor) -> None:
    at = torch.tensor(new, device=tensor.device)
    tensor[at] = rows.reshape(len(new), *tensor.shape[1:]).to(tensor.device, tensor.dtype)
