"""Small classifiers with confident rows, and what a monitor measures of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foreshock.monitor import Monitor
from foreshock.numerics.absorption import Absorption
from foreshock.probes import Softmax
from foreshock.run import Run

BATCH, LENGTH, WIDTH, CLASSES = 6, 5, 16, 7


class Net(nn.Module):
    def __init__(self, *, bias: bool = True, outputs: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def make(*, bias: bool = True, outputs: int = CLASSES, stretch: float = 40.0) -> tuple[Net, Tensor, Tensor]:
    """Returns a net, and inputs with their most probable classes; at the usual stretch they lead by 14 nats or more."""
    torch.manual_seed(0)
    model = Net(bias=bias, outputs=outputs)
    model.head.weight.data *= stretch
    x = torch.randn(500, 8)
    first, second = model(x)[:, :CLASSES].topk(2).values.unbind(1)
    x = x[first - second > 0.35 * stretch][: BATCH * LENGTH].reshape(BATCH, LENGTH, 8)
    return model, x, model(x)[..., :CLASSES].argmax(-1)


def watched(
    model: nn.Module, step: Callable[[], Tensor], *, probe: Softmax | None = None, steps: int = 1, lr: float = 1e-3,
    then: Callable[[Tensor], None] | None = None,
) -> Run:
    """Returns the run of a few steps of gradient descent on a loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Monitor(model, optimizer, probes=[Softmax() if probe is None else probe]) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = step()
            monitor.observe(loss)
            (loss.backward if then is None else lambda loss=loss: then(loss))()  # type: ignore[no-untyped-call]
            optimizer.step()
        return monitor.run


def signals(run: Run, row: int = 0) -> dict[str, float]:
    """Returns what one reading has measured."""
    assert not [note for note in run.notes if "disabled" in note["kind"]]
    found = {}
    for name in run.columns:
        if name.startswith("softmax_"):
            values = run.measured(name)[1]
            found |= {name.removeprefix("softmax_"): float(values[row])} if len(values) > row else {}
    return found


def expected(seen: Absorption) -> dict[str, float]:
    names = [name for name in Absorption.__dataclass_fields__ if name != "rows"]
    return {name: getattr(seen, name) for name in names if getattr(seen, name) is not None}


def agree(found: dict[str, float], wanted: dict[str, float], *, rel: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        rounding = 3e-6 if name in ("error", "residual") else 1e-12  # of log-probabilities, which stand for the logits
        assert found[name] == pytest.approx(value, rel=rel, abs=rounding), name
