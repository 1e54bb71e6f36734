"""What moves the class mean of the head: an exact identity, and the simplified one of the theory beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foreshock.papers.absorption_training import Problem

__all__ = ["Drift", "drift"]


@dataclass(frozen=True, slots=True)
class Drift:
    """The gradient of W_G at one state of a float32 training, against what it should be.

    Attributes:
        absorbed: share of the rows whose right class gets exactly 0.
        identity: |grad W_G - (1/(N K)) sum_i (sum_k g_ik) h_i| over the norm of either, the larger.
        verdict: relative l2 difference of the right classes' gradients from those of the same logits in float64.
        theory_cosine: cosine of grad W_G and (w/K) mu_G, which Theorem 3.4 of Liu et al. has in its place.
        theory_ratio: length of that over the length of grad W_G.
    """

    absorbed: float
    identity: float
    verdict: float
    theory_cosine: float
    theory_ratio: float


def drift(problem: Problem, state: Mapping[str, Tensor]) -> Drift:
    """Returns what stock cross-entropy's gradient does to the head's class mean, the parameters being `state`.

    A row's gradient g_ik is that of its own loss; the gradient of W_G = mean_k W_k is (1/(N K)) sum_i (sum_k g_ik) h_i.
    In exact arithmetic every sum over k is zero. The identity holds whatever has been rounded before: it only asks how
    the head's gradient is put together.

    Args:
        problem: network and data; its parameters are replaced.
        state: of its model.
    """
    problem.model.load_state_dict(dict(state))
    features = problem.features()
    logits: Tensor = problem.head(features)
    loss = functional.cross_entropy(logits, problem.labels)
    of_logits, of_weight = torch.autograd.grad(loss, [logits, problem.head.weight])
    rows, classes = logits.shape
    each = of_logits.double() * rows
    measured = of_weight.double().mean(dim=0)
    exact = each.sum(dim=1) @ features.detach().double() / (rows * classes)
    place = problem.labels.unsqueeze(1)
    wrong = functional.softmax(logits.detach().double(), dim=1).scatter(1, place, 0.0).sum(dim=1)
    right = each.gather(1, place).squeeze(1)
    theory = wrong.mean() / classes * features.detach().double().mean(dim=0)
    return Drift(
        absorbed=float(((right == 0) & (wrong > 0)).double().mean()),
        identity=float((measured - exact).norm() / torch.maximum(measured.norm(), exact.norm())),
        verdict=float((right + wrong).norm() / wrong.norm()),
        theory_cosine=float(measured @ theory / (measured.norm() * theory.norm())),
        theory_ratio=float(theory.norm() / measured.norm()),
    )
