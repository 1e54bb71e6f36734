"""On a transformer-like net that learns digits, the noise scale of its norm layers moves with that of all layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.batch_size import NoiseScale, pair
from foreshock.noise import PerExampleNorms


class Digits(nn.Module):
    """Rows of a digit as 8 tokens, LN-MLP-LN."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.first, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.down(F.gelu(self.up(self.first(h))))
        return self.head(self.last(h).mean(1))  # type: ignore[no-any-return]


def course(steps: int, *, width: int, lr: float, seed: int = 0) -> list[tuple[float, float]]:
    """Returns (norm layers', all layers') noise scale along a training, where both are known."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, 8, 8), torch.tensor(data.target)
    torch.manual_seed(seed)
    model = Digits(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    scales = NoiseScale(ema=0.98), NoiseScale(ema=0.98)
    found, norms = [], PerExampleNorms(model)
    params = dict(model.named_parameters())
    for step in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        if step % 2 == 0:
            norms.listen()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        if norms.listening:
            seen = norms.read()
            norms.stop()
            for scale, names in zip(scales, (("first", "last"), tuple(params)), strict=True):
                own = [name for name in params if name.startswith(names)]
                whole = sum(float(params[name].grad.square().sum()) for name in own)
                mean = sum(float(seen.by_parameter[name].mean()) for name in own)
                scale.take(pair(mean, whole, small=1, big=64))
            values = [scale.value() for scale in scales]
            if all(value.status == "ok" for value in values):
                found.append((values[0].noise_scale, values[1].noise_scale))
        optimizer.step()
    return found


def alike(found: list[tuple[float, float]]) -> float:
    """Returns the correlation of the logarithms, having seen that the two are of one size and move at all."""
    norm, whole = np.log(np.array(found)).T
    assert 0.7 < np.exp(np.median(whole - norm)) < 1.6
    assert np.exp(np.ptp(whole)) > 1.4
    return float(np.corrcoef(norm, whole)[0, 1])


@pytest.mark.slow
def test_the_noise_scale_of_norm_layers_moves_with_the_whole() -> None:
    pytest.importorskip("sklearn")
    assert alike(course(180, width=32, lr=1e-2)) > 0.85  # .99, .94 and .96 on seeds 0 to 2


@pytest.mark.slow
def test_over_a_whole_training_they_are_almost_one_line() -> None:
    pytest.importorskip("sklearn")
    assert np.median([alike(course(1200, width=48, lr=5e-3, seed=seed)) for seed in range(3)]) > 0.95
