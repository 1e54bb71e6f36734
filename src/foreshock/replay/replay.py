"""Runs the steps around an event again: unchanged, which must give the same, then with one thing changed at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from foreshock import distributed
from foreshock.errors import ForeshockWarning, UsageError
from foreshock.history import Source, window_of
from foreshock.history.entrance import Entrance
from foreshock.replay import course, edge, parallel, what_if
from foreshock.replay.arm import Arm
from foreshock.replay.aside import aside
from foreshock.replay.beside import beside
from foreshock.replay.result import ArmResult, Replay, judged, largest, lowest
from foreshock.replay.scene import NotApplicable, Scene, StepFunction
from foreshock.replay.slots import Structure, changed
from foreshock.run.event import Event

LEFT = frozenset({"proceed", "skip", "rollback", "stop"})  # what a guard does without changing a step that is taken
MEAN = 1e-6  # relative error up to which two means of the same micro-batches are one


def replay(
    source: Source,
    event: Event,
    step_fn: StepFunction,
    arms: Sequence[Arm] | None = None,
    *,
    before: int | None = None,
    processes: int = 1,
    memory: int | None = None,
) -> Replay:
    """Returns what happens to an event when one thing is changed: an experiment on the training itself.

    The training goes back to a snapshot from before the event and takes the same steps on the same batches, first
    unchanged, which must give the recorded losses bit for bit, then with each change of `arms`. Where it does not, and
    the event does not come again either, no change can be judged. Afterwards the live training is what it was before
    the call, bit for bit::

        with fs.Monitor(model, optimizer, run="runs/a") as monitor, fs.History(monitor):
            for batch in loader:
                step(batch)                      # forward, monitor.observe(loss, batch=batch), backward, step
        found = fs.replay(monitor, monitor.events[0], step)
        found.cures                              # ['floor', 'cut_lr']

    What it finds is kept with the run, where `diagnose`, `foreshock explain` and the report take it up.

    Args:
        source: the monitor, if a `History` is attached to it; that history; one loaded from disk and attached to a
            fresh model and optimizer; or a window of it.
        event: what is to be explained, e.g. one of `monitor.events`.
        step_fn: `step_fn(batch) -> loss` takes one step of the training on the live objects, as the loop does:
            forward, backward, clipping, `optimizer.step()`, `scheduler.step()`. It may call `monitor.observe`, which
            does nothing meanwhile. With accumulation, `batch` is the list of micro-batches.
        arms: the changes, see `foreshock.what_if`; None for all of `what_if.standard()`.
        before: begin at the newest snapshot taken at or before this step, instead of some steps before the onset.
        processes: arms that are run at once, each in a process of its own (fork; CPU only, one thread each).
        memory: bytes of host memory that the present state may take meanwhile.

    Raises:
        UsageError: there is no window for this event (it says why), or `step_fn` does not return a loss.
    """
    chosen = what_if.standard() if arms is None else tuple(arms)
    _check(chosen, step_fn, processes)
    if before is not None and (not isinstance(before, int) or isinstance(before, bool)):
        raise UsageError(f"replay(before=...): a step is needed, got {before!r}")
    window = window_of(source, event, call="replay", before=before)
    event = window.event if window.event.key == event.key else event  # its last version
    model = window.holding.model
    scene = Scene(window, event, None if model is None else distributed.group_of(model.modules()))
    if processes > 1 and scene.group is not None:
        raise UsageError("replay(processes=...): the model is trained by several ranks; leave processes at 1")
    _untouched(scene)
    if scene.last < event.onset:
        raise UsageError(f"replay: the batches of the event at step {event.onset} are not kept; the last is of "
                         f"step {scene.last}")  # fmt: skip
    monitor = window.monitor
    scene.beside = [Structure(window.holding), *beside(step_fn, window.holding)]
    with aside(window.holding, monitor=monitor, memory=memory, beside=scene.beside):
        original, candidate, differs, repeats = _unchanged(scene, step_fn)
        scene.losses = original
        unheld = () if differs is None else changed(scene.beside)
        drawn = differs is not None and any(len(window.rng(step)) > 1 for step in scene.steps)
        base, peak, usual = scene.level(original), largest(original, event.onset), scene.usual(original)
        returns = scene.anywhere(differs is None or _returns(scene, original))
        results: list[ArmResult] = []
        read: edge.Edge | None = None
        if returns:
            def tried(arm: Arm) -> ArmResult:
                return _tried(scene, step_fn, arm, candidate, (base, peak, usual))

            results = parallel.run(tried, chosen, processes) if processes > 1 else [tried(arm) for arm in chosen]
        if scene.group is None and edge.curved(results):  # ranks would read apart
            read = _read(scene, step_fn, candidate)
    found = Replay(
        event, window.start, original, base, peak, differs is None, differs, repeats, returns, drawn, tuple(results),
        unheld, read,
    )
    if monitor is not None and _writes(scene):
        monitor.run.add_finding(found.to_dict())
    return found


def _writes(scene: Scene) -> bool:
    return scene.group is None or distributed.place(scene.group)[0] == 0


def _check(arms: Sequence[Arm], step_fn: StepFunction, processes: int) -> None:
    names = [arm.name if isinstance(arm, Arm) else arm for arm in arms]
    wrong = [name for arm, name in zip(arms, names, strict=True) if not isinstance(arm, Arm)]
    if wrong:
        raise UsageError(f"replay(arms=...): changes of foreshock.what_if are needed, e.g. what_if.cut_lr(); "
                         f"got {wrong[0]!r}")  # fmt: skip
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"replay(arms=...): two arms are called {sorted(map(str, twice))[0]!r}; name them apart")
    if not callable(step_fn):
        raise UsageError(f"replay(step_fn): must be a function of a batch, got {type(step_fn).__name__}")
    if not isinstance(processes, int) or processes < 1:
        raise UsageError(f"replay(processes=...): must be a positive integer, got {processes!r}")


def _untouched(scene: Scene) -> None:
    """Raises a UsageError where a guard has changed one of the steps that were taken: `step_fn` would not do that."""
    for step in scene.steps:
        did = [name for name in scene.window.actions(step) if name not in LEFT]
        if did and scene.window.taken(step):
            raise UsageError(
                f"replay: at step {step} a guard did {', '.join(did)}, which step_fn does not do; "
                "replay(..., before=...) or an event whose window has no such step can be run again"
            )


def _unchanged(scene: Scene, step_fn: StepFunction) -> tuple[dict[int, float], int, int | None, bool | None]:
    """Returns the losses without a change, the state of the random streams that gave them, where they first differ
    from what was recorded, and whether they then came out the same a second time."""
    window = scene.window
    candidates = 1 + scene.anywhere(any(len(window.rng(step)) > 1 for step in scene.steps))
    best: tuple[dict[int, float], int, int] | None = None
    for candidate in range(candidates):
        stray: set[int] = set()
        with course.gauged(scene), ExitStack() as watch:

            def told(step: int, stray: set[int] = stray, watch: ExitStack = watch) -> None:
                watch.close()
                if step in window.checkpoints and not window.same(step):
                    stray.add(step - 1)
                    watch.enter_context(_again(scene, step, stray))

            losses = course.run(scene, step_fn, candidate=candidate, told=told)
        apart = [step for step, loss in losses.items() if not _same(scene, step, loss)]
        first = min([*apart, *stray], default=None)
        if not scene.anywhere(first is not None):
            return losses, candidate, None, None
        first = min(losses) if first is None else first  # another rank's differ, which this one's steps feel
        if best is None or first > best[2]:
            best = losses, candidate, first
    assert best is not None
    again = course.run(scene, step_fn, candidate=best[1])
    repeats = all(again[step] == loss or (math.isnan(loss) and math.isnan(again[step]))
                  for step, loss in best[0].items())  # fmt: skip
    return best[0], best[1], best[2], repeats


@contextmanager
def _again(scene: Scene, step: int, stray: set[int]) -> Iterator[None]:
    """Compares once more at the step's first forward pass, where snapshots are taken: loops set rates before it."""

    def look() -> None:
        entrance.close()
        if scene.window.same(step):
            stray.discard(step - 1)

    if scene.model is None:
        yield
        return
    entrance = Entrance(scene.model, look)
    entrance.open()
    try:
        yield
    finally:
        entrance.close()


