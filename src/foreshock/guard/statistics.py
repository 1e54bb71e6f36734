"""Buffers that a forward pass changes, such as the running statistics of BatchNorm, kept as they were before it.

A batch is judged after its forward pass, and that has left its mark on them by then: one NaN in a batch, and they are
NaN for good. A refused attempt must leave no trace there either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Place = tuple[str, nn.Module, str]


class Statistics:
    """The buffers of a model that change as it is used, as they were after the last step that was taken.

    Those of torch's normalisations are known; any other is one of them from its first change on. What never changes,
    such as a mask, is not copied.

    Args:
        model: whose buffers these are; None has none.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._places: list[Place] | None = None
        self._seen: dict[str, tuple[int, int]] = {}  # identity and version when last looked at
        self._kept: dict[str, Tensor] = {}
        self._early = False  # what is kept is from before the first step; a checkpoint may have been loaded since

    @torch.no_grad()
    def keep(self, *, early: bool = False) -> None:
        """Copies them as they are now; `early` says that no step was taken yet."""
        self._early = early
        for name, module, key in self._all():
            buffer = module._buffers[key]
            if buffer is None:
                continue
            now, before, known = (id(buffer), buffer._version), self._seen.get(name), isinstance(module, _NormBase)
            self._seen[name] = now
            # batch_norm writes without counting a version
            if not known and (now == before or (before is None and name not in self._kept)):
                continue
            kept = self._kept.get(name)
            if kept is not None and _alike(kept, buffer):
                kept.copy_(buffer)
            else:
                self._kept[name] = buffer.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        """Puts them back as they were; those that have become another shape since are left alone."""
        for name, buffer, kept in self._pairs():
            if kept is not None:
                buffer.copy_(kept)
                self._seen[name] = id(buffer), buffer._version

    def sound(self) -> list[Tensor]:
        """Returns every buffer of the model as a refusal leaves it."""
        return [buffer if kept is None else kept for _, buffer, kept in self._pairs()]

    def _pairs(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Yields name, live buffer, and what it is to be put back to."""
        for name, module, key in self._all():
            buffer, kept = module._buffers[key], self._kept.get(name)
            if buffer is None:
                continue
            usable = kept is not None and _alike(kept, buffer) and not (self._early and self._loaded(name, module))
            yield name, buffer, kept if usable else None

    def _loaded(self, name: str, module: nn.Module) -> bool:
        """Returns whether somebody has written other statistics since they were kept: a forward pass counts none."""
        mean = module._buffers.get("running_mean")
        path, _, _ = name.rpartition(".")
        return mean is not None and self._seen.get(f"{path}.running_mean") != (id(mean), mean._version)

    def _all(self) -> list[Place]:
        if self._places is None:
            modules = () if self._model is None else self._model.named_modules()
            self._places = [(f"{path}.{key}", module, key) for path, module in modules for key in module._buffers]
        return self._places

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of what is kept, by name."""
        return {name: kept.clone() for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self._kept, self._seen = {name: kept.clone() for name, kept in state.items()}, {}
        self._early = False


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
