"""The small CNN of the landscape-spike paper on real images: full-batch gradient descent with its edge followed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.curvature import EdgeTracker
from foreshock.curvature.space import Space
from foreshock.landscape import Trajectory
from foreshock.papers.images import images
from foreshock.papers.landscape_anatomy import Spike, anatomy
from foreshock.papers.landscape_study import recorded
from foreshock.papers.studies import Live, silent
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["ImageProblem", "ImageTrace", "follow", "image_problem", "plainly"]

Floats = npt.NDArray[np.float64]
SAMPLES, TEST = 1000, 2000
FILTERS = (8, 16)
TOL = 1e-2  # of chi, relative; three quarters of the products that 1e-3 takes
CALM, EARLY = 10, 2  # steps between readings, and in the first 60, on the way to the edge; each of an excursion is read
BEGINNING = 60
EXCITED = 1.2  # of the lowest loss since the last spike
RISE = 1.5  # of the loss, that makes a spike here: ordinary training at the edge comes to 1.3


@dataclass(slots=True)
class ImageProblem:
    """A network and its images.

    Attributes:
        model: two convolutions 3x3 with 8 and 16 filters, each with ReLU and 2x2 max pooling, and a linear layer: 1,898
            parameters, torch's default initialisation.
        inputs, labels: (1000, 1, 14, 14), mean 0 and standard deviation 1 over all, and classes: the held full batch.
        test_inputs, test_labels: 2,000 others.
    """

    model: nn.Sequential
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    def outputs(self) -> Tensor:
        """Returns the logits of the training images, (1000, 10)."""
        found: Tensor = self.model(self.inputs)
        return found

    def test_outputs(self) -> Tensor:
        """Returns the logits of the test images, (2000, 10)."""
        found: Tensor = self.model(self.test_inputs)
        return found

    def loss(self) -> Tensor:
        """Returns the cross-entropy, mean over the training images."""
        return functional.cross_entropy(self.outputs(), self.labels)

    @torch.no_grad()
    def test_error(self) -> float:
        """Returns the share of test images that are put into a wrong class."""
        return float((self.test_outputs().argmax(1) != self.test_labels).float().mean())

    @torch.no_grad()
    def stand_at(self, flat: Tensor) -> None:
        """Copies a flat vector (p,) into the parameters."""
        for param, piece in zip(self.params, Space(self.params).split(flat), strict=True):
            param.copy_(piece)


@dataclass(slots=True)
class ImageTrace:
    """One training; entry t belongs to the parameters after t updates.

    Attributes:
        lr: of full-batch gradient descent.
        losses: (n,).
        sharpness, chi_gradient, alignment, overlap: (n,), NaN where there was no reading; see `landscape_training`.
        path: the parameters, all of them.
        products: with the Hessian.
        seconds: it took.
        spikes: those that begin above the edge.
    """

    lr: float
    losses: Floats
    sharpness: Floats
    chi_gradient: Floats
    alignment: Floats
    overlap: Floats
    path: Trajectory = field(repr=False)
    products: int
    seconds: float

    @property
    def edge(self) -> float:
        """Returns 2/lr."""
        return 2.0 / self.lr

    @property
    def spikes(self) -> list[Spike]:
        return anatomy(self.losses, self.sharpness, self.chi_gradient, self.edge, rise=RISE)

    @property
    def highest(self) -> Spike | None:
        """Returns the highest spike, of those that are over if there are any; None without one."""
        found = self.spikes
        whole = [spike for spike in found if spike.back is not None] or found
        return max(whole, key=lambda spike: spike.height) if whole else None

    def to_run(self, name: str, **meta: object) -> Run:
        """Returns the training as a run, under the library's names of signals."""
        return recorded(self, name, **meta)


