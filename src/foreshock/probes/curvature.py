"""chi while a training runs: how near the optimizer is to its edge of stability, and which tensors hold the edge.

Taken on the graph of the live loss, before its backward pass: no second forward pass, no question of dropout, and the
training stays bit for bit what it was. Or on a batch that is held, where the loop hands over a function of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreshock import distributed
from foreshock.curvature import Edge, Hessian
from foreshock.curvature.anatomy import anatomy
from foreshock.curvature.checks import asymmetry_limit, symmetry_check
from foreshock.curvature.edge import read_edge
from foreshock.curvature.forward import step_curvature
from foreshock.curvature.graph import NotTwiceError
from foreshock.curvature.harmless import harmless, random_state, restore_random_state
from foreshock.curvature.objective import Live
from foreshock.curvature.tracker import CLOSE, FAR, NEAR
from foreshock.errors import UsageError
from foreshock.probes.approach import Approach
from foreshock.probes.base import Moment, Signals, Step, UnavailableError
from foreshock.probes.cadence import LEVELS, Cadence
from foreshock.probes.held import copied, takes_a_batch
from foreshock.probes.planned import about_to_be_consumed, consumed, expected, factor, length, rates, trained
from foreshock.probes.room import lacking
from foreshock.probes.sentinels import Sentinels
from foreshock.run import StepRecord
from foreshock.stability import edge_weights
from foreshock.stability.twins import parameters

LIVE, HELD, CLOSURE = 0.0, 1.0, 2.0  # what the signal `probe_batch` shows
PATIENCE = 3  # readings in a row that fail before the probe gives up
LASTS, COLD = 0.9, 20  # |cosine| of successive directions on the same batch; warm starts between two cold ones
UNCHANGED = 1e-3  # relative difference of two norms of one gradient that rounding may make


class Curvature:
    """Measures `chi` and what belongs to it, seldom when calm and every step in danger; see `Cadence`.

    Where the loop calls `observe(loss, closure=f, batch=b)` and f takes a batch, the first batch is copied and chi is
    f's on that copy every time, warm-started from the reading before; with the gradients that the optimizer is about to
    consume, clipped and accumulated as they are. Else chi is that of the batch at hand, on the live graph (the last
    micro-batch under accumulation, with the gradients accumulated so far in v); `probe_batch` says which. Where that
    graph cannot be differentiated twice (fused attention, compiled modules), `closure=f` of no argument serves; without
    one the probe leaves itself out, with a note in the run.

    Clipping by norm happens after the live reading: give `max_norm`, or it is found out from the first two readings
    that are clipped, to the same norm, and allowed for from then on. In watch and alarm, with a closure of no argument,
    each step also gets the curvature along it, `chi_step`, from one forward pass after it.

    Under several ranks chi is this rank's own and nothing is communicated, unless `ranks` says that every rank watches.

    Args:
        every: steps from one reading to the next when calm; None for the monitor's.
        tol: relative error wanted of chi.
        max_norm: norm that the loop clips gradients to.
        hold: whether to hold the first batch where the closure allows it.
        ranks: every rank has a monitor with this probe, so that readings may average over the ranks.
    """

    name = "curvature"

    def __init__(
        self, *, every: int | None = None, tol: float = 0.02, max_norm: float | None = None, hold: bool = True,
        ranks: bool = False,
    ) -> None:
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise UsageError(f"Curvature(every=...): must be a positive integer or None, got {every!r}")
        if not 0 < tol < 1:
            raise UsageError(f"Curvature(tol=...): must be a relative error between 0 and 1, got {tol!r}")
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"Curvature(max_norm=...): must be positive, got {max_norm!r}")
        self.every, self.tol, self.max_norm, self.hold, self.ranks = every, tol, max_norm, hold, ranks
        self._cadence: Cadence | None = None
        self._state: dict[str, Any] | None = None
        self._held: tuple[Any, ...] = ()  # the batch, once there is one
        self._streams: Any = None  # state of the random streams at the first reading on it
        self._warm: tuple[int, bool, list[Tensor]] | None = None  # last reading: step, whether held, direction
        self._warmed = 0  # readings in a row that began at the last one's direction
        self._sound = False  # whether products have been held against each other
        self._failures = 0
        self._withheld = 0
        self._approach = Approach()
        self._sentinels = Sentinels()
        self._ratio = math.nan  # norm of the gradient consumed over that of the live one, when last seen together
        self._clipped = math.nan  # norm of the gradient consumed, when it was last less than that
        self._forget()

    def _forget(self) -> None:
        self._wanted = self._due = False
        self._reading: Edge | None = None
        self._kind = LIVE
        self._beside: dict[str, float] = {}
        self._planned: list[Tensor | None] | None = None  # the gradients that the reading takes for the step's
        self._seconds = self._length = 0.0
        self._copies: list[Tensor] = []

    def observe(self, moment: Moment) -> bool:
        """Takes the reading on the live graph, where one is due and no batch is held."""
        if moment.place == 0:
            self._begin(moment)
        if not self._held and moment.batch is not None:
            self._holds(moment)  # the first one there is, whether a reading is due or not
        if not self._due or self._reading is not None or self._holds(moment):
            return False
        if moment.place + 1 < len(moment.weights):  # the last micro-batch, if there are as many as last time
            return False
        return self._try(self._live, moment)

    def before(self, moment: Moment) -> bool:
        """Takes the reading on the held batch, and copies the parameters where the step itself will be looked at."""
        took = False
        if self._due and self._reading is None and self._holds(moment):
            took = self._try(self._on_held, moment)
        cadence = self._cadence
        watching = cadence is not None and cadence.state != "calm" and moment.affordable
        # with a factor on the loss the gradient consumed is not the loss's own
        if watching and self._serves(moment.closure) and factor([float(each) for each in moment.weights]) == 1.0:
            self._copies = [param.detach().clone() for param in parameters(moment.optimizer)]
        return took

    def heard(self, kind: str, step: int) -> None:
        """Looks more often after an event, of whatever kind; with several ranks only what all have seen counts."""
        if self._cadence is not None and not (self.ranks and distributed.running()):
            self._cadence.stir(step)

    @property
    def reading(self) -> Edge | None:
        """The reading for the step that is about to be taken."""
        return self._reading

    @property
    def beside(self) -> Mapping[str, float]:
        """What that reading foretells, and how it compares with the one before: signals by name."""
        return self._beside

    @property
    def urgent(self) -> bool:
        """Whether what was measured should reach the detectors at once: readings are above the edge."""
        return self._cadence is not None and self._cadence.alarmed

    def saw(self, record: StepRecord) -> None:
        """Looks at the free signals of a step; with several ranks only what all have seen counts."""
        stirs = self._sentinels.update(record.values)
        if stirs and self._cadence is not None and not (self.ranks and distributed.running()):
            self._cadence.stir(record.step)

    def __call__(self, step: Step) -> Signals:
        """Returns what was measured at this step, and the state of the schedule where a reading was due."""
        cadence, reading, found = self._cadence, self._reading, {}
        if reading is not None and cadence is not None:
            self._compare(step)
            found = self._signals(step, reading)
            crossing = self._beside.get("chi_crossing", math.inf)
            cadence.took(step.number, None if reading.formal else reading.chi, crossing)
        if self._copies and "chi_step" not in found:
            found.update(self._along_the_step(step))
        if self._wanted and cadence is not None:
            found |= {"curvature_cadence": LEVELS[cadence.state], "curvature_withheld": float(self._withheld)}
            if self._due:
                self._withheld = 0
                if reading is None:
                    cadence.took(step.number, None)
        self._forget()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the schedule, and the held batch."""
        cadence = self._state if self._cadence is None else self._cadence.state_dict()
        return {"cadence": cadence, "held": list(self._held), "max_norm": self.max_norm, "withheld": self._withheld,
                "approach": self._approach.state_dict(), "sentinels": self._sentinels.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._state, self._cadence, self._warm = state["cadence"], None, None
        self._held = tuple(state["held"])
        self.max_norm, self._withheld = state["max_norm"], int(state["withheld"])
        self._approach.load_state_dict(state.get("approach", {}))
        self._sentinels.load_state_dict(state.get("sentinels", {}))

    def _begin(self, moment: Moment) -> None:
        """Decides whether this step gets a reading."""
        self._forget()
        if self._cadence is None:
            self._cadence = Cadence(self.every or moment.every)
            if self._state is not None:
                self._cadence.load_state_dict(self._state)
        self._wanted = self._cadence.due(moment.number, rates(moment.optimizer))
        self._due = self._wanted and self._afford(moment)
        if self._wanted and not self._due:
            self._withheld += 1

    def _afford(self, moment: Moment) -> bool:
        danger = self._cadence is not None and self._cadence.in_danger(moment.number)
        affordable = moment.affordable or (danger and moment.on_credit)
        if not (self.ranks and distributed.running()):
            return affordable
        try:  # all ranks measure, or none
            refusal = None if affordable else UsageError("too dear")
            distributed.agreed(refusal, torch.distributed.group.WORLD, parameters(moment.optimizer)[0].device)
        except UsageError:
            return False
        return True

    def _serves(self, closure: Callable[..., Any] | None) -> bool:
        """Returns whether a closure recomputes the loss at hand, and may be run here."""
        return closure is not None and not takes_a_batch(closure) and (self.ranks or not distributed.running())

    def _holds(self, moment: Moment) -> bool:
        """Returns whether the reading is to be on a held batch; takes hold of the first one."""
        closure = moment.closure
        if not self.hold or closure is None or not takes_a_batch(closure):
            return False
        if distributed.running() and not self.ranks:
            return False
        if not self._held and moment.batch is not None:
            self._held = (copied(moment.batch),)
        return bool(self._held)

    def _try(self, measure: Callable[[Moment], Edge | None], moment: Moment) -> bool:
        """Measures; says that a pass was taken. A point without curvature is passed over, three in a row are not."""
        begun = time.perf_counter()
        if lack := lacking(parameters(moment.optimizer)):
            raise UnavailableError(lack)
        try:
            with torch.autocast(parameters(moment.optimizer)[0].device.type, enabled=False):
                self._reading = measure(moment)
                if self._reading is not None and self._cadence is not None:
                    self._beside = self._approach.signals(
                        self._reading, moment.optimizer, self._planned, since=moment.number - self._cadence.last,
                        held=self._kind == HELD,
                    )
            self._failures = 0
        except NotTwiceError as error:
            raise UnavailableError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise UnavailableError("there is not memory enough for a second derivative") from error
        except UsageError as error:
            self._failures += 1
            if self._failures >= PATIENCE:
                raise UnavailableError(str(error)) from error
        self._seconds = time.perf_counter() - begun
        return True

    def _live(self, moment: Moment) -> Edge | None:
        loss, closure = moment.loss, moment.closure
        assert loss is not None
        if not math.isfinite(float(loss.detach())):
            return None
        every = parameters(moment.optimizer)
        mine = trained(every)
        so_far = [param.grad for param in mine]
        weights = [float(weight) for weight in moment.weights]
        model = moment.model if self.ranks or not distributed.running() else None
        source = _source(loss.reshape(()), closure if self._serves(closure) else None)
        with harmless(every, model):
            hessian = Hessian(source, mine, model=model, deterministic="fix")
            planned = expected(hessian.gradient(), so_far, weights, moment.place)
            self._length = length(planned)
            grads = {id(param): grad for param, grad in zip(mine, planned, strict=True)}
            with hessian:
                reading = self._read(hessian, moment, [grads.get(id(param)) for param in every], factor(weights))
            self._kind = LIVE if isinstance(hessian.source.objective, Live) else CLOSURE
        return reading

    def _on_held(self, moment: Moment) -> Edge | None:
        closure, (batch,) = moment.closure, self._held
        assert closure is not None
        every = parameters(moment.optimizer)
        grads = about_to_be_consumed(moment.optimizer)
        if not math.isfinite(length(grads)):
            return None  # a step that a scaler will skip, or one that is beyond curvature
        # checked once; later readings draw the same random numbers as the first, so that dropout is the same
        mode = "fix" if self._streams is None else "trust"
        self._streams = self._streams or random_state()
        with harmless(every, moment.model):
            restore_random_state(self._streams)
            held = partial(closure, batch)
            with Hessian(held, trained(every), model=moment.model, deterministic=mode) as hessian:
                reading = self._read(hessian, moment, grads if any(g is not None for g in grads) else None, 1.0)
        self._kind = HELD
        return reading

    def _read(self, hessian: Hessian, moment: Moment, grads: list[Tensor | None] | None, share: float) -> Edge:
        """Returns chi of the loss times `share`, for the step with these gradients (None: as the state is stored)."""
        self._planned = grads
        if not self._sound:
            apart = symmetry_check(hessian)
            if not apart <= asymmetry_limit(hessian):
                raise UnavailableError(f"products with this Hessian are wrong: u'Hv and v'Hu differ by {apart:.1%}")
            self._sound = True
        live = moment.loss is not None
        # what the optimizer is about to consume is clipped already
        weights = edge_weights(moment.optimizer, grads, max_norm=self.max_norm if live else None)
        warm, close = self._start(moment.number, live)
        operator = hessian if share == 1.0 else share * hessian
        alarm = self._cadence is not None and self._cadence.state == "alarm"
        reading = read_edge(
            operator, weights, moment.optimizer, tol=self.tol, warm=warm, grads=grads,
            forms=grads is not None and alarm, amplified=NEAR if close else FAR,
        )
        self._warm = (moment.number, not live, reading.vector)
        self._approach.look(operator, reading, alarm=alarm)
        return reading

    def _start(self, step: int, live: bool) -> tuple[list[list[Tensor]], bool]:
        """Returns where to begin the search, and whether that is the direction of few steps ago.

        On live batches only where the direction lasts, which says that the batch is the same, and not for ever: a cold
        start finds back to the top where a lower eigenvalue has been followed.
        """
        if self._warm is None or self._warm[1] == live:
            return [], False
        last, _, direction = self._warm
        close = step - last <= CLOSE
        if live and not (close and self._approach.overlap >= LASTS and self._warmed < COLD):
            self._warmed = 0
            return [], False
        self._warmed += 1
        return [direction], close

    def _compare(self, step: Step) -> None:
        """Looks at what became of the live gradient, which shows whether the loop clips it."""
        if self._kind == HELD or len(step.losses) != 1 or not self._length > 0:
            return
        taken = length(consumed(step.optimizer))
        self._ratio = taken / self._length
        if self.max_norm is None and 0 < self._ratio < 1 - UNCHANGED:
            if abs(taken - self._clipped) <= UNCHANGED * taken:  # twice the same length: it is clipped to that
                self.max_norm = taken
            self._clipped = taken

    def _signals(self, step: Step, reading: Edge) -> dict[str, Tensor | float]:
        found: dict[str, Tensor | float] = {
            "chi": reading.chi, "chi_min": reading.lowest,
            "sharpness": reading.sharpness, "threshold": reading.threshold,
            "chi_residual": reading.residual, "chi_matvecs": float(reading.matvecs + self._approach.matvecs),
            "chi_converged": float(reading.converged), "chi_formal": float(reading.formal),
            "chi_floored": reading.floored, "probe_batch": self._kind, "curvature_seconds": self._seconds,
        }  # fmt: skip
        if math.isfinite(reading.max_stable_lr):
            found["max_stable_lr"] = reading.max_stable_lr
        if self._kind != HELD and math.isfinite(self._ratio) and len(step.losses) == 1:
            found["probe_gradient_ratio"] = self._ratio
        measured_in_alarm = {
            "chi_gradient": reading.chi_gradient, "chi_gradient_sym": reading.chi_gradient_sym,
            "chi_step": reading.chi_step, "chi_alignment": reading.alignment, "chi_change": reading.change,
        }  # fmt: skip
        found.update({name: value for name, value in measured_in_alarm.items() if math.isfinite(value)})
        found.update(self._beside)
        columns = {"chi_share": reading.shares, "chi_growth_denominator": self._approach.denominators}
        place, plan = {id(param): i for i, param in enumerate(reading.params)}, step.plan
        for name, values in columns.items():
            for param, unit in zip(plan.params, plan.unit_of.tolist() if values else (), strict=bool(values)):
                column, at = f"{name}/{plan.names[unit]}", place.get(id(param))
                found[column] = found.get(column, 0.0) + (0.0 if at is None else values[at])
        return found

    def _along_the_step(self, step: Step) -> dict[str, float]:
        """Returns the curvature along the step taken, from the loss of the same batch after it."""
        unclipped = abs(self._ratio - 1) <= UNCHANGED  # as far as a live reading has shown
        if len(step.losses) != 1 or step.closure is None or not unclipped:
            return {}
        every = parameters(step.optimizer)
        moves = [param.detach() - old for param, old in zip(every, self._copies, strict=True)]
        found = step_curvature(step.closure, step.losses[0], consumed(step.optimizer), moves)
        if not math.isfinite(found.chi_step) or found.rounding > abs(found.bend):
            return {}
        return {"chi_step": found.chi_step}


def _source(loss: Tensor, closure: Callable[[], Tensor] | None) -> Any:
    """Returns what to take the Hessian of: the live loss, with the closure behind it, or the closure alone.

    Errors: UnavailableError where the live graph is not one to go through and there is no closure.
    """
    facts = anatomy(loss)
    if facts.custom:  # their backward passes may have side effects, and second derivatives that are silently wrong
        what = f"the graph of the loss holds autograd functions of others ({', '.join(facts.custom)})"
    elif facts.low_precision == torch.float16:
        what = "the loss was computed in float16, where gradients underflow without the scale of a GradScaler"
    else:
        return loss if closure is None else (loss, closure)
    if closure is None:
        raise UnavailableError(f"{what}: call observe(loss, closure=...) with a function that recomputes the loss")
    return closure
