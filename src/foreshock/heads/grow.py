"""More rows in a head or an embedding, tied or not: the old rows bit for bit, with their optimizer state."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.heads.state import grown_state

_COUNTS = ("out_features", "num_embeddings", "out_channels")  # where layers say how many rows they have


@torch.no_grad()
def grow_rows(
    layer: nn.Module,
    n: int,
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> range:
    """Adds n rows to a layer in place, and returns their ids, ready for `init_new_rows`.

    The old rows stay bit for bit. New rows of an embedding, tied to a head or not, are the mean of the old ones: what a
    language model then says for them is bounded by what it said before (Hewitt 2021, "Initializing new word embeddings
    for pretrained language models"). Those of other layers are drawn as `nn.Linear` draws them, their biases 0.

    Parameters are replaced by longer ones: in the layer, wherever `model` holds the same (so that tied weights stay
    tied), and in `optimizer`, whose state of the old rows is kept. Hooks on the old parameters are left behind. Where a
    model resizes itself, as `resize_token_embeddings` of Transformers does, that will do as well.

    Args:
        layer: `nn.Linear`, `nn.Embedding`, a convolution, weight-normalised ones, or any layer whose parameters all
            have one row for each class.
        n: rows to add.
        model: that the layer is part of; needed where its weight is shared.
        optimizer: that trains it.
        generator: for the rows that are drawn; seed 0 without it.

    Raises:
        UsageError: n below 1, a layer without rows, parameters split over ranks, or a model wrapped for ranks.

    >>> head = nn.Linear(4, 3)
    >>> grow_rows(head, 2), head
    (range(3, 5), Linear(in_features=4, out_features=5, bias=True))
    """
    if n < 1:
        raise UsageError(f"n is the number of rows to add, at least 1; got {n}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError("DistributedDataParallel knows the old parameters: grow model.module, then wrap it again")
    params = [param for param in layer.parameters() if param.ndim]
    if not params:
        raise UsageError(f"{type(layer).__name__} has no parameters with rows; give the last layer or the embedding")
    if any(distributed.sharded(param) for param in params):
        raise UsageError(
            "the layer's rows are split over ranks (DTensor): grow it before fully_shard or parallelize_module"
        )
    rows = {len(param) for param in params}
    if len(rows) != 1:
        raise UsageError(
            f"the parameters of {type(layer).__name__} have {sorted(rows)} rows; give the layer that makes the logits"
        )
    count = rows.pop()
    whole = layer if model is None else model
    embeds = any(
        isinstance(module, nn.Embedding) and any(module.weight is param for param in params)
        for part in {layer, whole}
        for module in part.modules()
    )
    draw = generator if generator is not None else torch.Generator().manual_seed(0)
    for param in params:
        grown = nn.Parameter(_longer(param, n, embeds, draw), requires_grad=param.requires_grad)
        if param.grad is not None:
            grown.grad = torch.cat([param.grad, param.grad.new_zeros(n, *param.shape[1:])])
        for module, name in {*_places(layer, param), *_places(whole, param)}:
            module._parameters[name] = grown
            for each in _COUNTS:
                if name in ("weight", "bias") and getattr(module, each, None) == count:
                    setattr(module, each, count + n)
        if optimizer is not None:
            grown_state(optimizer, param, grown)
    for each in _COUNTS:  # of a layer whose weight is parametrised, and so held by another module
        if getattr(layer, each, None) == count:
            setattr(layer, each, count + n)
    for hook in layer._forward_pre_hooks.values():  # the older nn.utils.weight_norm computes weight there
        if hasattr(hook, "compute_weight"):
            layer.weight = hook.compute_weight(layer)
    config = getattr(model, "config", None)
    if embeds and getattr(config, "vocab_size", None) == count:
        config.vocab_size = count + n  # type: ignore[union-attr]
    return range(count, count + n)


def _places(root: nn.Module, param: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    """Yields every module under root that holds a parameter, and its name there."""
    for module in root.modules():
        for name, held in module._parameters.items():
            if held is param:
                yield module, name


def _longer(param: Tensor, n: int, embeds: bool, draw: torch.Generator) -> Tensor:
    """Returns a parameter with n more rows."""
    shape = (n, *param.shape[1:])
    if embeds and len(param):
        fresh = param.double().mean(0, keepdim=True).expand(shape)
    elif param.ndim == 1:
        fresh = torch.zeros(shape, dtype=torch.float64)
    elif param[0].numel() == 1:  # the norms g of a weight-normalised layer
        fresh = param.double().mean(0, keepdim=True).expand(shape)
    else:
        bound = param[0].numel() ** -0.5
        fresh = (torch.rand(shape, generator=draw, dtype=torch.float64, device=draw.device) * 2 - 1) * bound
    return torch.cat([param.detach(), fresh.to(param.device, param.dtype)])
