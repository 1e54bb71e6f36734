"""Every optimizer, stepped for real with frozen denominators, goes unstable where its edge weights say chi = 1."""

from __future__ import annotations

import math

import pytest
import torch
from tests.nightly import thinned
from tests.reference import optimizers as others
from tests.stability.quadratic import Frozen
from torch import optim

from foreshock.stability import edge_weights, nyquist_probe

torch.set_num_threads(1)
N = (8,)


def spread(generator, param):
    """A strongly non-uniform second moment: four decades."""
    return 10.0 ** (-4 * torch.rand(param.shape, dtype=param.dtype, generator=generator))


def moments(*momenta, step=100, **given):
    """Returns a maker of states: zeros for momenta, a spread for what is None, the value of what is given."""

    def make(generator, param):
        state = {"step": torch.tensor(float(step - 1))} if step else {}
        state |= {name: torch.zeros_like(param) for name in momenta}
        for name, value in given.items():
            state[name] = spread(generator, param) if value is None else value(generator, param, state)
        return state

    return make


def mu_product(beta1, step, psi=4e-3):
    mus = (beta1 * (1 - 0.5 * 0.96 ** (t * psi)) for t in range(1, step))
    return lambda *_: torch.tensor(math.prod(mus), dtype=torch.float64)


def adam(step=100, **extra):
    return moments("exp_avg", step=step, exp_avg_sq=None, **extra)


def rows_and_columns(generator, param):
    rows, columns = param.shape
    return {
        "step": torch.tensor(49.0),
        "row_var": spread(generator, torch.empty(rows, 1, dtype=param.dtype)),
        "col_var": spread(generator, torch.empty(1, columns, dtype=param.dtype)),
    }


def small(size):
    def make(generator, param, state):
        return size * (0.5 + torch.rand(param.shape, dtype=param.dtype, generator=generator))

    return make


def under_root(generator, param, state):
    return state["square_avg"].sqrt() * 0.9 * (2 * torch.rand(param.shape, dtype=param.dtype, generator=generator) - 1)


def statistics(generator, param, state):
    made = [torch.randn(size, 2 * size, dtype=param.dtype, generator=generator) for size in param.shape]
    return [each @ each.T * 1e-2 for each in made]


def bases(generator, param, state):
    return [
        torch.linalg.qr(torch.randn(size, size, dtype=param.dtype, generator=generator))[0] for size in param.shape
    ]


def label(case):
    kind, settings, *_ = case
    return kind.__name__ + "".join(f"-{key}={value}" for key, value in settings.items() if key != "lr")


