"""Small losses in float64, of the layers that second derivatives are known to stumble over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """A loss: `closure()` at the module's present parameters."""

    module: nn.Module
    inputs: dict[str, Tensor]
    loss: Callable[..., Tensor]

    def closure(self) -> Tensor:
        return self.loss(self.module, **self.inputs)

    @property
    def params(self) -> list[Tensor]:
        return [param for param in self.module.parameters() if param.requires_grad]


class Attention(nn.Module):
    """One head over `scaled_dot_product_attention`, whose fused kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unsqueeze(1).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 3, batch_first=True)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0][:, -1])


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.middle = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.middle(self.embedding(tokens))), self.embedding.weight)


class Unused(nn.Module):
    """A frozen layer, a parameter that the loss does not use, and one that it uses linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.live = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.live(self.frozen(x))) + self.shift


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


def _regression(module: nn.Module, *shape: int) -> Case:
    module, x = _placed(module, shape)
    target = torch.randn(module(x).shape, dtype=torch.float64)
    return Case(module, {"x": x, "target": target}, lambda module, x, target: F.mse_loss(module(x), target))


def _classes(module: nn.Module, *shape: int) -> Case:
    module, x = _placed(module, shape)
    scores = module(x)
    labels = torch.randint(0, scores.shape[-1], scores.shape[:-1]).flatten()
    return Case(
        module, {"x": x, "labels": labels}, lambda module, x, labels: F.cross_entropy(module(x).flatten(0, -2), labels)
    )


def _placed(module: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    module = module.double()
    with torch.no_grad():  # away from the initialisation, at which norms have weight 1 and bias 0
        for param in module.parameters():
            param.add_(0.3 * torch.randn(param.shape, dtype=torch.float64))
    return module, torch.randn(shape, dtype=torch.float64)


def _tokens(module: nn.Module) -> Case:
    tokens, labels = torch.randint(0, 6, (3, 4)), torch.randint(0, 6, (12,))
    return Case(
        module.double(),
        {"tokens": tokens, "labels": labels},
        lambda module, tokens, labels: F.cross_entropy(module(tokens).flatten(0, 1), labels),
    )


def _partly(module: nn.Module, *shape: int) -> Case:
    module, x = _placed(module, shape)
    return Case(module, {"x": x}, lambda module, x: module(x).square().mean() + 3 * module.live.bias.sum())


def _huber(module: nn.Module, *shape: int) -> Case:
    module, x = _placed(module, shape)
    return Case(module, {"x": x}, lambda module, x: F.smooth_l1_loss(module(x), torch.ones_like(x[:, :1])))


CASES: dict[str, Callable[[], Case]] = {
    "tanh, mse": lambda: _regression(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), 6, 4),
    "relu, cross entropy": lambda: _classes(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), 6, 4),
    "gelu": lambda: _classes(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), 6, 4),
    "layer norm": lambda: _classes(
        nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)), 6, 4
    ),
    "rms norm": lambda: _regression(nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Linear(5, 2)), 6, 4),
    "batch norm in eval mode": lambda: _regression(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).eval(), 6, 4
    ),
    "batch norm in train mode": lambda: _regression(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)), 6, 4
    ),
    "group norm, conv": lambda: _classes(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3)), 4, 1, 4, 4
    ),
    "instance norm, max pool": lambda: _classes(
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
        ),
        4, 1, 6, 6,
    ),
    "lstm": lambda: _regression(Recurrent(), 4, 3, 3),
    "fused attention": lambda: _regression(Attention(), 2, 5, 4),
    "multihead attention": lambda: _regression(SelfAttention(), 2, 5, 4),
    "transformer layer": lambda: _regression(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True), 2, 4, 4
    ),
    "embedding, tied weights": lambda: _tokens(Tied()),
    "frozen, unused and linear": lambda: _partly(Unused(), 5, 4),
    "checkpointed": lambda: _regression(Checkpointed(reentrant=False), 5, 4),
    "checkpointed, reentrant": lambda: _regression(Checkpointed(reentrant=True), 5, 4),
    "softplus, smooth l1": lambda: _huber(nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 1)), 6, 4),
}  # fmt: skip


