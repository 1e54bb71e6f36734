"""The quantities of absorption against 80-bit sums, closed forms and autograd; the float64 verdict on planted rows."""

from __future__ import annotations

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foreshock.errors import UsageError
from foreshock.numerics.absorption import Absorption, absorption
from foreshock.numerics.cross_entropy import cross_entropy

module = importlib.import_module("foreshock.numerics.absorption")  # the room has a function of this name

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_rows(
    rows: int, classes: int, *, dtype: torch.dtype = torch.float32, low: float = 0.0, high: float = 14.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns logits (N, K) whose right classes lead by gaps uniform in [low, high], and the right classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    right = torch.randint(classes, (rows,), generator=generator)
    wrong = logits.scatter(1, right[:, None], -torch.inf).amax(1)
    gaps = low + (high - low) * torch.rand(rows, generator=generator, dtype=torch.float64)
    logits.scatter_(1, right[:, None], (wrong + gaps)[:, None])
    return logits.to(dtype), right


def stock_gradient(logits: Tensor, right: Tensor, **settings: object) -> Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(z, right, **settings), z)[0]  # type: ignore[arg-type]


def values(seen: Absorption) -> dict[str, float]:
    found = {name: getattr(seen, name) for name in Absorption.__dataclass_fields__}
    return {name: value for name, value in found.items() if value is not None}


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().astype(np.longdouble)


def reference(logits: Tensor, right: Tensor, gradient: Tensor, scale: float) -> dict[str, float]:
    """The obvious version, dense, in 80 bits."""
    z, g, r = wide(logits), wide(gradient), right.numpy()
    rows = np.arange(len(z))
    own = z[rows, r]
    others = z.copy()
    others[rows, r] = -np.inf
    wrong_exp = np.exp(others - own[:, None])
    w = wrong_exp.sum(1) / (1 + wrong_exp.sum(1))
    margin = own - others.max(1)
    exact = -scale * w
    return {
        "absorbed": float(((g[rows, r] == 0) & (w > 0) & (g != 0).any(1)).mean()),
        "residual": float(np.abs(g.sum(1)).sum() / np.abs(g).sum()),
        "wrong": float(w.mean()),
        "margin_min": float(margin.min()),
        "margin_median": float(np.median(margin)),
        "error": float(np.sqrt(((g[rows, r] - exact) ** 2).sum() / (exact**2).sum())),
        "logit": float(z.mean()),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 97])
@pytest.mark.parametrize("high", [4.0, 14.0, 40.0])
def test_every_quantity_agrees_with_80_bits(dtype: torch.dtype, classes: int, high: float) -> None:
    logits, right = random_rows(60, classes, dtype=dtype, high=high, seed=classes)
    gradient = stock_gradient(logits, right)
    seen = absorption(logits, right, gradient=gradient)
    # the row's scale is read off the wrong classes, which hold the digits of the logits' type
    digits = max(1e-9, 4 * torch.finfo(dtype).eps)
    wanted = reference(logits, right, gradient, 1 / 60)
    assert seen.rows == 60
    for name, value in wanted.items():
        rel = 3 * digits if name == "error" else 1e-9
        assert getattr(seen, name) == pytest.approx(value, rel=rel, abs=digits), name


@pytest.mark.parametrize("gap", [0.5, 3.0, 30.0, 60.0, 90.0])
def test_the_wrong_mass_of_two_classes_is_a_logistic_function(gap: float) -> None:
    seen = absorption(torch.tensor([[gap, 0.0]]), torch.tensor([0]))
    assert seen.wrong == pytest.approx(math.exp(-gap) / (1 + math.exp(-gap)), rel=1e-13)
    assert seen.margin_min == seen.margin_median == gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10, 97, 1000])
