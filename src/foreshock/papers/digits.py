"""Digits that ship with scikit-learn, and the small regression on them that edge-of-stability experiments train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock.errors import MissingExtraError

__all__ = ["Digits", "digits", "scans"]

SAMPLES = 500


@dataclass(frozen=True, slots=True)
class Digits:
    """A network and its data.

    Attributes:
        model: MLP 64-32-32-10 with tanh, 3466 parameters, torch's default initialisation.
        inputs: (500, 64) pixels/16 minus each pixel's mean.
        targets: (500, 10) one-hot.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def loss(self, rows: Tensor | None = None) -> Tensor:
        """Returns half the squared error, summed over outputs, mean over the samples in `rows` (by default all)."""
        inputs, targets = (self.inputs, self.targets) if rows is None else (self.inputs[rows], self.targets[rows])
        errors: Tensor = self.model(inputs) - targets
        return 0.5 * errors.square().sum(dim=1).mean()


def scans(samples: int) -> tuple[Tensor, Tensor]:
    """Returns the first `samples` digits: pixels/16, (samples, 64) float64, and their labels, (samples,) int64.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "this experiment trains on digits that ship with scikit-learn, which is not installed: "
            "pip install 'foreshock[demo]'"
        ) from error
    data = load_digits()
    return torch.tensor(data.data[:samples] / 16), torch.tensor(data.target[:samples])


def digits(seed: int) -> Digits:
    """Returns the network of a seed with the first 500 digits; the global random stream is left as it was.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    pixels, labels = scans(SAMPLES)
    pixels = pixels.float()
    targets = nn.functional.one_hot(labels, 10).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
        )
    return Digits(model, pixels - pixels.mean(dim=0), targets)