def case(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Returns a loss of the zoo; drawn under a forked stream, so that the caller's is not touched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = CASES[name]()
    loss.module.to(dtype)
    for key, value in loss.inputs.items():
        loss.inputs[key] = value.to(dtype) if value.is_floating_point() else value
    return loss


def dense(loss: Case, params: list[Tensor] | None = None) -> Tensor:
    """Returns the Hessian, shape (n, n), by `torch.autograd.functional.hessian`."""
    params = loss.params if params is None else params
    with substituted(loss.module, params) as place, sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(lambda flat: place(flat) or loss.closure(), flattened(params))


def dense_gauss_newton(loss: Case, outputs: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns J' H_L J, shape (n, n), by `torch.autograd.functional`."""
    with substituted(loss.module, loss.params) as place, sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(lambda flat: place(flat) or outputs(), flattened(loss.params))
        inner = torch.autograd.functional.hessian(loss_fn, outputs().detach())
    jacobian = jacobian.reshape(-1, jacobian.shape[-1])
    return jacobian.T @ inner.reshape(jacobian.shape[0], jacobian.shape[0]) @ jacobian


def flattened(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@contextmanager
def substituted(module: nn.Module, params: list[Tensor]) -> Iterator[Callable[[Tensor], None]]:
    """Yields a function that puts the pieces of one flat vector in the places of the parameters."""
    places = {id(param): i for i, param in enumerate(params)}
    slots = [
        (inner, name, param)
        for inner in module.modules()
        for name, param in inner._parameters.items()
        if id(param) in places
    ]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    recurrent = [inner for inner in module.modules() if isinstance(inner, nn.RNNBase)]

    def place(flat: Tensor) -> None:
        pieces = flat.split([param.numel() for param in params])
        for inner, name, param in slots:
            inner._parameters[name] = pieces[places[id(param)]].view(param.shape)
        for inner in recurrent:
            inner._init_flat_weights()

    try:
        with not_reentrant(module):
            yield place
    finally:
        for inner, name, param in slots:
            inner._parameters[name] = param
        for inner in recurrent:
            inner._init_flat_weights()
        for buffer, value in buffers:
            buffer.data.copy_(value)


def by_differences(loss: Case, vector: Tensor, step: float = 1e-5) -> Tensor:
    """Returns H v, shape (n,), by a central difference of first derivatives: no second derivative's formula enters."""
    pieces = [v.view(p.shape) for v, p in zip(vector.split([p.numel() for p in loss.params]), loss.params, strict=True)]
    saved = [param.detach().clone() for param in loss.params]
    buffers = [(buffer, buffer.clone()) for buffer in loss.module.buffers()]

    def gradient(factor: float) -> Tensor:
        for param, old, piece in zip(loss.params, saved, pieces, strict=True):
            param.data.copy_(old + factor * piece)
        found = torch.autograd.grad(loss.closure(), loss.params, allow_unused=True)
        return flattened([p * 0 if g is None else g for g, p in zip(found, loss.params, strict=True)])

    with not_reentrant(loss.module):
        product = (gradient(step) - gradient(-step)) / (2 * step)
    for param, old in zip(loss.params, saved, strict=True):
        param.data.copy_(old)
    for buffer, value in buffers:
        buffer.data.copy_(value)
    return product


@contextmanager
def not_reentrant(module: nn.Module) -> Iterator[None]:
    """Lets a reference differentiate a module that checkpoints in the way that refuses it."""
    found = [inner for inner in module.modules() if getattr(inner, "reentrant", False)]
    for inner in found:
        inner.reentrant = False
    try:
        yield
    finally:
        for inner in found:
            inner.reentrant = True
