"""Which way products take, why, and that every way says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foreshock.curvature import Hessian
from foreshock.curvature.checks import asymmetry_limit
from foreshock.curvature.differences import Differences
from foreshock.curvature.objective import Repeatable
from foreshock.errors import UsageError
from tests.curvature.zoo import Attention, case, dense


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def smooth(dtype: torch.dtype = torch.float32, width: int = 24, activation: type[nn.Module] = nn.GELU):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Linear(8, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 4)]
        net = nn.Sequential(*layers).to(dtype)
        x, y = torch.randn(64, 8, dtype=dtype), torch.randint(0, 4, (64,))
    return net, list(net.parameters()), lambda: F.cross_entropy(net(x), y)


def test_the_default_keeps_the_graph_of_one_batch_and_rebuilds_that_of_many() -> None:
    _, params, loss = smooth()
    assert "kept" in Hessian(loss, params).route
    assert "kept" in Hessian(loss(), params).route
    assert "kept" in Hessian(lambda b: loss(), params, data=[torch.zeros(1)]).route
    assert "each product" in Hessian(lambda b: loss(), params, data=[torch.zeros(1)] * 2).route
    assert Hessian(loss, params).notes[0] == Hessian(loss, params).route


def test_an_unknown_route_and_one_without_a_closure_are_refused() -> None:
    _, params, loss = smooth()
    with pytest.raises(UsageError, match="auto, kept, fresh, differences, central"):
        Hessian(loss, params, route="quick")
    for route in ("fresh", "differences", "central"):
        with pytest.raises(UsageError, match="closure is needed"):
            Hessian(loss(), params, route=route)


def test_fused_attention_on_a_live_graph_is_refused_or_recomputed_by_the_closure() -> None:
    loss = case("fused attention")
    value = loss.closure()
    with pytest.raises(UsageError, match=r"ScaledDotProductFlash.*MATH.*closure"):
        _ = Hessian(value, loss.params).loss
    hessian = Hessian((value, loss.closure), loss.params)
    assert relative(hessian.dense(), dense(loss)) < 1e-8
    assert any("ScaledDotProductFlash" in note for note in hessian.notes)
    with sdpa_kernel(SDPBackend.MATH):
        value = loss.closure()
    assert relative(Hessian(value, loss.params).dense(), dense(loss)) < 1e-8


def test_a_kernel_that_insists_falls_back_to_differences_and_says_so() -> None:
    loss = case("fused attention")

    def closure() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return loss.closure()

    hessian = Hessian(closure, loss.params)
    assert relative(hessian.dense(), dense(loss)) < 1e-5
    assert "differences" in hessian.route
    assert any(note.startswith("not taken") and "Flash" in note for note in hessian.notes)


class Once(torch.autograd.Function):
    """A square whose backward pass torch is told not to differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Constant(torch.autograd.Function):
    """A square whose backward pass hides from torch that it depends on anything."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g.detach()


@pytest.mark.parametrize("function", [Once, Constant])
def test_a_function_that_hides_its_derivative_inside_a_graph_is_found(function) -> None:
    """Torch itself takes it for a constant and returns part of the Hessian, without a word."""
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    truth = 4 * torch.exp(2 * w.detach())
    hessian = Hessian(lambda: function.apply(w.exp()).sum(), [w])
    assert relative(hessian @ torch.ones(2, dtype=torch.float64), truth) < 1e-6
    assert "differences" in hessian.route
    if function is Constant:
        assert any("not verified" in note for note in Hessian(function.apply(w.exp()).sum(), [w]).notes)


def test_a_function_with_a_derivative_is_compared_once_and_keeps_the_exact_route() -> None:
    class Right(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    hessian = Hessian(lambda: Right.apply(w.exp()).sum(), [w])
    assert relative(hessian @ torch.ones(2, dtype=torch.float64), 4 * torch.exp(2 * w.detach())) < 1e-12
    assert any("compared with differences" in note and "RightBackward" in note for note in hessian.notes)
    assert asymmetry_limit(hessian) < 0.01  # compared with differences, not made of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_derivative_of_which_a_small_part_is_missing_is_found(dtype) -> None:
    """One that moves the product along the gradient by 3 %."""

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        def backward(ctx, g):
            return g * (1 - torch.tanh(ctx.saved_tensors[0].detach()) ** 2)

    generator = torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (6, 3), (20, 4)))
    x, params = x.to(dtype), [(0.3 * each).to(dtype).requires_grad_() for each in (a, b)]

    def hessian(function) -> Hessian:
        return Hessian(lambda: (function(x @ params[0]) @ params[1]).square().sum(), params)

    def mostly(x: Tensor) -> Tensor:
        return 0.9 * torch.tanh(x) + 0.1 * Tanh.apply(x)

    truth, found = hessian(torch.tanh), hessian(mostly)
    gradient = truth.gradient()
    missed = Hessian((mostly(x @ params[0]) @ params[1]).square().sum(), params) @ gradient
    flat = [torch.cat([each.flatten() for each in product]) for product in (truth @ gradient, found @ gradient, missed)]
    assert 0.01 < relative(flat[2], flat[0]) < 0.05
    assert relative(flat[1], flat[0]) < (1e-6 if dtype == torch.float64 else 5e-3)
    assert any("TanhBackward" in note for note in found.notes)


@pytest.mark.parametrize("function", [Once, Constant])
def test_a_graph_that_cannot_be_differentiated_twice_is_named(function) -> None:
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(UsageError, match="cannot be differentiated twice"):
        Hessian(function.apply(w).sum(), [w]) @ torch.ones(2, dtype=torch.float64)
    with pytest.raises(UsageError, match="cannot be differentiated twice"):
        Hessian(lambda: function.apply(w).sum(), [w], route="kept") @ torch.ones(2, dtype=torch.float64)
    hessian = Hessian(lambda: function.apply(w).sum(), [w])  # but its gradients have differences
    assert relative(hessian @ torch.ones(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)) < 1e-6
    assert "differences" in hessian.route


def test_without_any_way_left_both_reasons_are_given() -> None:
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    with pytest.raises(UsageError, match=r"(?s)kinks.*ReluBackward.*cannot be differentiated twice"):
        Hessian(lambda: Once.apply(w.relu()).sum(), [w]) @ torch.ones(2)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh])
def test_differences_are_refused_where_the_graph_has_kinks(activation) -> None:
    _, params, loss = smooth(activation=activation)
    with pytest.raises(UsageError, match=r"kinks: .*Backward0"):
        _ = Hessian(loss, params, route="differences").loss


def test_kinks_that_leave_no_name_are_found_by_two_steps_that_disagree() -> None:
    w = torch.linspace(-1e-4, 1e-4, 50, requires_grad=True)
    hessian = Hessian(lambda: torch.where(w > 0, w, w * 0).sum() + w.square().sum(), [w], route="differences")
    with pytest.raises(UsageError, match=r"disagree by \d+%.*kinks"):
        hessian @ torch.ones(50)


@pytest.mark.parametrize(("route", "error"), [("differences", 2e-2), ("central", 5e-3)])
def test_differences_in_float32_are_good_along_stiff_directions(route, error) -> None:
    _net, params, loss = smooth()
    exact = Hessian(loss, params)
    for vector in (exact.start(), 1e-4 * exact.start(), 1e4 * (exact @ exact.start())):  # of any length
        assert relative(Hessian(loss, params, route=route) @ vector, exact @ vector) < error
    assert not (Hessian(loss, params, route=route) @ torch.zeros_like(exact.start())).any()


def test_differences_work_through_fused_attention() -> None:
    """And through the kernel itself: the math kernel is not forced on them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Attention()
        x, y = torch.randn(4, 6, 4), torch.randn(4, 6, 2)
    params = list(net.parameters())
    seen = []

    def closure() -> Tensor:
        out = net(x)
        seen.append(torch.backends.cuda.flash_sdp_enabled())
        return F.mse_loss(out, y)

    exact = Hessian(closure, params)
    vector = exact.start()
    truth = exact @ vector
    assert not any(seen)
    seen.clear()
    assert relative(Hessian(closure, params, route="differences") @ vector, truth) < 2e-2
    assert all(seen)


