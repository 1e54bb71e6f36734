"""The demo's trainings spike for the reasons they are shown for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.demo import SCENARIOS, absorption, bad_batch, preconditioner
from foreshock.demo.scenario import Training, train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(training: Training) -> np.ndarray:
    return torch.stack(train(training)).numpy()


def first_steps(training: Training, steps: int) -> Training:
    return Training(training.model, training.optimizer, training.loss, steps)


def absorption_spikes(curve: np.ndarray) -> list[int]:
    """Runs of losses above 1e-2 after the first one below 1e-6; runs closer than 100 steps are one spike."""
    fitted = int(np.argmax(curve < 1e-6))
    high = [step for step in range(fitted, len(curve)) if curve[step] > 1e-2]
    return [step for before, step in zip([-1000, *high], high, strict=False) if step - before > 100]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_training_is_a_pure_function_of_its_seed(scenario):
    state = torch.get_rng_state()
    first = losses(first_steps(scenario.build(5), 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, losses(first_steps(scenario.build(5), 20)))
    assert not np.array_equal(first, losses(first_steps(scenario.build(6), 20)))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_bad_batch_alone_spikes_and_leaves_the_model_fine(seed):
    curve = losses(bad_batch.build(seed))
    normal = np.median(curve[400 : bad_batch.BAD_STEP])
    assert curve[bad_batch.BAD_STEP] > 100 * normal
    assert np.median(curve[bad_batch.BAD_STEP + 1 :]) < 2 * normal
    sound = losses(bad_batch.build(seed, bad_step=None))
    assert np.array_equal(sound[: bad_batch.BAD_STEP], curve[: bad_batch.BAD_STEP])
    assert sound[bad_batch.BAD_STEP] < 10 * normal


def test_before_the_spike_every_second_moment_decays_at_beta2():
    training = preconditioner.build(0)
    norms, curve = [], []
    for loss in (training.loss(step) for step in range(1000)):
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        states = [training.optimizer.state[parameter] for parameter in training.model.parameters()]
        norms.append([float(state["exp_avg_sq"].norm()) for state in states])
        curve.append(loss.item())
    peak = 700 + int(np.argmax(curve[700:]))
    turn = peak - 60 + int(np.argmin(curve[peak - 60 : peak]))
    assert curve[peak] > 1000 * curve[turn]
    ratios = np.array(norms[turn - 10 : turn]) / np.array(norms[turn - 11 : turn - 1])
    assert np.allclose(ratios, preconditioner.BETA2, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_float32_softmax_spikes_seven_times_and_float64_never(seed):
    assert len(absorption_spikes(losses(absorption.build(seed)))) == 7
    assert len(absorption_spikes(losses(absorption.build(seed, dtype=torch.float64)))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_bounded_preconditioner_never_spikes(seed):
    def rises(curve: np.ndarray) -> int:
        """Steps past the start whose loss is 3 times the smallest of the 50 steps before."""
        return sum(curve[step] > 3 * curve[step - 50 : step].min() for step in range(100, len(curve)))

    assert rises(losses(preconditioner.build(seed))) > 20
    assert rises(losses(preconditioner.build(seed, eps=0.1))) == 0