def _returns(scene: Scene, losses: dict[int, float]) -> bool:
    """Returns whether a course that is not the record bit for bit has the event all the same, half as high at least."""
    recorded = {step: scene.window.loss(step) for step in losses}
    base, peak = scene.level(recorded), largest(recorded, scene.onset)
    return judged(largest(losses, scene.onset), base, peak)[1] in ("stays", "worse")


def _same(scene: Scene, step: int, loss: float) -> bool:
    recorded = scene.window.loss(step)
    if loss == recorded or (math.isnan(loss) and math.isnan(recorded)):
        return True
    several = len(scene.window.losses(step)) > 1
    return several and math.isclose(loss, recorded, rel_tol=MEAN)


def _read(scene: Scene, step_fn: StepFunction, candidate: int) -> edge.Edge | None:
    """Returns what chi did; None also where reading it failed, which the arms do not depend on."""
    try:
        return edge.measured(scene, step_fn, candidate=candidate)
    except Exception as error:
        warnings.warn(f"replay: chi could not be read again ({error})", ForeshockWarning, stacklevel=3)
        return None


def _tried(
    scene: Scene, step_fn: StepFunction, arm: Arm, candidate: int, original: tuple[float, float, float]
) -> ArmResult:
    """Returns the course with one change; what fails in it is said, and the others are tried all the same."""
    try:
        losses = course.run(scene, step_fn, arm, candidate=candidate)
    except NotApplicable as reason:
        return ArmResult(arm.name, arm.what, math.nan, math.nan, "not applicable", str(reason), {})
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return ArmResult(arm.name, arm.what, math.nan, math.nan, "failed", why, {})
    peak = largest(losses, scene.onset)
    base, high, usual = original
    share, verdict = judged(peak, base, high, level=lowest(losses, scene.onset), usual=usual)
    return ArmResult(arm.name, arm.what, peak, share, verdict, "" if losses else "no step was left", losses)