BUFFER = moments("momentum_buffer", step=0)
LINEAR = [
    (optim.SGD, {"lr": 0.1}, N, moments(step=0), ()),
    (optim.SGD, {"lr": 0.1, "weight_decay": 3.0}, N, moments(step=0), ()),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}, N, BUFFER, ("momentum_buffer",)),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}, N, BUFFER, ("momentum_buffer",)),
    (optim.SGD, {"lr": 0.1, "momentum": 0.5, "dampening": 0.2, "weight_decay": 2.0}, N, BUFFER, ("momentum_buffer",)),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}, N, BUFFER, ("momentum_buffer",)),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 1.0}, N, BUFFER, ("momentum_buffer",)),
    (optim.ASGD, {"lr": 0.1, "lambd": 2.0, "alpha": 0.75, "weight_decay": 1.0}, N,
     moments(step=30, eta=lambda *_: torch.tensor(0.1 / (1 + 0.2 * 29) ** 0.75, dtype=torch.float64),
             mu=lambda *_: torch.tensor(1.0), ax=small(0.0)), ()),
    (optim.RMSprop, {"lr": 0.01}, N, moments(square_avg=None), ()),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.5}, N,
     moments("momentum_buffer", square_avg=None), ("momentum_buffer",)),
    (optim.RMSprop, {"lr": 0.01, "centered": True}, N, moments(square_avg=None, grad_avg=under_root), ()),
    (optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9, "maximize": True}, N,
     moments("momentum_buffer", square_avg=None, grad_avg=under_root), ("momentum_buffer",)),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1}, N, moments(sum=None), ()),
    (optim.Adadelta, {"lr": 1.0}, N, moments(square_avg=None, acc_delta=small(1e-3)), ()),
    *[(optim.Adam, {"lr": 0.1, "betas": (beta1, 0.99)}, N, adam(step), ("exp_avg",))
      for beta1, step in ((0.9, 1), (0.9, 5), (0.9, 20), (0.9, 10**6), (0.0, 5), (0.5, 5), (0.95, 100))],
    (optim.Adam, {"lr": 0.1, "weight_decay": 0.1}, N, adam(), ("exp_avg",)),
    (optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}, N, adam(), ("exp_avg",)),
    (optim.Adam, {"lr": 0.1, "amsgrad": True, "fused": True}, N, adam(max_exp_avg_sq=None), ("exp_avg",)),
    (optim.Adam, {"lr": torch.tensor(0.1), "foreach": False, "eps": 0.05}, N, adam(), ("exp_avg",)),
    *[(optim.AdamW, {"lr": 0.1, "weight_decay": w}, N, adam(), ("exp_avg",)) for w in (0.0, 1.0, 8.0)],
    *[(optim.NAdam, {"lr": 0.01}, N, adam(t, mu_product=mu_product(0.9, t)), ("exp_avg",))
      for t in (1, 10, 100, 1000, 6000, 20000, 100000)],
    (optim.NAdam, {"lr": 0.01, "weight_decay": 4.0, "decoupled_weight_decay": True}, N,
     adam(50, mu_product=mu_product(0.9, 50)), ("exp_avg",)),
    *[(optim.RAdam, {"lr": 0.01}, N, adam(t), ("exp_avg",)) for t in (3, 5, 6, 20, 1000, 10**6)],
    (optim.RAdam, {"lr": 0.01, "weight_decay": 4.0, "decoupled_weight_decay": True}, N, adam(40), ("exp_avg",)),
    *[(optim.Adamax, {"lr": 0.01}, N, moments("exp_avg", step=t, exp_inf=None), ("exp_avg",)) for t in (3, 10**6)],
    (optim.Adafactor, {"lr": 0.01}, N, moments(step=50, variance=None), ()),
    (optim.Adafactor, {"lr": 0.3, "weight_decay": 2.0, "eps": (None, 0.5)}, (4, 2), rows_and_columns, ()),
    (others.Padam, {"lr": 0.1, "partial": 0.125, "weight_decay": 0.1}, N, adam(), ("exp_avg",)),
    (others.Padam, {"lr": 0.1, "amsgrad": True}, N, adam(7, max_exp_avg_sq=None), ("exp_avg",)),
    (others.QHM, {"lr": 0.1, "weight_decay": 1.0}, N, BUFFER, ("momentum_buffer",)),
    (others.QHM, {"lr": 0.1, "nu": 0.9, "weight_decay": 2.0, "weight_decay_type": "direct"}, N,
     BUFFER, ("momentum_buffer",)),
    (others.QHAdam, {"lr": 0.1, "nus": (0.7, 0.9)}, N,
     adam(beta1_weight=lambda *_: 50.0, beta2_weight=lambda *_: 90.0), ("exp_avg",)),
    (others.AdEMAMix, {"lr": 0.1, "weight_decay": 1.0}, N,
     moments("exp_avg_fast", "exp_avg_slow", exp_avg_sq=None), ("exp_avg_fast", "exp_avg_slow")),
    (others.AdEMAMix, {"lr": 0.1, "alpha_warmup": 300, "beta3_warmup": 300}, N,
     moments("exp_avg_fast", "exp_avg_slow", step=7, exp_avg_sq=None), ("exp_avg_fast", "exp_avg_slow")),
    (others.AdaBelief, {"lr": 0.1, "weight_decay": 1.0}, N, moments("exp_avg", exp_avg_var=None), ("exp_avg",)),
    *[(others.AdaBelief, {"lr": 0.1, "rectify": True}, N, moments("exp_avg", step=t, exp_avg_var=None), ("exp_avg",))
      for t in (4, 30)],
    (others.Yogi, {"lr": 0.1}, N, adam(), ("exp_avg",)),
    (others.Lamb, {"lr": 0.1, "weight_decay": 0.0}, N, adam(), ("exp_avg",)),
    (others.Adam_mini, {"lr": 0.1, "weight_decay": 1.0}, (4, 2),
     moments("m", vmean=lambda generator, param, _: spread(generator, param[:, :1])), ("m",)),
    (others.Shampoo, {"lr": 0.1, "momentum": 0.9}, (4, 2),
     moments("momentum_buffer", preconditioners=statistics), ("momentum_buffer",)),
    (others.Shampoo, {"lr": 0.1, "weight_decay": 0.3}, (2, 2, 2), moments(preconditioners=statistics), ()),
    (others.SOAP, {"lr": 0.1, "weight_decay": 0.5}, (4, 2), adam(Q=bases), ("exp_avg",)),
    (others.SOAP, {"lr": 0.1, "correct_bias": False}, (2, 4),
     adam(Q=lambda g, p, s: [torch.empty(0), bases(g, p, s)[1]]), ("exp_avg",)),
    *[(kind, {"lr": 0.1, **rest, "weight_decay": w, "k": k, "weight_sum": total}, N,
       moments("z", step=0, **state), ("z",))
      for kind, rest, state in ((others.SGDScheduleFree, {"momentum": 0.9}, {}),
                                (others.AdamWScheduleFree, {"betas": (0.98, 0.99)}, {"exp_avg_sq": None}))
      for w, k, total in ((0.0, 9, 0.01), (2.0, 99, 3.0))],
]


