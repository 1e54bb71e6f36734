"""Heads of other forms: weight-normalised, rows of norm 1, cosine, scaled, convolutions of size 1."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.testing._internal.distributed.fake_pg import FakeStore

from foreshock.errors import UsageError
from foreshock.heads import HeadStatistics, init_new_rows
from foreshock.heads.layer import layer
from tests.heads.test_rows import NEW, OLD, D, examples, linear, trained


class NormHead(nn.Linear):
    def forward(self, x):
        return functional.linear(x, functional.normalize(self.weight, dim=1), self.bias)


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, D))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        return self.scale * functional.linear(functional.normalize(x, dim=-1), functional.normalize(self.weight, dim=1))


class Scaled(nn.Linear):
    def forward(self, x):
        return 0.25 * functional.linear(x, self.weight) + self.bias


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


HEADS = {
    "no bias": lambda: linear(bias=False),
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "older weight norm": lambda: old_weight_norm(linear()),
    "unit rows": lambda: NormHead(D, 6),
    "unit rows without bias": lambda: NormHead(D, 6, bias=False),
    "cosine": Cosine,
    "scaled": lambda: Scaled(D, 6),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_form_starts_low_and_keeps_its_old_logits(name):
    torch.manual_seed(0)
    head, _ = trained(HEADS[name](), steps=60)
    h, y = examples()
    statistics = HeadStatistics(D, unit=name == "cosine")
    statistics.update(h, y)
    with torch.no_grad():
        before, kept = head(h), {key: value.clone() for key, value in head.state_dict().items()}
        report = init_new_rows(head, statistics, NEW)
        after = head(h)
    assert torch.equal(after[:, :OLD], before[:, :OLD])
    assert all(torch.equal(value[:OLD], kept[key][:OLD]) for key, value in head.state_dict().items() if value.ndim)
    assert report.init_spike_ratio < 0.5
    assert report.old_accuracy >= 0.95 * report.old_accuracy_before
    each = functional.cross_entropy(after, y, reduction="none")
    assert report.first_loss == pytest.approx(float((each[y < OLD].mean() + each[y >= OLD].mean()) / 2), rel=1e-3)


def test_kinds_and_factors_are_told_by_trying():
    torch.manual_seed(0)
    found = {name: layer(make(), D) for name, make in HEADS.items()}
    assert {name: each.kind for name, each in found.items() if each.kind != "linear"} == {
        "unit rows": "unit rows", "unit rows without bias": "unit rows", "cosine": "cosine",
    }  # fmt: skip
    assert found["scaled"].factor == pytest.approx(0.25)
    assert found["cosine"].factor == pytest.approx(10.0)


def test_weight_norm_keeps_direction_and_length_apart():
    head, _ = trained(parametrizations.weight_norm(linear()), steps=30)
    statistics = HeadStatistics(D)
    statistics.update(*examples())
    parts = head.parametrizations.weight
    init_new_rows(head, statistics, NEW)
    norms = parts.original1.norm(dim=1)
    torch.testing.assert_close(norms[OLD:].mean(), norms[:OLD].mean(), rtol=0.3, atol=0)
    torch.testing.assert_close(parts.original0[:, 0], head.weight.norm(dim=1))


def test_a_pointwise_convolution_is_a_head():
    torch.manual_seed(0)
    head = nn.Conv2d(D, 6, 1)
    h, y = examples()
    maps, labels = h.T.reshape(1, D, 12, 20), y.view(1, 12, 20)
    statistics, flat = HeadStatistics(D), HeadStatistics(D)
    with statistics.collect(head) as labelled:
        head(maps)
        labelled(labels)
    flat.update(h, y)
    assert torch.equal(statistics.second, flat.second)
    twin = nn.Linear(D, 6)
    with torch.no_grad():
        twin.weight.copy_(head.weight.flatten(1))
        twin.bias.copy_(head.bias)
    init_new_rows(head, statistics, NEW, loss="ce")
    init_new_rows(twin, flat, NEW, loss="ce")
    assert torch.equal(head.weight.flatten(1), twin.weight)


def test_forms_that_are_not_known_are_refused():
    class Capped(nn.Linear):
        def forward(self, x):
            return torch.tanh(super().forward(x))

    class Sequence(nn.Linear):
        def forward(self, x, mask):
            return super().forward(x) * mask

    statistics = HeadStatistics(D)
    statistics.update(*examples())
    with pytest.raises(UsageError, match="none of those known"):
        init_new_rows(Capped(D, 6), statistics, NEW)
    with pytest.raises(UsageError, match="cannot be tried"):
        init_new_rows(Sequence(D, 6), statistics, NEW)
    with pytest.raises(UsageError, match="unit=True"):
        init_new_rows(Cosine(), statistics, NEW)
    with pytest.raises(UsageError, match="parametrised by _SpectralNorm"):
        init_new_rows(parametrizations.spectral_norm(linear()), statistics, NEW)


def test_rows_split_over_ranks_are_refused():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        head = linear()
        torch.distributed.fsdp.fully_shard(head, mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(UsageError, match="before fully_shard"):
            layer(head, D)
    finally:
        torch.distributed.destroy_process_group()
