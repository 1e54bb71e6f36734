"""An attribution the slow way: 100 gradients along the path, one gradient for each example, moments by the textbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def path_gradient(
    losses: Callable[[], Tensor], params: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor],
    nodes: int = 100,
) -> list[Tensor]:  # fmt: skip
    """Returns the gradient of the mean loss averaged over midpoints between two points; leaves the parameters there."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    for k in range(nodes):
        put(params, [a + (b - a) * ((k + 0.5) / nodes) for a, b in zip(before, after, strict=True)])
        for sum_, g in zip(total, torch.autograd.grad(losses().mean(), params), strict=True):
            sum_ += g / nodes
    return total


def per_example_gradients(losses: Callable[[], Tensor], params: Sequence[Tensor]) -> list[list[Tensor]]:
    """Returns the gradient of each example's loss."""
    return [list(torch.autograd.grad(loss, params, retain_graph=True)) for loss in losses()]


def put(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)


def sgd_parts(g_i, theta, t, past, *, lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    """Returns (an example's part, history, l2) of the t-th step of one tensor; `past` are the gradients before.

    The buffer is the weighted sum of all gradients seen, l2 included, written out.
    """
    n = len(g_i)

    def weight(age):  # of a gradient so many steps old in the buffer
        return momentum**age * (1.0 if age == t - 1 else 1.0 - dampening)

    history = sum((weight(t - s) * g for s, g in enumerate(past, 1)), torch.zeros_like(theta))
    if not momentum:
        gain, history = 1.0, torch.zeros_like(theta)
    elif nesterov:
        gain, history = 1.0 + momentum * weight(0), momentum * history
    else:
        gain = weight(0)
    return [-lr * gain * g / n for g in g_i], -lr * history, -lr * gain * weight_decay * theta


def adam_parts(g_i, theta, t, past, *, lr, betas, eps, weight_decay=0.0, decoupled=False, amsgrad=False):
    """Returns (an example's part, history, l2, decay) of the t-th step of one tensor."""
    beta1, beta2 = betas
    n, l2 = len(g_i), 0.0 if decoupled else weight_decay
    now = sum(g_i) / n + l2 * theta
    seen = [*past, now]

    def second(upto):
        return sum((1 - beta2) * beta2 ** (upto - s) * g**2 for s, g in enumerate(seen[:upto], 1))

    v = torch.stack([second(s) for s in range(1, t + 1)]).amax(0) if amsgrad else second(t)
    d = (v / (1 - beta2**t)).sqrt() + eps
    rate = lr / (1 - beta1**t)
    momentum = sum(((1 - beta1) * beta1 ** (t - s) * g for s, g in enumerate(past, 1)), torch.zeros_like(theta))
    rows = [-rate * (1 - beta1) * g / n / d for g in g_i]
    decay = -lr * weight_decay * theta if decoupled else torch.zeros_like(theta)
    return rows, -rate * momentum / d, -rate * (1 - beta1) * l2 * theta / d, decay
