"""What is planted: the ways in which a training is spoilt on purpose, by the cause that a diagnosis should name.

A plant sits where its cause does: in the data, in the loss, between backward and step, in the schedule, in what is
reported, or outside the loop altogether, as a flipped bit does. What it draws depends on the step and the seed alone,
so that a training that is put back and run again meets the same.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foreshock.testing.cells import bit_number, draw, flip_bit

if TYPE_CHECKING:
    from explain_nets import Batch
    from explain_train import Training


@dataclass
class Plant:
    """One thing that goes wrong.

    Attributes:
        cause: that a diagnosis should name.
        steps: for how many steps; `GOOD` for good.
        batch: (training, step, batch) -> batch, in the loader.
        wrapped: (training, batch, step) -> loss, in place of the loop's own.
        scale: factor of what is differentiated after the loss was observed.
        micro: micro-batches of a step, not divided by their number.
        gradients: (training, step), after backward.
        state: (training, step), before the optimizer's step.
        once: (training, step), in the loop before the forward pass of the first step.
        outside: the same, and the loop knows nothing of it.
        rate: factor of the learning rate.
        ramp: steps over which it gets there; 0 for a jump.
        group: parameter group that it is of, 0 the body, 1 the head; None for all.
        warm: the factor is where a slow warm-up ends all at once.
        size: factor of the batch size.
        reported: (training, step, loss) -> the number that is observed in its place.
        late: whether some classes or characters are kept back until then.
        rows: how many examples of each batch are bad; 0 for all or none.
    """

    cause: str
    steps: int = 1
    batch: Callable[[Training, int, Batch], Batch] | None = None
    wrapped: Callable[[Training, Batch, int], Tensor] | None = None
    scale: float = 1.0
    micro: int = 1
    gradients: Callable[[Training, int], None] | None = None
    state: Callable[[Training, int], None] | None = None
    once: Callable[[Training, int], None] | None = None
    outside: Callable[[Training, int], None] | None = None
    rate: float = 1.0
    ramp: int = 0
    group: int | None = None
    warm: bool = False
    size: float = 1.0
    reported: Callable[[Training, int, float], float] | None = None
    late: bool = False
    rows: int = 0


GOOD = 10**9


def generator(training: Training, step: int) -> torch.Generator:
    """Returns a stream of its own for the seed and the step."""
    return torch.Generator().manual_seed(random.Random(f"{training.seed} {step}").getrandbits(63))


def whole(size: float) -> int:
    return max(1, round(size))


# ---- update_burst


def scaled_gradient(part: str = "") -> Callable[[float], Plant]:
    """Returns the plant of a gradient `size` times as large, of tensors whose name holds `part`."""

    def make(size: float) -> Plant:
        def gradients(training: Training, step: int) -> None:
            for name, parameter in training.model.named_parameters():
                if part in name and parameter.grad is not None:
                    parameter.grad.mul_(size)

        return Plant("update_burst", gradients=gradients)

    return make


def struck_elements(size: float) -> Plant:
    """Three gradient elements `size` times the largest."""

    def gradients(training: Training, step: int) -> None:
        grads = [p.grad for p in training.model.parameters() if p.grad is not None]
        top = max(float(g.abs().max()) for g in grads)
        for cell in draw(grads, 3, generator(training, step)):
            cell.fill_(size * top)

    return Plant("update_burst", gradients=gradients)


def scaled_state(entry: str, root: bool = False) -> Callable[[float], Plant]:
    """Returns the plant of an optimizer's state divided (`exp_avg_sq`, `square_avg`) or multiplied (momenta)."""

    def make(size: float) -> Plant:
        def state(training: Training, step: int) -> None:
            for each in training.optimizer.state.values():
                for key in entry.split():
                    if isinstance(each.get(key), Tensor):
                        each[key].mul_(size**-2 if root else size)

        return Plant("update_burst", state=state)

    return make


def lost_state(*entries: str) -> Callable[[float], Plant]:
    """Returns the plant of a state that is zeroed while the count of steps is kept."""

    def make(size: float) -> Plant:
        def state(training: Training, step: int) -> None:
            for each in training.optimizer.state.values():
                for key in entries:
                    if isinstance(each.get(key), Tensor):
                        each[key].zero_()

        return Plant("update_burst", state=state)

    return make


# ---- schedule


def higher_rate(steps: int) -> Callable[[float], Plant]:
    """Returns the plant of a learning rate `size` times as high for so many steps."""
    return lambda size: Plant("schedule", steps, rate=size)


def steep_ramp(size: float) -> Plant:
    """A learning rate that climbs to `size` times what it was within 30 steps, and stays there."""
    return Plant("schedule", GOOD, rate=size, ramp=30)


def higher_group(size: float) -> Plant:
    """A learning rate `size` times as high for the head alone, for 10 steps."""
    return Plant("schedule", 10, rate=size, group=1)


def cut_warm_up(size: float) -> Plant:
    """A slow warm-up that jumps to its end, `size` times as high."""
    return Plant("schedule", GOOD, rate=size, warm=True)


def small_batches(size: float) -> Plant:
    """Batches of 1/16 of the size for good, at `size` times the learning rate from the start."""
    return Plant("schedule", GOOD, size=1 / 16)


def loss_scale(steps: int) -> Callable[[float], Plant]:
    """Returns the plant of a loss scale of `size` left in the gradients."""
    return lambda size: Plant("schedule", steps, scale=size)


def accumulation(steps: int) -> Callable[[float], Plant]:
    """Returns the plant of `size` micro-batches a step whose gradients are summed, not averaged."""
    return lambda size: Plant("schedule", steps, micro=whole(size))


