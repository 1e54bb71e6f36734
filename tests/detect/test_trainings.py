"""Real trainings without minibatch noise, run in the test: a loss that falls by many decades and spikes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from foreshock.detect import Spike, scan
from foreshock.run import Event
from tests.detect.curves import records

Arrays = list[np.ndarray]


def adam(
    parameters: Sequence[np.ndarray], gradient: Callable[[Arrays], tuple[float, Arrays]], steps: int, *, lr: float
) -> list[float]:
    """Returns the losses of full-batch Adam, betas (0.9, 0.999), eps 1e-8."""
    at = list(parameters)
    first, second = [np.zeros_like(p) for p in at], [np.zeros_like(p) for p in at]
    losses = []
    for t in range(1, steps + 1):
        loss, gradients = gradient(at)
        losses.append(loss)
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            step = first[i] / (1 - 0.9**t) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
            at[i] = at[i] - lr * step
    return losses


def regression(x: np.ndarray, y: np.ndarray) -> Callable[[Arrays], tuple[float, Arrays]]:
    """Returns loss and gradient of the net a'tanh(W x + b) + c under mean squared error; x is (n, inputs)."""

    def gradient(parameters: Arrays) -> tuple[float, Arrays]:
        weight, bias, head, shift = parameters
        hidden = np.tanh(x @ weight.T + bias)
        error = hidden @ head + shift - y
        back = 2.0 * error / len(y)
        inner = back[:, None] * head * (1.0 - hidden * hidden)
        return float(np.mean(error * error)), [inner.T @ x, inner.sum(0), hidden.T @ back, np.array([back.sum()])]

    return gradient


def calm_rule(losses: Sequence[float], factor: float = 1.5) -> list[tuple[int, int]]:
    """Returns (trigger, end) of each spike by the label of the Adam-spike study.

    Calm: the last 25 losses lie within a factor of 1.5. A spike starts at the first loss of `factor` times the minimum
    since calm began, and ends when it is calm again.
    """
    spikes, base, start = [], None, None
    for t in range(len(losses)):
        last = losses[max(0, t - 24) : t + 1]
        calm = len(last) == 25 and max(last) < 1.5 * min(last)
        if start is None:
            base = losses[t] if calm and base is None else base
            if base is not None:
                base = min(base, losses[t])
                start = t if losses[t] >= factor * base else None
        elif calm:
            spikes.append((start, t))
            start, base = None, losses[t]
    return spikes if start is None else [*spikes, (start, len(losses) - 1)]


def found(events: Sequence[Event], labels: Sequence[tuple[int, int]]) -> list[bool]:
    return [any(start - 40 <= event.onset <= end for event in events) for start, end in labels]


def test_each_spike_of_a_small_net_is_one_event() -> None:
    # run TL of the Adam-spike study: one input, 20 units, two sines; chaotic, so only relations are tested
    rng = np.random.default_rng(0)
    x = np.linspace(-np.pi, np.pi, 20)
    start = [rng.standard_normal((20, 1)), rng.standard_normal(20), rng.standard_normal(20), rng.standard_normal(1)]
    losses = adam(start, regression(x[:, None], np.sin(x) + np.sin(4 * x)), 5000, lr=0.02)
    labels, events = calm_rule(losses), scan(records(losses), [Spike()])
    assert len(labels) >= 8
    assert all(found(events, labels))
    assert len(events) <= len(labels) + 2
    assert scan(records(losses[:1200])) == []


def test_preconditioner_spike_from_1e_8_is_found_while_it_is_still_tiny() -> None:
    # run N50: the loss falls from 190 to 1e-8 and climbs back to about 1 within 30 steps
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 50))
    y = x @ rng.standard_normal(50) + x**2 @ rng.standard_normal(50)
    units = 1000
    shapes: tuple[tuple[int, ...], ...] = ((units, 50), (units,), (units,), (1,))
    losses = adam([rng.standard_normal(shape) / units for shape in shapes], regression(x, y), 320, lr=0.02)
    lowest = int(np.argmin(losses[:300]))
    (event,) = scan(records(losses), [Spike()])
    assert lowest < event.raised <= lowest + 15
    assert losses[event.raised] < 1e-5 * event.height
    assert event.peak == int(np.argmax(losses[lowest:])) + lowest
    assert event.data["width"] == "wide"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow
def test_softmax_absorption_run_gives_one_event_a_spike(seed: int) -> None:
    # the 200-digit network in single precision: 7 spikes in 5,000 steps, exact zeros and rounding jitter in between
    torch = pytest.importorskip("torch")
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.data[:200] / 16.0).float(), torch.tensor(digits.target[:200])
    torch.manual_seed(seed)
    sizes = (64, 32, 32, 32, 10)
    layers = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    net = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    losses = []
    for _ in range(5000):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    high = [step for step, value in enumerate(losses) if value > 1e-2 and step > 1000]
    spikes = [step for step, before in zip(high, [-1000, *high], strict=False) if step - before > 100]
    events = scan(records(losses), [Spike()])
    assert len(spikes) >= 5
    assert all(any(step - 80 <= event.onset <= step + 5 for event in events) for step in spikes)
    assert len(events) <= len(spikes) + 4
