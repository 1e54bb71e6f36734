"""The softmax probe finds softmax, head, rows and right classes in the graph, and measures what `absorption` does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foreshock.errors import UsageError
from foreshock.monitor import Monitor
from foreshock.numerics.absorption import absorption
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.repair import exact_gradient
from foreshock.probes import Softmax
from tests.live.softmaxes import BATCH, CLASSES, LENGTH, WIDTH, Net, agree, expected, make, signals, watched

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flattened": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "viewed": lambda z, y: F.cross_entropy(z.view(-1, CLASSES), y.view(-1)),
    "classes second": lambda z, y: F.cross_entropy(z.transpose(1, 2), y),
    "permuted": lambda z, y: F.cross_entropy(z.permute(0, 2, 1), y),
    "time first": lambda z, y: F.cross_entropy(z.transpose(0, 1).reshape(-1, CLASSES), y.T.reshape(-1)),
    "summed": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum"),
    "averaged by hand": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").mean(),
    "among others": lambda z, y: 0.5 * F.cross_entropy(z.flatten(0, 1), y.flatten()) + 2 * torch.ones(()),
    "log_softmax and nll_loss": lambda z, y: F.nll_loss(z.log_softmax(-1).flatten(0, 1), y.flatten()),
    "log_softmax, gathered": lambda z, y: -z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean(),
    "log_softmax, indexed": lambda z, y: -z.flatten(0, 1).log_softmax(-1)[torch.arange(y.numel()), y.flatten()].mean(),
    "one-hot": lambda z, y: -(z.log_softmax(-1) * F.one_hot(y, CLASSES)).sum(-1).mean(),
    "one-hot probabilities": lambda z, y: F.cross_entropy(
        z.flatten(0, 1), F.one_hot(y.flatten(), CLASSES).to(z.dtype)
    ),
    "logsumexp": lambda z, y: (z.logsumexp(-1) - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)).mean(),
    "softmax and log": lambda z, y: -z.softmax(-1).gather(-1, y.unsqueeze(-1)).log().mean(),
    "exact": lambda z, y: cross_entropy(z.flatten(0, 1), y.flatten()),
    "exact, classes last": lambda z, y: cross_entropy(z, y),
    "exact, classes second": lambda z, y: cross_entropy(z.transpose(1, 2), y),
    "repaired": lambda z, y: F.cross_entropy(exact_gradient(z, y).flatten(0, 1), y.flatten()),
    "row-centred": lambda z, y: (
        z.register_hook(lambda g: g - g.mean(-1, keepdim=True)), F.cross_entropy(z.flatten(0, 1), y.flatten())
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_what_the_probe_measures_is_what_absorption_says(name: str, bias: bool, dtype: torch.dtype) -> None:
    model, x, y = make(bias=bias)
    model, x = model.to(dtype), x.to(dtype)
    kept: dict[str, Tensor] = {}

    def step() -> Tensor:
        kept["h"] = model.body(x)
        kept["z"] = model.head(kept["h"])
        kept["z"].retain_grad()
        return LOSSES[name](kept["z"], y)

    before = model.head.weight.detach().clone()
    run = watched(model, step)
    z, gradient = kept["z"].detach().flatten(0, 1), kept["z"].grad
    assert gradient is not None
    wanted = absorption(
        z, y.flatten(), gradient=gradient.flatten(0, 1), features=kept["h"], head=before,
        update=model.head.weight.detach() - before,
    )
    agree(signals(run), expected(wanted), rel=2e-5)
    if dtype == torch.float32 and name == "flattened":
        assert 0.2 < wanted.absorbed < 1  # type: ignore[operator]


def shifted(z: Tensor, y: Tensor) -> Tensor:
    """As causal language models have it."""
    return F.cross_entropy(z.float()[..., :-1, :].contiguous().view(-1, CLASSES), y[..., 1:].contiguous().view(-1))


def masked(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), torch.where(torch.arange(LENGTH) < 2, -100, y).flatten())


def picked(z: Tensor, y: Tensor) -> Tensor:
    keep = torch.arange(LENGTH).expand(BATCH, LENGTH) >= 2
    return F.cross_entropy(z[keep], y[keep])


@pytest.mark.parametrize(
    ("loss", "kept"), [(shifted, slice(None, -1)), (masked, slice(2, None)), (picked, slice(2, None))]
)
def test_only_rows_that_count_make_the_mean_feature(loss: Callable[..., Tensor], kept: slice) -> None:
    model, x, y = make()
    target = y[:, 1:] if loss is shifted else y[:, kept]
    h = model.body(x).detach()[:, kept].flatten(0, 1)
    z = model.head(h).detach()
    wanted = expected(absorption(z, target.flatten(), features=h, head=model.head.weight.detach()))
    found = signals(watched(model, lambda: loss(model(x), y), lr=0.0))
    assert found.pop("sensitivity") == 0.0
    agree(found, wanted)


@pytest.mark.parametrize("how", ["class weights", "accumulated", "scaled"])
def test_what_multiplies_the_loss_does_not_matter(how: str) -> None:
    model, x, y = make()
    weights = torch.linspace(0.1, 5, CLASSES)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step() -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), weight=weights if how == "class weights" else None)

    then = {
        "class weights": lambda loss: loss.backward(), "accumulated": lambda loss: (loss / 8).backward(),
        "scaled": lambda loss: scaler.scale(loss).backward(),
    }[how]
    wanted = expected(absorption(model(x).flatten(0, 1), y.flatten(), head=model.head.weight.detach(),
                                 features=model.body(x).detach()))  # fmt: skip
    found = signals(watched(model, step, then=then, lr=0.0))
    for name in ("absorbed", "wrong", "margin_median", "head_mean", "cosine", "logit"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name
    assert found["error"] == pytest.approx(wanted["error"], rel=0.5)


@pytest.mark.parametrize("loss", [F.cross_entropy, cross_entropy])
@pytest.mark.parametrize("how", ["mask", "class weights"])
def test_rows_of_weight_zero_do_not_count(loss: Callable[..., Tensor], how: str) -> None:
    model, x, y = make()
    rows, right = x.flatten(0, 1), y.flatten()
    some = torch.arange(len(right)) % 2 == 0 if how == "mask" else right != int(right[0])
    weight = torch.ones(CLASSES)
    weight[right[0]] = 0.0

    def whole() -> Tensor:
        if how == "mask":
            return (loss(model(rows), right, reduction="none") * some).sum() / some.sum()
        return loss(model(rows), right, weight=weight)

    alone = make()[0]
    wanted = signals(watched(alone, lambda: loss(alone(rows[some]), right[some])))
    agree(signals(watched(model, whole)), wanted)


def test_a_temperature_is_counted_in_nats() -> None:
    model, x, y = make(stretch=120.0)
    run = watched(model, lambda: F.cross_entropy(model(x).flatten(0, 1) / 3.0, y.flatten()), lr=0.1)
    model, x, y = make(stretch=120.0)
    z = model(x).detach().flatten(0, 1) / 3.0
    before = model.head.weight.detach().clone()
    watched(model, lambda: F.cross_entropy(model(x).flatten(0, 1) / 3.0, y.flatten()), lr=0.1)
    h, update = make(stretch=120.0)[0].body(x).detach(), (model.head.weight.detach() - before) / 3.0
    wanted = absorption(z, y.flatten(), features=h, head=before, update=update)
    found = signals(run)
    assert found["logit"] == pytest.approx(float(z.mean()), rel=1e-5)
    assert found["sensitivity"] == pytest.approx(wanted.sensitivity, rel=1e-4)


def test_what_else_is_asked_of_the_logits_is_not_taken_for_rounding() -> None:
    """A z-loss and a distillation loss give the class sum of the logits' gradient, not that of the softmax's."""
    model, x, y = make(stretch=6.0)
    teacher = torch.randn(BATCH * LENGTH, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(-1)

    def step() -> Tensor:
        z = model(x).flatten(0, 1)
        distilled = F.kl_div((z / 4).log_softmax(-1), teacher, reduction="batchmean")
        return F.cross_entropy(z, y.flatten()) + 0.1 * z.logsumexp(-1).square().mean() + distilled

    found = signals(watched(model, step))
    assert found["residual"] < 1e-4
    assert found["error"] < 1e-4
    assert found["absorbed"] == 0.0


def test_label_smoothing_has_no_absorbed_share_but_all_the_rest() -> None:
    model, x, y = make()
    found = signals(watched(model, lambda: F.cross_entropy(model(x).flatten(0, 1), y.flatten(), label_smoothing=0.1)))
    assert "absorbed" not in found
    assert found["residual"] < 1e-4
    assert found["error"] < 1e-4
    soft = F.one_hot(y.flatten(), CLASSES) * 0.9 + 0.1 / CLASSES
    assert found["wrong"] == pytest.approx(absorption(make()[0](x).flatten(0, 1), soft).wrong, rel=1e-5)
    assert {"margin_min", "head_mean", "cosine", "logit", "sensitivity"} <= found.keys()


def test_label_smoothing_of_the_exact_loss_is_measured_alike() -> None:
    found = []
    for loss in (F.cross_entropy, cross_entropy):
        model, x, y = make()
        step = lambda: loss(model(x).flatten(0, 1), y.flatten(), label_smoothing=0.1)  # noqa: B023, E731
        found.append(signals(watched(model, step)))
    for name in ("wrong", "margin_min", "margin_median", "head_mean", "cosine", "logit", "sensitivity"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name
    assert "absorbed" not in found[1]
    assert found[1]["residual"] < 1e-5


def test_autocast_is_measured_where_the_softmax_is_in_float32() -> None:
    model, x, y = make()
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x)
    wanted = absorption(z.detach().float().flatten(0, 1), y.flatten(), head=model.head.weight.detach())

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    found = signals(watched(model, step))
    assert found["absorbed"] == pytest.approx(wanted.absorbed)
    assert found["wrong"] == pytest.approx(wanted.wrong, rel=1e-4)
    assert found["head_mean"] == pytest.approx(wanted.head_mean, rel=1e-6)
    assert {"cosine", "sensitivity", "logit"} <= found.keys()


def test_a_padded_vocabulary_is_cut_from_the_head_too() -> None:
    model, x, y = make(outputs=CLASSES + 5)
    found = signals(watched(model, lambda: F.cross_entropy(model(x)[..., :CLASSES].flatten(0, 1), y.flatten())))
    common = make(outputs=CLASSES + 5)[0].head.weight.detach()[:CLASSES].double().mean(0)
    assert found["head_mean"] == pytest.approx(float(common.norm()), rel=1e-6)


def test_a_tied_head_is_found() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(CLASSES, WIDTH)
    mixed = nn.Linear(WIDTH, WIDTH)
    model = nn.ModuleList([table, mixed])
    y = torch.randint(CLASSES, (BATCH,))
    found = signals(watched(model, lambda: F.cross_entropy(F.linear(torch.tanh(mixed(table(y))), table.weight), y)))
    torch.manual_seed(0)
    common = nn.Embedding(CLASSES, WIDTH).weight.detach().double().mean(0)
    assert found["head_mean"] == pytest.approx(float(common.norm()), rel=1e-6)
    assert "sensitivity" in found


def test_a_head_written_as_a_product_is_found_either_way_round() -> None:
    for square in (False, True):
        width = CLASSES if square else WIDTH
        body = nn.Linear(8, width)
        found = []
        for turned in (False, True):
            torch.manual_seed(1)
            weight = nn.Parameter(torch.randn(width, CLASSES))
            model = nn.ParameterList([weight, body.weight, body.bias])
            x, y = torch.randn(BATCH, 8), torch.randint(CLASSES, (BATCH,))
            step = lambda: F.cross_entropy(  # noqa: E731
                (weight.T @ body(x).T).T if turned else body(x) @ weight, y  # noqa: B023
            )
            found.append(signals(watched(model, step, lr=0.0)))
            assert found[-1]["head_mean"] == pytest.approx(float(weight.detach().double().mean(1).norm()), rel=1e-6)
        agree(found[0], found[1])


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("loss", [F.cross_entropy, cross_entropy])
def test_segmentation_gives_what_needs_no_linear_head(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model, x, y = Segmenter(), torch.randn(2, 3, 4, 5), torch.randint(CLASSES, (2, 4, 5))
    wanted = absorption(model(x).detach(), y)
    found = signals(watched(model, lambda: loss(model(x), y)))
    assert found.keys() == {"absorbed", "residual", "wrong", "margin_min", "margin_median", "error"}
    assert found["wrong"] == pytest.approx(wanted.wrong, rel=1e-6)
    assert found["margin_min"] == pytest.approx(wanted.margin_min, rel=1e-5)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.few, self.many = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, CLASSES)


@pytest.mark.parametrize(("head", "name"), [(None, "many"), ("few", "few"), ("many", "many"), ("module", "few")])
def test_of_several_heads_the_one_with_most_rows_or_the_one_named_is_watched(head: str | None, name: str) -> None:
    torch.manual_seed(0)
    model, x = TwoHeads(), torch.randn(12, 8)
    few, many = torch.randint(3, (4,)), torch.randint(CLASSES, (12,))

    def step() -> Tensor:
        h = torch.tanh(model.body(x))
        return F.cross_entropy(model.few(h[:4]), few) + F.cross_entropy(model.many(h), many)

    probe = Softmax(head=model.few if head == "module" else head)
    common = getattr(model, name).weight.detach().double().mean(0)
    found = signals(watched(model, step, probe=probe))
    assert found["head_mean"] == pytest.approx(float(common.norm()), rel=1e-6)


def test_an_unknown_head_is_refused_with_those_there_are() -> None:
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"lm_head.*'few'.*'many'"):
        Monitor(model, optimizer, probes=[Softmax("lm_head")])
    with pytest.raises(UsageError, match="no weight of shape"):
        Monitor(model, optimizer, probes=[Softmax(nn.BatchNorm1d(3))])
    with pytest.raises(UsageError, match="a name needs the module"):
        Monitor(None, optimizer, probes=[Softmax("few")])
    with pytest.raises(UsageError, match="must be a module or the name"):
        Softmax(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="positive integer"):
        Softmax(every=0)


class Scaled(nn.Linear):
    """A layer whose graph shows no product with its own weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 1.0 * self.weight + 0.0 * self.weight.detach(), self.bias)


