"""What a selection is for: the gradient of a validation loss, of keeping a prior, or of both; and curvature for it.

Source: DualSFT, One interaction matrix, two selectors, arXiv 2605.06166: v_target = lambda_new v_new + lambda_prior
v_prior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.attribution.asked import Asked
from foreshock.attribution.pool import passed
from foreshock.errors import UsageError

Batch = Any


def validation_direction(
    per_example_loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    params: Sequence[Tensor],
    *,
    model: nn.Module | None = None,
) -> list[Tensor]:
    """Returns v_new, the mean gradient over all examples of the batches; float32 or wider, like the parameters.

    One gradient for each batch; nothing is left behind.

    Args:
        per_example_loss: called with a batch, returns the losses of its examples, shape (n,), with their graph.
        batches: of the validation data.
        params: what the losses are differentiated by.
        model: the module that is run; by default those that the closure's code names.

    Raises:
        UsageError: there are no batches, or the closure does not return one loss for each example.
    """
    return _mean(batches, per_example_loss, None, params, model, [per_example_loss])


def prior_direction(
    logits: Callable[[Batch], Tensor],
    base_logits: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    params: Sequence[Tensor],
    *,
    tau: float = 2.0,
    trust: str = "confidence",
) -> list[Tensor]:
    """Returns v_prior, the gradient of how far the model has gone from its base on anchor examples, like `params`.

    The mean over the anchors, weighted by trust in the base, of tau^2 KL(softmax(base/tau) || softmax(model/tau)), each
    the mean over an example's positions (tokens).

    Args:
        logits: called with a batch, returns the model's logits with their graph, shape (n, ..., classes).
        base_logits: the same of the base model; called without gradients.
        batches: of anchor examples.
        params: what is differentiated by.
        tau: temperature; 2 in the paper.
        trust: weight of an example: "confidence", the mean of the base's largest probability; "entropy", 1 over (1 +
            the mean of the base's entropy in nats); "uniform".

    Raises:
        UsageError: another trust, a temperature that is not positive, logits of different shapes, no batches.
    """
    if trust not in ("confidence", "entropy", "uniform"):
        raise UsageError(f"prior_direction(trust): 'confidence', 'entropy' or 'uniform', got {trust!r}")
    if not tau > 0:
        raise UsageError(f"prior_direction(tau): a positive temperature, got {tau!r}")

    def base(batch: Batch) -> Tensor:
        with torch.no_grad():
            return _wide(base_logits(batch))

    def divergence(batch: Batch) -> Tensor:
        theirs, ours = base(batch), _wide(logits(batch))
        if theirs.shape != ours.shape or ours.dim() < 2:
            raise UsageError(
                f"prior_direction(logits): logits of shape (n, ..., classes) from both, got {tuple(ours.shape)} and "
                f"{tuple(theirs.shape)}"
            )
        terms = F.kl_div(
            F.log_softmax(ours / tau, -1), F.log_softmax(theirs / tau, -1), reduction="none", log_target=True
        )
        return tau**2 * terms.sum(-1).flatten(1).mean(1) if ours.dim() > 2 else tau**2 * terms.sum(-1)

    def weight(batch: Batch) -> Tensor:
        logs = F.log_softmax(base(batch), -1)
        if trust == "uniform":
            return logs.new_ones(len(logs))
        each = logs.amax(-1).exp() if trust == "confidence" else -(logs.exp() * logs).sum(-1)
        each = each.reshape(len(each), -1).mean(1)
        return each if trust == "confidence" else 1 / (1 + each)

    return _mean(batches, divergence, weight, params, None, [logits, base_logits])


def combined(*parts: tuple[float, Sequence[Tensor]]) -> list[Tensor]:
    """Returns sum_k lambda_k v_k, e.g. `combined((1.0, new), (0.2, prior))`, the released weights of the paper.

    >>> [each.tolist() for each in combined((1.0, [torch.tensor([1.0, 2.0])]), (0.5, [torch.tensor([2.0, 0.0])]))]
    [[2.0, 2.0]]
    """
    first = [_wide(each) * parts[0][0] for each in parts[0][1]]
    for weight, direction in parts[1:]:
        first = [each + weight * _wide(other) for each, other in zip(first, direction, strict=True)]
    return first


def adam_curvature(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], *, examples: int) -> list[Tensor]:
    """Returns the diagonal of the Fisher matrix that Adam's moments estimate, like the parameters: a curvature.

    `exp_avg_sq` itself is none: it is the mean square of the gradient of a *batch*, of B examples, and without its bias
    correction. With vhat and mhat the corrected moments, E g_B^2 = F/B + (1 - 1/B) (E g)^2 gives

        F_j = E g_nj^2 = B (vhat_j - mhat_j^2) + mhat_j^2,   not below mhat_j^2

    which near a minimum, for losses that are log-likelihoods, is the diagonal of the Hessian.

    Args:
        optimizer: Adam or AdamW, after some steps.
        params: among its parameters.
        examples: B, the examples whose mean gradient one step used, over all ranks and micro-batches.

    Raises:
        UsageError: no moments, or a batch of none.
    """
    if examples < 1:
        raise UsageError(f"adam_curvature(examples): the examples of a batch, 1 or more, got {examples!r}")
    groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    found = []
    for i, param in enumerate(params):
        state = optimizer.state.get(param, {})
        if id(param) not in groups or "exp_avg_sq" not in state:
            raise UsageError(
                f"adam_curvature(params): entry {i} has no exp_avg_sq in this optimizer; give an Adam that has taken "
                "steps"
            )
        beta1, beta2 = (float(beta) for beta in groups[id(param)]["betas"])
        step = float(state["step"])
        mean = _wide(state["exp_avg"]) / (1 - beta1**step)
        square = _wide(state["exp_avg_sq"]) / (1 - beta2**step)
        found.append((examples * (square - mean.square())).clamp(min=0.0) + mean.square())
    return found


def _mean(
    batches: Iterable[Batch],
    losses: Callable[[Batch], Tensor],
    weight: Callable[[Batch], Tensor] | None,
    params: Sequence[Tensor],
    model: nn.Module | None,
    looked: Sequence[Callable[..., Tensor]],
) -> list[Tensor]:
    """Returns the mean gradient of the losses of the examples of all batches, weighted."""
    total = [torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32)) for param in params]

    def visit(batch: Batch) -> float:
        sums = []

        def weighted() -> Tensor:
            found = losses(batch)
            w = torch.ones_like(found) if weight is None else weight(batch).to(found)
            sums.append(float(w.detach().double().sum()))
            return found * w.detach()

        grads = Asked(weighted, params, {}, model, looked).gradient(range(len(params)))
        for sum_, grad in zip(total, grads, strict=True):
            if grad is not None:
                sum_ += grad.to(sum_)
        return sums[-1]

    sum_of_weights = sum(passed(batches, visit))
    if not sum_of_weights > 0:
        raise UsageError(f"batches: the weights of their examples add up to {sum_of_weights}")
    return [each / sum_of_weights for each in total]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
