"""The Hessian of a loss as an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from foreshock.curvature.graph import KeptGraph
from foreshock.curvature.loss_curvature import Closure, LossCurvature, listed, repeatable
from foreshock.curvature.objective import Live
from foreshock.errors import UsageError


class Hessian(LossCurvature):
    """The Hessian of a loss at the parameters as they are at the first product.

    Nothing that a training could notice is left behind: the closure's random numbers, buffers, modes and gradients are
    put back, the graph of a live loss stays usable for its own `backward()`. Forward hooks are part of the function
    and are called; backward hooks are silent (`graph.KeptGraph` says which cannot be).

    Args:
        loss: a scalar with its graph, which is used and not freed; or a closure that computes it, `closure()`, or with
            `data` `closure(batch)`, the mean over the batch; or both, `(loss, closure)`: the closure serves where the
            graph of the loss cannot be differentiated twice.
        params: what it is differentiated by, each requiring gradients.
        data: the batches of a whole data set: a DataLoader, a list, or `Batches(...)` with weights and progress.
        model: the module that computes the loss; by default those that the closure's code names. It is looked at for
            dropout and batch normalisation, and put back as it was.
        route: "auto", "kept", "fresh", "differences" or "central", see `routes`.
        deterministic: "check" evaluates a closure twice and refuses what differs, "fix" replays its random numbers,
            "trust" spares the second evaluation.

    Raises:
        UsageError: at construction or at the first product; the message says what is wrong with the arguments, the
            loss, its gradient or its graph, and what to do.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian = Hessian(lambda: (w ** 3).sum(), [w])
    >>> hessian @ [torch.tensor([1.0, 1.0])]
    [tensor([ 6., 12.])]
    """

    def __init__(
        self,
        loss: Tensor | Closure | tuple[Tensor, Closure],
        params: Sequence[Tensor],
        *,
        data: Iterable[Any] | None = None,
        model: nn.Module | None = None,
        route: str = "auto",
        deterministic: str = "check",
    ) -> None:
        live, closure = _parts(loss)
        if data is not None and (closure is None or live is not None):
            raise UsageError(
                "data: batches need a function of a batch, closure(batch); a loss tensor belongs to one batch already"
            )
        params = listed(params)
        super().__init__(
            params,
            (
                None if live is None else Live(live, params, model),
                None if closure is None else repeatable(closure, params, data, model),
            ),
            KeptGraph,
            wanted=route,
            mode=deterministic,
        )


def _parts(loss: Any) -> tuple[Tensor | None, Closure | None]:
    if isinstance(loss, tuple) and len(loss) == 2 and isinstance(loss[0], Tensor) and callable(loss[1]):
        return loss[0], loss[1]
    if isinstance(loss, Tensor):
        return loss, None
    if callable(loss):
        return None, loss
    raise UsageError(
        "loss: a scalar tensor with its graph, a function that computes one, or both as (loss, closure); got "
        f"{type(loss).__name__}"
    )