def test_rows_are_absorbed_beyond_the_bounds_and_not_below(dtype: torch.dtype, classes: int) -> None:
    bits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}[dtype]
    step = 2.0**-6 if dtype != torch.bfloat16 else 2.0**-4  # gaps that bfloat16 holds up to 16
    below = math.floor((bits * math.log(2) - 0.02) / step) * step
    above = math.ceil((bits * math.log(2) + math.log(max(classes - 1, 1)) + 0.07) / step) * step
    shares = []
    for gap in (below, above):
        logits = torch.zeros(1, classes, dtype=dtype)
        logits[0, 0] = gap
        shares.append(absorption(logits, torch.tensor([0])).absorbed)
    assert shares == [0.0, 1.0]


@pytest.mark.parametrize("planted", [0, 1, 7, 32])
def test_planted_absorbed_rows_are_counted_one_by_one(planted: int) -> None:
    logits, right = random_rows(32, 10, high=8.0)
    logits[torch.arange(planted), right[:planted]] += 40.0
    seen = absorption(logits, right)
    assert seen.absorbed == planted / 32


def test_full_collapse_has_a_residual_of_one_and_is_numerical() -> None:
    logits, right = random_rows(50, 10, low=25.0, high=60.0)
    seen = absorption(logits, right)
    assert seen.absorbed == 1.0
    assert seen.residual == pytest.approx(1.0, abs=1e-12)
    assert seen.error == pytest.approx(1.0, abs=1e-12)
    assert seen.numerical


def test_float64_logits_of_the_same_numbers_are_healthy() -> None:
    logits, right = random_rows(50, 10, low=18.0, high=30.0)
    assert absorption(logits, right).numerical
    seen = absorption(logits.double(), right)
    assert seen.absorbed == 0.0
    assert not seen.numerical
    assert seen.residual < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_an_ordinary_classifier_is_healthy(seed: int) -> None:
    logits, right = random_rows(200, 10, low=-5.0, high=9.0, seed=seed)
    seen = absorption(logits, right)
    assert seen.absorbed == 0.0
    assert seen.residual < 1e-4
    assert seen.error < 1e-4
    assert not seen.numerical


def test_a_repaired_gradient_is_acquitted_on_logits_that_convict_the_stock_one() -> None:
    logits, right = random_rows(50, 10, low=18.0, high=60.0)
    stock = stock_gradient(logits, right)
    repaired = stock.scatter(1, right[:, None], 0.0)
    repaired.scatter_(1, right[:, None], -repaired.sum(1, keepdim=True))
    assert absorption(logits, right, gradient=stock).numerical
    seen = absorption(logits, right, gradient=repaired)
    assert not seen.numerical
    assert seen.absorbed == 0.0
    assert seen.error < 1e-6


@pytest.mark.parametrize("factor", [1e-6, 1.0, 65536.0])
def test_what_the_gradient_is_scaled_with_does_not_matter(factor: float) -> None:
    logits, right = random_rows(64, 10, low=5.0, high=22.0)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(0)) + 0.1
    plain = absorption(logits, right, gradient=stock_gradient(logits, right, reduction="sum"))
    scaled = absorption(logits, right, gradient=factor * stock_gradient(logits, right))
    assert scaled.error == pytest.approx(plain.error, rel=1e-3)
    weighted = stock_gradient(logits, right, weight=weights)
    seen = absorption(logits, right, gradient=factor * weighted)
    z = logits.double().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(z, right, weight=weights.double()), z)[0].gather(1, right[:, None])
    off = (weighted.double().gather(1, right[:, None]) - exact).norm() / exact.norm()
    assert seen.error == pytest.approx(float(off), rel=1e-3)


def test_class_weights_leave_a_healthy_batch_healthy() -> None:
    logits, right = random_rows(64, 10, high=8.0)
    weights = torch.logspace(-3, 3, 10)
    assert absorption(logits, right, gradient=stock_gradient(logits, right, weight=weights)).error < 1e-4


