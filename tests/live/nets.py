"""Small trainings that the tests of the live side share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A classifier with what tends to make watching visible: BatchNorm, dropout, a tensor that gets no gradient."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width),
            nn.Tanh(),
        )
        self.head = nn.Linear(width, 3)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def batches(steps: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (x, y) batches of 12 rows of a learnable rule."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(12, 8, generator=generator, dtype=dtype)
        yield x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net(seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Net:
    """Returns a fresh `Net` from a seed."""
    torch.manual_seed(seed)
    return Net(**settings).to(dtype)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns every number of a training: parameters, buffers, optimizer state and the global random state."""
    tensors = [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    for state in optimizer.state.values():
        tensors += [value.detach().clone() for value in state.values() if isinstance(value, Tensor)]
    return [*tensors, torch.get_rng_state()]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Returns whether two states are equal bit for bit (NaN equals the same NaN)."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
        for a, b in zip(one, other, strict=True)
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "adam-loop": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adam-l2-maximize": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.95)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}
