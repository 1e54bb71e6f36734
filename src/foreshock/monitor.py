"""Attaches probes to an optimizer and feeds recorder and detectors; reads, never writes, and never ends a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import attach
from foreshock.attempt import Attempt
from foreshock.changes import Changes
from foreshock.curvature import Edge
from foreshock.detect.base import Detector
from foreshock.detect.scan import default_detectors, feed
from foreshock.errors import RunError, UsageError
from foreshock.mishaps import Mishaps
from foreshock.probes import DEFAULT, Every, Moment, Part, Step, UnavailableError, name_of
from foreshock.probes.functions import Functions
from foreshock.probes.plan import Plan, name_tensors
from foreshock.probes.sweep import Sweep
from foreshock.provenance import metadata
from foreshock.recorder import Measured, Recorder
from foreshock.run import Event, Run, RunMemory, RunWriter, latest

STATE_VERSION = 1


class Monitor:
    """Watches one optimizer: measures every step, records it, and raises events.

    Nothing else in the loop changes, and the run stays bit for bit what it would have been::

        with Monitor(model, optimizer, run="runs/a") as monitor:
            for x, y in loader:
                loss = loss_fn(model(x), y)
                monitor.observe(loss)          # before backward, once for each micro-batch
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    A mistake in the call is an error; once training is under way a failure inside foreshock is a single
    `ForeshockWarning`, and training goes on.

    Args:
        model: the module that the optimizer trains, for the names of its tensors; or (name, tensor) pairs; or None.
        optimizer: any `torch.optim.Optimizer` whose `step` takes one step (LBFGS, which takes several, is refused).
        run: directory to record into; None keeps the run in memory.
        probes: what to measure beside the loss: probes of `foreshock.probes`, `every(n, probe)`, or functions that
            take a `Step` and return signals by name.
        every: distance, in steps, at which probes that cost a pass of their own are run.
        max_overhead: share of the wall time that those may take; near the edge they may borrow from it.
        detectors: what raises events; None takes the shipped ones.

    Raises:
        UsageError: an argument that cannot work.
        RunError: on entering, a directory that cannot be written or holds another run.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, Tensor]] | None,
        optimizer: Optimizer,
        run: str | os.PathLike[str] | None = None,
        *,
        probes: Sequence[Any] = DEFAULT,
        every: int = 100,
        max_overhead: float = 0.03,
        detectors: Sequence[Detector] | None = None,
    ) -> None:
        self.optimizer = attach.usable(optimizer)
        self._named = attach.parameter_names(model, self.optimizer)
        self.path, self.every, self.max_overhead = run, attach.positive("every", every), float(max_overhead)
        parts, functions = attach.sort_probes(probes, model)
        self._sweep = Sweep(parts)
        self._functions = Functions(functions, self.every, self.max_overhead, self._drop_function)
        self.model = model if isinstance(model, nn.Module) else None
        self.detectors: list[Detector] = list(default_detectors() if detectors is None else detectors)
        self._sink: RunWriter | RunMemory | None = None
        self._recorder: Recorder | None = None
        self._mishaps = Mishaps(self.note)
        self._hooks: list[Any] = []
        self._plan: Plan | None = None
        self._changes = Changes(self.note)
        self._quiet = attach.Quiet(torch.device("cpu"))
        self._step = 0
        self._resumes: str | None = None
        self.attempt = Attempt()
        self.on_loss: list[Callable[[Tensor], object]] = []  # told of each live loss that is observed
        self.on_event: list[Callable[[Event], object]] = []  # told of each version of each event
        self.history: Any = None  # the `History` that keeps what a replay needs, if there is one
        self._events: dict[tuple[str, str, int], Event] = {}
        self._process = os.getpid()  # a forked child, such as a data loader's worker, does not write into this run
        self._spent = self._last_step = 0.0

    def __enter__(self) -> Monitor:
        tensors = [name for name, _, _ in name_tensors(*self._named, self.optimizer)]
        meta = metadata(self.optimizer, tensors)
        if self.path is None:
            self._sink = RunMemory(meta)
        else:
            self._sink = attach.open_writer(self.path, meta, self._resumes)
        self._recorder = Recorder(self._sink, self._drop_part)
        if self._step:
            self.note("resumed", step=self._step)
        self._functions.start()
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self.prepare()),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None if kind is None else kind.__name__)

    def close(self, ended: str | None = None) -> None:
        """Detaches from the optimizer, writes what is held back and closes the run, noting what `ended` it."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.flush()
        assert self._sink is not None
        with self._mishaps.said("closing the run"):
            for detector in self.detectors:
                for event in detector.finish():
                    self._keep(event)
            self._sink.update_meta(ended=ended or "normally", steps=self._step)
            self._sink.close()

    def observe(
        self, loss: Tensor | float, closure: Callable[..., Any] | None = None, batch: Any = None
    ) -> None:
        """Takes the loss of this step, or of one micro-batch of it; call it before `backward`.

        Args:
            loss: one number: a tensor of one element or a float. Only its detached value is kept.
            closure: recomputes the loss, `closure()`, or that of any batch, `closure(batch)`, for probes of curvature.
            batch: the data, or whatever identifies it, for probes and reports.

        Raises:
            UsageError: the loss is not one number. After the first step this is a warning and the loss is left out.
        """
        begun = time.perf_counter()
        if os.getpid() != self._process:
            return
        if not self._hooks:
            self._complain("observe() was called on a monitor that is not attached: use `with Monitor(...)`.")
            return
        self._forget_skipped()
        value = attach.as_loss(loss)
        if value is None:
            self._complain("observe(loss): the loss must be one number, got "
                           f"{attach.shape_of(loss)}. Reduce it, for example by loss.mean().")
            return
        self.attempt.told(closure, batch)
        if isinstance(loss, Tensor) and loss.requires_grad:
            if self.attempt.repeats(loss):
                self._mishaps.say("observed twice", f"the same loss was observed twice in step {self._step}; it counts "
                                  "once. Call observe() once for each forward pass.")
                return
            if self._functions.live:  # before the hook of `weigh`, which must not see their backward passes
                self._functions.observe(self._moment(loss))
            for told in self.on_loss:
                told(loss)
            self.attempt.weigh(loss)
        self.attempt.take(value, batch)
        if self.history is not None:
            self.history.observed(value, batch)
        self._spent += time.perf_counter() - begun

    def look(self, loss: Tensor) -> None:
        """Shows a loss to the probes that only look on as it is differentiated, for who observes its value later."""
        self._functions.look(self._moment(loss))

    @property
    def step(self) -> int:
        """Number of the attempt that is under way: of those before it, taken or refused."""
        return self._step

    @property
    def reading(self) -> Edge | None:
        """The reading of curvature that was taken for the attempt under way, before its update."""
        return self._functions.reading

    @property
    def beside(self) -> Mapping[str, float]:
        """What is known beside that reading: signals by name, such as `expected_rise` and `chi_overlap`."""
        return self._functions.beside

    @property
    def events(self) -> list[Event]:
        """What the detectors have raised so far, last versions, ordered by the step they were raised at."""
        self.flush()
        return latest(self._events)

    @property
    def run(self) -> Run:
        """The run so far, as `Run.load` would show it."""
        self.flush()
        if self._sink is None:
            raise UsageError("the monitor has recorded nothing yet: use `with Monitor(...) as monitor:`")
        return self._sink.run() if isinstance(self._sink, RunMemory) else Run.load(self._sink.path)

    def annotate(self, **fields: Any) -> None:
        """Adds to the run's metadata, for example `annotate(title="baseline", seed=3)`; plain JSON values."""
        if self._sink is None:
            raise UsageError("annotate() was called on a monitor that is not attached: use `with Monitor(...)`.")
        self._sink.update_meta(**fields)

    def flush(self) -> None:
        """Brings over and records everything measured so far, and runs the detectors on it; waits for the device."""
        recorder = self._recorder
        if recorder is None or os.getpid() != self._process:
            return
        begun = time.perf_counter()
        with self._mishaps.said("recording", "; the steps held back are lost"):
            records = recorder.flush()
            if recorder.broken is not None:
                self._mishaps.say("disk", f"the run is not being recorded: {recorder.broken}. Training goes on, and so "
                                  "do the detectors; recording starts again when the disk can be written.")
                recorder.broken = None
            self._functions.saw(records)
            for detector, error in feed(self.detectors, records, self._keep):
                self._mishaps.disabled("detector", name_of(detector), error, self._step)
        self._spent += time.perf_counter() - begun

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs to go on as if it had not stopped; save it with the checkpoint."""
        self.flush()
        return {
            "version": STATE_VERSION, "step": self._step,
            "run": self._sink.id if self._sink is not None else self._resumes,
            "detectors": [[name_of(detector), detector.state_dict()] for detector in self.detectors],
            "probes": [[name_of(probe), probe.state_dict()] for probe in self._stateful()],
            "events": [event.to_dict() for event in latest(self._events)],
            "tensors": self._changes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Called before `with`, the monitor goes on in the run directory that it recorded into, if that is the one given;
        what was recorded there after the checkpoint is replaced. A probe or detector that was not there starts afresh.

        Raises:
            UsageError: the state is not a monitor's, or of a later version.
        """
        attach.check_state(state, "monitor", STATE_VERSION)
        self.flush()
        self._step, self._resumes = int(state["step"]), state["run"]
        attach.restore(self.detectors, state["detectors"])
        attach.restore(self._stateful(), state["probes"])
        self._changes.load_state_dict(state.get("tensors", {}))
        self._events = {event.key: event for event in map(Event.from_dict, state["events"])}
        self.attempt.drop()
        if self._recorder is not None:
            self._recorder.rewind(self._step)
            self.note("resumed", step=self._step)

    def _stateful(self) -> list[Any]:
        probes: list[Any] = [*self._sweep.parts, *self._functions.probes]
        return [probe for probe in probes if hasattr(probe, "state_dict") and hasattr(probe, "load_state_dict")]

    def prepare(self) -> None:
        """Looks at the gradients of the step that is about to be taken, once; the optimizer's hook sees to it."""
        if os.getpid() != self._process or self.attempt.prepared or not self._hooks:
            return
        begun, optimizer, self.attempt.prepared = time.perf_counter(), self.optimizer, True
        try:
            if self._plan is None or not self._plan.refresh(optimizer):
                if self._plan is not None:
                    self._named = attach.renamed(self.model, optimizer, self._named)
                self._plan = Plan(name_tensors(*self._named, optimizer), optimizer, fused=self._sweep.fused)
                self._quiet = attach.Quiet(self._plan.device)
            self._changes.look(self._step, self._plan)
            self._sweep.before(self._step, self._plan, self._drop_part)
            if self._functions.live:
                self._functions.before(self._moment(None))
        except Exception:
            self._mishaps.failed("preparing a step")
        self._spent += time.perf_counter() - begun

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if os.getpid() != self._process:
            return
        if self.attempt.refused:
            self.refuse()
            return
        begun = time.perf_counter()
        if self.history is not None:
            self.history.ended(taken=True)
        try:
            with self._quiet:
                self._measure(begun)
        except Exception:
            self._mishaps.failed("measuring a step")
        self._step += 1
        self.attempt.drop()
        self._spent += time.perf_counter() - begun

    def _measure(self, begun: float) -> None:
        plan, recorder = self._plan, self._recorder
        if plan is None or recorder is None:  # the hook before the step failed, and said so
            return
        recorder.dtype = plan.recorded
        step = Step(
            self._step, self.optimizer, plan, plan.values(), plan.grads(), list(self.attempt.losses),
            self.attempt.batch, self.attempt.closure, attach.scale_of(self.optimizer), attach.veto_of(self.optimizer),
        )
        measured = Measured(self._step, time.time(), {})
        self._free_signals(measured, step, begun)
        measured.swept = self._sweep(step, self._drop_part)
        self._functions(step, measured.keep)
        if not step.losses:
            self._mishaps.say("no loss", f"no loss was observed for step {self._step}: call monitor.observe(loss) "
                              "before backward. Everything else is measured.")
        if recorder.take(measured) or self._functions.urgent:
            self.flush()

    def _free_signals(self, measured: Measured, step: Step, begun: float) -> None:
        host, device = measured.host, measured.device
        self.attempt.signals(host, device, taken=True)
        if step.found_inf is not None:
            device["skipped"] = step.found_inf
        attach.learning_rates(self.optimizer, host, device)
        if self._last_step:
            host["step_seconds"] = begun - self._last_step
        self._last_step = begun
        host["monitor_seconds"], self._spent = self._spent, 0.0

    def _moment(self, loss: Tensor | None) -> Moment:
        return Moment(
            self._step, self.optimizer, self.model, loss, len(self.attempt.losses), self.attempt.last_weights,
            self.attempt.batch, self.attempt.closure, self.every, self._functions.affordable, self._functions.on_credit,
        )

    def _forget_skipped(self) -> None:
        """Records losses whose gradients were cleared without a step: a GradScaler has skipped an overflow."""
        if self.attempt.vanished(self.optimizer):
            self.refuse()

    def refuse(self, **signals: float) -> None:
        """Records the attempt as one that was not taken, with these signals beside its loss; the next one follows."""
        if self.history is not None:
            self.history.ended(taken=False)
        measured = Measured(self._step, time.time(), {"skipped": 1.0} | signals)
        self.attempt.signals(measured.host, measured.device)
        self._step += 1
        self.attempt.drop()
        if self._recorder is not None and self._recorder.take(measured):
            self.flush()

    def _keep(self, event: Event) -> None:
        fresh = event.key not in self._events
        self._events[event.key] = event
        for told in self.on_event:
            told(event)
        if fresh and self._functions.live:
            self._functions.heard(event.kind, event.raised)
        assert self._sink is not None
        assert self._recorder is not None
        try:
            self._sink.event(event)
            if fresh:
                self._recorder.detail(event.raised)
        except (RunError, OSError) as error:
            self._recorder.broken = error

    def _drop_part(self, part: Part | Every, error: Exception) -> None:
        if part in self._sweep.parts:
            self._sweep.parts.remove(part)
            self._mishaps.disabled("probe", name_of(part), error, self._step)

    def _drop_function(self, probe: Any, error: Exception) -> None:
        if isinstance(error, UnavailableError):
            self.note("probe_unavailable", step=self._step, name=name_of(probe), reason=str(error))
        else:
            self._mishaps.disabled("probe", name_of(probe), error, self._step)

    def _complain(self, message: str) -> None:
        """Raises before the first step, warns once after it."""
        if self._step == 0:
            raise UsageError(message)
        self._mishaps.say(message[:24], message)

    def note(self, kind: str, **fields: Any) -> None:
        """Writes down a happening of the run."""
        if self._sink is not None:
            self._sink.note(kind, **fields)
        if self.history is not None:
            self.history.noted(kind, fields)
