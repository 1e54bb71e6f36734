"""The noise scale of one batch is that of its examples' gradients, with a band that holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from foreshock.errors import UsageError
from foreshock.noise import noise_scale
from foreshock.noise.catch import codes, follows
from foreshock.noise.layers import Layout
from foreshock.noise.once import jackknife
from tests.noise.nets import case, losses, slowly


def textbook(rows: np.ndarray) -> tuple[float, float]:
    """tr Sigma and |G|^2 of gradients (n, P), by sample variances and products of pairs."""
    n = len(rows)
    products = rows @ rows.T
    return float(rows.var(0, ddof=1).sum()), float((products.sum() - np.trace(products)) / (n * (n - 1)))


@pytest.mark.parametrize("name", ["text", "text untied", "image", "line", "plain"])
def test_one_batch_gives_what_its_gradients_give_by_the_textbook(name):
    model, x, y = case(name)
    every = slowly(model, x, y)
    rows = torch.cat([each.flatten(1) for each in every.values()], 1).double().numpy()
    found = noise_scale(lambda: losses(model, x, y), list(model.parameters()))
    trace, square = textbook(rows)
    assert found.tr_sigma == pytest.approx(trace, rel=1e-5)
    assert found.g_sq == pytest.approx(square, rel=1e-4, abs=1e-6 * trace)
    left_out = [textbook(np.delete(rows, i, 0)) for i in range(len(rows))]
    spread = np.sqrt((len(rows) - 1) * np.var(left_out, axis=0))
    assert [found.tr_sigma_se, found.g_sq_se] == pytest.approx(spread, rel=1e-3)
    assert found.source == "6 examples of one batch"


def test_ghost_and_each_agree_and_ghost_says_what_it_cannot_follow():
    model, x, y = case("plain")
    params = list(model.parameters())
    both = [noise_scale(lambda: losses(model, x, y), params, method=method) for method in ("ghost", "each")]
    assert both[0].tr_sigma == pytest.approx(both[1].tr_sigma, rel=1e-5)
    assert both[0].g_sq_se == pytest.approx(both[1].g_sq_se, rel=1e-4)
    text, x, y = case("text")
    with pytest.raises(UsageError, match=r"method='ghost'.*3 of the parameters"):
        noise_scale(lambda: losses(text, x, y), [*text.parameters(), *params], method="ghost")


def test_the_batch_is_left_as_it_was_with_dropout_and_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
    x = torch.randn(8, 4)
    model(x).sum().backward()
    before = [tensor.clone() for tensor in (*model.state_dict().values(), torch.get_rng_state())]
    grads = [param.grad.clone() for param in model.parameters()]
    noise_scale(lambda: model(x)[:, 0].square(), list(model.parameters()))
    after = [*model.state_dict().values(), torch.get_rng_state()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), grads, strict=True))
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_preconditioned_scale_divides_by_adam_s_denominators():
    model, x, y = case("plain")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.9), eps=1e-3)
    with pytest.raises(UsageError, match="fewer than 5 steps"):
        noise_scale(lambda: losses(model, x, y), list(model.parameters()), precondition=optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        losses(model, x, y).mean().backward()
        optimizer.step()
    roots = [(optimizer.state[p]["exp_avg_sq"] / (1 - 0.9**6)).sqrt() + 1e-3 for p in model.parameters()]
    rows = slowly(model, x, y).values()
    scaled = torch.cat([(each / root).flatten(1) for each, root in zip(rows, roots, strict=True)], 1)
    found = noise_scale(lambda: losses(model, x, y), list(model.parameters()), precondition=optimizer)
    trace, square = textbook(scaled.double().detach().numpy())
    assert found.preconditioned
    assert found.tr_sigma == pytest.approx(trace, rel=1e-4)
    assert found.g_sq == pytest.approx(square, rel=1e-3, abs=1e-5 * trace)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="no second moments"):
        noise_scale(lambda: losses(model, x, y), list(model.parameters()), precondition=sgd)


def test_one_batch_s_band_covers_the_truth():
    rng = np.random.default_rng(0)
    covered, width = 0, []
    for _ in range(200):
        rows = np.eye(1, 30) * 2 + rng.standard_normal((64, 30))
        mean = rows.mean(0)
        found = jackknife((rows**2).sum(1), rows @ mean, float(mean @ mean))
        covered += found.low <= 30 / 4 <= found.high
        width.append(found.high - found.low)
    assert 180 <= covered <= 199
    assert np.median(width) < 8  # narrower than the number itself by half


def test_a_batch_without_a_gradient_of_its_own_is_undefined():
    rows = np.random.default_rng(0).standard_normal((32, 20))
    mean = rows.mean(0)
    found = jackknife((rows**2).sum(1), rows @ mean, float(mean @ mean))
    assert found.status == "undefined"
    assert math.isnan(found.noise_scale)
    assert found.high == math.inf


def test_losses_that_are_none_are_refused():
    w = torch.ones(2, requires_grad=True)
    for wrong in (lambda: (w * w).sum(), lambda: torch.ones(3, 2) @ w, lambda: torch.ones(8)):
        with pytest.raises(UsageError, match="per_example_loss"):
            noise_scale(wrong, [w])
    with pytest.raises(UsageError, match="params"):
        noise_scale(lambda: torch.ones(8, 2) @ w, [])
    with pytest.raises(UsageError, match="method"):
        noise_scale(lambda: torch.ones(8, 2) @ w, [w], method="vmap")


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((4, 3), Layout(0)), ((8, 3), Layout(0)), ((8, 2), Layout(0, inmost=True)), ((3, 4), Layout(1))],
)
def test_the_factors_of_the_losses_show_whose_a_slice_is(shape, layout):
    generator = torch.Generator().manual_seed(0)
    gradient, factors = torch.randn(shape, generator=generator), torch.tensor(codes(4))
    place = torch.arange(shape[layout.dim])
    owner = place % 4 if layout.inmost else place // (shape[layout.dim] // 4)
    scaled = gradient * factors[owner].reshape([-1, 1] if layout.dim == 0 else [1, -1])
    assert follows(gradient, scaled, factors) == layout
    assert follows(gradient, gradient, factors) is None