def test_ignored_rows_do_not_count() -> None:
    logits, right = random_rows(40, 10, low=0.0, high=30.0)
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    kept = torch.arange(40) % 3 != 0
    target = torch.where(kept, right, -100)
    whole = absorption(logits, target, features=features)
    alone = absorption(logits[kept], right[kept], features=features[kept])
    assert whole.rows == int(kept.sum())
    assert values(whole) == pytest.approx(values(alone), rel=1e-12, abs=1e-15)


def test_head_and_features_agree_with_dense_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, right = random_rows(30, 7)
    head, update = torch.randn(7, 12, generator=generator), 1e-2 * torch.randn(7, 12, generator=generator)
    features = torch.randn(30, 12, generator=generator) + 1.0
    seen = absorption(logits, right, head=head, features=features, update=update)
    w, mu = head.double(), features.double().mean(0)
    common = w.mean(0)
    assert seen.head_mean == pytest.approx(float(common.norm()), rel=1e-12)
    assert seen.head_centred == pytest.approx(float((w - common).norm()), rel=1e-12)
    assert seen.feature_mean == pytest.approx(float(mu.norm()), rel=1e-12)
    assert seen.cosine == pytest.approx(float(torch.cosine_similarity(common, mu, dim=0)), rel=1e-12)
    assert seen.sensitivity == pytest.approx(float((update.double() @ mu).abs().max()), rel=1e-12)


