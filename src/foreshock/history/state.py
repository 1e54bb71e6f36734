"""A state that a window begins from, or is held against: a snapshot, and what changed between it and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from foreshock.guard.buffers import allocate
from foreshock.guard.freeze import Freezer
from foreshock.guard.holding import Holding, freeze_beside, thaw, thaw_beside
from foreshock.guard.snapshot import Snapshot
from foreshock.guard.thaw import MISSING

BESIDE = ("scheduler", "scaler", "ema")


@dataclass(frozen=True, slots=True)
class State:
    """The state of a training when a step begins.

    A guard takes its snapshots right behind an update, where the loop has not stepped its scheduler yet, and so does a
    history whose model is not seen to be called; what changed before the next step began is beside it then.

    Attributes:
        snapshot: all of it.
        late: options of the optimizer's groups, schedulers and scaler, as they were when the step began; None where
            the snapshot was taken then.
    """

    snapshot: Snapshot
    late: Snapshot | None = None

    @property
    def step(self) -> int:
        """Number of the step."""
        return self.snapshot.step

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that it takes."""
        return self.snapshot.buffer.flat.numel()

    def lent(self) -> State:
        """Returns itself; its memory is not used for another snapshot any more."""
        self.snapshot.buffer.lent = True
        return self

    def restore(self, holding: Holding) -> None:
        """Puts the live objects back, in place and bit for bit; gradients and random streams are left as they are.

        Raises:
            UsageError: they are not those of which the snapshot was taken; nothing is written then.
        """
        tree, plan = self.snapshot.tree, self.snapshot.thawer()
        thaw(tree, holding if self.late is None else within(holding, tree), plan, rng=False, data=False)
        self.snapshot.put_back(plan)
        if self.late is not None:
            _catch_up(self.late, holding)


def late(holding: Holding, step: int, beside: tuple[str, ...]) -> Snapshot:
    """Returns a copy of what may change between an update and the next step, as it is when that begins.

    Args:
        holding: the live objects.
        step: that begins.
        beside: sections to copy beside the options of the optimizer's groups.
    """
    freezer = Freezer()
    groups = [_options(group) for group in holding.optimizer.param_groups]
    tree = {"groups": freezer.value(groups, "groups"), **freeze_beside(holding, freezer, beside)}
    buffer = allocate(freezer.specs, pinned=False)
    buffer.fill(freezer.tensors)
    return Snapshot(step, tree, buffer, freezer.names, freezer.kept, tuple(freezer.opaque))


def within(holding: Holding, tree: Mapping[str, Any]) -> Holding:
    """Returns the live objects without those of sections that a tree does not have."""
    missing: dict[str, Any] = {name: None for name in BESIDE if name not in tree}
    return replace(holding, **missing)


def _catch_up(late: Snapshot, holding: Holding) -> None:
    plan, optimizer = late.thawer(), holding.optimizer
    for number, (options, group) in enumerate(zip(late.tree["groups"], optimizer.param_groups, strict=False)):
        near = group["params"][0] if group["params"] else None
        for key, node in options["map"].items():
            value = plan.value(node, group.get(key, MISSING), f"groups.{number}.{key}", near=near)
            plan.writes.append(partial(group.__setitem__, key, value))
    thaw_beside(late.tree, within(holding, late.tree), plan, BESIDE)
    late.put_back(plan)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