def test_a_named_head_that_the_graph_does_not_show_is_listened_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, WIDTH), Scaled(WIDTH, CLASSES))
    x, y = torch.randn(12, 8), torch.randint(CLASSES, (12,))
    step = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    assert "head_mean" not in signals(watched(model, step))
    run = watched(model, step, probe=Softmax("1", every=1), steps=3)
    assert "feature_mean" not in signals(run, 2)  # three readings of what needs none, two of what does
    found, h = signals(run, 1), model[0](x)
    assert found["feature_mean"] == pytest.approx(float(h.detach().double().mean(0).norm()), rel=1e-2)
    assert {"head_mean", "cosine", "sensitivity"} <= found.keys()


def with_checkpoint(model: Net, x: Tensor, y: Tensor) -> Tensor:
    h = checkpoint(model.body, x, use_reentrant=False)
    return F.cross_entropy(model.head(h).flatten(0, 1), y.flatten())


def all_checkpointed(model: Net, x: Tensor, y: Tensor) -> Tensor:
    return checkpoint(lambda x: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), x, use_reentrant=False)


def offloaded(model: Net, x: Tensor, y: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@pytest.mark.parametrize(("loss", "shown"), [(with_checkpoint, True), (all_checkpointed, False), (offloaded, False)])
def test_what_is_saved_under_hooks_is_left_alone(loss: Callable[..., Tensor], shown: bool) -> None:
    model, x, y = make()
    calls = [0]
    model.body.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    run = watched(model, lambda: loss(model, x, y))
    assert calls[0] <= 2  # the forward pass and the one in backward
    assert ("sensitivity" in signals(run)) == shown


@pytest.mark.slow  # dynamo takes seconds to import
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_what_it_shows(backend: str) -> None:
    model, x, y = make()
    compiled = torch.compile(model, backend=backend)
    found = signals(watched(model, lambda: F.cross_entropy(compiled(x).flatten(0, 1), y.flatten())))
    wanted = absorption(make()[0](x).flatten(0, 1), y.flatten())
    assert found["absorbed"] == pytest.approx(wanted.absorbed)
    assert found["residual"] == pytest.approx(wanted.residual, rel=1e-5)
    torch._dynamo.reset()
