"""The spectral density against dense spectra: moments, masses, ends, error bars."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor, nn

import foreshock.curvature.density as module
from foreshock.curvature import ExplicitOperator, Hessian
from foreshock.curvature.density import spectral_density
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers

SEEDS = range(20)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rms(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_and_masses_are_as_wrong_as_their_error_bars_say(probes: int, dtype: torch.dtype) -> None:
    spectrum = outliers()
    a = operator(spectrum, dtype=dtype)
    scores: list[float] = []
    for seed in SEEDS:
        found = spectral_density(a, probes=probes, generator=seeded(seed))
        for k in (1, 2, 3):
            moment = found.moment(k)
            scores.append((moment.value - float((spectrum**k).mean())) / moment.standard_error)
        mass = found.mass(2.5, 20.0)
        scores.append((mass.value - 7 / 300) / mass.standard_error)
    assert 0.5 < rms(scores) < 1.6


def test_each_probe_reproduces_the_moments_of_its_own_vector() -> None:
    a = operator(outliers(60), seed=2)
    found = spectral_density(a, steps=6, generator=seeded(5))
    start = a.space.normal(seeded(5))
    start = start / start.norm()
    for k in range(12):  # a Gauss rule of 6 nodes is exact up to degree 11
        true = float(start @ torch.linalg.matrix_power(a.matrix, k) @ start)
        assert float((found.weights * found.nodes**k).sum()) == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 12, 30])
def test_the_mass_of_a_probe_lies_between_its_bounds_however_few_the_steps(steps: int) -> None:
    spectrum = outliers(60)
    a = operator(spectrum, seed=2)
    values, vectors = torch.linalg.eigh(a.matrix)
    found = spectral_density(a, steps=steps, generator=seeded(5))
    start = a.space.normal(seeded(5))
    share = (vectors.T @ (start / start.norm())) ** 2
    for low, high in ((-3, 10), (-3, 0), (0, 0.05), (0.01, 3.5), (2, 20), (9.5, 10), (-20, -5)):
        mass = found.mass(low, high)
        true = float(share[(values >= low) & (values <= high)].sum())
        assert mass.low - 1e-9 <= true <= mass.high + 1e-9
        assert mass.low - 1e-12 <= mass.value <= mass.high + 1e-12


def test_more_probes_find_the_truth() -> None:
    spectrum = outliers(200)
    found = spectral_density(operator(spectrum), steps=40, probes=200)
    assert found.mass(-3, -1).value == pytest.approx(2 / 200, abs=4 * found.mass(-3, -1).standard_error)
    assert found.mass(-3, -1).standard_error < 1.2e-3
    smooth = torch.exp(-0.5 * ((found.grid[:, None] - spectrum) / found.width) ** 2).mean(1)
    smooth = smooth / (found.width * math.sqrt(2 * math.pi))
    within = (found.density - smooth).abs() <= 4 * found.standard_error + 0.02 * smooth.max()
    assert bool(within.all())


def test_the_ends_come_with_a_residual_that_an_eigenvalue_lies_within() -> None:
    spectrum = outliers()
    for steps in (3, 8, 15):
        found = spectral_density(operator(spectrum), steps=steps)
        ends = ((found.lowest, found.residuals[0, 0]), (found.highest, found.residuals[0, -1]))
        for end, residual in ends:
            assert float((spectrum - end).abs().min()) <= float(residual) + 1e-12
            assert float(spectrum.min()) - 1e-9 <= end <= float(spectrum.max()) + 1e-9
    assert found.highest == pytest.approx(9.0, rel=1e-6)


def test_the_density_adds_up_to_one_and_can_be_seen_at_another_width() -> None:
    found = spectral_density(operator(outliers()), probes=3)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-5)
    points = torch.linspace(-10, 20, 2000, dtype=torch.float64)
    wide, error = found.at(points, width=0.5)
    assert float(torch.trapezoid(wide, points)) == pytest.approx(1.0, abs=1e-5)
    assert bool((error >= 0).all())
    torch.testing.assert_close(found.at(found.grid), (found.density, found.standard_error))


@pytest.mark.parametrize(("steps", "probes"), [(50, 1), (50, 3), (7, 2)])
def test_a_probe_takes_as_many_products_as_steps(steps: int, probes: int) -> None:
    a = operator(torch.linspace(-1, 3, 120))
    found = spectral_density(a, steps=steps, probes=probes)
    assert found.matvecs == a.matvecs == steps * probes
    assert found.nodes.shape == found.weights.shape == (probes, steps)
    assert found.exact == (False,) * probes
    torch.testing.assert_close(found.weights.sum(1), torch.ones(probes, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_invariant_space_ends_the_run_and_makes_it_exact(dtype: torch.dtype) -> None:
    spectrum = torch.tensor([1.0] * 50 + [2.0] * 30 + [-4.0] * 20)
    found = spectral_density(operator(spectrum, dtype=dtype), probes=20)
    assert found.matvecs == 60
    assert all(found.exact)
    slack = 100 * torch.finfo(dtype).eps
    expected = torch.tensor([-4.0, 1.0, 2.0], dtype=torch.float64).expand(20, 3)
    torch.testing.assert_close(found.nodes[:, :3], expected, rtol=slack, atol=slack)
    mass = found.mass(1.5, 3)
    assert mass.low == pytest.approx(mass.value, abs=1e-12)
    assert mass.high == pytest.approx(mass.value, abs=1e-12)
    assert mass.value == pytest.approx(0.3, abs=4 * mass.standard_error)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_multiple_of_the_identity_takes_one_product(value: float) -> None:
    found = spectral_density(ExplicitOperator(value * torch.eye(9)))
    assert found.matvecs == 1
    assert found.lowest == found.highest == pytest.approx(value)
    assert found.moment(1).standard_error == pytest.approx(0.0, abs=1e-6)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-5)


def test_steps_are_no_more_than_the_dimension() -> None:
    a = operator([1.0, 2.0, 5.0])
    found = spectral_density(a, steps=50)
    assert found.matvecs == 3
    torch.testing.assert_close(found.nodes[0], torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))


def test_orthogonality_is_kept_over_long_runs_with_large_outliers() -> None:
    """Without it, copies of the outliers appear and take weight from the bulk."""
    spectrum = torch.cat([torch.linspace(0, 1, 397, dtype=torch.float64), torch.tensor([1e3, 1e4, 1e5]).double()])
    for dtype in (torch.float64, torch.float32):
        found = spectral_density(operator(spectrum, dtype=dtype), steps=60)
        assert int(((found.nodes[0] > 500) & (found.weights[0] > 0)).sum()) == 3
        assert found.matvecs > 15


def test_sixty_products_do_not_compute_the_loss_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(20, 6, generator=seeded(0), dtype=torch.float64)
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        return model(x).square().mean()

    params = list(model.parameters())
    dense = torch.linalg.eigvalsh(Hessian(loss, params).dense())
    calls = 0
    found = spectral_density(Hessian(loss, params), steps=30, probes=2)
    assert calls <= 2
    assert found.highest == pytest.approx(float(dense[-1]), rel=1e-6)
    assert found.lowest == pytest.approx(float(dense[0]), rel=1e-3)


def test_one_seed_one_result_and_the_global_stream_is_left_alone() -> None:
    a = operator(outliers())
    before = torch.get_rng_state()
    assert torch.equal(spectral_density(a, steps=9).nodes, spectral_density(a, steps=9).nodes)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_named() -> None:
    a = operator(outliers())
    with pytest.raises(UsageError, match="steps"):
        spectral_density(a, steps=0)
    with pytest.raises(UsageError, match="probes"):
        spectral_density(a, probes=0)
    with pytest.raises(UsageError, match="not finite"):
        spectral_density(ExplicitOperator(torch.full((4, 4), torch.inf)))
    found = spectral_density(a, steps=5)
    with pytest.raises(UsageError, match="width"):
        found.at(found.grid, width=0.0)
    with pytest.raises(UsageError, match="above b"):
        found.mass(2, 1)
