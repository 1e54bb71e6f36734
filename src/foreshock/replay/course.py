"""Runs the steps around an event again: as they were, or with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foreshock.guard.snapshots import Snapshots
from foreshock.guard.update import first_after
from foreshock.replay.scene import NotApplicable, Scene, StepFunction, value_of

if TYPE_CHECKING:
    from foreshock.replay.arm import Arm

LOST = 3  # losses in a row that are not finite, after which a changed course is not run on


def run(
    scene: Scene, step_fn: StepFunction, arm: Arm | None = None, *, candidate: int = 0,
    told: Callable[[int], None] | None = None,
) -> dict[int, float]:
    """Returns step -> loss of the steps around the event, begun from the window's snapshot.

    Args:
        scene: where.
        step_fn: one step of the loop.
        arm: what is changed; None for nothing.
        candidate: which of the states of the random streams a step begins with, see `Window.rng`.
        told: called with each step before it is taken.

    Raises:
        NotApplicable: the change makes no sense here.
    """
    losses: dict[int, float] = {}
    window, lost = scene.window, 0
    for each in scene.beside:
        each.put_back()
    window.restore()
    for param in scene.params:
        param.grad = None
    with ExitStack() as stack:
        left_out, batches = (frozenset[int](), None) if arm is None else _changed(scene, arm, stack)
        for step in scene.steps if not left_out else _longer(scene, len(left_out)):
            by_guard = not window.taken(step) and bool(window.actions(step))
            if step in left_out or (by_guard and step < scene.onset):
                continue
            scene.step = step
            if told is not None:
                told(step)
            batch = window.batch(step) if batches is None or step not in batches else batches[step]
            if states := window.rng(step):
                window.set_rng(states[min(candidate, len(states) - 1)])
            batch = batch if arm is None or arm.cast is None else arm.cast(batch)
            with nullcontext() if window.taken(step) else _undone(scene) if by_guard else _refused(scene):
                losses[step] = loss = _taken(scene, step_fn, batch)
            lost = 0 if math.isfinite(loss) else lost + 1
            if arm is not None and scene.anywhere(lost == LOST):
                break
    return losses


def _taken(scene: Scene, step_fn: StepFunction, batch: Any) -> float:
    try:
        return value_of(step_fn(batch))
    except Exception as error:
        if len(scene.window.losses(scene.step)) > 1 and isinstance(batch, list):
            error.add_note(
                f"foreshock: step {scene.step} has {len(batch)} micro-batches, and step_fn was given the list of them. "
                "If the loop does not accumulate gradients it left steps out by itself: clear gradients before each "
                "forward pass, or call monitor.refuse() for a step that is not taken"
            )
        raise


def _changed(scene: Scene, arm: Arm, stack: ExitStack) -> tuple[frozenset[int], Mapping[int, Any] | None]:
    """Makes the change of an arm, on all ranks or on none; returns the steps left out and the batches replaced.

    Raises:
        NotApplicable: it makes no sense here, or on another rank.
    """
    scene.step, why = scene.start, None
    left_out, batches = frozenset[int](), None
    try:
        if (change := arm.change(scene)) is not None:
            stack.enter_context(change)
        left_out = frozenset(arm.left_out(scene)) if arm.left_out is not None else left_out
        batches = arm.batches(scene) if arm.batches is not None else None
    except NotApplicable as reason:
        why = reason
    if scene.anywhere(why is not None):
        raise why or NotApplicable("it makes no sense on another rank")
    return left_out, batches


def _refused(scene: Scene) -> AbstractContextManager[None]:
    """Keeps the optimizer from moving, in a step that a scaler or the loop refused; all else of it is done again."""

    def hide() -> None:
        for param in scene.params:
            param.grad = None

    return around(scene, hide)


@contextmanager
def _undone(scene: Scene) -> Iterator[None]:
    """Leaves nothing of a step that a guard refused but its loss, as the guard did."""
    holding, state = scene.window.holding, Snapshots(keep=1)
    state.attach(
        holding.model, holding.optimizer, scheduler=holding.scheduler, scaler=holding.scaler, ema=holding.ema
    )
    if not state.take(scene.step):
        raise NotApplicable(state.refused)
    try:
        with _refused(scene):
            yield
    finally:
        state.restore(scene.step)


def _longer(scene: Scene, more: int) -> list[int]:
    """Returns the steps, with as many more as there are batches of."""
    return [step for step in scene.window.steps if step <= scene.last + more]


@contextmanager
def gauged(scene: Scene) -> Iterator[None]:
    """Measures learning rates, gradient norms and updates of the steps that are taken inside; changes nothing."""
    optimizer = scene.optimizer
    old: list[Tensor] = []

    def before(*_: Any) -> None:
        scene.rates[scene.step] = [float(group.get("lr", 1.0)) for group in optimizer.param_groups]
        scene.norms[scene.step] = grad_norm(scene)
        old[:] = [param.detach().clone() for param in scene.params]

    def after(*_: Any) -> None:
        moved = [(param.detach() - was).float() for param, was in zip(scene.params, old, strict=False)]
        scene.moves[scene.step] = [float(each.square().mean().sqrt()) if each.numel() else 0.0 for each in moved]
        old.clear()

    with around(scene, before, after):
        yield


def grad_norm(scene: Scene) -> float:
    """Returns the norm of all gradients as they are now."""
    grads = [param.grad for param in scene.params if param.grad is not None and not param.grad.is_sparse]
    if not grads:
        return 0.0
    return float(torch.stack([grad.detach().double().norm().cpu() for grad in grads]).norm())


@contextmanager
def differentiated(told: Callable[[Tensor], object]) -> Iterator[None]:
    """Calls `told` with each tensor that has a graph and is differentiated inside by `backward`, before it is."""
    original = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        for each in (tensors,) if isinstance(tensors, Tensor) else tuple(tensors):
            if isinstance(each, Tensor) and each.grad_fn is not None:
                told(each)
        original(tensors, *args, **kwargs)

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = original


@contextmanager
def around(
    scene: Scene, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> Iterator[None]:
    """Calls `before` when the optimizer is about to step, after all others, and `after` right after it."""
    handles = []
    if before is not None:
        handles.append(scene.optimizer.register_step_pre_hook(lambda *_: before()))
    if after is not None:
        handles.append(first_after(scene.optimizer, lambda *_: after()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
