"""Several optimizers and groups at once: one operator, one edge, chi = 1."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.nightly import thinned
from torch import optim

from foreshock.errors import UsageError
from foreshock.stability import edge_weights

torch.set_num_threads(1)
TINY = 1e-12


class Mixture:
    """Some parameters of four entries each under one dense quadratic, stepped by real optimizers with frozen state."""

    def __init__(self, make, count, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.params = [torch.nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in range(count)]
        self.optimizers = make(self.params)
        self.presets = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    self.presets[param] = optimizer, self.state(optimizer, group)
        n = 4 * count
        q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=self.generator))
        self.H = q @ torch.diag(torch.logspace(-2, 0, n, dtype=torch.float64)) @ q.T

    def state(self, optimizer, group):
        zero = torch.zeros(4, dtype=torch.float64)
        v = 10.0 ** (-4 * torch.rand(4, dtype=torch.float64, generator=self.generator))
        if isinstance(optimizer, optim.SGD):
            return {"momentum_buffer": zero} if group["momentum"] else {}
        if isinstance(optimizer, optim.RMSprop):
            memory = {"momentum_buffer": zero} if group["momentum"] else {}
            return {"step": torch.tensor(9.0), "square_avg": v, **memory}
        return {"step": torch.tensor(9.0), "exp_avg": zero, "exp_avg_sq": v}

    def step(self, packed, scale):
        parts = iter((packed * TINY).split(4))
        theta = [next(parts) for _ in self.params]
        grads = (scale * self.H @ torch.cat(theta)).split(4)
        with torch.no_grad():
            for param, value, grad in zip(self.params, theta, grads, strict=True):
                optimizer, preset = self.presets[param]
                state = copy.deepcopy(preset)
                for name in ("momentum_buffer", "exp_avg"):
                    if name in state:
                        state[name].copy_(next(parts))
                optimizer.state[param] = state
                param.copy_(value)
                param.grad = grad.clone()
        for optimizer in self.optimizers:
            optimizer.step()
        after = [param.detach() for param in self.params]
        for param in self.params:
            state = self.presets[param][0].state[param]
            after += [state[name] for name in ("momentum_buffer", "exp_avg") if name in state]
        return torch.cat(after) / TINY

    def growth(self, scale):
        memories = sum(
            name in preset for _, preset in self.presets.values() for name in ("momentum_buffer", "exp_avg")
        )
        size = 4 * (len(self.params) + memories)
        columns = [self.step(unit, scale) for unit in torch.eye(size, dtype=torch.float64)]
        return torch.linalg.eigvals(torch.stack(columns, dim=1)).abs().max().item()

    def chi(self, scale):
        self.step(torch.zeros(4 * 20, dtype=torch.float64), scale)
        for param, (optimizer, preset) in self.presets.items():
            optimizer.state[param] = copy.deepcopy(preset)
        ordered = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        weights = edge_weights(self.optimizers, [torch.zeros_like(param) for param in ordered])
        place = {param: i for i, param in enumerate(self.params)}
        order = torch.cat([torch.arange(4) + 4 * place[param] for param in ordered])
        H = scale * self.H[order][:, order]
        H = H + torch.diag(torch.cat([torch.full((4,), l2, dtype=torch.float64) for l2 in weights.l2]))
        columns = [torch.cat(weights.apply(unit.split(4), 0.5)) for unit in torch.eye(len(H), dtype=torch.float64)]
        root = torch.stack(columns, dim=1)
        return torch.linalg.eigvalsh(root @ H @ root).max().item()


MIXTURES = {
    "half SGD-Nesterov, half AdamW": lambda p: (
        optim.SGD(p[:1], lr=0.05, momentum=0.9, nesterov=True), optim.AdamW(p[1:2], lr=0.1, weight_decay=1.5),
    ),
    "groups that differ in lr, betas and decay": lambda p: (
        optim.AdamW(
            [
                {"params": p[1:2], "lr": 0.3, "betas": (0.5, 0.99), "weight_decay": 2.0},
                {"params": p[:1], "lr": 0.05},
                {"params": p[2:3], "lr": 0.1, "betas": (0.95, 0.9), "weight_decay": 0.0},
            ],
            lr=0.1,
        ),
    ),
    "coupled decay beside none": lambda p: (
        optim.SGD([{"params": p[:1], "weight_decay": 4.0}, {"params": p[1:2], "momentum": 0.9}], lr=0.1),
        optim.RMSprop(p[2:3], lr=0.01, momentum=0.9),
    ),
    "dampened momentum, RMSprop and Adam": lambda p: (
        optim.Adam(p[2:3], lr=0.02), optim.SGD(p[:1], lr=2.0, momentum=0.9, dampening=0.9),
        optim.RMSprop(p[1:2], lr=0.01),
    ),
}


@pytest.mark.parametrize("seed", thinned([0, 1]))
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_diverges_exactly_at_chi_1(name, seed):
    make = MIXTURES[name]
    mixture = Mixture(make, 2 if "half" in name else 3, seed)
    low, high = 1e-3, 1e3
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mixture.growth(middle) < 1 else (low, middle)
    assert mixture.chi(high) == pytest.approx(1.0, abs=1e-5)


FILTERS = {  # u = c_g g + c_m m, m the exponential average with beta: (c_g, c_m)
    "plain": lambda beta: (1.0, 0.0),
    "average": lambda beta: (0.0, 1.0),
    "heavy ball": lambda beta: (0.0, 1 / (1 - beta)),
    "Nesterov": lambda beta: (1.0, beta / (1 - beta)),
    "Nesterov on an average": lambda beta: (1 - beta, beta),
}


@pytest.mark.parametrize("seed", range(4))
def test_no_mixture_of_filters_and_decays_is_lost_before_or_after_chi_1(seed):
    random = np.random.default_rng(seed)
    for _ in range(50):
        n = int(random.integers(2, 9))
        q, _ = np.linalg.qr(random.standard_normal((n, n)))
        H = q @ np.diag(10 ** random.uniform(-3, 0, n)) @ q.T
        beta = random.choice([0.0, 0.5, 0.9, 0.99, 0.999], n)
        kinds = random.choice(list(FILTERS), n)
        c_g, c_m = np.array([FILTERS[kind](b) for kind, b in zip(kinds, beta, strict=True)]).T
        lr, decay = 10 ** random.uniform(-3, 1, n), random.choice([0.0, 0.05, 0.3], n)
        root = np.sqrt(lr * (c_g + c_m * (1 - beta) / (1 + beta)) / (2 - decay))
        H = H / np.linalg.eigvalsh(root[:, None] * H * root).max()  # chi = 1

        def growth(G, beta=beta, c_g=c_g, c_m=c_m, lr=lr, decay=decay):
            averaged = (1 - beta)[:, None] * G
            moved = np.diag(1 - decay) - lr[:, None] * (c_g[:, None] * G + c_m[:, None] * averaged)
            step = np.block([[moved, -np.diag(lr * c_m * beta)], [averaged, np.diag(beta)]])
            return np.abs(np.linalg.eigvals(step)).max()

        assert growth(0.99 * H) < 1 + 1e-9
        assert growth(1.01 * H) > 1


def test_optimizers_that_share_a_parameter_are_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match="another of the optimizers"):
        edge_weights([optim.SGD([weight], lr=0.1), optim.SGD([weight], lr=0.2)])


def test_a_game_of_minimizing_and_maximizing_groups_is_refused():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "maximize": True}]
    with pytest.raises(UsageError, match="maximize"):
        edge_weights(optim.SGD(groups, lr=0.1))
