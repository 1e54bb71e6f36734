"""A bounded sample of feature vectors whose members depend on the data alone: no generator, any order, mergeable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed number
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))  # the constants of SplitMix64


class Sample:
    """The `each` examples of every class with the smallest keys, and of those the `total` smallest.

    The key of an example is a hash of the bits of its features and its class, so it is a uniform draw without
    replacement from the distinct examples (a bottom-k sketch; Cohen and Kaplan 2007, PODC, "Summarizing data using
    bottom-k sketches") that does not depend on order, chunks or ranks; an example that comes again adds to its weight.

    Args:
        dim: d, length of a feature vector.
        each: most examples kept of a class.
        total: most examples kept in all.
    """

    __slots__ = ("each", "features", "keys", "labels", "total", "weights")

    def __init__(self, dim: int, each: int, total: int) -> None:
        self.each, self.total = each, total
        self.features = torch.zeros(0, dim)
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.weights = torch.zeros(0, dtype=torch.float64)
        self.keys = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, features: Tensor, labels: Tensor, weights: Tensor, keys: Tensor | None = None) -> None:
        """Offers examples: features (n, d), labels (n,), weights (n,), and their keys where these are known."""
        if not (self.each and self.total and len(labels)):
            return
        if keys is None:
            keys = keys_of(features, labels)
        exact = torch.promote_types(features.dtype, torch.float32)
        if len(self):
            exact = torch.promote_types(exact, self.features.dtype)
        device = features.device
        self.features, self.labels, self.weights, self.keys = _smallest(
            torch.cat([self.features.to(device, exact), features.to(exact)]),
            torch.cat([self.labels.to(device), labels]),
            torch.cat([self.weights.to(device), weights.double()]),
            torch.cat([self.keys.to(device), keys]),
            self.each,
            self.total,
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, state[name])


def keys_of(features: Tensor, labels: Tensor) -> Tensor:
    """Returns the key (n,) of each example: 63 bits that depend on its numbers and its class alone."""
    bits = (features.double() + 0.0).contiguous().view(torch.int64)  # + 0.0: minus zero is zero
    place = torch.arange(1, features.shape[1] + 1, device=features.device) * _ODD
    folded = (_mixed(bits ^ place)).sum(1) + (labels + 1) * _ODD
    return _mixed(folded) & 0x7FFFFFFFFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), with the sign cut off its shifts."""
    for shift, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _smallest(
    features: Tensor, labels: Tensor, weights: Tensor, keys: Tensor, each: int, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the examples that stay, by class and key, with equal ones made one."""
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    labels, keys, weights = labels[order], keys[order], weights[order]
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = (keys[1:] != keys[:-1]) | (labels[1:] != labels[:-1])
    group = first.cumsum(0) - 1
    weights = torch.zeros(int(first.sum()), dtype=torch.float64, device=weights.device).index_add_(0, group, weights)
    order, labels, keys = order[first], labels[first], keys[first]
    begins = torch.searchsorted(labels, labels)
    stays = torch.arange(len(keys), device=keys.device) - begins < each
    if int(stays.sum()) > total:
        limit = keys[stays].sort().values[total - 1]
        stays &= keys <= limit
    return features[order[stays]], labels[stays], weights[stays], keys[stays]
