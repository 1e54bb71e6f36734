"""The optimizers of the S3 reproduction: S3 and its ablations, AdamW with three pairs of betas, and three rivals."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import MissingExtraError
from foreshock.optim import S3

__all__ = ["ABLATIONS", "ADAMW", "ARMS", "EQUAL", "MOVED", "RIVALS", "S3_ARM", "Arm", "library"]

LIBRARY = "pytorch_optimizer"
LION = 0.2  # of AdamW's lr: Chen et al. 2023, arXiv 2302.06675, section 5, say a third to a tenth


@dataclass(frozen=True, slots=True)
class Arm:
    """An optimizer with its settings.

    Attributes:
        name, title: for places on disk; for tables and figures.
        make: of parameters, learning rate and decoupled weight decay.
        ratio: its 1x over that of AdamW.
        keeps_decay: weight decay stays as it is when lr is raised, in place of lr times weight decay.
        rival: comes from the library of optimizers.
    """

    name: str
    title: str
    make: Callable[[Iterable[Tensor], float, float], Optimizer]
    ratio: float = 1.0
    keeps_decay: bool = False
    rival: bool = False


def library() -> Any:
    """Returns the module that Lion, AdaBelief and Adan come from.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise MissingExtraError(
            "Lion, AdaBelief and Adan come from pytorch-optimizer, which is not installed: "
            "pip install 'foreshock[optimizers]'"
        ) from error


def _adamw(name: str, beta1: float, beta2: float, **more: bool) -> Arm:
    def make(params: Iterable[Tensor], lr: float, decay: float) -> Optimizer:
        return torch.optim.AdamW(params, lr, betas=(beta1, beta2), weight_decay=decay)

    told = ", wd kept" if more else ""
    return Arm(name, f"AdamW {_short(beta1)}/{_short(beta2)}{told}", make, **more)


def _s3(name: str, title: str, *, keeps_decay: bool = False, **settings: Any) -> Arm:
    def make(params: Iterable[Tensor], lr: float, decay: float) -> Optimizer:
        return S3(params, lr, weight_decay=decay, **settings)

    return Arm(name, title, make, keeps_decay=keeps_decay)


def _moved() -> Arm:
    def make(params: Iterable[Tensor], lr: float, decay: float) -> Optimizer:
        return S3.from_adamw(torch.optim.AdamW(params, lr, weight_decay=decay))

    return Arm("s3-moved", "S3.from_adamw", make)


def _rival(kind: str, ratio: float = 1.0) -> Arm:
    def make(params: Iterable[Tensor], lr: float, decay: float) -> Optimizer:
        made: Optimizer = getattr(library(), kind)(params, lr=lr, weight_decay=decay, weight_decouple=True)
        return made

    return Arm(kind.lower(), kind, make, ratio, rival=True)


def _short(value: float) -> str:
    return f"{value:g}".removeprefix("0")


ADAMW, EQUAL, S3_ARM = _adamw("adamw", 0.9, 0.999), _adamw("adamw-equal", 0.95, 0.95), _s3("s3", "S3")
RIVALS = (
    ADAMW, _adamw("adamw-95", 0.9, 0.95), EQUAL, _rival("Lion", LION), _rival("AdaBelief"), _rival("Adan"), S3_ARM,
)
"""What is compared at every learning rate; S3 with beta .95 and p 3."""

ABLATIONS = (
    _s3("s3-p2", "S3 p 2", p=2.0), _s3("s3-p1", "S3 p 1", p=1.0),
    _s3("s3-different", "S3 .9/.999", beta=0.9, beta2=0.999),
    _s3("s3-plain", "S3 no Nesterov", nesterov=False),
    _s3("s3-decay", "S3, wd kept", keeps_decay=True), _adamw("adamw-decay", 0.9, 0.999, keeps_decay=True),
)  # fmt: skip
"""S3 with one thing changed, and what weight decay does when it is not lowered as the learning rate is raised."""

MOVED = _moved()
"""S3 with the learning rate and decay that `S3.from_adamw` makes of AdamW's."""

ARMS = {arm.name: arm for arm in (*RIVALS, *ABLATIONS, MOVED)}
