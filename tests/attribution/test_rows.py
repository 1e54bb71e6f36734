"""Rows equal one gradient for each example, whatever the network, by every method; and nothing is left behind."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from foreshock.attribution.rows import row_products
from foreshock.curvature.harmless import random_state, restore_random_state, same_random_state
from foreshock.errors import UsageError

_spec = importlib.util.spec_from_file_location("attribution_nets", Path(__file__).parent / "nets.py")
nets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nets)


@pytest.fixture(autouse=True)
def _seeded():
    usual = torch.get_default_dtype()
    torch.manual_seed(1)
    yield
    torch.set_default_dtype(usual)


def one_by_one(losses, params, direction):
    """<U, g_i> by a backward pass for each example, the random streams put back."""
    state = random_state()
    values = losses()
    restore_random_state(state)
    rows = []
    for value in values:
        grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        pairs = [(g.double(), u.double()) for g, u in zip(grads, direction, strict=True) if g is not None]
        rows.append(sum((g * u).sum() for g, u in pairs))
    return torch.stack(rows).detach()


def made(build, dtype=torch.float64):
    torch.set_default_dtype(dtype)
    model, losses = build()
    with torch.no_grad():
        losses()  # lazy layers get their shapes
    params = list(model.parameters())
    return model, losses, params, [torch.randn_like(param) for param in params]


def close(found, wanted, tolerance=1e-12):
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("build", nets.NETS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("method", ["auto", "ghost"])
def test_rows_equal_one_gradient_for_each_example(build, method):
    model, losses, params, direction = made(build)
    buffers = copy.deepcopy(list(model.buffers()))
    wanted = one_by_one(losses, params, direction)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.data.copy_(before)
    rows = row_products(losses, params, direction, model=model, method=method)
    if build is nets.experts and method == "ghost":
        assert rows.missing == tuple(name for name, _ in model.named_parameters() if name.startswith("experts"))
        assert abs(rows.coverage - float(rows.values.sum() / wanted.sum())) < 1e-9
        names = [name for name, _ in model.named_parameters()]
        known = [None if name in rows.missing else u for name, u in zip(names, direction, strict=True)]
        wanted = row_products(losses, params, known, method="each").values
    else:
        assert (rows.coverage, rows.missing) == (1.0, ())
    close(rows.values, wanted)


@pytest.mark.parametrize(
    ("build", "method"),
    # forward mode of a normalisation loads torch._dynamo: 4 to 11 s
    [(build, method) for build in (nets.mlp, *nets.COUPLED) for method in ("forward", "double", "each")
     if (build, method) != (nets.contrast, "forward")],
)  # fmt: skip
def test_other_methods_agree(build, method):
    model, losses, params, direction = made(build)
    rows = row_products(losses, params, direction, model=model, method=method)
    close(rows.values, one_by_one(losses, params, direction))


@pytest.mark.slow  # loads torch._dynamo
@pytest.mark.parametrize("build", [nets.decoder, nets.contrast, nets.low_rank], ids=lambda build: build.__name__)
def test_forward_mode_passes_attention_padding_and_norms(build):
    _, losses, params, direction = made(build)
    rows = row_products(losses, params, direction, method="forward")
    close(rows.values, one_by_one(losses, params, direction))


def test_ghost_products_refuse_statistics_of_the_batch():
    _, losses, params, direction = made(nets.batch_statistics)
    with pytest.raises(UsageError, match="couple the examples"):
        row_products(losses, params, direction, method="ghost")


def test_ghost_products_of_contrast_are_tied_at_the_loss():
    """No slice of an activation is an example's, but one of the losses is."""
    _, losses, params, direction = made(nets.contrast)
    rows = row_products(losses, params, direction, method="ghost")
    assert rows.missing == ()
    close(rows.values, one_by_one(losses, params, direction))


def test_rows_of_coupled_examples_add_up_and_say_so():
    model, losses, params, direction = made(nets.batch_statistics)
    rows = row_products(losses, params, direction, model=model)
    grads = torch.autograd.grad(losses().sum(), params)
    close(rows.values.sum(), sum((g * u).sum() for g, u in zip(grads, direction, strict=True)))
    assert "statistics of the batch" in rows.note
    model.eval()
    assert row_products(losses, params, direction, model=model).note == ""


