"""chi through a training, on one batch that is held: each reading begins where the last one ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature.checks import asymmetry_limit, symmetry_check
from foreshock.curvature.edge import Edge, every_gradient, read_edge, trained
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.loss_curvature import LossCurvature
from foreshock.errors import UsageError
from foreshock.stability import edge_weights
from foreshock.stability.twins import members, parameters

# Readings from one fresh start to the next: the gradient is searched as well, so that a tracker that follows a lower
# eigenvalue finds back to the top.
FRESH = 50
# How far a warm start is amplified before a reading counts, after steps in a row and after longer gaps: measured on
# nets, 10 keeps 97-100 % of the readings within 2 % for 3-5 products; after 25 steps it takes 1000 and 8-11.
NEAR, FAR = 10.0, 1000.0
CLOSE = 5  # steps that count as in a row


class EdgeTracker:
    """Follows chi of an optimizer on one held batch::

        tracker = EdgeTracker(optimizer, lambda: loss_fn(model(x0), y0), every=10)
        for x, y in loader:
            ...
            loss.backward()
            reading = tracker.step()       # before the optimizer's step; None where none was due
            optimizer.step()

    The batch has to stay the same: a sub-batch's chi is another quantity, two to three times as large, and from batch
    to batch the top direction does not last. What is learned of the closure at the first reading (that it repeats, the
    route that its products can take) is kept; products there are also held against each other, u'Hv = v'Hu.

    Args:
        optimizer: one that `edge_weights` can read, or several over different parameters.
        closure: computes the loss of the held batch; or an operator made of one, such as `Hessian(closure, params,
            deterministic="fix")`, which replays its dropout.
        every: steps from one reading to the next.
        tol: relative error wanted of chi.
        route: of the products, see `Hessian`: "differences" costs half and needs no second derivative, on smooth nets.
        forms: whether to measure along gradient and step as well (two products more).

    Attributes:
        asymmetry: what `symmetry_check` said at the first reading; None before it.
        last: the last reading, None before the first.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        closure: Callable[[], Tensor] | LossCurvature,
        *,
        every: int = 10,
        tol: float = 2e-2,
        route: str = "auto",
        forms: bool = False,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"EdgeTracker(every=...): a positive integer is needed, got {every!r}")
        if not 0.0 < tol < 1.0:
            raise UsageError(f"EdgeTracker(tol=...): a relative error between 0 and 1 is needed, got {tol!r}")
        if not callable(closure) and not isinstance(closure, LossCurvature):
            raise UsageError(
                f"EdgeTracker(optimizer, closure): a function that computes the loss of the held batch is needed, got "
                f"{type(closure).__name__}"
            )
        self.optimizer, self.every, self.tol, self.forms = optimizer, every, tol, forms
        self._hessian: LossCurvature
        if isinstance(closure, LossCurvature):
            self._hessian = closure
        else:
            self._hessian = Hessian(closure, trained(optimizer), route=route)
        self._generator = torch.Generator(self._hessian.device).manual_seed(0)
        self.asymmetry: float | None = None
        self.last: Edge | None = None
        self._steps = 0
        self._since = 0
        self._readings = 0
        self._warm: list[Tensor] | None = None

    def step(self, grads: Sequence[Tensor | None] | None = None) -> Edge | None:
        """Counts one training step and returns a reading where one is due, None otherwise; see `read`."""
        due = self._steps % self.every == 0
        self._steps += 1
        self._since += 1
        return self.read(grads) if due else None

    def read(self, grads: Sequence[Tensor | None] | None = None) -> Edge:
        """Returns a reading now.

        Args:
            grads: gradients of the step about to be taken, in the optimizer's order, which the denominators are to
                include; by default those of the held batch.

        Raises:
            UsageError: see `edge`; and products that are not symmetric, hence no Hessian's.
        """
        self._hessian.refresh()
        with self._hessian as hessian:
            self._check()
            consumed = every_gradient(self.optimizer, hessian) if grads is None else grads
            weights = edge_weights(self.optimizer, consumed)
            warm: list[list[Tensor]] = []
            if self._warm is not None:
                warm = [self._warm]
                if self._readings % FRESH == 0:
                    warm.append(self._whole_gradient(hessian, weights.apply))
            found = read_edge(
                hessian, weights, self.optimizer, tol=self.tol, warm=warm, forms=self.forms, grads=consumed,
                generator=self._generator, amplified=NEAR if self._since <= CLOSE else FAR,
            )
        self._warm, self.last = found.vector, found
        self._readings += 1
        self._since = 0
        return found

    def _whole_gradient(
        self, hessian: LossCurvature, apply: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """Returns the step in parameters that the gradient stands for, W g, on the trained parameters."""
        everything = every_gradient(self.optimizer, hessian)
        params = [param for each in members(self.optimizer) for param in parameters(each)]
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params, everything, strict=True)]
        mine = {id(param) for param in hessian.params}
        return [move for move, param in zip(apply(filled), params, strict=True) if id(param) in mine]

    def _check(self) -> None:
        if self.asymmetry is not None:
            return
        self.asymmetry = symmetry_check(self._hessian, self._generator)
        if not self.asymmetry <= asymmetry_limit(self._hessian):
            raise UsageError(
                f"the products with the Hessian are not symmetric: u'Hv and v'Hu differ by {self.asymmetry:.1%}; the "
                "graph of this loss gives wrong second derivatives (a custom autograd function?). Try "
                "route='differences', or report the layer that does it"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training needs to go on tracking as if it had not stopped."""
        return {
            "steps": self._steps, "since": self._since, "readings": self._readings, "asymmetry": self.asymmetry,
            "direction": self._warm, "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self._steps, self._since, self._readings = int(state["steps"]), int(state["since"]), int(state["readings"])
        self.asymmetry, self._warm = state["asymmetry"], state["direction"]
        self._generator.set_state(state["generator"].cpu())
