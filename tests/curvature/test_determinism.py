"""Closures that are another loss each time: refused with the reason and the remedy, or fixed when asked."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from foreshock.curvature import Hessian
from foreshock.errors import UsageError


def net(*layers: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).double()


X = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def loss_of(model: nn.Module):
    return lambda: F.cross_entropy(model(X), Y)


def test_dropout_is_refused_by_name_and_replayed_when_asked() -> None:
    model = net(nn.Dropout(0.3))
    params = list(model.parameters())
    with pytest.raises(UsageError, match=r"1 \(Dropout\).*model.eval\(\).*deterministic='fix'"):
        _ = Hessian(loss_of(model), params).loss
    fixed = Hessian(loss_of(model), params, deterministic="fix")
    once = fixed @ fixed.start()
    torch.rand(3)
    assert torch.equal(fixed @ fixed.start(), once)
    assert any("replayed" in note for note in fixed.notes)
    trusted = Hessian(loss_of(model), params, deterministic="trust")
    assert any("not checked" in note for note in trusted.notes)
    assert torch.isfinite(trusted @ trusted.start()).all()
    model.eval()
    Hessian(loss_of(model), params) @ fixed.start()


@pytest.mark.parametrize("route", ["fresh", "central"])
def test_replayed_dropout_is_one_function_however_often_it_is_evaluated(route) -> None:
    model = net(nn.Dropout(0.3))
    params = list(model.parameters())
    torch.manual_seed(4)
    kept = Hessian(loss_of(model), params, deterministic="fix")
    vector = kept.start()
    other = Hessian(loss_of(model), params, deterministic="fix", route=route)
    assert torch.allclose(other @ vector, kept @ vector, rtol=1e-5)


def test_dropout_that_no_module_owns_is_noticed_by_the_numbers_it_draws() -> None:
    model = net()
    with pytest.raises(UsageError, match="draws random numbers"):
        _ = Hessian(lambda: F.cross_entropy(F.dropout(model(X), 0.2), Y), list(model.parameters())).loss
    with pytest.raises(UsageError, match="draws random numbers"):
        _ = Hessian(lambda: F.cross_entropy(model(X[torch.randperm(12)[:4]]), Y[:4]), list(model.parameters())).loss


def test_noise_in_the_gradient_alone_is_noticed() -> None:
    model = net()

    def closure():
        out = model(X).square().mean()
        noise = torch.rand(1, dtype=torch.float64) * out
        return out + noise - noise.detach()

    with pytest.raises(UsageError, match="its gradient differs"):
        _ = Hessian(closure, list(model.parameters())).loss


def test_random_numbers_that_do_not_matter_do_not_matter() -> None:
    model = net()

    def closure():
        torch.rand(5)
        return F.cross_entropy(model(X), Y)

    hessian = Hessian(closure, list(model.parameters()))
    assert torch.isfinite(hessian @ hessian.start()).all()


@pytest.mark.parametrize("mode", ["check", "fix"])
def test_data_that_moves_on_is_refused_and_cannot_be_fixed(mode) -> None:
    model = net()
    batches = itertools.cycle([X[:6], X[6:]])
    with pytest.raises(UsageError, match=r"gave a loss of .*, then .*(moves on|state of its own)"):
        _ = Hessian(lambda: model(next(batches)).square().mean(), list(model.parameters()), deterministic=mode).loss


def test_a_different_loss_each_call_is_refused_on_every_route() -> None:
    w = torch.ones(2, requires_grad=True)
    for route in ("kept", "fresh", "differences", "central"):
        count = itertools.count()
        with pytest.raises(UsageError, match="not deterministic"):
            Hessian(lambda count=count: (w**2).sum() * (1 + next(count)), [w], route=route) @ torch.ones(2)


def test_batch_norm_in_train_mode_is_refused_by_name_and_put_back_when_asked() -> None:
    model = net(nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"1 \(BatchNorm1d\) is in train mode.*model.eval\(\).*deterministic='fix'"):
        _ = Hessian(loss_of(model), list(model.parameters())).loss
    hessian = Hessian(loss_of(model), list(model.parameters()), deterministic="fix")
    hessian @ hessian.start()
    assert any("batch statistics" in note and "put back" in note for note in hessian.notes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert not any("batch statistics" in note for note in Hessian(loss_of(model), list(model.parameters())).notes)


def test_batch_norm_that_no_module_is_known_to_have_is_seen_in_the_graph() -> None:
    holder = {"model": net(nn.BatchNorm1d(8))}
    with pytest.raises(UsageError, match="batch normalisation is in train mode"):
        _ = Hessian(lambda: F.cross_entropy(holder["model"](X), Y), list(holder["model"].parameters())).loss


def test_norms_that_do_not_mix_samples_or_do_not_matter_are_not_refused() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv1d(1, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(12, 3)
        ).double()
        teacher = net(nn.BatchNorm1d(8))
    state = {name: value.clone() for name, value in teacher.state_dict().items()}

    def closure():
        with torch.no_grad():
            soft = teacher(X).softmax(-1)
        return F.cross_entropy(model(X.unsqueeze(1)), soft)

    hessian = Hessian(closure, list(model.parameters()))
    assert torch.isfinite(hessian @ hessian.start()).all()
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.BatchNorm2d, (4, 2, 3, 3)), (nn.BatchNorm1d, (4, 2)), (nn.BatchNorm1d, (4, 2, 5))]
)
def test_norms_over_the_batch_are_refused_in_every_shape(layer, shape) -> None:
    norm, x = layer(2), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match="train mode"):
        _ = Hessian(lambda: (norm(x) ** 3).mean(), list(norm.parameters())).loss


def test_spectral_norm_in_train_mode_iterates_and_is_fixed_by_its_buffers() -> None:
    model = net(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
    params = list(model.parameters())
    hessian = Hessian(loss_of(model), params, deterministic="fix")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hessian @ hessian.start()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_live_loss_has_a_fixed_mask_and_says_so() -> None:
    model = net(nn.Dropout(0.3), nn.BatchNorm1d(8))
    hessian = Hessian(loss_of(model)(), list(model.parameters()), model=model)
    assert any("Dropout" in note and "fixed mask" in note for note in hessian.notes)
    assert any("batch normalisation in train mode" in note for note in hessian.notes)
    assert torch.equal(hessian @ hessian.start(), hessian @ hessian.start())
    assert any("held at what they were" in note for note in Hessian(loss_of(model)(), list(model.parameters())).notes)


def test_an_unknown_mode_is_refused() -> None:
    model = net()
    with pytest.raises(UsageError, match="check, fix, trust"):
        Hessian(loss_of(model), list(model.parameters()), deterministic="yes")


class Noisy(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype), y


def test_augmentation_in_a_loader_is_refused_and_shuffling_is_not() -> None:
    model = net()
    params = list(model.parameters())

    def mean(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    whole = Hessian(loss_of(model), params)
    shuffled = Hessian(mean, params, data=DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True))
    assert torch.allclose(shuffled @ whole.start(), whole @ whole.start(), rtol=1e-9)
    assert torch.equal(shuffled @ whole.start(), shuffled @ whole.start())  # one order, that of the first pass
    noisy = DataLoader(Noisy(X, Y), batch_size=5)
    with pytest.raises(UsageError, match="draws random numbers"):
        _ = Hessian(mean, params, data=noisy).loss
    fixed = Hessian(mean, params, data=noisy, deterministic="fix")
    assert torch.equal(fixed @ whole.start(), fixed @ whole.start())


def test_the_second_evaluation_can_be_spared() -> None:
    model = net()
    calls = []
    closure = lambda: (calls.append(1), F.cross_entropy(model(X), Y))[1]  # noqa: E731
    _ = Hessian(closure, list(model.parameters()), deterministic="trust").loss
    assert len(calls) == 1
    checked = Hessian(closure, list(model.parameters()))
    _ = checked.loss
    assert len(calls) == 3
    checked.refresh()
    _ = checked.loss
    assert len(calls) == 4  # the verdict is remembered
