"""Masks of parameters: the entries with the largest scores, some shared out over layers and kinds of modules."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock.attribution.naming import modules_and_names
from foreshock.errors import ForeshockWarning, UsageError

# what projections are called in the models that are about, by kind
_KINDS = {
    "q": ("q_proj", "query", "q_lin", "wq"),
    "k": ("k_proj", "key", "k_lin", "wk"),
    "v": ("v_proj", "value", "v_lin", "wv"),
    "o": ("o_proj", "out_proj", "out_lin", "wo"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3", "fc1", "c_fc", "linear1"),
    "down": ("down_proj", "w2", "fc2", "linear2"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of the pool and of the parameters to select.

    Attributes:
        data: share of the examples.
        parameters: share of the entries of the parameters, k of them.
        absolute: whether entries are ranked by abs(phi), rather than phi.
        layers: share of k that is shared out evenly over the layers.
        kinds: share of k that is shared out evenly over the kinds of modules (q, k, v, o, gate, up, down, other).
        rescored: so many of the best examples are scored once more by their own gradients.

    The shares are those of the released settings of DualSFT (arXiv 2605.06166); rows that cover everything are exact
    already, so nothing is scored again by default.
    """

    data: float = 0.1
    parameters: float = 0.1
    absolute: bool = True
    layers: float = 0.2
    kinds: float = 0.2
    rescored: int = 0

    def __post_init__(self) -> None:
        for name in ("data", "parameters"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"Budget({name}): a share above 0 and up to 1, got {getattr(self, name)!r}")
        if not (self.layers >= 0 and self.kinds >= 0 and self.layers + self.kinds <= 1):
            raise UsageError(
                f"Budget(layers, kinds): shares of 0 or more that add up to 1 at most, got {self.layers!r} and "
                f"{self.kinds!r}"
            )
        if self.rescored < 0:
            raise UsageError(f"Budget(rescored): a number of examples, 0 or more, got {self.rescored!r}")


def layer_of(name: str) -> str | None:
    """Returns the layer that a parameter belongs to, by the first number in its name; None outside of layers.

    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("lm_head.weight")
    ('model.layers.3', None)
    """
    found = re.match(r"(?:[^.]*[^.\d][^.]*\.)*?\d+(?=\.)", name)
    return None if found is None else found.group()


def kind_of(name: str) -> str:
    """Returns the kind of module that a parameter belongs to, by its name.

    >>> kind_of("layers.0.self_attn.q_proj.weight"), kind_of("h.0.mlp.c_fc.bias"), kind_of("norm.weight")
    ('q', 'up', 'other')
    """
    for part in reversed(name.split(".")[:-1]):
        if part in _KIND_OF:
            return _KIND_OF[part]
    return "other"


def top_entries(scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
    """Returns a mask for each tensor, True on k entries in all: those with the largest scores.

    First each layer has its quota, then each kind of module of what is left, then the rest is taken from all of them.

    Args:
        scores: phi of each entry, by the name of the parameter; overwritten with what they were ranked by.
        budget: k, the quotas, and whether signs count.
    """
    total = sum(each.numel() for each in scores.values())
    k = max(1, round(budget.parameters * total))
    masks = {name: torch.zeros(each.shape, dtype=torch.bool, device=each.device) for name, each in scores.items()}
    for each in scores.values():
        if budget.absolute:
            each.abs_()
        each.nan_to_num_(nan=-torch.inf)
    taken = 0
    for share, group_of in ((budget.layers, layer_of), (budget.kinds, kind_of)):
        groups = _grouped(scores, group_of)
        quota = int(share * k) // max(len(groups), 1)
        for names in groups.values():
            taken += _take({name: scores[name] for name in names}, masks, quota)
    _take(scores, masks, k - taken)
    return masks


def _grouped(scores: Mapping[str, Tensor], group_of: Callable[[str], str | None]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in scores:
        group = group_of(name)
        if group is not None:
            groups.setdefault(group, []).append(name)
    return groups


def _take(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int) -> int:
    """Marks the entries with the largest scores among those that are not marked, and returns how many.

    No more than `count` of each tensor can be among them, so no copy of all scores is made.
    """
    if count <= 0:
        return 0
    values, owners, places = [], [], []
    for i, (name, each) in enumerate(scores.items()):
        free = torch.where(masks[name], -torch.inf, each).flatten()
        best = torch.topk(free, min(count, free.numel()))
        left = best.values > -torch.inf
        values.append(best.values[left].cpu())
        places.append(best.indices[left].cpu())
        owners.append(torch.full((int(left.sum()),), i))
    chosen = torch.argsort(torch.cat(values), descending=True, stable=True)[:count]
    owner, place = torch.cat(owners)[chosen], torch.cat(places)[chosen]
    for i, name in enumerate(scores):
        mine = place[owner == i].to(masks[name].device)
        masks[name].view(-1)[mine] = True
    return len(chosen)


@contextmanager
def apply_mask(
    model: nn.Module, masks: Mapping[str, Tensor], *, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[None]:
    """Lets gradients of the marked entries alone through, inside the block.

    A hook on each parameter multiplies its gradient by its mask; parameters that have none get no gradients through
    either. The paper begins such a training from the weights before the warm-up, with a fresh optimizer and without
    weight decay, as decay and old momentum move entries that get no gradient.

    Args:
        model: the model.
        masks: by the names of its parameters, e.g. `selection.mask`.
        optimizer: looked at for what would move masked entries all the same.

    Raises:
        UsageError: a mask for a parameter that the model does not have, or of another shape.
    """
    params = list(model.parameters())
    _, names = modules_and_names(model, params, [])
    named = dict(zip(names, params, strict=True))
    unknown = [name for name in masks if name not in named]
    if unknown:
        raise UsageError(
            f"apply_mask(masks): the model has no parameter {unknown[0]!r}; it has {', '.join(names[:5])}, ..."
        )
    for name, mask in masks.items():
        if mask.shape != named[name].shape:
            raise UsageError(
                f"apply_mask(masks): {name} has shape {tuple(named[name].shape)}, its mask {tuple(mask.shape)}"
            )
    _warned(optimizer)
    handles = []
    try:
        for name, param in named.items():
            if param.requires_grad:
                mask = masks.get(name, torch.zeros((), dtype=torch.bool)).to(param.device)
                handles.append(param.register_hook(_masking(mask)))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda grad: torch.where(mask, grad, 0.0)  # not a product: 0 * nan is nan


def _warned(optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is None:
        return
    if any(group.get("weight_decay", 0.0) for group in optimizer.param_groups):
        warnings.warn(
            "weight decay moves parameters whose gradient is masked as well: set weight_decay=0", ForeshockWarning,
            stacklevel=4,
        )  # fmt: skip
    if any("exp_avg" in state or state.get("momentum_buffer") is not None for state in optimizer.state.values()):
        warnings.warn(
            "momentum from before the mask moves parameters whose gradient is masked as well: begin with a fresh "
            "optimizer",
            ForeshockWarning, stacklevel=4,
        )  # fmt: skip