def test_the_centred_head_keeps_its_digits_under_a_common_part_a_million_times_as_long() -> None:
    head = torch.randn(10, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head -= head.mean(0)
    logits, right = random_rows(4, 10)
    seen = absorption(logits, right, head=head + 1e6 / math.sqrt(32))
    assert seen.head_centred == pytest.approx(float(head.norm()), rel=1e-2)
    assert seen.head_mean == pytest.approx(1e6, rel=1e-9)


@pytest.mark.parametrize("gap", [2.0, 12.0, 20.0])
def test_the_mean_gradient_of_the_head_is_the_class_sums_on_the_features(gap: float) -> None:
    """The drift identity: grad(W_head).mean(0) == (1/(N K)) sum_i (sum_k g_ik) h_i (Liu et al. 2026, Theorem 3.4)."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(40, 16, generator=generator).abs()
    head = torch.randn(10, 16, generator=generator)
    right = (features @ head.T).argmax(1)
    head *= gap / (features @ head.T).topk(2, dim=1).values.diff(dim=1).abs().min()
    head.requires_grad_()
    logits = features @ head.T
    loss = F.cross_entropy(logits, right)
    of_logits, of_head = torch.autograd.grad(loss, [logits, head])
    drift = of_logits.double().sum(1) @ features.double() / 10
    tolerance = 1e-5 * of_head.abs().mean()  # rounding of the matrix product where sums cancel
    assert torch.allclose(of_head.double().mean(0), drift, rtol=1e-5, atol=float(tolerance))
    seen = absorption(logits, right, gradient=of_logits, head=head, features=features)
    assert (seen.residual > 0.1) == (gap == 20.0)


def test_class_probabilities_are_held_against_float64_too() -> None:
    logits, right = random_rows(40, 10, high=10.0)
    soft = F.one_hot(right, 10).double() * 0.9 + 0.01
    seen = absorption(logits, soft)
    assert seen.absorbed is None
    assert seen.error < 1e-5
    assert seen.wrong == pytest.approx(absorption(logits, right).wrong, rel=1e-12)
    broken = stock_gradient(logits, soft.float())
    broken.scatter_(1, right[:, None], 0.0)
    assert absorption(logits, soft, gradient=broken).numerical


@pytest.mark.parametrize("layout", ["torch's", "last"])
def test_rows_are_found_in_both_layouts(layout: str) -> None:
    logits, right = random_rows(24, 10, high=30.0)
    flat = absorption(logits, right)
    z, y = logits.reshape(4, 6, 10), right.reshape(4, 6)
    seen = absorption(z.transpose(1, 2) if layout == "torch's" else z, y)
    assert seen.absorbed == flat.absorbed
    assert seen.margin_min == flat.margin_min
    assert seen.wrong == pytest.approx(flat.wrong, rel=1e-12)


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, right = random_rows(50, 10, high=30.0)
    head, features = torch.randn(10, 8), torch.randn(50, 8)
    whole = absorption(logits, right, head=head, features=features)
    monkeypatch.setattr(module, "CHUNK", 70)
    pieces = absorption(logits, right, head=head, features=features)
    assert values(pieces) == pytest.approx(values(whole), rel=1e-12)


def test_gaps_beyond_every_exponent_stay_finite() -> None:
    logits = torch.tensor([[0.0, 300.0, 1.0], [500.0, 0.0, 2.0], [-900.0, 0.0, 900.0]], dtype=torch.float64)
    right = torch.tensor([0, 0, 2])
    seen = absorption(logits, right)
    assert seen.wrong == pytest.approx(1 / 3, rel=1e-12)
    assert seen.margin_min == -300.0
    assert math.isfinite(seen.error)


def test_masked_classes_count_for_nothing() -> None:
    logits, right = random_rows(20, 10, high=8.0)
    masked = logits.scatter(1, (right[:, None] + 1) % 10, -torch.inf)
    alone = [
        absorption(row[torch.arange(10) != (r + 1) % 10], r - ((r + 1) % 10 < r).long()).wrong
        for row, r in zip(logits, right, strict=True)
    ]
    assert absorption(masked, right).wrong == pytest.approx(sum(alone) / 20, rel=1e-12)


def test_logits_that_are_not_finite_give_no_verdict() -> None:
    seen = absorption(torch.tensor([[math.nan, 1.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert math.isnan(seen.error)
    assert not seen.numerical


def test_nothing_is_written_and_no_graph_is_kept() -> None:
    logits, right = random_rows(20, 10)
    logits.requires_grad_()
    head = torch.randn(10, 4, requires_grad=True)
    features = torch.randn(20, 4, requires_grad=True)
    arguments = [logits, right, head, features]
    before = [(each.detach().clone(), each._version) for each in arguments]
    state = torch.get_rng_state()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            absorption(logits, right, head=head, features=features)
    assert torch.equal(state, torch.get_rng_state())
    for each, (copy, version) in zip(arguments, before, strict=True):
        assert torch.equal(each, copy)
        assert each._version == version
        assert each.grad is None


Z = torch.zeros(4, 3)
R = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ((Z, R[:3]), {}, "target has shape"),
        ((Z, Z[:, :2]), {}, "class probabilities need the shape"),
        ((Z[:, :1], R), {}, "two classes or more"),
        ((Z, R), {"gradient": Z[:3]}, "gradient="),
        ((Z, R), {"features": torch.zeros(3, 2)}, "features="),
        ((Z, R), {"features": torch.zeros(4, 2), "head": torch.zeros(3, 5)}, r"head=.*\(3, 2\)"),
        ((Z, R), {"head": torch.zeros(2, 3)}, "head="),
        ((Z, R), {"update": torch.zeros(3, 3)}, "features as well"),
        ((Z, R - 100), {}, "no row counts"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[Tensor, Tensor], settings: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        absorption(*arguments, **settings)  # type: ignore[arg-type]


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(module).failed == 0


def test_rows_that_underflow_whole_are_not_absorbed() -> None:
    """Float16 holds no gradient of 1e-9, that of no class; a row of float32 loses that of the right class alone."""
    z, right = torch.tensor([[21.0, 0.0, 0.0]]), torch.tensor([0])
    narrow = z.half().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(narrow, right), narrow)
    assert not gradient.any()
    assert absorption(narrow.detach(), right, gradient=gradient).absorbed == 0.0
    assert absorption(z, right).absorbed == 1.0
