"""The reference training of softmax absorption, watched live: the timeline of its first 1000 steps, and a cured one.

Figures: 64-32-32-32-10 on 200 digits, full batch, Adam(1e-3, (.9, .95)), float32, seed 0, measured with the logits and
features at hand, on torch 2.13; the mechanism is that of Liu et al. 2026, arXiv 2605.06152.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foreshock.demo.absorption import build
from foreshock.demo.scenario import datasets
from foreshock.monitor import Monitor
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.probes import Softmax
from foreshock.run import Run
from foreshock.threads import one_thread

pytest.importorskip("sklearn")

STEPS = 1001
# step: absorbed share, wrong mass, |W_G|, |W*|, |mu_G|, mean logit
TIMELINE = {
    500: (0.30, 3.5e-6, 0.237, 4.28, 47.0, -3.0),
    800: (0.94, 1.7e-8, 0.393, 4.60, 69.0, -23.0),
    1000: (0.92, 1.39e-8, 0.872, 4.63, 255.0, -217.0),
}


def watched(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Run:
    training = build(0)
    digits = datasets().load_digits()
    images, labels = torch.tensor(digits.data[:200] / 16, dtype=torch.float32), torch.tensor(digits.target[:200])
    with one_thread(), Monitor(training.model, training.optimizer, probes=[Softmax]) as monitor:
        for _ in range(STEPS):
            loss = loss_of(training.model(images), labels)
            monitor.observe(loss)
            training.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            training.optimizer.step()
        return monitor.run


def test_the_live_monitor_sees_the_timeline_of_the_reference_training() -> None:
    run = watched(F.cross_entropy)
    values = {name: dict(zip(*map(list, run.measured(f"softmax_{name}")), strict=True)) for name in (
        "absorbed", "wrong", "head_mean", "head_centred", "feature_mean", "logit", "residual", "cosine", "sensitivity",
        "error",
    )}  # fmt: skip


    def at(name: str, step: int) -> float:
        return values[name][min(values[name], key=lambda reading: abs(reading - step))]

    for step, (absorbed, wrong, common, centred, feature, logit) in TIMELINE.items():
        assert at("absorbed", step) == pytest.approx(absorbed, abs=0.1), step
        assert at("wrong", step) == pytest.approx(wrong, rel=0.4), step
        assert at("head_mean", step) == pytest.approx(common, rel=0.15), step
        assert at("head_centred", step) == pytest.approx(centred, rel=0.03), step
        assert at("feature_mean", step) == pytest.approx(feature, rel=0.3), step
        assert at("logit", step) == pytest.approx(logit, rel=0.4), step

    def first(name: str, level: float) -> int:
        return min(step for step, value in values[name].items() if abs(value) > level and step > 450)

    # half absorbed @578, half the class sum @723, cos < -.5 @715, < -.9 @838, |W_G| doubled @833, s > .9 @1000
    assert first("absorbed", 0.5) == pytest.approx(578, abs=40)
    assert first("residual", 0.5) == pytest.approx(723, abs=60)
    assert first("cosine", 0.5) == pytest.approx(715, abs=60)
    assert first("cosine", 0.9) == pytest.approx(838, abs=60)
    assert first("sensitivity", 0.2) == pytest.approx(800, abs=80)
    assert 0.5 < at("sensitivity", 1000) < 1.6
    # the verdict changes sides on the way: the loss to begin with, rounding later
    assert at("error", 500) < 0.1 < at("error", 800)


@pytest.mark.slow
def test_the_exact_loss_shows_nothing_of_it() -> None:
    run = watched(cross_entropy)
    assert run.measured("softmax_absorbed")[1].max() == 0.0
    assert run.measured("softmax_residual")[1].max() < 1e-6
    assert run.measured("softmax_error")[1].max() < 1e-4
    steps, common = run.measured("softmax_head_mean")
    assert common[-1] < 1.2 * common[steps.searchsorted(400)]
    assert run.measured("softmax_cosine")[1].min() > -0.5
    assert run.measured("softmax_sensitivity")[1][-1] < 0.1
