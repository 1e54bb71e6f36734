"""The part of a softmax head that no prediction depends on, taken out: `recentre_(model.head)` after each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError

# State that is a running sum of gradients, by its name in torch's optimizers: Adam, AdamW, NAdam, RAdam, Adamax; SGD,
# RMSprop, Muon.
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")


@torch.no_grad()
def recentre_(
    head: nn.Linear | Tensor, bias: Tensor | None = None, *, optimizer: torch.optim.Optimizer | None = None
) -> Tensor:
    """Subtracts the mean over the classes from a head, in place, and returns the mean that was subtracted, W_G.

        W[k] := W[k] - W_G,  b[k] := b[k] - mean(b),   W_G = (1/K) sum_k W[k]

    All logits of a row move by one number, W_G . h + mean(b), so softmax, its losses and the predictions stay what they
    were, to the rounding of the parameters' own type. Called after `optimizer.step()` it keeps W_G from inflating,
    whatever drives it: absorption in low precision, or the frequencies of a language model's tokens. It does not undo
    the absorption itself (right classes still get no gradient): `foreshock.cross_entropy` does.

    With the optimizer given its first moments of these tensors are centred too. A moment's class mean is the speed that
    W_G still has; left in, the next step would put back lr times that. Second moments are left alone: they are the
    scale of each coordinate, not a direction. As Adam divides by that scale element by element, an update made from
    centred moments does not sum to zero itself, so one call at the start is not enough: call it after each step, or
    every few.

    Not for a head whose weight is anything else's as well. With **tied embeddings** the same rows are the tokens'
    input, and subtracting their mean changes what the network reads; this cannot be seen from the tensor, so it is not
    refused. Not for independent sigmoids or any loss that tells logits from logits + c, either.

    Args:
        head: the last linear layer, with its bias; or its weight, (K, d), the classes first.
        bias: (K,), where the weight is given; a layer brings its own.
        optimizer: the one that holds these parameters.

    Returns:
        (d,), in the weight's type.

    Raises:
        UsageError: shapes that are no head's; a weight that is computed from others (a parametrization), where a change
            in place would be lost; a parameter that the optimizer does not hold.

    Source: Liu, Cao, Li, Zhou 2026, arXiv 2605.06152, section 5; the moments are ours.

    >>> head = nn.Linear(2, 3)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 8.0]]))
    >>> recentre_(head), head.weight.data
    (tensor([2., 6.]), tensor([[-1., -1.],
            [ 0., -1.],
            [ 1.,  2.]]))
    """
    if isinstance(head, nn.Linear):
        if bias is not None:
            raise UsageError("recentre_(layer, bias): a layer brings its own bias; give the weight to name another")
        if "weight" not in head._parameters:
            raise UsageError("head.weight is computed from other tensors (a parametrization): recentre those instead")
        weight, bias = head.weight, head.bias
    else:
        weight = head
    _check(weight, bias)
    tensors = [weight] if bias is None else [weight, bias]
    states = [_moments(tensor, optimizer) for tensor in tensors] if optimizer is not None else []
    mean = _centre(weight)
    for tensor in tensors[1:] + [moment for moments in states for moment in moments]:
        _centre(tensor)
    return mean


def _centre(tensor: Tensor) -> Tensor:
    """Subtracts the mean over the first dimension and returns it; half precision is averaged in float32."""
    mean = tensor.mean(0, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    tensor.copy_(tensor - mean)
    return mean.to(tensor.dtype)


def _moments(tensor: Tensor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns the first moments that an optimizer has of a parameter; none before its first step."""
    if not any(tensor is param for group in optimizer.param_groups for param in group["params"]):
        raise UsageError(
            f"optimizer: {type(optimizer).__name__} does not hold the head's tensor of shape {tuple(tensor.shape)}; "
            "give the one that updates it, and the parameter itself, no view or copy"
        )
    state = optimizer.state.get(tensor, {})
    return [state[name] for name in FIRST_MOMENTS if isinstance(state.get(name), Tensor)]


def _check(weight: Tensor, bias: Tensor | None) -> None:
    """Raises UsageError for what is no head."""
    if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
        raise UsageError(f"head is {weight!r:.80}; it is an nn.Linear or its weight, (K, d), of a floating type")
    if weight.ndim != 2 or len(weight) < 2:
        raise UsageError(f"head has shape {tuple(weight.shape)}; a softmax head is (K, d) with K >= 2 classes")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias has shape {tuple(bias.shape)}; this head has {len(weight)} classes")
    if not weight.is_leaf:
        raise UsageError("head was computed from other tensors, a change in place would be lost: give the parameter")
