"""Who did it: the change of a loss over one step, split exactly over examples and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.attribution.captured import Step
from foreshock.attribution.culprits import pushed
from foreshock.attribution.directions import project
from foreshock.attribution.evaluate import Evaluation, Losses, listed
from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.path import CLOSE, column, integrate
from foreshock.attribution.result import Attribution
from foreshock.attribution.split import Source, source_of
from foreshock.curvature.determinism import dropping_modules
from foreshock.errors import UsageError

__all__ = ["attribute", "checked", "incomplete", "measured", "uniform"]

FAINT = 1e-4  # |dL| / L below which float32 cannot show columns to 1e-3 (its rounding is 1.2e-7 L): float64 then

Nodes = int | Literal["auto"]


def attribute(
    per_example_loss: Losses,
    params: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    *,
    names: nn.Module | Sequence[str] | None = None,
    optimizer: Any = None,
    grads: Sequence[Tensor | None] | None = None,
    culprit_loss: Losses | None = None,
    weights: Tensor | None = None,
    directions: Mapping[str, Any] | None = None,
    nodes: Nodes = "auto",
    dtype: torch.dtype | None = None,
) -> Attribution:
    """Returns what moved a loss over a step: which examples suffered, which pushed, which tensors.

    The path gradient e = integral_0^1 grad L(theta + s delta) ds gives every entry of the step its exact share::

        column_j = e_j delta_j,   sum_j column_j = <e, delta> = L(after) - L(before)

    The victims are the examples whose loss changed, sum_i w_i (l_i(after) - l_i(before)). The culprits need the
    optimizer: its step is split into one part for each example, momentum and decay, delta = sum_i P_i + history +
    decay, with the denominator as it was, and culprit_i = <e, P_i>. They explain the step that was taken; what would
    have come without an example is another question (`counterfactual_rows`).

    Everything is put back, bitwise: parameters, `.grad`, random streams, modes, buffers. Dropout drops the same at
    every point, by the random streams as they are when this is called.

    Args:
        per_example_loss: called without arguments, returns the losses of a batch at the parameters as they are, (n,).
        params: the parameters, which it uses.
        before, after: their values around the step, in the same order.
        names: the model, or names for the parameters.
        optimizer: who took the step: the step that `capture` kept, or the optimizer or its `state_dict()` as before
            or as after the step.
        grads: the gradients that the optimizer consumed, where they were kept; else what lies in `.grad`, if it is the
            batch's but for a factor (clipping), or the batch's times the number that explains the step.
        culprit_loss: the losses of the batch that the step was taken on, where `per_example_loss` is of another.
        weights: of the examples in the loss, (n,); 1/n by default.
        directions: {"mu_G": ("head.weight", mu), "u1": [one tensor for each parameter]}: parts of the step along them.
        nodes: gradients along the step, of one Gauss-Legendre rule; "auto" doubles them where the loss bends until
            columns and change agree to 1e-3.
        dtype: float64 computes in float64 whatever the model's type is; by default only where the change is below
            1e-4 of the loss.

    Raises:
        UsageError: arguments that do not belong together, or losses that are not finite.

    Source: `DualSFT`, arXiv 2605.06166, has the matrix of examples and parameters with e at theta alone; the path
    makes it exact. Sundararajan et al. 2017 (arXiv 1703.01365) integrate over inputs in the same way.

    >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    >>> found = attribute(lambda: (x @ w).square() / 2, [w], [w.detach()], [torch.zeros(2, dtype=torch.float64)])
    >>> found.rows.tolist(), round(found.total, 12)
    ([-0.25, -2.25], -2.5)
    """
    leaves, start, end = listed(params, before, after)
    count = checked(nodes)
    source = _source(optimizer, leaves, grads)
    own = culprit_loss or per_example_loss
    modules, labels = modules_and_names(names, leaves, (per_example_loss, own))
    evaluation, values, notes = measured(per_example_loss, leaves, (start, end), modules, dtype)
    first, last = values
    scale = uniform(len(first), first) if weights is None else _given(weights, len(first), first)
    with evaluation.opened():
        path = integrate(evaluation, per_example_loss, scale, (start, end), values, count)
        rows = ((last - first) * scale).cpu()
        change = float(rows.sum())
        columns = {
            name: column(e, a, b) for name, e, a, b in zip(labels, path.gradient, start, end, strict=True)
        }  # fmt: skip
        result: dict[str, Any] = {}
        if source is not None:
            evaluation.put(start, end, 0.0)
            shares = scale if own is per_example_loss else uniform(len(evaluation.losses(own)), first)
            model = names if isinstance(names, nn.Module) else None
            found = pushed(evaluation, own, shares, source, (start, end), path.gradient, model=model)
            batch = 0.0 if found.rows is None else float(found.rows.sum())
            result = {
                "culprits": found.rows, "history": found.history, "decay": found.decay, "l2": found.l2,
                "rest": path.total - batch - found.history - found.decay - found.l2,
                "coverage": found.coverage, "clipped": found.clipped,
            }  # fmt: skip
            notes.extend(found.notes)
        projections = project(directions or {}, labels, path.gradient, start, end)
    if count is None:
        notes.extend(incomplete(path.total, change, path.nodes))
    return Attribution(
        rows=rows, columns=columns, total=path.total, measured=change, nodes=path.nodes, projections=projections,
        loss=float((first * scale).sum()), notes=tuple(dict.fromkeys(notes)), **result,
    )  # fmt: skip


def measured(
    losses: Losses, params: Sequence[Tensor], ends: tuple[Sequence[Tensor], Sequence[Tensor]],
    modules: Sequence[nn.Module], dtype: torch.dtype | None,
) -> tuple[Evaluation, tuple[Tensor, Tensor], list[str]]:  # fmt: skip
    """Returns an evaluation in a type in which the change can be seen, the losses at both ends, (n,), and notes.

    Raises:
        UsageError: losses that are not finite, or of another number at each end.
    """
    if dtype is not None and (dtype not in (torch.float32, torch.float64)):
        raise UsageError(f"attribute(dtype): torch.float32, torch.float64 or None, got {dtype!r}")
    evaluation, notes = Evaluation(params, modules, dtype), []
    try:
        first, last = _ends(evaluation, losses, ends)
    except Exception as error:
        narrow = params[0].dtype
        if dtype is not None or narrow not in (torch.float16, torch.bfloat16) or isinstance(error, UsageError):
            raise
        evaluation = Evaluation(params, modules, narrow)
        first, last = _ends(evaluation, losses, ends)
        notes.append(f"computed in {narrow}, in which the path is coarse: float32 fails here ({error})")
    faint = float((last - first).mean().abs()) < FAINT * float(first.abs().mean())
    if dtype is None and faint and evaluation.eps > torch.finfo(torch.float64).eps and params[0].device.type != "mps":
        wide = Evaluation(params, modules, torch.float64)
        try:
            first, last = _ends(wide, losses, ends)
        except Exception as error:
            notes.append(f"the change is less than {FAINT:g} of the loss, and float64 cannot be computed in: {error}")
        else:
            evaluation = wide
            notes.append(f"the change is less than {FAINT:g} of the loss: everything is computed in float64")
    dropping = ", ".join(dropping_modules(modules))
    if dropping:
        notes.append(f"dropout is active ({dropping}): one draw, the same at every point of the step")
    if distributed.running():
        notes.append("several processes: rows and loss are of this one's batch, columns are not added up over ranks")
    return evaluation, (first, last), notes


def _ends(
    evaluation: Evaluation, losses: Losses, ends: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    with evaluation.opened():
        evaluation.put(*ends, 0.0)
        first = evaluation.losses(losses)
        evaluation.put(*ends, 1.0)
        last = evaluation.losses(losses)
    if first.shape != last.shape:
        raise UsageError(
            f"per_example_loss: gave {len(first)} losses before the step and {len(last)} after it; it must be of one "
            "fixed batch"
        )
    for when, found in (("before", first), ("after", last)):
        bad = int((~found.isfinite()).sum())
        if bad:
            raise UsageError(
                f"per_example_loss: {bad} of {len(found)} losses are not finite {when} the step, so there is no change "
                "to split; leave those examples out, or look at the first step with a non-finite value"
            )
    return first, last


def _source(
    optimizer: Any, params: Sequence[Tensor], grads: Sequence[Tensor | None] | None
) -> tuple[Source, Sequence[Tensor | None] | None] | None:
    if grads is not None and (optimizer is None or len(grads) != len(params)):
        raise UsageError(
            f"attribute(grads): one for each parameter, with optimizer=; got {len(grads)} for {len(params)}"
        )
    if optimizer is None:
        return None
    if isinstance(optimizer, Step):
        source, consumed = optimizer.of(params)
        return source, consumed if grads is None else grads
    return source_of(optimizer, params), grads


def uniform(n: int, like: Tensor) -> Tensor:
    """Returns the weights of a mean over n examples."""
    return torch.full((n,), 1.0 / n, dtype=like.dtype, device=like.device)


def _given(weights: Tensor, n: int, like: Tensor) -> Tensor:
    if tuple(weights.shape) != (n,):
        raise UsageError(f"attribute(weights): shape ({n},), one for each example, got {tuple(weights.shape)}")
    return weights.detach().to(like)


def checked(nodes: Nodes) -> int | None:
    """Returns how many nodes are wanted, None for as many as are needed.

    Raises:
        UsageError: neither.
    """
    if nodes == "auto":
        return None
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise UsageError(f"attribute(nodes): 'auto' or a positive number of gradients, got {nodes!r}")
    return nodes


def incomplete(total: float, change: float, nodes: int) -> list[str]:
    """Returns a note where columns and change do not agree."""
    if abs(total - change) <= CLOSE * abs(change):
        return []
    return [
        f"the columns add up to {total:.6g}, the loss changed by {change:.6g}, after {nodes} gradients: kinks (ReLU, "
        "max) or the precision limit the path; float64 helps against the latter (dtype=torch.float64)"
    ]
