"""Real optimizers on a dense quadratic with frozen denominators: the exact linear map of one step, and its growth.

The state is put back before every step but for the entries named `momenta`, and parameters are of size 1e-12, so that
second moments never notice. What grows is then told by the eigenvalues of the map, without any theory of filters.
"""

from __future__ import annotations

import copy

import torch

TINY = 1e-12


class Frozen:
    """One parameter of n entries under the loss theta' H theta/2, in float64."""

    def __init__(self, make, shape, state, momenta, seed=0):
        """Args: `make` from a parameter to its optimizer; `state` from a generator to the state; names of `momenta`."""
        generator = torch.Generator().manual_seed(seed)
        self.param = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.optimizer = make(self.param)
        self.preset = state(generator, self.param)
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.momenta = momenta
        n = self.param.numel()
        q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        self.H = q @ torch.diag(torch.logspace(-2, 0, n, dtype=torch.float64)) @ q.T
        self.load()

    def load(self):
        self.optimizer.state[self.param] = copy.deepcopy(self.preset)
        for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(copy.deepcopy(kept))
        return self.optimizer.state[self.param]

    def step(self, packed, scale):
        """Maps (theta, momenta) to those after a step, on scale * H."""
        parts = packed.reshape(1 + len(self.momenta), *self.param.shape) * TINY
        state = self.load()
        with torch.no_grad():
            self.param.copy_(parts[0])
            for name, part in zip(self.momenta, parts[1:], strict=True):
                state[name].copy_(part)
        sign = -1 if self.optimizer.param_groups[0].get("maximize") else 1
        self.param.grad = sign * scale * (self.H @ parts[0].reshape(-1)).reshape(self.param.shape)
        self.optimizer.step()
        after = [self.param.detach(), *(self.optimizer.state[self.param][name] for name in self.momenta)]
        return torch.cat([part.detach().reshape(-1) for part in after]) / TINY

    def growth(self, scale):
        """Returns the spectral radius of one step on scale * H."""
        size = self.param.numel() * (1 + len(self.momenta))
        columns = [self.step(unit, scale) for unit in torch.eye(size, dtype=torch.float64)]
        return torch.linalg.eigvals(torch.stack(columns, dim=1)).abs().max().item()

    def chi(self, weights, scale):
        """Returns lambda_max(W^1/2 (scale H + l2 I) W^1/2) from edge weights, densely."""
        [weight] = weights.tensors
        W = torch.diag(weight.reshape(-1)) if isinstance(weight, torch.Tensor) else weight.dense()
        values, vectors = torch.linalg.eigh(W)
        root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
        H = scale * self.H + weights.l2[0] * torch.eye(len(W), dtype=torch.float64)
        return torch.linalg.eigvalsh(root @ H @ root).max().item()

    def edge(self, weights):
        """Returns the scale of H at which chi is 1."""
        low, high = 0.0, 1.0
        while self.chi(weights, high) < 1:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.chi(weights, middle) < 1 else (low, middle)
        return high

    def measured(self, around, halvings=7):
        """Returns the scale at which a step begins to grow, bisected between .98 and 1.02 of `around`."""
        low, high = 0.98 * around, 1.02 * around
        for _ in range(halvings):
            middle = (low + high) / 2
            low, high = (middle, high) if self.growth(middle) < 1 else (low, middle)
        return (low + high) / 2