def test_differences_refuse_sixteen_bits() -> None:
    net, params, _ = smooth(torch.bfloat16)
    x = torch.randn(8, 8)
    with pytest.raises(UsageError, match=r"bfloat16.*noise"):
        _ = Hessian(lambda: net(x.bfloat16()).square().mean(), params, route="differences").loss
    net, params, _ = smooth()

    def mixed() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float().square().mean()

    with pytest.raises(UsageError, match=r"bfloat16.*autocast"):
        _ = Hessian(mixed, params, route="differences").loss
    assert any("bfloat16" in note for note in Hessian(mixed, params).notes)


def test_autocast_is_off_in_a_closure_and_no_grad_and_inference_mode_are_lifted() -> None:
    _net, params, loss = smooth()
    exact = Hessian(loss, params) @ torch.ones(sum(p.numel() for p in params))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Hessian(loss, params) @ torch.ones(len(exact)), exact)
        assert torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        assert torch.equal(Hessian(loss, params) @ torch.ones(len(exact)), exact)


def test_a_step_is_sized_by_the_precision() -> None:
    _, params, loss = smooth()
    _, doubles, double_loss = smooth(torch.float64)
    single = Differences(Repeatable(loss, params), Hessian(loss, params).space)
    double = Differences(Repeatable(double_loss, doubles), Hessian(double_loss, doubles).space)
    assert single.step == pytest.approx(2e-4)
    assert double.step < 1e-6


def test_the_check_of_two_steps_is_made_once_and_remembered() -> None:
    _, params, loss = smooth()
    calls = []
    hessian = Hessian(lambda: (calls.append(1), loss())[1], params, route="differences", deterministic="trust")
    vector = hessian.start()
    assert len(calls) == 1
    hessian @ vector
    assert len(calls) == 3
    hessian @ vector
    assert len(calls) == 4
    hessian.refresh()
    hessian @ vector
    assert len(calls) == 6  # the gradient anew, and one for the product


def test_a_compiled_module_is_run_eagerly() -> None:
    net, params, loss = smooth()
    exact = Hessian(loss, params)
    compiled = torch.compile(net, backend="aot_eager")
    x, y = (cell.cell_contents for cell in loss.__closure__ if isinstance(cell.cell_contents, Tensor))
    if x.dtype != torch.float32:
        x, y = y, x
    value = F.cross_entropy(compiled(x), y)
    with pytest.raises(UsageError, match="CompiledFunctionBackward"):
        _ = Hessian(value, params).loss
    hessian = Hessian(lambda: F.cross_entropy(compiled(x), y), params)
    assert relative(hessian @ exact.start(), exact @ exact.start()) < 1e-5
    assert "kept" in hessian.route


def test_products_do_not_depend_on_what_a_closure_does_to_the_vector() -> None:
    _, params, loss = smooth()
    hessian = Hessian(loss, params)
    vector = hessian.start().clone()
    before = vector.clone()
    once = hessian @ vector
    assert torch.equal(vector, before)
    assert torch.equal(hessian @ vector, once)
    assert once.data_ptr() != vector.data_ptr()
