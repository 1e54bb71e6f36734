from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from foreshock import Monitor
from foreshock.probes import FREE, Secant
from foreshock.probes.sentinels import Sentinels
from foreshock.stability import edge_weights


def stirred(records: list[dict[str, float]]) -> list[int]:
    sentinels = Sentinels()
    return [i for i, values in enumerate(records) if sentinels.update(values)]


def test_ten_opposed_gradients_in_a_row_stir() -> None:
    assert stirred([{"grad_cosine": -0.95}] * 12) == [9, 10, 11]
    assert not stirred(([{"grad_cosine": -0.95}] * 9 + [{"grad_cosine": 0.3}]) * 5)
    assert not stirred([{"grad_cosine": math.nan}] * 30)


def test_a_gradient_that_grows_while_v_decays_freely_stirs() -> None:
    falling = [{"v_free": 1.0, "grad_sq_over_v_mean": 1e-3 * 0.99**i} for i in range(100)]
    growing = [{"v_free": 1.0, "grad_sq_over_v_mean": 3.7e-4 * 1.3**i} for i in range(10)]
    assert not stirred(falling)
    assert stirred(falling + growing)[0] in range(104, 108)
    fed = [{"v_free": 0.1, **{k: v for k, v in each.items() if k != "v_free"}} for each in falling + growing]
    assert not stirred(fed)


def test_two_secants_beyond_the_edge_stir() -> None:
    assert stirred([{"chi_secant": 1.2}, {}, {}, {"chi_secant": 1.1}]) == [3]
    assert not stirred([{"chi_secant": 1.2}, {"chi_secant": 0.0}] * 4)


def test_sentinels_go_on_from_their_state() -> None:
    records = [{"grad_cosine": -0.95, "v_free": 1.0, "grad_sq_over_v_mean": 1e-3 * 0.9**i} for i in range(7)]
    whole, first, second = Sentinels(), Sentinels(), Sentinels()
    for values in records:
        whole.update(values)
        first.update(values)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for values in records:
        assert whole.update(values) == second.update(values)
    assert whole.state_dict() == second.state_dict()


def quadratic(seed: int) -> tuple[nn.ParameterList, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(9, 9, generator=draw, dtype=torch.float64)
    start = torch.randn(9, generator=draw, dtype=torch.float64)
    return nn.ParameterList([nn.Parameter(start[:4].clone()), nn.Parameter(start[4:].clone())]), root @ root.T / 9


@pytest.mark.parametrize(
    "build",
    [
        lambda p: SGD(p, lr=0.1),
        lambda p: SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
        lambda p: Adam(p, lr=0.01),
        lambda p: AdamW(p, lr=0.01, weight_decay=0.0),
        lambda p: RMSprop(p, lr=0.01),
    ],
)
def test_the_secant_is_the_curvature_along_the_step_in_units_of_the_edge(
    build: Callable[[Any], Optimizer],
) -> None:
    params, H = quadratic(1)
    optimizer = build(params.parameters())
    expected = {}
    with Monitor(params, optimizer, probes=[Secant]) as monitor:
        for step in range(50):
            theta = torch.cat(list(params))
            loss = 0.5 * theta @ H @ theta
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            weights = edge_weights(optimizer, [param.grad for param in params])
            before = theta.detach().clone()
            gradient = torch.cat([param.grad for param in params])
            optimizer.step()
            s = torch.cat(list(params)).detach() - before
            w = torch.cat([weight.double() for weight in weights.tensors])  # type: ignore[union-attr]
            after = H @ (before + s)
            alike = abs(float(torch.dot(after, gradient) / after.norm() / gradient.norm())) >= 0.5
            if step % 16 == 0:
                expected[step + 1] = float(s @ H @ s / (s @ (s / w))) if alike else 0.0
        steps, values = monitor.run.measured("chi_secant")
    assert steps.tolist() == [1, 17, 33, 49]
    assert values.tolist() == pytest.approx([expected[step] for step in steps.tolist()], rel=1e-6)
    assert max(values) > 0


def test_secants_of_changing_batches_say_nothing_and_other_optimizers_have_none() -> None:
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(50, 1)
    optimizer = SGD(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer, probes=[Secant]) as monitor:
        for _ in range(40):
            x = torch.randn(2, 50, generator=draw)
            loss = (model(x) - torch.randn(2, 1, generator=draw)).square().mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert monitor.run.measured("chi_secant")[1].tolist() == [0.0, 0.0, 0.0]
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    with Monitor(model, optimizer, probes=[*FREE, Secant]) as monitor:
        for _ in range(20):
            loss = model(torch.ones(1, 50)).square().mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert "chi_secant" not in monitor.run
