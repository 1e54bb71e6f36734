"""A data set as one loss: exact for ragged batches, in a fixed order, over whatever batches look like."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from foreshock.curvature import Hessian
from foreshock.curvature.loader import Batches, samples
from foreshock.errors import UsageError

with torch.random.fork_rng():
    torch.manual_seed(0)
    X, Y = torch.randn(17, 4, dtype=torch.float64), torch.randint(0, 3, (17,))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, list(model.parameters())


def slices(*ends: int):
    return [(X[a:b], Y[a:b]) for a, b in zip((0, *ends), (*ends, 17), strict=True)]


@pytest.mark.parametrize("route", ["auto", "kept", "fresh"])
@pytest.mark.parametrize("ends", [(5, 10, 15), (1,), (16,), (), tuple(range(1, 17))])
def test_any_cut_of_the_data_gives_the_hessian_of_the_whole(route, ends) -> None:
    model, params = net()
    whole = Hessian(lambda: F.cross_entropy(model(X), Y), params)
    parts = Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), params, data=slices(*ends), route=route)
    vector = whole.space.normal()
    truth = whole @ vector
    assert float((parts @ vector - truth).norm() / truth.norm()) < 1e-12
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    assert torch.allclose(parts.start(), whole.start(), rtol=1e-10)
    assert parts.batch_size == 17
    assert any(f"{len(ends) + 1} batches of 17 samples" in note for note in parts.notes)


def test_differences_go_over_data_too() -> None:
    model, params = net()
    whole = Hessian(lambda: F.cross_entropy(model(X), Y), params)
    parts = Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), params, data=slices(5, 10), route="central")
    assert torch.allclose(parts @ whole.start(), whole @ whole.start(), rtol=1e-4, atol=1e-7)


def test_weights_are_what_they_are_said_to_be() -> None:
    model, params = net()
    mean = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    batches = slices(3, 10)
    weighted = Hessian(mean, params, data=Batches(batches, weight=lambda b: 2.0 if len(b[0]) == 3 else 0.5))
    losses = [float(mean(batch).detach()) for batch in batches]
    assert weighted.loss == pytest.approx((2.0 * losses[0] + 0.5 * losses[1] + 0.5 * losses[2]) / 3.0)
    assert weighted.batch_size == 3.0
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="weight"):
            _ = Hessian(mean, params, data=Batches(batches, weight=lambda b, bad=bad: bad)).loss
    with pytest.raises(UsageError, match="add up to 0"):
        _ = Hessian(mean, params, data=Batches(batches, weight=lambda b: 0.0)).loss


class Fields:
    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 2),
        (torch.zeros(3, 2), torch.zeros(3)),
        [torch.zeros(3)],
        {"x": torch.zeros(3, 1), "scale": 2.0},
        {"name": "b", "x": (torch.zeros(3),)},
        Fields(torch.zeros(3, 5)),
        (2.0, torch.zeros(3)),
    ],
)
def test_the_samples_of_a_batch_are_counted_in_whatever_it_is(batch) -> None:
    assert samples(batch) == 3


@pytest.mark.parametrize("batch", [3, "abc", torch.tensor(1.0), (), {"a": 1}])
def test_a_batch_without_a_count_asks_for_a_weight(batch) -> None:
    with pytest.raises(UsageError, match=r"weight=.*function of the batch"):
        samples(batch)


def test_data_that_can_be_read_once_is_refused() -> None:
    model, params = net()
    for data in (
        (b for b in slices(5)),
        iter(slices(5)),
        map(tuple, slices(5)),
        enumerate(slices(5)),
        zip([1], [2], strict=True),
    ):
        with pytest.raises(UsageError, match=r"only once.*list of the batches"):
            Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), params, data=data)
    with pytest.raises(UsageError, match="iterable of batches, got int"):
        Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), params, data=3)
    with pytest.raises(UsageError, match="no batch"):
        _ = Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), params, data=[]).loss


def test_an_iterable_of_unknown_length_and_a_loader_with_workers_are_gone_through() -> None:
    class Stream:
        def __iter__(self):
            yield from slices(5, 9)

    model, params = net()
    whole = Hessian(lambda: F.cross_entropy(model(X), Y), params)
    mean = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    for data in (
        Stream(),
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        Batches(Stream(), progress=True),
    ):
        found = Hessian(mean, params, data=data)
        assert torch.allclose(found @ whole.start(), whole @ whole.start(), rtol=1e-9)


def test_a_bar_is_shown_on_standard_error_when_asked(capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    model, params = net()
    mean = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    _ = Hessian(mean, params, data=slices(5, 9)).loss
    assert capsys.readouterr() == ("", "")
    _ = Hessian(mean, params, data=Batches(slices(5, 9), progress=True)).loss
    said = capsys.readouterr()
    assert said.out == ""
    assert "batches" in said.err


def test_the_closure_of_data_is_called_in_order_once_for_each_batch_of_a_pass() -> None:
    model, params = net()
    order = []

    def mean(batch):
        order.append(len(batch[0]))
        return F.cross_entropy(model(batch[0]), batch[1])

    hessian = Hessian(mean, params, data=slices(2, 9), deterministic="trust")
    hessian @ hessian.start()
    assert order == [2, 7, 8, 2, 7, 8]
