"""The gradient noise scale while a training runs: from its micro-batches and ranks, or from the examples of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from foreshock.attempt import examples
from foreshock.batch_size import NoiseEstimate
from foreshock.batch_size import NoiseScale as Averages
from foreshock.batch_size.collapse import COLLAPSED, SPIKE, collapsed
from foreshock.errors import UsageError
from foreshock.noise.examples import LAYERS
from foreshock.noise.source import Source, Taken
from foreshock.probes.base import Moment, Signals, Step, UnavailableError
from foreshock.run import StepRecord

PER_READING = 5  # readings of examples for each that the monitor wants of costly probes: every 20 steps at its default
PAIRS = 10  # steps from one reading of pairs to the next: each adds 2 % to 20 % to its step, the smaller the more
CALM = 10  # readings that are left out once a spike has been heard of
JUMP, KEPT = 1.5, 0.25  # factor of a learning rate or batch that is a change, and what is kept of the past then
SPIKES = frozenset({"spike", "divergence", "nonfinite"})
MISSES = 20  # readings without a number, and none with one, after which the probe says why and gives up


class NoiseScale:
    """Measures `noise_trace`, `noise_square` and their ratio `noise_scale`, with its band.

    Where a step has several micro-batches, or the model is a `DistributedDataParallel`, their gradients are the small
    batches, seen by hooks on the parameters, every 10 steps. Where it has one batch,
    the norms of its examples' gradients are taken off the loop's own passes by hooks on the layers, every 20 steps:
    see `foreshock.noise.PerExampleNorms` for which, and for what is not measurable (statistics of the batch, compiled
    models). The run stays bit for bit what it would have been, and ranks do not communicate.

    tr Sigma and |G|^2 are averaged over readings, each for itself, then divided: `noise_scale` is absent while |G|^2 is
    not distinguishable from 0. Readings are gated (`noise_gated`) while the softmax absorbs its gradients, which needs
    `probes.Softmax` beside it, and for a while after a spike, after which the average begins afresh; a jump of the
    learning rate or the batch size shortens it. Losses are taken for means over their batches, and gradients for those
    before unscaling, clipping and decay.

    Args:
        layers: whose norms are taken of examples: "norm" (cheapest; it moves with the whole), "linear" or "all".
        every: steps from one reading to the next; None as above.
        ema: weight of the past at each reading.
        batch_dim: dimension of the examples in the model's input.
        precondition: divides gradients by the optimizer's sqrt(vhat) + eps, as Adam does: another quantity, by which
            the batch size of Adam is to be judged.
        calibrate: of "norm", each so many readings take all layers, and the ratio of the two noise scales,
            `noise_factor`, is multiplied in; 0 for never.
        data: a `foreshock.Requeue` that the batches come from: batches that come back are left out.

    Source: McCandlish et al. 2018, arXiv 1812.06162; Gray et al. 2024, arXiv 2411.00999.
    """

    name, cost = "noise scale", "free"  # of the budget for passes: it takes none but at its first reading of examples

    def __init__(
        self,
        layers: str = "all",
        *,
        every: int | None = None,
        ema: float = 0.99,
        batch_dim: int = 0,
        precondition: bool = False,
        calibrate: int = 10,
        data: Any = None,
    ) -> None:
        if layers not in LAYERS:
            raise UsageError(f"NoiseScale(layers=...): must be one of {', '.join(LAYERS)}, got {layers!r}")
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise UsageError(f"NoiseScale(every=...): must be a positive integer or None, got {every!r}")
        if not isinstance(calibrate, int) or calibrate < 0:
            raise UsageError(f"NoiseScale(calibrate=...): must be an integer, at least 0, got {calibrate!r}")
        if data is not None and not (hasattr(data, "tries") and hasattr(data, "current")):
            raise UsageError(f"NoiseScale(data=...): must be a foreshock.Requeue, got {type(data).__name__}")
        self.layers, self.every, self.batch_dim = layers, every, batch_dim
        self.precondition, self.calibrate, self.data = precondition, calibrate if layers == "norm" else 0, data
        self.scale = Averages(ema=ema)
        self._own, self._total = Averages(ema=ema), Averages(ema=ema)  # at the readings that calibrate
        self._readings, self._missed = 0, 0
        self._losses: int | None = None  # of the step before
        self._conditions: list[float] | None = None  # learning rates and batch size at the last reading
        self._source = Source(layers, batch_dim, precondition=precondition)
        self._number = -1  # step that is watched
        self._sizes: list[float] = []
        self._excluded = self._calibrating = False
        self._model: Any = None
        self._distance = self._usual = 1

    @property
    def estimate(self) -> NoiseEstimate:
        """What is known by now, of the parameters that are measured."""
        return self.scale.value()

    @property
    def missing(self) -> Mapping[str, str]:
        """Parameters whose gradients cannot be told apart by examples, with the reason."""
        return self._source.missing

    def observe(self, moment: Moment) -> bool:
        """Waits for the backward pass of a loss where a reading is due."""
        source = self._source
        if moment.loss is None:
            return False
        if moment.number != self._number:
            self._number, self._sizes, self._excluded, self._model = moment.number, [], False, moment.model
            if source.kind is None:
                self._settle(moment.every)
            if moment.number % self._distance == 0 and not self.scale.gated:
                source.open(moment.model, moment.optimizer)
        if source.opened:
            self._excluded |= self.data is not None and self.data.tries(self.data.current) > 0
            size = math.nan if moment.batch is None else examples(moment.batch)
            self._sizes.append(size if size == size else source.size(moment.model))
            source.watch(moment.loss, moment.place, last=self._losses is None or moment.place + 1 >= self._losses)
        return False

    def before(self, moment: Moment) -> bool:
        """Does nothing: gradients are taken as they come, before they are unscaled or clipped."""
        return False

    def heard(self, kind: str, step: int) -> None:
        """Leaves readings out after a spike, and begins afresh; and while absorption is reported."""
        if kind in SPIKES:
            self._restart(0.0)
            self.scale.gate(SPIKE, steps=CALM)
        elif kind == "absorbing":
            self.scale.gate(COLLAPSED)

    def saw(self, record: StepRecord) -> None:
        """Reads off a finished record what rounding takes from the softmax."""
        absorbed, residual = (record.values.get(f"softmax_{name}") for name in ("absorbed", "residual"))
        if absorbed is None or residual is None:
            return
        already = COLLAPSED in self.scale.gated
        now = collapsed(absorbed, residual, already=already)
        if now and not already:
            self.scale.gate(COLLAPSED)
        elif already and not now:
            self._restart(0.0)
            self.scale.lift(COLLAPSED)

    def __call__(self, step: Step) -> Signals:
        """Returns what was measured at this step."""
        source, found = self._source, dict[str, float]()
        losses = len(step.losses)
        if self.scale.gated and step.number % self._distance == 0:
            self.scale.pass_by()
            found = {"noise_gated": 1.0}
        elif self._number == step.number and source.opened:
            vetoed = step.found_inf is not None and float(step.found_inf) > 0.0
            if not (self._excluded or vetoed) and len(self._sizes) == losses:
                found = self._measured(step, self._taken())
        source.close()
        if losses and losses != self._losses:
            self._losses = losses
            self._settle(None)
        following = step.number + 1
        if source.kind != "pairs" and following % self._distance == 0 and isinstance(self._model, nn.Module):
            self._calibrating = self.calibrate > 0 and self._readings % self.calibrate == 0
            source.listen(self._model, whole=self._calibrating)
        return found

    def _taken(self) -> Taken:
        try:
            return self._source.take(self._sizes)
        except UsageError as error:
            raise UnavailableError(str(error)) from error

    def _settle(self, every: int | None) -> None:
        """Decides what to measure by, and how often."""
        source = self._source
        if every is not None:
            self._usual = max(1, every // PER_READING)
        try:
            source.settle(self._model, self._losses)
        except UsageError as error:
            raise UnavailableError(str(error)) from error
        self._distance = self.every or (PAIRS if source.kind == "pairs" else self._usual)

    def _measured(self, step: Step, taken: Taken) -> dict[str, float]:
        """Returns the signals of a reading."""
        if isinstance(taken, str):
            self._missed += self._losses is not None  # what the first step has is not known before it ends
            if self._missed >= MISSES and not self._readings:
                raise UnavailableError(f"the noise scale cannot be measured: {taken}")
            return {}
        pair, batch = taken
        self._readings += 1
        self._changed(step, batch)
        self.scale.take(pair)
        found = {"noise_trace": pair.tr_sigma, "noise_square": pair.g_sq, "noise_gated": 0.0}
        factor = self._factor(found)
        known = self.scale.value()
        if known.status == "ok":
            found |= {"noise_scale": known.noise_scale * factor, "noise_low": known.low * factor}
            found["noise_high"] = known.high * factor
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _factor(self, found: dict[str, float]) -> float:
        """Returns the noise scale of all layers over that of the norms, where it is known; 1.0 where not."""
        if not self.calibrate or self._source.kind != "examples":
            return 1.0
        if self._calibrating:
            both = self._source.among("norm"), self._source.among("all")
            if not any(isinstance(taken, str) for taken in both):
                for averages, taken in zip((self._own, self._total), both, strict=True):
                    assert not isinstance(taken, str)
                    averages.take(taken[0])
        own, total = self._own.value(), self._total.value()
        if own.status != "ok" or total.status != "ok" or own.noise_scale <= 0.0:
            return 1.0
        found["noise_factor"] = total.noise_scale / own.noise_scale
        return found["noise_factor"]

    def _changed(self, step: Step, batch: float) -> None:
        """Shortens the averages where the learning rate or the batch has jumped since the last reading."""
        rates = [float(group.get("lr", 0.0)) for group in step.optimizer.param_groups]
        now = [*rates, batch]
        before, self._conditions = self._conditions, now
        if before is not None and len(before) == len(now):
            jumped = (max(a, b) > JUMP * min(a, b) for a, b in zip(before, now, strict=True))
            if any(jumped):
                self._restart(KEPT)

    def _restart(self, keep: float) -> None:
        for averages in (self.scale, self._own, self._total):
            averages.restart(keep)

    def state_dict(self) -> dict[str, Any]:
        """Returns what was averaged, and where the schedule is."""
        return {
            "averages": [each.state_dict() for each in (self.scale, self._own, self._total)],
            "readings": self._readings, "missed": self._missed, "losses": self._losses,
            "conditions": self._conditions,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._source.close()
        for averages, kept in zip((self.scale, self._own, self._total), state["averages"], strict=True):
            averages.load_state_dict(kept)
        self._readings, self._missed, self._losses = state["readings"], state["missed"], state["losses"]
        self._conditions, self._number, self._source.kind = state["conditions"], -1, None
