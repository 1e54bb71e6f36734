"""Batch sharpness against its definition over all batches, and its standard errors against repetition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.curvature.batch_sharpness import batch_sharpness
from foreshock.errors import UsageError

Batch = tuple[Tensor, Tensor]


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    return model, x, torch.sin(2 * x[:, :1]) + 0.1 * torch.randn(64, 1, generator=generator, dtype=torch.float64)


def drawn(x: Tensor, y: Tensor, seed: int, size: int = 8) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(0, len(x), (size,), generator=generator)
        yield x[rows], y[rows]


def pieces(model: nn.Module, batch: Batch, weights: Tensor | None) -> tuple[float, float]:
    """Returns u'H u and g'u of one batch, from a dense Hessian."""
    names, params = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in params]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: v.view_as(p) for n, p, v in zip(names, params, flat.split(sizes), strict=True)}
        return F.mse_loss(torch.func.functional_call(model, parts, batch[0]), batch[1])

    flat = torch.cat([p.detach().flatten() for p in params])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    u = gradient if weights is None else weights * gradient
    return float(u @ torch.autograd.functional.hessian(loss, flat) @ u), float(gradient @ u)


@pytest.mark.parametrize("adaptive", [False, True])
def test_both_averages_are_those_of_their_definitions(adaptive: bool) -> None:
    model, x, y = regression()
    params = list(model.parameters())
    count = sum(p.numel() for p in params)
    flat = torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if adaptive else None
    weights = None
    if flat is not None:
        weights = [v.view_as(p) for v, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]
    batches = list(itertools.islice(drawn(x, y, 0), 30))
    found = batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), params, batches, weights=weights, target=1e-9)
    tops, bottoms = zip(*[pieces(model, batch, flat) for batch in batches], strict=True)
    assert found.ratio_of_means.value == pytest.approx(sum(tops) / sum(bottoms), rel=1e-9)
    ratios = torch.tensor([t / b for t, b in zip(tops, bottoms, strict=True)])
    assert found.mean_of_ratios.value == pytest.approx(float(ratios.mean()), rel=1e-6)
    assert found.mean_of_ratios.standard_error == pytest.approx(float(ratios.std()) / math.sqrt(30), rel=1e-5)
    assert (found.batches, found.matvecs, found.converged, found.adaptive) == (30, 30, False, adaptive)


def test_the_standard_errors_are_those_of_repetition() -> None:
    model, x, y = regression()
    params = list(model.parameters())
    found = [
        batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), params, drawn(x, y, seed), target=1e-9, max_batches=30)
        for seed in range(25)
    ]
    for name in ("ratio_of_means", "mean_of_ratios"):
        values = torch.tensor([getattr(each, name).value for each in found])
        claimed = torch.tensor([getattr(each, name).standard_error for each in found]).mean()
        assert 0.6 < float(values.std() / claimed) < 1.5


def test_it_stops_at_the_error_asked_for_and_not_before() -> None:
    model, x, y = regression()
    params = list(model.parameters())
    found = batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), params, drawn(x, y, 3), target=0.05)
    assert found.converged
    assert 10 <= found.batches < 1000
    assert all(
        each.standard_error <= 0.05 * each.value for each in (found.ratio_of_means, found.mean_of_ratios)
    )


def test_with_whole_batches_it_is_the_curvature_along_the_gradient() -> None:
    model, x, y = regression()
    top, bottom = pieces(model, (x, y), None)
    found = batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), list(model.parameters()), itertools.repeat((x, y)))
    assert found.batches == 10
    assert found.ratio_of_means.value == pytest.approx(top / bottom, rel=1e-9)
    assert found.ratio_of_means.standard_error < 1e-12


def test_random_streams_and_batch_statistics_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 1))
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(9, 5, generator=generator), torch.randn(9, 1, generator=generator)) for _ in range(4)]
    stream, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), list(model.parameters()), batches)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_named() -> None:
    model, x, y = regression()
    params = list(model.parameters())
    with pytest.raises(UsageError, match="two batches"):
        batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), params, [(x, y)])
    with pytest.raises(UsageError, match="target"):
        batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]), params, [(x, y)], target=0.0)
    with pytest.raises(UsageError, match="nan"):
        batch_sharpness(lambda b: F.mse_loss(model(b[0]), b[1]) * math.nan, params, [(x, y)] * 3)
    with pytest.raises(UsageError, match="batch 0 has curvature 0 along a gradient of squared length 0"):
        batch_sharpness(lambda b: F.mse_loss(model(b[0]) * 0, b[1] * 0), params, [(x, y)] * 3)
