"""Optimizers of every kind on a few awkward parameters, and gradients for them."""

from __future__ import annotations

import torch
from tests.reference import optimizers as others
from torch import optim

TORCH = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (optim.ASGD, {"lr": 0.1, "lambd": 0.1, "weight_decay": 0.1}),
    (optim.RMSprop, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    (optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
    (optim.Adam, {"lr": 0.01}),
    (optim.Adam, {"lr": torch.tensor(0.01), "weight_decay": 0.1, "maximize": True}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True, "foreach": False}),
    (optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "fused": True}),
    (optim.AdamW, {"lr": 0.01, "betas": (0.95, 0.9)}),
    (optim.NAdam, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.RAdam, {"lr": 0.01, "betas": (0.9, 0.99)}),
    (optim.RAdam, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.Adamax, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.Rprop, {"lr": 0.01}),
    (optim.Adafactor, {"lr": 0.01, "weight_decay": 0.1}),
]
MATRICES = [
    (optim.Muon, {"lr": 0.01}),
    (optim.Muon, {"lr": 0.01, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
]
OTHERS = [
    (others.Lion, {}),
    (others.Padam, {"amsgrad": True}),
    (others.QHM, {}),
    (others.QHAdam, {"nus": (0.7, 1.0)}),
    (others.AdEMAMix, {"alpha_warmup": 20, "beta3_warmup": 20}),
    (others.AdaBelief, {"rectify": True, "betas": (0.9, 0.99)}),
    (others.AdaBelief, {"amsgrad": False, "weight_decay": 0.1}),
    (others.Yogi, {"weight_decay": 0.1}),
    (others.Lamb, {"max_grad_norm": None}),
    (others.S3, {}),
    (others.AdamWScheduleFree, {"weight_decay": 0.1, "warmup_steps": 9}),
    (others.SGDScheduleFree, {"lr": 0.1, "weight_decay": 0.1}),
]


def label(case):
    kind, settings, *_ = case
    return kind.__name__ + "".join(f"-{key}={value}" for key, value in settings.items() if key != "lr")


def built(case, *, shapes=((4, 3), (5,), (), (2, 3, 2)), dtype=torch.float64, seed=0):
    """Returns (optimizer, parameters, maker of gradients)."""
    kind, settings = case
    shapes = ((4, 3), (3, 5), (4, 4)) if kind is optim.Muon else shapes
    generator = torch.Generator().manual_seed(seed)

    def random(shape):
        return torch.randn(shape, dtype=dtype, generator=generator)

    params = [torch.nn.Parameter(random(shape)) for shape in shapes]
    return kind(params, **settings), params, lambda: [random(param.shape) for param in params]


def stepped(optimizer, params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    optimizer.step()
    for param in params:
        param.grad = None