def image_problem(seed: int, *, path: str | None = None, labels: str = "true") -> ImageProblem:
    """Returns the network of a seed with its images; the global random stream is left as it was.

    Args:
        seed: of the initialisation, and of random labels.
        path: the folder of the images; by default Debian's.
        labels: "true", "random" (a control: a target that no smooth function of the image fits) or "noisy" (one in five
            is random).

    Raises:
        MissingExtraError: the images are not installed.
    """
    train, test = images("train", count=SAMPLES, path=path), images("test", count=TEST, path=path)
    pixels = [_halved(part.pixels) for part in (train, test)]
    mean, scale = pixels[0].mean(), pixels[0].std()
    inputs, others = ((each - mean) / scale for each in pixels)
    classes, drawn = torch.from_numpy(train.labels), np.random.default_rng(seed)
    if labels != "true":
        other = torch.from_numpy(drawn.integers(0, 10, len(classes)))
        wrong = torch.from_numpy(drawn.random(len(classes)) < (1.0 if labels == "random" else 0.2))
        classes = torch.where(wrong, other, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, FILTERS[0], 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(FILTERS[0], FILTERS[1], 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(4 * FILTERS[1], 10),
        )
    # images with their channels last take two thirds of the time on a CPU
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = [each.to(memory_format=torch.channels_last) for each in (inputs, others)]
    return ImageProblem(model, kept[0], classes, kept[1], torch.from_numpy(test.labels))


def follow(
    problem: ImageProblem, lr: float, steps: int, *, live: Live = silent, until_over: bool = False
) -> ImageTrace:
    """Returns a training with chi read every ten steps, and at every step of an excursion of the loss.

    Args:
        problem: trained from where it stands; left where the training ends.
        lr: of full-batch gradient descent without momentum.
        steps: updates.
        live: told how far it is.
        until_over: end as soon as a spike that doubles the loss is over.
    """
    started = time.perf_counter()
    optimizer = torch.optim.SGD(problem.params, lr=lr)
    tracker = EdgeTracker(optimizer, problem.loss, tol=TOL, forms=True)
    losses: list[float] = []
    read: dict[int, tuple[float, float, float, float]] = {}
    before, space = None, Space(problem.params)
    path, lowest, products, doubled = Trajectory(problem.params), np.inf, 0, False
    with one_thread():
        for t in range(steps + 1):
            loss = problem.loss()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                break
            path.add(step=t)
            excited = losses[-1] > EXCITED * lowest
            if excited or t % (EARLY if t < BEGINNING else CALM) == 0:
                found = tracker.read()
                products += found.matvecs
                direction = space.flatten(found.vector)
                overlap = np.nan if before is None else abs(float(before @ direction))
                read[t], before = (found.sharpness, found.chi_gradient, found.alignment, overlap), direction
                live(t / steps, f"step {t:,}: loss {losses[-1]:.3g}, chi {found.chi:.2f}")
            doubled |= losses[-1] > 2.0 * lowest
            if losses[-1] <= lowest:
                if doubled and until_over:
                    break
                lowest, doubled = losses[-1], False
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    table = np.full((4, len(losses)), np.nan)
    for t, values in read.items():
        table[:, t] = values
    return ImageTrace(
        lr, np.array(losses), table[0], table[1], table[2], table[3], path, products, time.perf_counter() - started
    )


def plainly(problem: ImageProblem, lr: float, steps: int, *, until: float = 0.0) -> Floats:
    """Returns the losses of a training without readings, from where the problem stands, ended by a loss below `until`.

    The parameters are left where that loss was measured.
    """
    optimizer = torch.optim.SGD(problem.params, lr=lr)
    losses: list[float] = []
    with one_thread():
        for t in range(steps + 1):
            loss = problem.loss()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]) or losses[-1] < until or t == steps:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return np.array(losses)


def _halved(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Returns images of half the height and width, (n, 1, h/2, w/2), from 0 to 1."""
    whole = torch.tensor(pixels, dtype=torch.float32).unsqueeze(1) / 255.0
    return functional.avg_pool2d(whole, 2)


def filters(problem: ImageProblem) -> Sequence[tuple[Tensor, Tensor]]:
    """Returns weight and bias of each convolution."""
    layers = [layer for layer in problem.model if isinstance(layer, nn.Conv2d)]
    return [(layer.weight.detach(), layer.bias.detach()) for layer in layers if layer.bias is not None]
