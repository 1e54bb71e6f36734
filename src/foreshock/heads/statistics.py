"""What a head's new rows are solved from: counts and moments of the features it reads, by class, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.heads.collect import Collector, head_of
from foreshock.heads.sample import Sample

_PER_CLASS = 1 << 27  # numbers in second moments by class: 1 GiB
_SAMPLE, _TOTAL = 256, 16384  # examples kept for calibration, of a class and in all


class HeadStatistics:
    """n_c, sum h and sum h h' of the features h that a head reads, by class c: all that least squares needs.

    Everything is summed in float64, so order and chunks matter to rounding only, and the statistics of two sets add
    up to those of their union. Beside the sums a bounded sample of the features is kept for the calibration of
    cross-entropy heads, which no moments determine; which examples are in it depends on the data alone.

    Args:
        dim: d, length of a feature vector.
        unit: take features divided by their norm, as cosine heads do.
        per_class: keep sum h h' for each class, (d, d) float64 each, which class balance and solving from new data
            alone need exactly; None: until they would take 1 GiB, then their sum only, and the covariance within
            classes counts as the same in all of them.
        sample: examples kept of each class; 0 keeps none, and calibration takes features for normal within a class.
        sample_total: examples kept in all.

    >>> statistics = HeadStatistics(2)
    >>> statistics.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 4]))
    >>> statistics.counts
    {0: 2.0, 4: 1.0}
    """

    def __init__(
        self,
        dim: int,
        *,
        unit: bool = False,
        per_class: bool | None = None,
        sample: int = _SAMPLE,
        sample_total: int = _TOTAL,
    ) -> None:
        if not hasattr(dim, "__index__") or dim < 1:
            raise UsageError(f"dim is the length of a feature vector, an integer of at least 1; got {dim!r}")
        if sample < 0 or sample_total < 0:
            raise UsageError(f"sample and sample_total count examples; got {sample} and {sample_total}")
        self.dim, self.unit, self.per_class = dim, unit, per_class
        self.classes = torch.zeros(0, dtype=torch.int64)  # (K,) ascending
        self.weight = torch.zeros(0, dtype=torch.float64)  # (K,) n_c
        self.sums = torch.zeros(0, dim, dtype=torch.float64)  # (K, d) sum of h
        self.unit_sums = torch.zeros(0, dim, dtype=torch.float64)  # (K, d) sum of h / |h|
        self.second = torch.zeros(dim, dim, dtype=torch.float64)  # sum of h h' over all
        self.seconds: dict[int, Tensor] | None = None if per_class is False else {}  # the same by class
        self.sample = Sample(dim, sample, sample_total)

    @property
    def counts(self) -> dict[int, float]:
        """Class -> number of its examples (their weights added up)."""
        return dict(zip(self.classes.tolist(), self.weight.tolist(), strict=True))

    @property
    def n(self) -> float:
        """Number of examples."""
        return float(self.weight.sum())

    def __repr__(self) -> str:
        return f"HeadStatistics(dim={self.dim}, n={self.n:g}, classes={len(self.classes)})"

    @torch.no_grad()
    def update(
        self, features: Tensor, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int = -100
    ) -> None:
        """Adds examples.

        Args:
            features: (..., d), any floating dtype and device.
            labels: (...,) class of each, integers from 0.
            weights: (...,) how often each counts; once without it.
            ignore_index: label of examples to leave out.

        Raises:
            UsageError: shapes that do not fit, labels that are no classes, features or weights that are not finite.
                Nothing has been added then.
        """
        sampled, y, w = self.flat(features, labels, weights, ignore_index)
        if not len(y):
            return
        h = sampled.double()
        unit = h if self.unit else _unit(h)
        classes, y_at = torch.unique(y, return_inverse=True)
        K, d = len(classes), self.dim
        weight = h.new_zeros(K).index_add_(0, y_at, w)
        sums = h.new_zeros(K, d).index_add_(0, y_at, h * w[:, None])
        unit_sums = h.new_zeros(K, d).index_add_(0, y_at, unit * w[:, None])
        seconds = self._split(h, w, y_at, classes)
        second = sum(seconds.values(), h.new_zeros(d, d)) if seconds else h.mT @ (h * w[:, None])
        self._add(classes, weight, sums, unit_sums, second, seconds)
        self.sample.add(sampled, y, w)

    def collect(self, model: nn.Module, head: nn.Module | str | None = None) -> Collector:
        """Returns a context in which the head's inputs are read in passing; call it with the labels after each pass.

            with statistics.collect(model, model.fc) as labelled:
                for inputs, labels in batches:
                    model(inputs)
                    labelled(labels)

        Modes, random streams, gradients and outputs of the model stay as they are.

        Args:
            model: that is run.
            head: its last layer, or the name of that; without it the output embeddings or the last linear layer.

        Raises:
            UsageError: there is no such layer.
        """
        return Collector(self, head_of(model, head))

    def flat(
        self, features: Tensor, labels: Tensor, weights: Tensor | None = None, ignore_index: int = -100
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns examples as they are counted, with nothing added: features (n, d), labels (n,), weights (n,).

        Raises:
            UsageError: as `update`.
        """
        h, y, w = _flat(features, labels, weights, self.dim, ignore_index)
        return (_unit(h.double()) if self.unit else h), y, w

    def _split(self, h: Tensor, w: Tensor, y_at: Tensor, classes: Tensor) -> dict[int, Tensor] | None:
        """Returns sum h h' by class, None where that is not kept."""
        if self.seconds is None or not self._room(classes):
            return None
        order = torch.argsort(y_at, stable=True)
        ends = torch.bincount(y_at, minlength=len(classes)).tolist()
        parts = zip(classes.tolist(), torch.split(h[order], ends), torch.split(w[order], ends), strict=True)
        return {label: part.mT @ (part * weight[:, None]) for label, part, weight in parts}

    def _room(self, classes: Tensor) -> bool:
        assert self.seconds is not None
        many = len(self.seconds.keys() | set(classes.tolist()))
        return self.per_class is True or many * self.dim**2 <= _PER_CLASS

    def _add(
        self,
        classes: Tensor,
        weight: Tensor,
        sums: Tensor,
        unit_sums: Tensor,
        second: Tensor,
        seconds: dict[int, Tensor] | None,
    ) -> None:
        """Adds sums by class (K', ...) to those held, which take the device of what comes."""
        device = weight.device
        union = torch.unique(torch.cat([self.classes.to(device), classes]))
        held, here = torch.searchsorted(union, self.classes.to(device)), torch.searchsorted(union, classes)

        def joined(old: Tensor, new: Tensor) -> Tensor:
            both = new.new_zeros(len(union), *new.shape[1:])
            both[held] = old.to(device)
            return both.index_add_(0, here, new)

        self.weight, self.sums = joined(self.weight, weight), joined(self.sums, sums)
        self.unit_sums, self.classes = joined(self.unit_sums, unit_sums), union
        self.second = self.second.to(device) + second
        if self.seconds is not None and seconds is not None:
            for label, part in seconds.items():
                had = self.seconds.get(label)
                self.seconds[label] = part if had is None else had.to(device) + part
        if self.seconds is not None and (seconds is None or not self._room(union)):
            self.seconds = None

    @torch.no_grad()
    def merge(self, other: HeadStatistics) -> HeadStatistics:
        """Adds the statistics of other examples, and returns these.

        Raises:
            UsageError: they are of features of another length, or only one of the two is of unit features.
        """
        if not isinstance(other, HeadStatistics):
            raise UsageError(f"other must be HeadStatistics; got {type(other).__name__}")
        if (self.dim, self.unit) != (other.dim, other.unit):
            raise UsageError(
                f"statistics of dim={other.dim}, unit={other.unit} cannot be added to dim={self.dim}, "
                f"unit={self.unit}: both must read the same features"
            )
        if len(other.classes):
            self._add(other.classes, other.weight, other.sums, other.unit_sums, other.second, other.seconds)
            kept = other.sample
            self.sample.add(kept.features, kept.labels, kept.weights, kept.keys)
        return self

    def reduce(self, group: distributed.Group | None = None) -> HeadStatistics:
        """Adds up the statistics of all ranks, on every rank, and returns them; every rank must call it.

        Args:
            group: the ranks; all without it.

        Raises:
            UsageError: the ranks' features differ in length.
        """
        if not distributed.running():
            return self
        whole = HeadStatistics(self.dim, unit=self.unit, per_class=self.per_class, sample=self.sample.each)
        whole.sample.total = self.sample.total
        for state in distributed.each(self.state_dict(), group):  # one order on all ranks: the same bits on all
            other = HeadStatistics(self.dim)
            other.load_state_dict(state)
            whole.merge(other)
        self.load_state_dict(whole.state_dict())
        return self

    def state_dict(self) -> dict[str, Any]:
        """Returns everything held, in tensors and plain numbers."""
        names = ("dim", "unit", "per_class", "classes", "weight", "sums", "unit_sums", "second")
        seconds = None if self.seconds is None else dict(self.seconds)
        return {name: getattr(self, name) for name in names} | {"seconds": seconds, "sample": self.sample.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            UsageError: it is of features of another length.
        """
        if state["dim"] != self.dim:
            raise UsageError(f"these are statistics of dim={state['dim']}; this object has dim={self.dim}")
        self.unit, self.per_class = state["unit"], state["per_class"]
        for name in ("classes", "weight", "sums", "unit_sums", "second"):
            setattr(self, name, state[name])
        self.seconds = None if state["seconds"] is None else dict(state["seconds"])
        self.sample.load_state_dict(state["sample"])


def _unit(h: Tensor) -> Tensor:
    """Returns rows (n, d) divided by their norm; zeros stay."""
    norms = h.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, h / norms.clamp(min=torch.finfo(h.dtype).tiny), torch.zeros_like(h))


def _flat(
    features: Tensor, labels: Tensor, weights: Tensor | None, dim: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features (n, d), labels (n,) and weights (n,) float64 of the examples that count, looked over."""
    for name, given in (("features", features), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise UsageError(f"{name} must be a tensor, torch.as_tensor(...) makes one; got {type(given).__name__}")
    if features.shape[-1:] != (dim,) or not features.is_floating_point():
        raise UsageError(
            f"features must be floating-point of shape (..., {dim}), what the head reads; got {features.dtype} of "
            f"shape {tuple(features.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"labels must be integers, the class of each example; got {labels.dtype}")
    if labels.shape != features.shape[:-1]:
        raise UsageError(
            f"labels must have shape {tuple(features.shape[:-1])} beside features of {tuple(features.shape)}; got "
            f"{tuple(labels.shape)}"
        )
    home = features.device if features.device.type != "mps" else torch.device("cpu")  # which has no float64
    h, y = features.detach().reshape(-1, dim).to(home), labels.detach().reshape(-1).to(home, torch.int64)
    if weights is None:
        w = torch.ones(len(y), dtype=torch.float64, device=home)
    elif weights.shape != labels.shape:
        raise UsageError(f"weights must have the shape of labels, {tuple(labels.shape)}; got {tuple(weights.shape)}")
    else:
        w = weights.detach().reshape(-1).to(home, torch.float64)
    counts = y != ignore_index
    if not bool(counts.all()):
        h, y, w = h[counts], y[counts], w[counts]
    if len(y) and int(y.min()) < 0:
        raise UsageError(f"labels must be 0 or more, or ignore_index={ignore_index}; the least is {int(y.min())}")
    if not bool(torch.isfinite(w).all() & (w >= 0).all()):
        raise UsageError("weights must be finite and not negative; leave such examples out or give them weight 0")
    if not bool(torch.isfinite(h).all()):
        bad = int((~torch.isfinite(h)).any(1).sum())
        raise UsageError(f"{bad} of {len(y)} feature vectors are not finite; look for overflow before the head")
    return h, y, w
