"""Sums by class: whatever the order, chunks, dtype and process, and never of what must not count."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from foreshock import distributed
from foreshock.errors import UsageError
from foreshock.heads import HeadStatistics

NAMES = ("weight", "sums", "unit_sums", "second")


def examples(n=300, d=6, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw), torch.randint(classes, (n,), generator=draw)


def same(a, b):
    assert torch.equal(a.classes, b.classes)
    for name in NAMES:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12)
    assert (a.seconds is None) == (b.seconds is None)
    for label in a.seconds or {}:
        torch.testing.assert_close(a.seconds[label], b.seconds[label], rtol=1e-12, atol=1e-12)
    for name in ("features", "labels", "weights", "keys"):
        assert torch.equal(getattr(a.sample, name), getattr(b.sample, name))


def fed(h, y, *, chunk=1000, **settings):
    statistics = HeadStatistics(h.shape[-1], **settings)
    for start in range(0, len(y), chunk):
        statistics.update(h[start : start + chunk], y[start : start + chunk])
    return statistics


def test_the_sums_are_those_of_the_examples():
    h, y = examples()
    found, exact = fed(h, y), h.double()
    assert found.counts == {c: float((y == c).sum()) for c in range(5)}
    for c in range(5):
        mine = exact[y == c]
        torch.testing.assert_close(found.sums[c], mine.sum(0))
        torch.testing.assert_close(found.seconds[c], mine.mT @ mine)
        torch.testing.assert_close(found.unit_sums[c], (mine / mine.norm(dim=1, keepdim=True)).sum(0))
    torch.testing.assert_close(found.second, exact.mT @ exact)


@pytest.mark.parametrize("settings", [{}, {"sample": 6, "sample_total": 20}, {"per_class": False}, {"unit": True}])
@pytest.mark.parametrize("chunk", [1, 13])
def test_order_and_chunks_do_not_matter(chunk, settings):
    h, y = examples(n=75)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    same(fed(h[order], y[order], chunk=chunk, **settings), fed(h, y, **settings))


@pytest.mark.parametrize("settings", [{}, {"sample": 20, "sample_total": 60}])
def test_merged_statistics_are_those_of_the_union(settings):
    h, y = examples()
    merged = fed(h[:90], y[:90], **settings).merge(fed(h[90:], y[90:] + 2, **settings))
    same(merged, fed(h, torch.cat([y[:90], y[90:] + 2]), **settings))


def test_the_sample_is_drawn_evenly_and_counts_repeated_examples():
    h, y = examples(n=4000, classes=2)
    kept = fed(h, y, sample=200).sample
    assert torch.bincount(kept.labels).tolist() == [200, 200]
    draws = h[:, 0].sort().values
    ranks = torch.searchsorted(draws, kept.features[:, 0].contiguous()) / len(draws)
    assert abs(float(ranks.mean()) - 0.5) < 0.06  # four deviations of the mean of 400 uniform numbers
    twice = fed(torch.cat([h, h]), torch.cat([y, y]), sample=200).sample
    assert torch.equal(twice.features, kept.features)
    assert torch.equal(twice.weights, 2 * kept.weights)


def test_a_limit_in_all_holds():
    h, y = examples(n=500)
    assert len(fed(h, y, chunk=33, sample=40, sample_total=70).sample) == 70


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_summed_in_float64(dtype):
    h, y = examples()
    same(fed(h.to(dtype), y), fed(h.to(dtype).double(), y))


def test_sequences_are_flattened_and_ignored_labels_left_out():
    h, y = examples(n=24)
    h, y = h.view(4, 6, 6), y.view(4, 6).clone()
    y[1, 2] = y[3, 5] = -100
    counted = y != -100
    same(fed(h, y), fed(h[counted], y[counted]))


def test_a_weight_counts_like_repetition():
    h, y = examples(n=40)
    times = torch.arange(40) % 3
    weighted = HeadStatistics(6)
    weighted.update(h, y, times)
    repeated = fed(h.repeat_interleave(times, 0), y.repeat_interleave(times))
    for name in NAMES:
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name), rtol=1e-12, atol=1e-12)


def test_second_moments_by_class_give_way_to_their_sum_when_they_take_too_much(monkeypatch):
    monkeypatch.setattr("foreshock.heads.statistics._PER_CLASS", 3 * 36)
    h, y = examples()
    found = fed(h, y, chunk=2)
    assert found.seconds is None
    torch.testing.assert_close(found.second, h.double().mT @ h.double())
    assert fed(h, y, per_class=True).seconds is not None


def test_state_goes_through_a_file_and_on():
    h, y = examples()
    first, file = fed(h[:100], y[:100], sample=10), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = HeadStatistics(6)
    second.load_state_dict(torch.load(file, weights_only=True))
    for each in (first, second):
        each.update(h[100:], y[100:])
    same(first, second)


def test_ranks_come_to_the_union_with_the_same_bits(monkeypatch):
    h, y = examples()
    ranks = [fed(h[part::2], y[part::2]) for part in range(2)]
    states = [each.state_dict() for each in ranks]
    monkeypatch.setattr(distributed, "running", lambda: True)
    monkeypatch.setattr(distributed, "each", lambda mine, group: iter(states))
    first, second = (each.reduce() for each in ranks)
    assert torch.equal(first.second, second.second)
    same(first, fed(h, y))


def test_a_hook_takes_the_inputs_of_the_head_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3))
    twin = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3))
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    statistics, read = HeadStatistics(6), []
    model[2].register_forward_hook(lambda *call: read.append(call[2].detach().clone()))
    outputs = []
    for net in (model, twin):
        torch.manual_seed(3)
        if net is model:
            with statistics.collect(model) as labelled:
                out = net(x)
                labelled(y)
                out.sum().backward()
        else:
            out = net(x)
            out.sum().backward()
        outputs.append((out, *(p.grad for p in net.parameters()), *net.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert not model[3]._forward_pre_hooks
    same(statistics, fed(read[0], y))


def test_labels_must_fit_what_the_head_was_called_for():
    model, statistics = nn.Sequential(nn.Linear(4, 3)), HeadStatistics(4)
    with statistics.collect(model, "0") as labelled:
        with pytest.raises(UsageError, match="has not been called"):
            labelled(torch.zeros(2, dtype=torch.long))
        model(torch.randn(5, 4))
        model(torch.randn(2, 4))
        labelled(torch.zeros(2, dtype=torch.long))  # the last pass
        assert statistics.n == 2
        model(torch.randn(5, 4))
        with pytest.raises(UsageError, match="3 labels, but the head was called for 5"):
            labelled(torch.zeros(3, dtype=torch.long))
    with pytest.raises(UsageError, match="no module 'fc'"):
        statistics.collect(model, "fc")
    with pytest.raises(UsageError, match="no linear layer"):
        statistics.collect(nn.ReLU())


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), r"shape \(\.\.\., 6\)"),
        (torch.zeros(3, 6), torch.zeros(4, dtype=torch.long), r"labels must have shape \(3,\)"),
        (torch.zeros(3, 6), torch.zeros(3), "labels must be integers"),
        (torch.zeros(3, 6), torch.tensor([0, -1, 2]), "the least is -1"),
        (torch.full((3, 6), torch.nan), torch.zeros(3, dtype=torch.long), "3 of 3 feature vectors are not finite"),
        (torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, dtype=torch.long), "floating-point"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_nothing_added(features, labels, message):
    h, y = examples()
    statistics = fed(h, y)
    with pytest.raises(UsageError, match=message):
        statistics.update(features, labels)
    same(statistics, fed(h, y))


def test_other_features_cannot_be_merged():
    with pytest.raises(UsageError, match="dim=3"):
        HeadStatistics(4).merge(HeadStatistics(3))
    with pytest.raises(UsageError, match="unit=True"):
        HeadStatistics(4).merge(HeadStatistics(4, unit=True))
    with pytest.raises(UsageError, match="dim=4"):
        HeadStatistics(3).load_state_dict(HeadStatistics(4).state_dict())
    with pytest.raises(UsageError, match="weights must be finite"):
        HeadStatistics(2).update(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.tensor([-1.0]))
