"""Which examples and which parameters to train on for a target: two selectors from one interaction matrix.

With v the gradient of a target loss, g_n the gradient of example n and G = sum_n g_n over the pool, a step -eta G
lowers the target loss by eta <v, G> to first order, and with a diagonal curvature c by

    eta <v, G> - eta^2/2 sum_j c_j G_j^2   =   eta <u, G>,      u = v - (eta/2) c * G

    M_nj = u_j g_nj                          the interaction matrix, of which only the sums are formed
    phi_j = sum_n M_nj = u_j G_j             score of a parameter
    psi_n = sum_j M_nj = <u, g_n>            score of an example
    sum_j phi_j = sum_n psi_n = <u, G>

The factor 1/2 makes psi the Shapley values of the quadratic game in which a set S of examples earns
eta <v, G_S> - eta^2/2 sum_j c_j G_Sj^2; the marginal gain of the last example would have 1.

Source: DualSFT, one interaction matrix and two selectors, arXiv 2605.06166, method. Deviations: 1. the common factor
eta is dropped and scores are float32 or wider: in float16, eta v of 2e-5 times 1e-4 is 0 in every entry; 2. rows cover
every parameter, and are exact (`rows.py`), so that no example needs to be scored again; 3. c has to be a curvature:
exp_avg_sq as it is changes nothing (see `adam_curvature`), which is noticed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.attribution.asked import Answer, Asked, inner
from foreshock.attribution.ghost import Known
from foreshock.attribution.mask import Budget, top_entries
from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.pool import passed
from foreshock.attribution.rows import moves_of
from foreshock.errors import ForeshockWarning, UsageError

Batch = Any
# A second-order term whose norm is below this share of the first-order term's is lost in the rounding of float32.
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Selection:
    """Scores of examples and parameters, and what they select.

    Attributes:
        psi: score of each example, shape (N,), in the order of the pool; float32 or wider, on the CPU.
        phi: sum of the scores of the entries of each tensor, by name.
        examples: the selected ones, best first: places in the pool, shape (k,).
        mask: for each tensor which of its entries are selected.
        coverage: covered <u, G> over all of <u, G>; 1 as all parameters are accounted for.
        sum_psi: sum_n psi_n.
        sum_phi: sum_j phi_j.
        along: <u, G>; these three are equal up to rounding.
        second_order: norm of the second-order term over that of the first-order term, 0 for order 1.
        method: how the rows were obtained.
        notes: what has to be known to read the scores.
    """

    psi: Tensor
    phi: dict[str, float]
    examples: Tensor
    mask: dict[str, Tensor]
    coverage: float
    sum_psi: float
    sum_phi: float
    along: float
    second_order: float
    method: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the mask as plain JSON values, and how much of each tensor the mask selects."""
        return {
            "psi": self.psi.tolist(), "phi": dict(self.phi), "examples": self.examples.tolist(),
            "selected": {name: float(mask.float().mean()) for name, mask in self.mask.items()},
            "coverage": self.coverage, "sum_psi": self.sum_psi, "sum_phi": self.sum_phi, "along": self.along,
            "second_order": self.second_order, "method": self.method, "notes": list(self.notes),
        }  # fmt: skip


