"""Scale and offset of new logits beside old ones that cross-entropy has trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scene:
    """What new rows meet: examples of new and old classes, with what the old rows say of them.

    Attributes:
        scores: (n, k) what the new rows give before calibration.
        target: (n,) place of the right class among the new ones, -1 for an example of an old class.
        rest: (n,) log of the sum of exp over the old logits.
        right: (n,) the right class's logit for examples of old classes, 0 for the others.
        best: (n,) largest old logit.
        known: (n,) whether that is the right class's.
        weights: (n,) adding up to 1.
    """

    scores: Tensor
    target: Tensor
    rest: Tensor
    right: Tensor
    best: Tensor
    known: Tensor
    weights: Tensor

    def loss(self, logits: Tensor) -> float:
        """Returns the mean cross-entropy with new logits (n, k)."""
        return float(self.weights @ self.losses(logits))

    def losses(self, logits: Tensor) -> Tensor:
        """Returns the cross-entropy (n,) of each example."""
        every = torch.logaddexp(self.rest, logits.logsumexp(1))
        own = logits.gather(1, self.target.clamp(min=0)[:, None])[:, 0]
        return every - torch.where(self.target < 0, self.right, own)

    def accuracy(self, logits: Tensor) -> tuple[float, float]:
        """Returns the share of new and of old examples that are told right."""
        top, at = logits.max(1)
        hit = torch.where(self.target < 0, self.known & (self.best >= top), (at == self.target) & (top > self.best))
        new, w = self.target >= 0, self.weights
        return tuple(float(w[side] @ hit[side].double() / w[side].sum()) for side in (new, ~new))  # type: ignore[return-value]


def scale_and_offset(scene: Scene, *, steps: int = 100, tolerance: float = 1e-10) -> tuple[float, float]:
    """Returns s and c that minimise the cross-entropy of new logits s z + c: a convex problem, solved by Newton."""
    z, w = scene.scores, scene.weights
    theta = torch.tensor([1.0, 0.0], dtype=torch.float64, device=z.device)
    features = torch.stack([z, torch.ones_like(z)], dim=2)  # (n, k, 2)
    new = (scene.target >= 0).double()
    own = features.gather(1, scene.target.clamp(min=0)[:, None, None].expand(-1, 1, 2))[:, 0] * new[:, None]
    eye = torch.eye(2, dtype=z.dtype, device=z.device)
    value = scene.loss(theta[0] * z + theta[1])
    for _ in range(steps):
        logits = theta[0] * z + theta[1]
        p = (logits - torch.logaddexp(scene.rest, logits.logsumexp(1))[:, None]).exp()
        mean = torch.einsum("nk,nkj->nj", p, features)
        gradient = w @ (mean - own)
        curvature = torch.einsum("n,nk,nki,nkj->ij", w, p, features, features) - mean.mT @ (w[:, None] * mean)
        step = torch.linalg.solve(curvature + 1e-9 * eye, gradient)
        size = 1.0
        while size > 1e-8:
            trial = theta - size * step
            fresh = scene.loss(trial[0] * z + trial[1])
            if fresh <= value:
                break
            size /= 2
        done = value - fresh <= tolerance * (1 + abs(value))
        if fresh <= value:
            theta, value = trial, fresh
        if done:
            break
    return float(theta[0]), float(theta[1])
