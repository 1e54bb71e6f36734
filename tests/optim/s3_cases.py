"""The ways to make S3's update, and runs of S3 on given gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.optim import S3, blocks, native, update


def loops(*lists, **settings):
    for one in zip(*lists, strict=True):
        update.update(*([each] for each in one), **settings)


WAYS = [
    pytest.param(update.update, id="lists"),
    pytest.param(loops, id="loop"),
    pytest.param(blocks.blocked, id="blocks"),
    pytest.param(
        native.update, id="native",
        marks=pytest.mark.skipif(native.library() is None, reason="no C compiler when it was installed"),
    ),
]
USUAL = {
    "lr": 1.0, "beta": 0.95, "beta2": 0.95, "p": 3.0, "eps": 1e-30, "weight_decay": 0.0, "nesterov": True,
    "maximize": False,
}


def course(way, grads, *, start=None, dtype=torch.float32, **settings):
    """Returns parameters (steps, n) in float64, the average and the root, by one way on one flat tensor."""
    grads = np.asarray(grads)
    param = torch.zeros(grads.shape[1], dtype=dtype) if start is None else torch.tensor(start, dtype=dtype)
    m, r, seen = torch.zeros_like(param), torch.zeros_like(param), []
    for grad in grads:
        way([param], [torch.tensor(grad, dtype=dtype)], [m], [r], **{**USUAL, **settings})
        seen.append(param.double().numpy().copy())
    return np.stack(seen), m, r


def trained(grads, *, dtype=torch.float32, **settings):
    """Returns the updates (steps, n) that S3 makes of gradients, in learning rates, each from a parameter of 0."""
    param = torch.zeros(np.shape(grads)[1], dtype=dtype, requires_grad=True)
    optimizer, seen = S3([param], lr=1.0, **settings), []
    for grad in grads:
        param.data.zero_()
        param.grad = torch.as_tensor(grad, dtype=dtype)
        optimizer.step()
        seen.append(-param.detach().double().numpy().copy())
    return np.stack(seen)