def select(
    per_example_loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    target: Sequence[Tensor],
    *,
    params: Sequence[Tensor] | None = None,
    model: nn.Module | None = None,
    order: int = 1,
    lr: float | None = None,
    curvature: Sequence[Tensor] | None = None,
    budget: Budget | None = None,
) -> Selection:
    """Returns scores of all examples of a pool and of all parameters for a target, and the best of both.

    One pass over the pool, of about 1.5 gradients a batch, and for order 2 another one before it, of one; five vectors
    of the size of the model at most. Nothing is left behind. On several ranks each has its own part of the pool: psi
    and `examples` are the rank's, G is added up over the ranks of the model's wrapper (or over all where parameters are
    sharded), and with it phi and the mask.

    Args:
        per_example_loss: called with a batch, returns the losses of its examples, shape (n,), with their graph.
        batches: of the pool; for order 2, and for scoring again, gone through twice, in the same order.
        target: v, tensors like the parameters, e.g. of `validation_direction`; float16 is up-cast.
        params: what the losses are differentiated by; by default the model's that require gradients.
        model: the module that is run; by default those that the closure's code names.
        order: 1, or 2 for the term with the curvature.
        lr: eta, of the step -eta G with the SUM of the gradients: a step with their mean has eta/N. For order 2 alone,
            as a common factor is dropped.
        curvature: c, tensors like the parameters, in units of loss per parameter squared: the diagonal of the target's
            Hessian (`foreshock.curvature.diagonal`), or `adam_curvature`. For order 2 alone.
        budget: shares to select and quotas; a tenth of each by default.

    Raises:
        UsageError: arguments that do not belong together, a pool that can be gone through only once, no examples.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> pool = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0]])]
    >>> found = select(lambda x: x @ w, pool, [torch.tensor([1.0, 0.5])], params=[w], budget=Budget(data=0.3))
    >>> found.psi.tolist(), found.examples.tolist(), found.phi
    ([1.0, 1.0, 1.5], [2], {'params.0': 3.5})
    """
    budget = Budget() if budget is None else budget
    params = _params(params, model)
    if order not in (1, 2):
        raise UsageError(f"select(order): 1 or 2, got {order!r}")
    if order == 1 and not (lr is None and curvature is None):
        raise UsageError("select(order): lr and curvature are for order 2; leave them out, or give order=2")
    v = _like(target, params, "target")
    looked: list[Callable[..., Tensor]] = [per_example_loss]
    roots, names = modules_and_names(model, params, looked)

    known = Known()

    def asked(batch: Batch, moves: dict[int, Tensor]) -> Asked:
        return Asked(lambda: per_example_loss(batch), params, moves, model, looked, known)

    G = [torch.zeros_like(each) for each in v]

    def summed(grads: Sequence[Tensor | None]) -> None:
        for sum_, grad in zip(G, grads, strict=True):
            if grad is not None:
                sum_ += grad.to(sum_)

    def first_order(batch: Batch) -> Answer:
        answer, grads = asked(batch, moves).both()
        summed(grads)
        return answer

    group = distributed.group_of(module for root in roots for module in root.modules())
    if order == 1:
        u, second, moves = v, 0.0, moves_of(params, v)
        found = passed(batches, first_order)
        _over_ranks(G, group)
    else:
        passed(batches, lambda batch: summed(asked(batch, {}).gradient(range(len(params)))))
        _over_ranks(G, group)
        u, second = _second_order(v, G, params, lr, curvature)
        moves = moves_of(params, u)
        found = passed(batches, lambda batch: asked(batch, moves).answer("auto"))
    psi = torch.cat([each.values.detach().cpu() for each in found])
    if budget.rescored:
        best = iter(_split(_ranked(psi)[: budget.rescored], found))
        again = passed(batches, lambda batch: _once_more(asked(batch, moves), next(best)))
        exact = torch.cat([each.cpu() for each in again])
        psi = torch.where(torch.isnan(exact), psi, exact)
    along = sum(inner(each, total) for each, total in zip(u, G, strict=True))
    scores = {name: total.mul_(each) for name, each, total in zip(names, u, G, strict=True)}
    phi = {name: inner(each, each.new_ones(()).expand_as(each)) for name, each in scores.items()}
    sum_psi = float(psi.double().sum())
    if group is not None:
        sum_psi = float(distributed.sum_(torch.tensor(sum_psi, dtype=torch.float64, device=v[0].device), group))
    kept = max(1, round(budget.data * len(psi)))
    return Selection(
        psi=psi, phi=phi, examples=_ranked(psi)[:kept],
        mask=top_entries(scores, budget), coverage=1.0, sum_psi=sum_psi, sum_phi=sum(phi.values()), along=along,
        second_order=second, method="; ".join(dict.fromkeys(each.method for each in found)),
        notes=(*dict.fromkeys(each.note for each in found if each.note), *_unscored(psi)),
    )  # fmt: skip