@pytest.mark.parametrize("method", ["auto", "ghost"])
def test_float32_rows_are_as_exact_as_their_type(method):
    _, losses, params, direction = made(nets.decoder, torch.float32)
    rows = row_products(losses, params, direction, method=method)
    assert rows.values.dtype == torch.float32
    close(rows.values, one_by_one(losses, params, direction), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_scores_are_float32_and_do_not_underflow(dtype):
    """u = eta v of 1e-9 is all zeros in float16, and so would be its products."""
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x, y = torch.randn(4, 5).to(dtype), torch.arange(4) % 3
    params = list(net.parameters())
    direction = [1e-9 * torch.randn(param.shape) for param in params]

    def losses():
        return F.cross_entropy(net(x), y, reduction="none")

    rows = row_products(losses, params, direction)
    assert (rows.method, rows.values.dtype) == ("ghost", torch.float32)
    close(rows.values, one_by_one(losses, params, direction), 5e-3)


def test_autocast_is_answered_by_float32_dot_products():
    model, _, params, direction = made(nets.mlp, torch.float32)
    x, y = torch.randn(4, 5), torch.arange(4) % 3

    def losses():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
        return F.cross_entropy(out.float(), y, reduction="none")

    rows = row_products(losses, params, direction)
    assert rows.method == "ghost"
    close(rows.values, one_by_one(losses, params, direction), 1e-2)


class Opaque(torch.autograd.Function):
    """x * w, seen by no torch function, with a single derivative."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, e):
        x, w = ctx.saved_tensors
        return e * w, (e * x).sum(0)


def opaque():
    net = nn.ParameterDict({"w": torch.randn(6)})
    net["first"], net["last"] = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(3, 6))
    x, y = torch.randn(4, 5), torch.arange(4) % 3

    def losses():
        h = Opaque.apply(torch.tanh(x @ net["first"].T), net["w"])
        return F.cross_entropy(F.linear(h, net["last"]), y, reduction="none")

    return net, losses


def test_what_ghost_products_miss_is_named_and_found_by_others():
    model, losses, params, direction = made(opaque)
    rows = row_products(losses, params, direction, model=model)
    assert (rows.method, rows.rest, rows.missing, rows.coverage) == ("ghost, each", ("w",), (), 1.0)
    close(rows.values, one_by_one(losses, params, direction))
    alone = row_products(losses, params, direction, model=model, method="ghost")
    assert alone.missing == ("w",)
    without = [None if param is model["w"] else u for param, u in zip(params, direction, strict=True)]
    close(alone.values, row_products(losses, params, without, method="each").values)
    close(torch.tensor(alone.coverage), alone.values.sum() / rows.values.sum())


def test_a_second_derivative_that_forgets_is_not_believed():
    _, losses, params, direction = made(opaque)
    with pytest.raises(UsageError, match="second derivative"):
        row_products(losses, params, direction, method="double")


@pytest.mark.parametrize("method", ["forward", "ghost"])
def test_targets_made_without_gradients_stay_targets(method):
    model, _, params, direction = made(nets.mlp)
    x = torch.randn(4, 5)

    def losses():
        with torch.no_grad():
            target = model(x + 1)
        return (model(x) - target - model(x - 1).detach()).square().sum(1)

    rows = row_products(losses, params, direction, method=method)
    close(rows.values, one_by_one(losses, params, direction))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["auto", "ghost"])
def test_checkpointed_blocks_change_nothing(method, reentrant):
    model, losses, params, direction = made(nets.mlp)
    plain = row_products(losses, params, direction, method="each").values
    x = losses.__closure__  # the same inputs, through a checkpoint
    inner = {cell.cell_contents.shape: cell.cell_contents for cell in x if isinstance(cell.cell_contents, torch.Tensor)}
    inputs, y = inner[(4, 5)], inner[(4,)]

    def checkpointed():
        h = checkpoint(model[:2], inputs.clone().requires_grad_(), use_reentrant=reentrant)
        return F.cross_entropy(model[2:](h), y, reduction="none")

    close(row_products(checkpointed, params, direction, method=method, model=model).values, plain)


@pytest.mark.parametrize(
    "moved", [lambda h: h.roll(11, 0), lambda h: h.flip(0), lambda h: h[[4, 1, 2, 3, 0, *range(5, 22)]]]
)
def test_examples_that_change_places_within_the_model_keep_their_rows(moved):
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)]).double()
    x, params = torch.randn(22, 3).double(), list(model.parameters())
    direction = [torch.randn_like(param) for param in params]

    def losses():
        h = torch.tanh(model[1](moved(torch.tanh(model[0](x)))))
        back = torch.empty_like(h).index_copy(0, moved(torch.arange(22)), h)
        return back.square().sum(1)

    rows = row_products(losses, params, direction)
    close(rows.values, one_by_one(losses, params, direction))


def test_gradients_within_the_losses_are_differentiated():
    model, _, params, direction = made(nets.mlp)
    x = torch.randn(4, 5)

    def losses():
        at = x.clone().requires_grad_()
        out = model(at).square().sum(1)
        (slope,) = torch.autograd.grad(out.sum(), at, create_graph=True)
        return out + slope.square().sum(1)

    for method in ("auto", "double"):
        rows = row_products(losses, params, direction, method=method)
        close(rows.values, one_by_one(losses, params, direction))


def test_weights_multiply_rows_and_none_means_zeros():
    _, losses, params, direction = made(nets.mlp)
    weights = torch.tensor([0.5, 0.0, 2.0, -1.0])
    whole = row_products(losses, params, direction)
    close(row_products(losses, params, direction, weights=weights).values, whole.values * weights)
    parts = [row_products(losses, params, [u if i == k else None for i, u in enumerate(direction)]).values
             for k in range(len(params))]  # fmt: skip
    close(torch.stack(parts).sum(0), whole.values)
    assert row_products(losses, params, [None] * len(params)).values.tolist() == [0.0] * 4


def test_a_wrapper_for_distributed_training_is_passed_by():
    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module):  # no process group: only what is passed by
            nn.Module.__init__(self)
            self.module = module

        def forward(self, *inputs):
            raise AssertionError("the wrapper ran")

    model, _, params, direction = made(nets.mlp)
    wrapper = Wrapper(model)
    x = torch.randn(4, 5)
    rows = row_products(lambda: wrapper(x).square().sum(1), params, direction)
    close(rows.values, one_by_one(lambda: model(x).square().sum(1), params, direction))


def test_hooks_of_a_monitor_see_nothing_and_those_of_users_run():
    model, losses, params, direction = made(nets.mlp)
    seen = []

    def ours(*_):
        seen.append("ours")

    ours.__module__ = "foreshock.probes.some"
    model.register_forward_hook(ours)
    model[1].register_forward_hook(lambda module, inputs, out: 2 * out)
    for method in ("auto", "double"):
        rows = row_products(losses, params, direction, method=method)
        assert seen == []
        close(rows.values, one_by_one(losses, params, direction))
        seen.clear()
    assert len(model._forward_hooks) == 1


@pytest.mark.parametrize("method", ["auto", "forward", "ghost", "double", "each"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(method, fails):
    model, inner, params, direction = made(nets.batch_statistics if method == "forward" else nets.heads)
    for i, param in enumerate(params):
        param.grad = torch.randn_like(param) if i % 2 else None
    params[0].requires_grad_(False)
    model.training = False  # the flag of the root alone
    calls = []

    def losses():
        calls.append(torch.rand(()))
        if fails:
            raise ValueError("broken")
        return inner()

    def seen():
        tables = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
        return (
            [p.detach().clone() for p in params], [None if p.grad is None else p.grad.clone() for p in params],
            [b.clone() for b in model.buffers()], [p.requires_grad for p in params], [p._version for p in params],
            [m.training for m in model.modules()], tables, [id(p.grad) for p in params],
        )  # fmt: skip

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        return all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b

    before, state = seen(), random_state()
    if fails:
        with pytest.raises(ValueError, match="broken"):
            row_products(losses, params, direction, model=model, method=method)
    else:
        row_products(losses, params, direction, model=model, method=method)
    assert same(before, seen())
    assert same_random_state(state, random_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "method": "magic"}, "method"),
        (lambda a: {**a, "direction": a["direction"][1:]}, "direction.*3 tensors for 4|direction.*5 tensors for 6"),
        (lambda a: {**a, "direction": [u.flatten()[:1] for u in a["direction"]]}, "shape"),
        (lambda a: {**a, "direction": [u * float("nan") for u in a["direction"]]}, "finite"),
        (lambda a: {**a, "weights": torch.ones(3)}, "weights"),
        (lambda a: {**a, "params": [], "direction": []}, "params"),
        (lambda a: {**a, "per_example_loss": lambda: a["per_example_loss"]().mean()}, "one loss for each example"),
        (lambda a: {**a, "per_example_loss": lambda: a["per_example_loss"]().detach()}, "graph"),
        (lambda a: {**a, "per_example_loss": lambda: None}, "one loss for each example"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    _, losses, params, direction = made(nets.mlp)
    arguments = change({"per_example_loss": losses, "params": params, "direction": direction})
    with pytest.raises(UsageError, match=message):
        row_products(**arguments)


@pytest.mark.parametrize("method", ["auto", "ghost"])
def test_an_embedding_that_divides_by_frequency_is_refused(method):
    table = nn.Embedding(5, 3, scale_grad_by_freq=True)
    t = torch.tensor([0, 1, 1, 2])
    with pytest.raises(UsageError, match="scale_grad_by_freq"):
        row_products(lambda: table(t).sum(1), [table.weight], [torch.ones(5, 3)], method=method)