# ---- cold_start


def late_classes(size: float) -> Plant:
    """Classes, or characters, that were kept back until then."""
    return Plant("cold_start", GOOD, late=True)


def _fresh(module: Any, key: int, size: float) -> list[Tensor]:
    """Returns what the parameters of a module would be if it were initialised now, `size` times as large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        again = copy.deepcopy(module)
        for each in again.modules():
            if hasattr(each, "reset_parameters"):
                each.reset_parameters()
    return [size * parameter.detach() for parameter in again.parameters()]


def fresh_layer(part: str, *, data: bool = False, share: float = 1.0) -> Callable[[float], Plant]:
    """Returns the plant of a module that is initialised again, in place.

    Args:
        part: its name.
        data: through `.data`, which autograd's counters do not see, in place of `torch.no_grad()`.
        share: of its rows.
    """

    def make(size: float) -> Plant:
        def once(training: Training, step: int) -> None:
            module = training.model.get_submodule(part)
            for parameter, value in zip(module.parameters(), _fresh(module, training.seed + step, size), strict=True):
                rows = slice(0, max(1, int(share * len(value))))
                if data:
                    parameter.data[rows] = value[rows]
                else:
                    with torch.no_grad():
                        parameter[rows] = value[rows]

        return Plant("cold_start", once=once)

    return make


def new_head(size: float) -> Plant:
    """A head replaced by a new one, in a new parameter group."""

    def once(training: Training, step: int) -> None:
        old = training.model.head
        head = torch.nn.Linear(old.in_features, old.out_features)
        for parameter, value in zip(head.parameters(), _fresh(old, training.seed + step, size), strict=True):
            parameter.data.copy_(value)
        training.model.head = head
        training.add_group(list(head.parameters()))

    return Plant("cold_start", once=once)


# ---- nonfinite


def broken_gradient(value: float) -> Callable[[float], Plant]:
    """Returns the plant of `size` gradient elements that are this value."""

    def make(size: float) -> Plant:
        def gradients(training: Training, step: int) -> None:
            grads = [p.grad for p in training.model.parameters() if p.grad is not None]
            for cell in draw(grads, whole(size), generator(training, step)):
                cell.fill_(value)

        return Plant("nonfinite", gradients=gradients)

    return make


def broken_input(value: float) -> Callable[[float], Plant]:
    """Returns the plant of one number of a batch that is this value."""

    def make(size: float) -> Plant:
        def batch(training: Training, step: int, batch: Batch) -> Batch:
            inputs = batch[0].clone()
            inputs.view(-1)[7] = value
            return inputs, batch[1]

        return Plant("nonfinite", batch=batch)

    return make


def log_of_zero(size: float) -> Plant:
    """-log p with a p that has become 0."""

    def wrapped(training: Training, batch: Batch, step: int) -> Tensor:
        each = training.task.each(batch)
        chance = (-each).exp()
        keep = torch.ones_like(chance)
        keep[0] = 0.0
        return -(chance * keep).log().mean()

    return Plant("nonfinite", wrapped=wrapped)


def half_overflow(size: float) -> Plant:
    """Logits that overflow in float16."""

    def wrapped(training: Training, batch: Batch, step: int) -> Tensor:
        logits = (training.model(batch[0]) * 1e5).half().float()
        targets = batch[1]
        if targets.is_floating_point():
            return (logits / 1e5 - targets).square().sum(1).mean()
        return F.cross_entropy(logits.transpose(1, 2) if logits.dim() == 3 else logits, targets)

    return Plant("nonfinite", wrapped=wrapped)


def zero_over_zero(size: float) -> Plant:
    """An example of one value, divided by its standard deviation."""

    def wrapped(training: Training, batch: Batch, step: int) -> Tensor:
        inputs = batch[0].clone()
        inputs[0] = 0.0
        spread = inputs.flatten(1).std(1)
        fair = (inputs.flatten(1) / (spread / spread[1])[:, None]).view_as(inputs)
        flat = (spread == 0).view(-1, *[1] * (inputs.dim() - 1))
        return training.task.loss((torch.where(flat, fair, inputs), batch[1]))

    return Plant("nonfinite", wrapped=wrapped)


# ---- not_reproducible


def flipped_bits(count: int, bit: int | str) -> Callable[[float], Plant]:
    """Returns the plant of flipped bits in weights: a given one, or any of the "exponent"."""

    def make(size: float) -> Plant:
        def outside(training: Training, step: int) -> None:
            source = generator(training, step)
            with torch.no_grad():
                for cell in draw(list(training.model.parameters()), count, source):
                    flip_bit(cell, bit_number(bit, cell.dtype, source))

        return Plant("not_reproducible", outside=outside)

    return make


def scaled_tensor(size: float) -> Plant:
    """One weight matrix `size` times as large from one step to the next."""

    def outside(training: Training, step: int) -> None:
        matrices = [p for p in training.model.parameters() if p.dim() > 1]
        with torch.no_grad():
            matrices[int(torch.randint(len(matrices), (), generator=generator(training, step)))].mul_(size)

    return Plant("not_reproducible", outside=outside)


def noisy_tensor(size: float) -> Plant:
    """Noise on one weight matrix, `size` times as large as its weights are."""

    def outside(training: Training, step: int) -> None:
        source = generator(training, step)
        matrices = [p for p in training.model.parameters() if p.dim() > 1]
        with torch.no_grad():
            struck = matrices[int(torch.randint(len(matrices), (), generator=source))]
            struck.add_(torch.randn(struck.shape, generator=source) * struck.std() * size)

    return Plant("not_reproducible", outside=outside)