def _ranked(psi: Tensor) -> Tensor:
    """Returns the places of examples, best first, those without a finite score last."""
    return torch.argsort(torch.where(torch.isfinite(psi), psi, -torch.inf), descending=True, stable=True)


def _unscored(psi: Tensor) -> Iterator[str]:
    bad = (~torch.isfinite(psi)).nonzero().flatten().tolist()
    if bad:
        yield (
            f"{len(bad)} of {len(psi)} examples have no finite score ({', '.join(map(str, bad[:5]))}"
            f"{', ...' if len(bad) > 5 else ''}), nor have the parameters that their gradients reach; leave them out"
        )


def _over_ranks(tensors: Sequence[Tensor], group: distributed.Group | None) -> None:
    if group is not None:
        for each in tensors:
            distributed.sum_(each, group)


def _second_order(
    v: list[Tensor], G: list[Tensor], params: Sequence[Tensor], lr: float | None, curvature: Sequence[Tensor] | None
) -> tuple[list[Tensor], float]:
    """Returns u = v - (lr/2) c * G, and the size of the second term against the first."""
    if lr is None or curvature is None or not lr > 0:
        raise UsageError(
            f"select(lr, curvature): order 2 needs a positive lr and a curvature, got lr {lr!r} and "
            f"{'a' if curvature is not None else 'no'} curvature"
        )
    c = _like(curvature, params, "curvature")
    first, second, u = 0.0, 0.0, []
    for i, (each, total) in enumerate(zip(v, G, strict=True)):
        term = c[i] * total * (lr / 2)
        first += inner(each, each)
        second += inner(term, term)
        u.append(each - term)
    share = (second / first) ** 0.5 if first else float("inf")
    if share < _NOTHING:
        warnings.warn(
            f"select(curvature): the second-order term is {share:.0e} of the first, which float32 does not keep. "
            "Adam's exp_avg_sq is no curvature; adam_curvature(optimizer, params, examples=...) makes one of it",
            ForeshockWarning, stacklevel=3,
        )  # fmt: skip
    return u, share


def _split(places: Tensor, found: Sequence[Answer]) -> list[set[int]]:
    """Returns the places in the pool by batch, as places in each."""
    parts, start = [], 0
    for each in found:
        end = start + len(each.values)
        parts.append({int(place) - start for place in places if start <= int(place) < end})
        start = end
    return parts


def _once_more(asked: Asked, only: set[int]) -> Tensor:
    """Returns the scores of some examples of a batch by their own gradients, NaN for the others."""
    values = asked.again(only)
    others = torch.ones_like(values, dtype=torch.bool)
    others[list(only)] = False
    return values.masked_fill(others, float("nan"))


def _params(params: Sequence[Tensor] | None, model: nn.Module | None) -> list[Tensor]:
    if params is not None:
        found = list(params)
    elif model is not None:
        found = [param for param in model.parameters() if param.requires_grad]
    else:
        raise UsageError("select(params, model): give one of them")
    if not found:
        raise UsageError("select(params): there are none")
    return found


def _like(tensors: Sequence[Tensor], params: Sequence[Tensor], name: str) -> list[Tensor]:
    """Returns tensors like the parameters, float32 or wider, on their devices."""
    if isinstance(tensors, torch.optim.Optimizer):
        raise UsageError(f"select({name}): tensors like the parameters; adam_curvature(optimizer, ...) makes them")
    if len(tensors) != len(params):
        raise UsageError(f"select({name}): {len(tensors)} tensors for {len(params)} parameters")
    found = []
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        if tensor.shape != param.shape:
            raise UsageError(
                f"select({name}): entry {i} has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}"
            )
        whole = distributed.whole(tensor.detach())
        found.append(whole.to(param.device, torch.promote_types(whole.dtype, torch.float32)))
    return found
