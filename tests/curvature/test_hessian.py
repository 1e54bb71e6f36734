"""The Hessian against dense float64 matrices from two sources."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foreshock.curvature.checks as checks_module
import foreshock.curvature.hessian as hessian_module
import foreshock.curvature.loader as loader_module
from foreshock.curvature import Hessian
from foreshock.curvature.checks import difference_check, symmetry_check
from foreshock.errors import UsageError
from tests.curvature.zoo import CASES, by_differences, case, dense

# their own graphs have no second derivative
ONCE = {"fused attention", "multihead attention", "transformer layer", "checkpointed, reentrant"}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("module", [hessian_module, checks_module, loader_module], ids=lambda module: module.__name__)
def test_the_docstrings_hold(module) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", CASES)
def test_every_layer_has_the_hessian_of_dense_autograd(name) -> None:
    loss = case(name)
    truth = dense(loss)
    hessian = Hessian(loss.closure, loss.params, deterministic="fix")
    assert relative(hessian.dense(), truth) < 1e-8
    vector = torch.randn(truth.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative(truth @ vector, by_differences(loss, vector)) < 1e-6  # and the reference is right
    assert symmetry_check(hessian) < 1e-12


@pytest.mark.parametrize("name", sorted(set(CASES) - ONCE))
def test_a_live_loss_has_the_hessian_of_dense_autograd(name) -> None:
    loss = case(name, seed=1)
    hessian = Hessian(loss.closure(), loss.params)
    assert relative(hessian.dense(), dense(loss)) < 1e-8


@pytest.mark.parametrize(
    "name", ["layer norm", "lstm", "group norm, conv", "fused attention", "frozen, unused and linear"]
)
def test_every_route_has_the_same_hessian(name) -> None:
    loss = case(name, seed=2)
    vector = torch.randn(
        sum(p.numel() for p in loss.params), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    truth = dense(loss) @ vector
    for route, error in (("kept", 1e-10), ("fresh", 1e-10), ("central", 1e-6), ("differences", 1e-5)):
        assert relative(Hessian(loss.closure, loss.params, route=route) @ vector, truth) < error, route


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torch_func_hessian_is_wrong_through_a_layer_norm_and_ours_is_right() -> None:
    """The input and the weight of the norm both vary; when this fails, torch was mended (functorch#534)."""
    loss = case("layer norm")
    names = [name for name, _ in loss.module.named_parameters()]
    sizes = [param.numel() for param in loss.params]

    def at(flat: Tensor) -> Tensor:
        pieces = flat.split(sizes)
        given = {name: piece.view(p.shape) for name, piece, p in zip(names, pieces, loss.params, strict=True)}
        return F.cross_entropy(
            torch.func.functional_call(loss.module, given, (loss.inputs["x"],)), loss.inputs["labels"]
        )

    flat = torch.cat([param.detach().reshape(-1) for param in loss.params])
    vector = torch.randn(flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = by_differences(loss, vector)
    assert relative(torch.func.hessian(at)(flat) @ vector, truth) > 1e-3
    assert relative(Hessian(loss.closure, loss.params) @ vector, truth) < 1e-6


def test_gradient_and_loss_are_those_of_autograd() -> None:
    loss = case("gelu")
    value = loss.closure()
    gradient = torch.autograd.grad(value, loss.params)
    hessian = Hessian(loss.closure, loss.params)
    assert hessian.loss == value.item()
    assert all(torch.equal(a, b) for a, b in zip(hessian.gradient(), gradient, strict=True))
    assert torch.equal(hessian.start(), torch.cat([part.reshape(-1) for part in gradient]))


def test_unused_and_linear_parameters_have_rows_of_zeros() -> None:
    loss = case("frozen, unused and linear")
    names = [name for name, param in loss.module.named_parameters() if param.requires_grad]
    product = dict(
        zip(names, Hessian(loss.closure, loss.params) @ [torch.ones_like(p) for p in loss.params], strict=True)
    )
    assert not product["unused"].any()
    assert product["live.weight"].any()


def test_a_loss_linear_in_everything_has_no_curvature() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    hessian = Hessian(lambda: (2 * w).sum(), [w])
    assert torch.equal(hessian.dense(), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(hessian.start(), torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("route", ["kept", "fresh", "central"])
def test_a_block_is_the_block_of_the_whole(route, opened) -> None:
    loss = case("layer norm", seed=3)
    some = [loss.params[4], loss.params[1]]
    hessian = Hessian(loss.closure, loss.params, route=route)
    if opened:
        _ = hessian.loss
    assert relative(hessian.block(some).dense(), dense(loss, some)) < 1e-6
    with pytest.raises(UsageError, match="not on"):
        hessian.block([torch.zeros(2, requires_grad=True)])


def test_a_block_of_an_open_operator_evaluates_nothing_again() -> None:
    loss = case("gelu")
    calls = []
    hessian = Hessian(lambda: (calls.append(1), loss.closure())[1], loss.params, deterministic="trust")
    _ = hessian.loss
    hessian.block(loss.params[:1]).dense()
    assert len(calls) == 1


def test_a_weight_used_twice_counts_once() -> None:
    w = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    hessian = Hessian(lambda: (w[0] * w[1]) ** 2 / 2, [w])
    assert torch.allclose(hessian.dense(), torch.tensor([[9.0, 12.0], [12.0, 4.0]], dtype=torch.float64))


def test_the_users_backward_works_after_products_on_a_live_loss() -> None:
    loss = case("group norm, conv")
    value = loss.closure()
    hessian = Hessian(value, loss.params)
    hessian @ hessian.start()
    value.backward()
    plain = case("group norm, conv")
    plain.closure().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(loss.params, plain.params, strict=True))


@pytest.mark.parametrize("name", ["layer norm", "group norm, conv", "gelu"])
def test_products_in_float32_are_good_to_rounding(name) -> None:
    loss, single = case(name), case(name, dtype=torch.float32)
    vector = torch.randn(sum(p.numel() for p in loss.params), generator=torch.Generator().manual_seed(0))
    product = Hessian(single.closure, single.params) @ vector
    assert product.dtype == torch.float32
    assert relative(product.double(), Hessian(loss.closure, loss.params) @ vector.double()) < 1e-5


def sixteen_bits() -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a bfloat16 net, inputs of integers, and the product H g of the same weights in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).bfloat16()
        tokens = torch.randint(0, 9, (16,))
    wide = copy.deepcopy(net).float()
    truth = Hessian(lambda: wide(tokens).square().mean(), list(wide.parameters()))
    return net, tokens, truth @ truth.start()


@pytest.mark.parametrize("route", ["kept", "fresh", "differences"])
def test_bfloat16_parameters_are_widened_where_the_closure_runs_on_float32(route) -> None:
    net, tokens, truth = sixteen_bits()
    params = list(net.parameters())
    hessian = Hessian(lambda: net(tokens).square().mean(), params, route=route)
    assert relative(hessian @ hessian.start(), truth) < (2e-2 if route == "differences" else 1e-5)
    assert any("float32, on copies" in note for note in hessian.notes)
    assert all(
        own is param and own.dtype == torch.bfloat16 for own, param in zip(net.parameters(), params, strict=True)
    )
    with torch.no_grad():
        params[1].mul_(2)
    with pytest.raises(UsageError, match="changed in place"):
        hessian @ truth
    hessian.refresh()
    assert torch.isfinite(hessian @ truth).all()


def test_bfloat16_products_are_accumulated_in_float32_and_said_to_be_coarse() -> None:
    net, tokens, truth = sixteen_bits()
    params = list(net.parameters())
    narrow = torch.ones(8, 1, dtype=torch.bfloat16)
    for closure in (
        lambda: (
            (net[:4](tokens) @ narrow).float().square().mean() + net(tokens).square().mean()
        ),  # another matrix of 16 bits
        lambda: net(tokens).square().mean() + params[0].float().square().sum(),  # past the module
    ):
        hessian = Hessian(closure, params)
        product = hessian @ hessian.start()
        assert product.dtype == torch.float32
        assert any("bfloat16" in note and "1 to 5 %" in note for note in hessian.notes)
    live = Hessian(net(tokens).float().square().mean(), params)
    assert float(F.cosine_similarity(live @ live.start(), truth, dim=0)) > 0.99
    assert any("bfloat16" in note for note in live.notes)


def test_a_symmetric_operator_passes_and_a_wrong_one_is_caught() -> None:
    loss = case("layer norm")
    hessian = Hessian(loss.closure, loss.params)
    assert difference_check(hessian, loss.closure) < 1e-6
    assert difference_check(hessian * 1.01, loss.closure) > 5e-3
    other = case("layer norm", seed=5)
    assert difference_check(hessian, lambda: other.closure() * 0 + loss.closure() * 1.1) > 5e-2


def test_refresh_follows_the_parameters() -> None:
    loss = case("gelu")
    hessian = Hessian(loss.closure, loss.params)
    _ = hessian.loss
    with torch.no_grad():
        loss.params[0].add_(0.1)
    with pytest.raises(UsageError, match="changed in place"):
        hessian @ hessian.start()
    hessian.refresh()
    assert relative(hessian.dense(), dense(loss)) < 1e-8
    live = Hessian(loss.closure(), loss.params)
    with pytest.raises(UsageError, match="pass the new one"):
        live.refresh()
    live.refresh(loss.closure())
    assert relative(live.dense(), dense(loss)) < 1e-8


def test_release_lets_go_of_the_graph_and_keeps_the_values() -> None:
    loss = case("gelu")
    with Hessian(loss.closure, loss.params) as hessian:
        start = hessian.start()
    assert torch.equal(hessian.start(), start)
    with pytest.raises(UsageError, match="released"):
        hessian @ start
