"""AdamW's settings carried over to S3: the closed forms, what is kept, and the reasons in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn, optim

from foreshock.errors import UsageError
from foreshock.optim import S3
from foreshock.optim.transfer import adam_rms, s3_rms, transfer


def weights(count=3):
    return [nn.Parameter(torch.ones(2)) for _ in range(count)]


@pytest.mark.parametrize(
    ("betas", "rms", "burst", "peak"),
    [((0.9, 0.999), 1.538, 7.977, 14.93), ((0.9, 0.95), 1.538, 1.466, 2.111), ((0.95, 0.95), 1.073, 2.218, 1.056)],
)
def test_factors_are_those_of_the_betas(betas, rms, burst, peak):
    made = transfer({"lr": 1e-3, "betas": betas, "weight_decay": 0.1})
    assert (made.rms, made.burst, made.peak) == pytest.approx((rms, burst, peak), rel=2e-3)
    assert made.factor == made.rms
    assert made.lr == pytest.approx(1e-3 * rms, rel=2e-3)


@pytest.mark.parametrize("match", ["rms", "burst", "peak", 3, 10.0])
def test_lr_times_decay_is_kept_and_the_text_has_the_numbers(match):
    made = transfer({"lr": 3e-4, "betas": (0.9, 0.99), "weight_decay": 0.1}, match=match, p=2.0)
    assert made.lr * made.weight_decay == pytest.approx(3e-5)
    assert made.factor == (match if not isinstance(match, str) else getattr(made, match))
    for number in (f"{made.lr:.4g}", f"{made.weight_decay:.4g}", f"{made.burst:.3g}", f"{made.peak:.3g}", "p=2"):
        assert number in made.text


def test_closed_forms_of_the_typical_step_are_the_papers():
    assert [s3_rms(0.95, p) for p in (3.0, 2.0, 1.0)] == pytest.approx([0.149, 0.174, 0.219], abs=6e-4)
    assert adam_rms(0.9) == pytest.approx(0.229, abs=5e-4)


def test_groups_names_and_what_else_they_hold_are_kept():
    named = [(f"w{i}", each) for i, each in enumerate(weights())]
    groups = [
        {"params": named[:2], "lr": 1e-3, "note": "body"},
        {"params": named[2:], "betas": (0.8, 0.9), "weight_decay": 0.0},
    ]
    source = optim.AdamW(groups, lr=2e-3, maximize=True, amsgrad=True)
    optim.lr_scheduler.LinearLR(source, 0.5)
    made = S3.from_adamw(source, beta=0.9)
    one, two = made.param_groups
    assert [each["params"] for each in (one, two)] == [group["params"] for group in source.param_groups]
    assert (one["param_names"], one["note"], one["maximize"]) == (["w0", "w1"], "body", True)
    assert one["lr"] == pytest.approx(0.5e-3 * made.transfers[0].factor)  # where the schedule is
    assert one["initial_lr"] == pytest.approx(1e-3 * made.transfers[0].factor)
    assert two["lr"] == pytest.approx(1e-3 * adam_rms(0.8) / s3_rms(0.9, 3.0))
    assert two["weight_decay"] == 0.0
    assert one["beta"] == two["beta"] == 0.9
    assert not {"betas", "amsgrad"} & {*one, *two}
    made.step()
    optim.lr_scheduler.LinearLR(made, 0.5, last_epoch=1)  # a schedule can be taken up


def test_settings_alone_do_with_parameters_or_groups():
    first, second, third = weights()
    made = S3.from_adamw({"lr": 1e-3, "weight_decay": 0.1}, [first, second], match=3)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == pytest.approx((3e-3, 0.1 / 3))
    made = S3.from_adamw({"lr": 1e-3}, [{"params": [first, second]}, {"params": [third], "lr": 1e-2}], match=3)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([3e-3, 3e-2])
    assert made.param_groups[0]["weight_decay"] == pytest.approx(1e-2 / 3)  # torch's AdamW has .01


def test_a_tensor_lr_becomes_another_tensor():
    rate = torch.tensor(1e-3)
    made = S3.from_adamw(optim.AdamW(weights(), lr=rate), match=2)
    assert float(made.param_groups[0]["lr"]) == pytest.approx(2e-3)
    assert float(rate) == pytest.approx(1e-3)


def test_adams_coupled_decay_is_told_of():
    assert "L2" in S3.from_adamw(optim.Adam(weights(), weight_decay=0.1)).transfers[0].text
    for source in (optim.AdamW(weights()), optim.Adam(weights(), weight_decay=0.1, decoupled_weight_decay=True)):
        assert "L2" not in S3.from_adamw(source).transfers[0].text


def test_what_cannot_be_transferred_is_refused():
    with pytest.raises(UsageError, match="SGD"):
        S3.from_adamw(optim.SGD(weights(), lr=0.1))
    with pytest.raises(UsageError, match="NAdam"):
        S3.from_adamw(optim.NAdam(weights()))
    with pytest.raises(UsageError, match="rms, burst, peak"):
        S3.from_adamw(optim.AdamW(weights()), match="size")
    with pytest.raises(UsageError, match="factor would be 0"):  # p = 1 never forgets a burst
        S3.from_adamw(optim.AdamW(weights()), match="burst", p=1.0)
    with pytest.raises(UsageError, match="params"):
        S3.from_adamw({"lr": 1e-3})
    with pytest.raises(UsageError, match="params"):
        S3.from_adamw(optim.AdamW(weights()), weights())
    with pytest.raises(UsageError, match="lr"):
        S3.from_adamw(optim.AdamW(weights()), lr=1.0)


def test_the_typical_step_does_become_equal():
    draw, sizes = torch.Generator().manual_seed(0), []
    for make in (lambda w: optim.AdamW(w, lr=1e-3, weight_decay=0.0), lambda w: S3.from_adamw(make_adam(w))):
        param = nn.Parameter(torch.zeros(3000))
        optimizer = make([param])
        for _ in range(150):
            param.grad, before = torch.randn(3000, generator=draw), param.detach().clone()
            optimizer.step()
        sizes.append(math.sqrt(float((param.detach() - before).square().mean())))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def make_adam(params):
    return optim.AdamW(params, lr=1e-3, weight_decay=0.0)
