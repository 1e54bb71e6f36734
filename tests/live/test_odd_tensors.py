"""Tensors that are not the ordinary dense float32: each is measured, and trains as it would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreshock.monitor import Monitor
from tests.live.nets import same, state_of

Case = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Callable[[int], Tensor]]]

pytestmark = pytest.mark.usefixtures("each_sweep")


def sparse() -> Any:
    table = nn.Embedding(50, 8, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), 1e-2)
    return table, optimizer, lambda i: table(torch.tensor([1, 2, 3 + i])).square().sum()


def complex_numbers() -> Any:
    model = nn.Linear(4, 3, dtype=torch.complex64)
    x = torch.ones(2, 4, dtype=torch.complex64)
    return model, torch.optim.Adam(model.parameters(), 1e-2), lambda i: model(x * (1 + i)).abs().square().mean()


def bfloat16() -> Any:
    model = nn.Linear(300, 300, dtype=torch.bfloat16)
    x = torch.ones(2, 300, dtype=torch.bfloat16)
    return model, torch.optim.AdamW(model.parameters(), 1e-2), lambda i: model(x * (1 + 0.1 * i)).square().mean()


def two_precisions() -> Any:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double())
    x = torch.ones(2, 8)
    return model, torch.optim.Adam(model.parameters(), 1e-2), lambda i: model[1](model[0](x).double()).square().mean()


def empty_and_frozen() -> Any:
    model = nn.ParameterList([torch.ones(0), torch.ones(3), torch.ones(2)])
    model[2].requires_grad_(False)
    return model, torch.optim.Adam(model.parameters(), 1e-2), lambda i: model[1].square().sum() + model[0].sum()


def constants_that_change_every_step() -> Any:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(1e-2))

    def loss(i: int) -> Tensor:
        optimizer.param_groups[0]["betas"] = (0.9, 0.9 + 0.01 * i)
        optimizer.param_groups[0]["weight_decay"] = 0.01 * i
        return model(torch.ones(2, 8) * (1 + i)).square().mean()  # type: ignore[no-any-return]

    return model, optimizer, loss


def state_loaded_on_the_way() -> Any:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss(i: int) -> Tensor:
        if i == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        return model(torch.ones(2, 8)).square().mean()  # type: ignore[no-any-return]

    return model, optimizer, loss


CASES = [sparse, complex_numbers, bfloat16, two_precisions, empty_and_frozen, constants_that_change_every_step,
         state_loaded_on_the_way]


def train(case: Case, *, watched: bool) -> tuple[list[Tensor], Any, list[float]]:
    torch.manual_seed(0)
    model, optimizer, loss_of = case()
    monitor = Monitor(model, optimizer)
    norms = []
    if watched:
        monitor.__enter__()
    for i in range(8):
        loss = loss_of(i)
        if watched:
            monitor.observe(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        norms.append(float(sum(g.abs().double().square().sum() for g in grads)) ** 0.5)
        optimizer.step()
        optimizer.zero_grad()
    monitor.close()
    return state_of(model, optimizer), monitor.run if watched else None, norms


@pytest.mark.parametrize("case", CASES)
def test_odd_tensors_are_measured_and_left_alone(case: Case) -> None:
    unwatched, _, _ = train(case, watched=False)
    watched, run, norms = train(case, watched=True)
    assert same(unwatched, watched)
    np.testing.assert_allclose(run["grad_norm"], norms, rtol=1e-5)
    assert (run["update_norm"] > 0).all()
    for name in ("v_ratio", "grad_sq_over_v_mean", "grad_sq_over_v_max"):
        assert np.isfinite(run[name][1:]).all(), name
    assert (run["nonfinite"] == 0).all()


def test_bfloat16_moments_saturate_instead_of_inventing_bursts() -> None:
    _, run, _ = train(bfloat16, watched=True)
    assert run["grad_sq_over_v_max"][1:].max() < 64 / (1 - 0.999)


class Blockwise(torch.optim.Adam):
    """Keeps one second moment a tensor, under Adam's name, as memory-saving optimizers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state.setdefault("exp_avg_sq", torch.zeros(1)).lerp_(param.grad.square().mean(), 0.1)
                with torch.no_grad():
                    param.sub_(group["lr"] * param.grad / (state["exp_avg_sq"].sqrt() + 1e-8))
        return None


def test_a_second_moment_of_another_shape_is_left_out() -> None:
    model = nn.Linear(200, 300)
    optimizer = Blockwise(model.parameters(), 1e-3)
    with Monitor(model, optimizer) as monitor:
        for _ in range(5):
            loss = model(torch.ones(2, 200)).square().mean()
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run
    assert np.isfinite(run["grad_norm"]).all()
    assert "v_ratio" not in run


def test_parameters_replaced_in_place_are_followed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    loss = torch.zeros(())
    with Monitor(model, optimizer) as monitor:
        for i in range(6):
            if i == 3:  # another size and another place, behind the back of torch's counters
                loss = loss.detach()  # torch's graph of the step before remembers the old shapes
                model[1].weight.data = torch.full((4, 8), 7.0)
                model[1].bias.data = torch.zeros(4)
                model[2].weight.data = torch.full((8, 4), 3.0)
                for param in model.parameters():
                    param.grad = None
            loss = model(torch.ones(2, 8)).square().mean()
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            norms = {name: float(param.detach().norm()) for name, param in model.named_parameters()}
            optimizer.zero_grad()
        run = monitor.run
    assert len(run) == 6
    for name, norm in norms.items():
        assert run[f"param_norm/{name}"][-1] == pytest.approx(norm, rel=1e-5)
