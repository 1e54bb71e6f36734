"""`init_new_rows`: what it writes, what it leaves, what it says, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from foreshock.errors import UsageError
from foreshock.heads import HeadStatistics, init_new_rows, least_squares

D, OLD, NEW = 10, 4, [4, 5]


def examples(each=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(6).repeat(each)
    return torch.randn(len(y), D, generator=draw) + 3 * torch.eye(6, D)[y], y


def trained(head, loss="ce", steps=120):
    """Returns the head after some training on the old classes, and its optimizer."""
    h, y = examples()
    old = y < OLD
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(steps):
        logits = head(h[old])
        hot = functional.one_hot(y[old], 6).float()
        value = (
            functional.cross_entropy(logits[:, :OLD], y[old])
            if loss == "ce"
            else 0.5 * (logits - hot).square().sum(1).mean()
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return head, optimizer


def linear(bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(D, 6, bias=bias)


def statistics(**settings):
    h, y = examples()
    found = HeadStatistics(D, **settings)
    found.update(h, y)
    return found


@pytest.fixture(scope="module")
def start():
    head, _ = trained(linear())
    return head.state_dict()


@pytest.fixture
def head(start):
    fresh = linear(seed=1)
    fresh.load_state_dict(start)
    return fresh


def first_loss(head):
    h, y = examples()
    with torch.no_grad():
        each = functional.cross_entropy(head(h).float(), y, reduction="none")
    return float((each[y < OLD].mean() + each[y >= OLD].mean()) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["ls", "class_mean", "unit_mean", "random"])
def test_old_rows_and_biases_keep_every_bit(head, method, dtype):
    head = head.to(dtype)
    head.weight.grad = torch.ones_like(head.weight)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    random, identity = torch.random.get_rng_state(), (id(head.weight), id(head.bias))
    init_new_rows(head, statistics(), NEW, method=method)
    for name, value in head.state_dict().items():
        assert torch.equal(value[:OLD], before[name][:OLD])
        assert not torch.equal(value[OLD:], before[name][OLD:])
        assert value.dtype == dtype
    assert (id(head.weight), id(head.bias)) == identity
    assert torch.equal(head.weight.grad, torch.ones_like(head.weight))
    assert head.weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random)


def test_uncalibrated_rows_are_those_of_least_squares(head):
    report = init_new_rows(head, statistics(), NEW, calibrate=None)
    solved = least_squares(statistics(), NEW, bias=True)
    torch.testing.assert_close(head.weight[OLD:].double(), solved.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(head.bias[OLD:].double(), solved.bias, rtol=1e-6, atol=1e-7)
    assert report.scale is None
    assert report.lam == 0.05


def test_the_report_says_what_the_head_does(head):
    random = first_loss(head)
    report = init_new_rows(head, statistics(), NEW)
    assert report.before_loss == pytest.approx(random, rel=1e-4)
    assert report.first_loss == pytest.approx(first_loss(head), rel=1e-4)
    assert report.init_spike_ratio == report.first_loss / report.random_loss < 1 / 3
    h, y = examples(seed=5)
    hits = (head(h).argmax(1) == y).double()
    assert report.old_accuracy == pytest.approx(float(hits[y < OLD].mean()), abs=0.06)
    assert report.new_accuracy == pytest.approx(float(hits[y >= OLD].mean()), abs=0.06)
    assert report.old_accuracy >= 0.96 * report.old_accuracy_before
    assert report.separability > 0.85
    assert report.warnings == ()
    assert json.loads(json.dumps(report.to_dict()))["new"] == NEW
    assert "2 new rows by ls, calibrated (ce)" in report.text


def test_a_batch_given_is_what_losses_are_of(head):
    h, y = examples(seed=3)
    report = init_new_rows(head, statistics(), NEW, batch=(h[:30], y[:30]))
    assert report.examples == "batch"
    assert report.first_loss == pytest.approx(functional.cross_entropy(head(h[:30]), y[:30]).item(), rel=1e-5)


def test_a_regression_is_known_by_its_logits_and_left_uncalibrated(head):
    regression, _ = trained(linear(), loss="mse", steps=300)
    report = init_new_rows(regression, statistics(), NEW)
    assert (report.loss, report.calibrated) == ("mse", None)
    h, y = examples()
    each = 0.5 * (regression(h) - functional.one_hot(y, 6)).square().sum(1)
    assert report.first_loss == pytest.approx(((each[y < OLD].mean() + each[y >= OLD].mean()) / 2).item(), rel=1e-4)
    assert init_new_rows(head, statistics(), NEW).loss == "ce"


def test_examples_of_old_classes_protect_them(head):
    h, y = examples()
    alone = HeadStatistics(D)
    alone.update(h[y >= OLD], y[y >= OLD])
    report = init_new_rows(head, alone, NEW)
    assert report.calibrated is None
    assert report.old_accuracy is None
    assert any("no examples of old classes" in each for each in report.warnings)


def test_without_a_sample_examples_are_drawn_with_the_classes_moments(head):
    report = init_new_rows(head, statistics(sample=0), NEW)
    assert report.examples == "normal"
    assert first_loss(head) < report.random_loss / 3
    h, y = examples(seed=5)
    assert float((head(h).argmax(1) == y)[y < OLD].double().mean()) > 0.9


def test_the_same_call_writes_the_same_bits_whatever_the_order(head):
    h, y = examples()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2))
    other = HeadStatistics(D)
    other.update(h[order], y[order])
    init_new_rows(head, other, NEW)
    twin = linear()
    twin.load_state_dict(head.state_dict())
    init_new_rows(twin, statistics(), NEW)
    torch.testing.assert_close(twin.weight, head.weight, rtol=1e-5, atol=1e-6)
    again = linear()
    again.load_state_dict(twin.state_dict())
    init_new_rows(again, statistics(), NEW)
    assert torch.equal(again.weight, twin.weight)


def test_a_monitor_is_told(head):
    class Notes:
        step = 12

        def note(self, kind, **fields):
            self.kept = kind, fields

    notes = Notes()
    report = init_new_rows(head, statistics(), torch.tensor(NEW), monitor=notes)
    assert notes.kept == ("rows_initialised", {"step": 12, **report.to_dict()})


def test_warnings_name_what_is_thin(head):
    h, y = examples(each=2)
    few = HeadStatistics(D)
    few.update(h[(y >= OLD) | (torch.arange(12) == 0)], y[(y >= OLD) | (torch.arange(12) == 0)])
    said = " ".join(init_new_rows(head, few, NEW).warnings)
    assert "fewer than two for each" in said
    assert "3 of 4 old rows have no examples" in said
    few.update(h[4:6].repeat(20, 1), y[4:6].repeat(20))
    assert "below 20%" in " ".join(init_new_rows(head, few, NEW).warnings)
    pooled = init_new_rows(head, statistics(per_class=False), NEW, use="new")
    assert any("second moments were not kept" in each for each in pooled.warnings)


def test_classes_that_lie_on_one_another_are_said_to(head):
    h, y = examples()
    mixed = HeadStatistics(D)
    mixed.update(torch.where((y >= OLD)[:, None], h.roll(-4, 0), h), y)  # new classes look like two of the old
    report = init_new_rows(head, mixed, NEW)
    assert report.separability < 0.7
    assert any("close in these features" in each for each in report.warnings)
    assert report.old_accuracy >= 0.96 * report.old_accuracy_before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": []}, "new is empty"),
        ({"new": [4, 4]}, "more than once"),
        ({"new": [-1, 4]}, r"new holds \[-1\], but the head has the rows 0 to 5"),
        ({"new": [4, 6]}, r"new holds \[6\]"),
        ({"new": [4.5]}, "integers"),
        ({"new": ["a"]}, "integers"),
        ({"method": "median"}, "method must be one of 'ls'"),
        ({"calibrate": "yes"}, "calibrate must be one of"),
        ({"loss": "nll"}, "loss must be one of"),
        ({"use": "old"}, "use must be one of"),
        ({"keep": 1.2}, "keep must be a number between 0 and 1"),
        ({"lam": 0.0}, "lam must be above 0"),
        ({"lam": "small"}, "lam must be above 0"),
        ({"new": 4}, r"such as \[4\]"),
        ({"optimizer": 3}, "optimizer must be the one that trains the head"),
        ({"monitor": 3}, "monitor must be a foreshock.Monitor"),
        ({"generator": 3}, "generator must be a torch.Generator"),
        ({"statistics": torch.zeros(3)}, "statistics must be HeadStatistics; got Tensor"),
        ({"statistics": HeadStatistics(3)}, "collect what this head reads, 10 features"),
        ({"statistics": HeadStatistics(D)}, r"no examples of the new classes \[4, 5\]"),
        ({"statistics": statistics(unit=True)}, "as they are"),
        ({"head": nn.ReLU()}, "without a weight"),
        ({"batch": (torch.full((2, D), torch.inf), torch.tensor([0, 4]))}, "not finite"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(head, change, message):
    before = {name: value.clone() for name, value in head.state_dict().items()}
    versions = head.weight._version
    arguments = {"head": head, "statistics": statistics(), "new": NEW} | change
    with pytest.raises(UsageError, match=message):
        init_new_rows(arguments.pop("head"), arguments.pop("statistics"), arguments.pop("new"), **arguments)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert head.weight._version == versions


def test_classes_beyond_the_head_are_refused(head):
    extra = statistics()
    extra.update(torch.zeros(1, D), torch.tensor([9]))
    with pytest.raises(UsageError, match=r"hold classes \[9\], but the head has 6 rows"):
        init_new_rows(head, extra, NEW)