def prepared(case):
    kind, settings, shape, state, momenta = case
    frozen = Frozen(lambda param: kind([param], **settings), shape, state, momenta)
    frozen.step(torch.ones(frozen.param.numel() * (1 + len(momenta)), dtype=torch.float64), 1.0)
    frozen.load()
    return frozen, edge_weights(frozen.optimizer, [frozen.param.grad])


@pytest.mark.parametrize("case", thinned(LINEAR), ids=label)
def test_the_step_begins_to_grow_at_chi_1(case):
    frozen, weights = prepared(case)
    edge = frozen.edge(weights)
    assert frozen.growth(0.98 * edge) < 1 < frozen.growth(1.02 * edge)
    assert frozen.measured(edge) == pytest.approx(edge, rel=3e-4)
    assert not weights.formal


@pytest.mark.parametrize("case", [case for case in LINEAR if case[0].__name__ not in (
    "Adafactor", "Shampoo", "SOAP", "Adam_mini", "SGDScheduleFree", "AdamWScheduleFree")], ids=label)
def test_the_nyquist_probe_agrees_with_the_rules(case):
    frozen, weights = prepared(case)
    zero = [torch.zeros_like(frozen.param)]
    probed, weights = nyquist_probe(frozen.optimizer, zero), edge_weights(frozen.optimizer, zero)
    told = weights.tensors[0] * (2 - weights.lrs[0] * weights.omega[0])
    torch.testing.assert_close(told, probed[0], rtol=1e-6, atol=0)
    if frozen.momenta or not weights.l2[0]:
        assert probed.l2[0] == pytest.approx(weights.l2[0], rel=1e-6, abs=1e-12)
        assert probed.decays[0] == pytest.approx(weights.lrs[0] * weights.omega[0], rel=1e-6, abs=1e-12)
    assert probed.steps <= 40
