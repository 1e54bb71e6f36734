"""What rounding takes from the gradients of a softmax while a training runs, and what that does to its head.

Everything is read off the backward pass that the loop makes anyway: a hook looks at the gradient of the logits as it
goes by, and keeps a dozen numbers of it.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.numerics import repair
from foreshock.numerics.absorption import head_sums, of_head, of_rows, reach
from foreshock.probes.base import Moment, Signals, Step
from foreshock.probes.head import Head, find_head
from foreshock.probes.logits import SoftmaxNode, softmaxes
from foreshock.probes.named import Named, named
from foreshock.probes.nodes import is_ours, plain
from foreshock.probes.novelty import Novelty
from foreshock.probes.passing import Watch, catch, measure, watching
from foreshock.probes.rhythm import EVERY, Rhythm

CLEAN = ("absorbed", "residual", "error")  # mean nothing where other terms of the loss are in the gradient as well


class Softmax:
    """Measures `softmax_absorbed` and what belongs to it, about every 20 steps; every 5 once absorption is at work.

    The softmax is found in the graph of the observed loss, and so is the linear layer before it, through shifts, casts,
    views and temperatures. Its gradient is the one that the loop's own backward pass computes: of several micro-batches
    the first one's. Where the graph does not show the layer (compiled or custom ones, convolutions), what needs it is
    left out; where it shows no softmax, nothing is measured, and it is looked for again now and then. Of several
    softmaxes the one with class indices and the most rows is taken, or the one behind the head that was named.

    Under several ranks everything is this rank's own, and nothing is communicated.

    Args:
        head: the last linear layer, or its name in the model, where it is not to be found out.
        every: steps from one reading to the next when calm; None for a fifth of the monitor's.

    Source: Liu et al. 2026, arXiv 2605.06152; see `foreshock.numerics.absorption`.
    """

    name, cost = "softmax", "free"  # of the budget for passes: it keeps one of its own

    def __init__(self, head: nn.Module | str | None = None, every: int | None = None) -> None:
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise UsageError(f"Softmax(every=...): must be a positive integer or None, got {every!r}")
        if head is not None and not isinstance(head, (str, nn.Module)):
            raise UsageError(f"Softmax(head=...): must be a module or the name of one, got {type(head).__name__}")
        self.head, self.every = head, every
        self._rhythm: Rhythm | None = None
        self._novelty = Novelty()
        self._state: dict[str, Any] | None = None
        self._named: Named | None = None
        self._watch: Watch | None = None
        self._looked: int | None = None  # step at which the softmax was last looked for
        self._before: Tensor | None = None  # the head's weight before the step
        self._stepping: int | None = None  # step whose optimizer has been called: what is observed is in its closure
        self._error: Exception | None = None

    def fits(self, model: Any) -> None:
        """Checks the head against the model that is to be watched.

        Raises:
            UsageError: there is no such layer in it.
        """
        if self.head is not None:
            self._named = named(self.head, model)

    def observe(self, moment: Moment) -> bool:
        """Looks for the softmax of the loss where a reading is due, and waits for its backward pass."""
        if moment.place == 0 and moment.number != self._looked:
            self._forget()
            rhythm = self._kept(moment)
            if rhythm.due(moment.number) and moment.loss is not None:
                begun = time.thread_time()
                self._looked = moment.number
                self._watch = self._await(moment.loss)
                if self._watch is not None and self._stepping == moment.number:
                    self._hold(self._watch)
                rhythm.spent(time.thread_time() - begun)
        return False

    def look(self, moment: Moment) -> None:
        """Does the same for a loss that may be another optimizer's: then the head is none of this one's parameters."""
        if self._watch is None and self._looked == moment.number:
            self._looked = None  # the step's last loss was none to watch
        self.observe(moment)
        head = None if self._watch is None else self._watch.head
        own = (param for group in moment.optimizer.param_groups for param in group["params"])
        if head is not None and all(param is not head.param for param in own):
            self._forget()

    def before(self, moment: Moment) -> bool:
        """Measures the head, and copies it where the step is to be held against the mean feature."""
        begun = time.thread_time()
        watch, rhythm = self._watch, self._rhythm
        self._stepping = moment.number
        if watch is None or rhythm is None:
            return False
        if watch.sums is not None:  # else backward is to come, in a closure that the optimizer will call
            self._release(watch)
        self._hold(watch)
        rhythm.spent(time.thread_time() - begun)
        return False

    def _hold(self, watch: Watch) -> None:
        """Measures the head as it is before the step."""
        head = watch.head
        if head is None or plain(head.param) is None:
            return
        weight = head.weight()
        watch.layer = head_sums(weight)
        if head.factor is not None and (watch.mean is not None or watch.hooks):
            self._before = weight.clone()

    def heard(self, kind: str, step: int) -> None:
        """Does nothing."""

    @property
    def urgent(self) -> bool:
        """Whether what was measured should reach the detectors at once: a level has just been reached."""
        return self._rhythm is not None and self._rhythm.urgent

    def __call__(self, step: Step) -> Signals:
        """Returns what was measured at this step."""
        begun = time.thread_time()
        rhythm, watch = self._rhythm, self._watch
        if rhythm is None:
            return {}
        rhythm.urgent = False
        values: dict[str, float] = {}
        if self._looked == step.number:
            if self._error is not None:
                raise self._error
            values = {} if watch is None else self._values(watch)
            if watch is None or watch.sums is None:
                rhythm.missed(step.number)
            else:
                rhythm.took(step.number, values)
            rhythm.spent(time.thread_time() - begun)
        self._forget()
        if self._named is not None and step.number + 1 >= rhythm.next:
            self._named.listen()
        return {f"softmax_{name}": value for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the schedule, and which classes have been seen."""
        rhythm = self._state if self._rhythm is None else self._rhythm.state_dict()
        return {"rhythm": rhythm, "novelty": self._novelty.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._forget()
        self._state, self._rhythm, self._looked, self._stepping = state.get("rhythm"), None, None, None
        self._novelty = Novelty()
        if "novelty" in state:
            self._novelty.load_state_dict(state["novelty"])

    def _kept(self, moment: Moment) -> Rhythm:
        if self._rhythm is None:
            self._rhythm = Rhythm(self.every or max(1, moment.every // EVERY), free=self.every is not None)
            if self._state is not None:
                self._rhythm.load_state_dict(self._state)
        return self._rhythm

    def _forget(self) -> None:
        if self._watch is not None:
            self._release(self._watch)
        self._watch = self._before = None

    @staticmethod
    def _release(watch: Watch) -> None:
        """Takes the hooks away, and lets go of all that is as long as the batch."""
        for hook in watch.hooks:
            hook.remove()
        watch.hooks, watch.rows, watch.right, watch.places = [], None, None, None

    def _await(self, loss: Tensor) -> Watch | None:
        """Returns the softmax to watch in this graph, with hooks in place; None where there is none."""
        found: list[tuple[SoftmaxNode, Head | Named | None]]
        found = [(each, find_head(each.node, each.classes)) for each in softmaxes(loss)]
        if self._named is not None:
            own = self._named
            own.stop()
            shown = [pair for pair in found if pair[1] is not None and pair[1].param is own.param]
            own.shown = bool(shown)
            found = shown or [(each, own) for each, _ in found if each.classes == own.classes]
        if not found:
            return None
        softmax, head = found[0]
        watch = watching(softmax, head, self._novelty)
        probe = weakref.ref(self)  # a graph that held the watch, which holds the graph, would never be freed

        gate, place = softmax.gate or (softmax.node, 0)
        after = softmax.gate is None or is_ours(gate, repair)  # what it sends on is wanted, not what it gets

        def at_softmax(onward: tuple[Any, ...], given: tuple[Any, ...]) -> None:
            _quietly(probe, catch, given[0])

        def behind(onward: tuple[Any, ...], given: tuple[Any, ...]) -> None:
            _quietly(probe, measure, onward[0])

        def ahead(given: tuple[Any, ...]) -> None:  # hooks on the logits have had their say by now
            _quietly(probe, measure, given[place])

        watch.hooks.append(softmax.node.register_hook(at_softmax))
        watch.hooks.append(gate.register_hook(behind) if after else gate.register_prehook(ahead))
        return watch

    def _values(self, watch: Watch) -> dict[str, float]:
        """Returns the quantities that are known and finite; all that they are made of comes to the host at once."""
        head, mean, offset, moved = watch.head, watch.mean, None, None
        if head is not None and mean is not None and self._before is not None:
            moved = reach(self._before.sub_(head.weight()), mean.to(self._before.device))
            offset = None if head.bias is None else head.bias.detach()[: head.classes].double().mean()
        sums, counted, layer, mu, shift, step, fresh = _to_host(
            watch.sums, watch.counted, watch.layer, mean, offset, moved, watch.new
        )
        if sums is None or counted is None or not counted.any():
            return {}
        found = of_rows(sums, counted.astype(bool))
        if not watch.softmax.clean:
            found = {name: value for name, value in found.items() if name not in CLEAN}
        found |= of_head(layer, watch.softmax.classes, mu)
        if head is not None and head.factor is not None and layer is not None and mu is not None and step is not None:
            found["logit"] = head.factor * (float(layer[:-1] @ mu) + (0.0 if shift is None else float(shift)))
            found["sensitivity"] = abs(head.factor) * float(step)
        if fresh is not None:
            found["new"] = float(fresh)
        known = {name: value for name, value in found.items() if math.isfinite(value)}
        return known if "wrong" in known else {}


def _to_host(*values: Tensor | None) -> list[np.ndarray | None]:
    """Returns tensors as float64 arrays, by one copy; None stays None."""
    known = [value for value in values if value is not None]
    if all(value.device.type == "cpu" for value in known):
        return [None if value is None else value.numpy() for value in values]
    flat = torch.cat([value.reshape(-1).to(known[0].device, known[0].dtype) for value in known]).cpu().numpy()
    pieces = iter(np.split(flat.astype(np.float64), np.cumsum([value.numel() for value in known])[:-1]))
    return [None if value is None else next(pieces).reshape(value.shape) for value in values]


def _quietly(reference: Callable[[], Softmax | None], act: Callable[[Watch, Tensor], None], given: Any) -> None:
    """Looks at a gradient inside a backward pass that belongs to the loop: nothing is raised and nothing recorded."""
    probe = reference()
    watch = None if probe is None else probe._watch
    if probe is None or watch is None or not watch.hooks or plain(given) is None:
        return
    begun = time.thread_time()
    try:
        with torch.no_grad(), torch.autocast(given.device.type, enabled=False):
            act(watch, given.detach())
    except Exception as error:
        probe._error = error
    if probe._rhythm is not None:
        probe._rhythm.spent(time.thread_time() - begun)
