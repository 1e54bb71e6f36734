"""The plants of the benchmark: which cause in which network with which optimizer, and in what sizes.

A case with a seed is one training: the seed draws the start, the batches, the step and the size. Where no event comes
of it, the next size is drawn from a range three times as high; what was discarded is counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import explain_plants as plants
import explain_spoilt as spoilt
from explain_plants import Plant

TRIES = 4  # sizes
AFTER = 60  # steps that are trained beyond the plant's first
EARLIEST, LATEST = 80, 220  # step of the plant


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of plant in one kind of training.

    Attributes:
        variant: the plant's name.
        net, optimizer: in `explain_nets.NETS`, `explain_train.BUILD`.
        make: size -> plant.
        low, high: range of sizes, drawn uniformly on a logarithmic scale.
        whole: the size is a count, and larger ones are not tried in its place.
    """

    cause: str
    variant: str
    net: str
    optimizer: str
    make: Callable[[float], Plant]
    low: float = 1.0
    high: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.cause}-{self.net}-{self.optimizer}-{self.variant}"

    def draw(self, seed: int, attempt: int) -> tuple[int, float]:
        """Returns the step and the size of an attempt."""
        chance = random.Random(f"{self.name} {seed} {attempt}")
        more = 1.0 if self.low == self.high else 2.0**attempt
        size = math.exp(chance.uniform(math.log(self.low), math.log(self.high))) * more
        return chance.randint(EARLIEST, LATEST), size


def _cases(
    cause: str, variant: str, make: Callable[[float], Plant], sizes: tuple[float, float], *where: str
) -> list[Case]:
    return [Case(cause, variant, *place.split("/"), make, *sizes) for place in where]  # type: ignore[misc]


_ONE = (1.0, 1.0)

# fmt: off
CASES: tuple[Case, ...] = tuple(chain(
    # ---- outlier_batch
    _cases("outlier_batch", "labels", spoilt.wrong_labels, (1, 8), "mlp/adam", "conv/sgd", "gpt/adamw", "lstm/rmsprop"),
    _cases("outlier_batch", "noise", spoilt.random_inputs, (1, 5), "mlp/momentum", "conv/adam", "gpt/sgd"),
    _cases("outlier_batch", "constant", spoilt.constant_inputs, (1, 4), "mlp/adamw", "bnconv/momentum", "lstm/adam"),
    _cases("outlier_batch", "scaled", spoilt.scaled_inputs, (5, 60), "mlp/rmsprop", "conv/momentum", "coder/adam"),
    _cases("outlier_batch", "foreign", spoilt.foreign, (1, 20), "mlp/adam", "conv/adamw", "gpt/momentum", "lstm/adam",
           "coder/sgd"),
    _cases("outlier_batch", "few-labels", spoilt.few_bad(4, "labels"), (2, 10), "mlp/adam", "mlp/sgd", "conv/nadam",
           "conv/momentum", "coder/momentum"),
    _cases("outlier_batch", "few-scaled", spoilt.few_bad(2, "labels"), (10, 50), "coder/adamw", "conv/adam", "conv/sgd",
           "coder/sgd"),
    _cases("outlier_batch", "few-noise", spoilt.few_bad(12, "noise"), _ONE, "gpt/adam", "lstm/momentum", "gpt/sgd"),
    # ---- update_burst
    _cases("update_burst", "gradient", plants.scaled_gradient(), (30, 1e4), "mlp/adam", "conv/adam", "gpt/adamw",
           "coder/adam"),
    _cases("update_burst", "gradient", plants.scaled_gradient(), (30, 300), "mlp/sgd", "conv/momentum", "gpt/sgd",
           "coder/rmsprop"),
    _cases("update_burst", "head", plants.scaled_gradient("head"), (100, 1e4), "mlp/sgd", "coder/nadam",
           "gpt/momentum"),
    _cases("update_burst", "elements", plants.struck_elements, (3e3, 1e5), "mlp/momentum", "conv/sgd",
           "coder/momentum"),
    _cases("update_burst", "v-shrunk", plants.scaled_state("exp_avg_sq square_avg", root=True), (10, 300), "mlp/adam",
           "conv/adam", "gpt/nadam", "coder/rmsprop"),
    _cases("update_burst", "momenta", plants.scaled_state("momentum_buffer exp_avg"), (30, 1000), "mlp/momentum",
           "conv/adam",
           "gpt/adam"),
    _cases("update_burst", "v-zeroed", plants.lost_state("exp_avg_sq", "square_avg"), _ONE, "mlp/adam", "conv/nadam",
           "gpt/adam", "coder/nadam"),
    # ---- schedule
    _cases("schedule", "rate-4", plants.higher_rate(4), (10, 100), "mlp/adam", "conv/momentum", "gpt/adamw",
           "lstm/sgd"),
    _cases("schedule", "rate-20", plants.higher_rate(20), (5, 50), "mlp/rmsprop", "bnconv/adam", "coder/adam"),
    _cases("schedule", "rate-for-good", plants.higher_rate(plants.GOOD), (5, 50), "mlp/sgd", "conv/adamw", "gpt/adam"),
    _cases("schedule", "warm-up", plants.cut_warm_up, (5, 40), "mlp/adamw", "conv/sgd", "lstm/adam"),
    _cases("schedule", "ramp", plants.steep_ramp, (10, 60), "mlp/adam", "conv/momentum"),
    _cases("schedule", "head-rate", plants.higher_group, (20, 100), "mlp/adamw", "conv/sgd", "gpt/momentum"),
    _cases("schedule", "batch", plants.small_batches, _ONE, "mlp/momentum", "conv/sgd", "bnconv/adam"),
    _cases("schedule", "scale", plants.loss_scale(3), (30, 1000), "mlp/sgd", "conv/adam", "gpt/momentum"),
    _cases("schedule", "accumulation", plants.accumulation(plants.GOOD), (8, 32), "mlp/momentum", "conv/sgd"),
    # ---- cold_start
    _cases("cold_start", "late", plants.late_classes, _ONE, "mlp/adam", "mlp/sgd", "conv/momentum", "gpt/adam",
           "lstm/adamw"),
    _cases("cold_start", "head-in-place", plants.fresh_layer("head"), (1, 3), "mlp/momentum", "conv/adam",
           "gpt/rmsprop"),
    _cases("cold_start", "body-in-place", plants.fresh_layer("body"), (1, 2), "mlp/adam", "lstm/adam", "conv/sgd"),
    _cases("cold_start", "head-data", plants.fresh_layer("head", data=True), (1, 3), "mlp/rmsprop", "lstm/adam"),
    _cases("cold_start", "head-rows", plants.fresh_layer("head", share=.4), (1, 4), "mlp/adam", "gpt/momentum"),
    _cases("cold_start", "new-head", plants.new_head, (1, 3), "mlp/adamw", "bnconv/momentum", "gpt/adam"),
    # ---- nonfinite
    _cases("nonfinite", "nan-gradient", plants.broken_gradient(math.nan), (1, 20), "mlp/adam", "conv/sgd", "gpt/adamw"),
    _cases("nonfinite", "inf-gradient", plants.broken_gradient(math.inf), (1, 20), "mlp/momentum", "lstm/rmsprop"),
    _cases("nonfinite", "inf-input", plants.broken_input(math.inf), _ONE, "mlp/sgd", "conv/adam", "coder/adam"),
    _cases("nonfinite", "log-0", plants.log_of_zero, _ONE, "mlp/rmsprop", "gpt/adam", "conv/momentum"),
    _cases("nonfinite", "half", plants.half_overflow, _ONE, "mlp/adamw", "lstm/adam", "coder/sgd"),
    _cases("nonfinite", "0-by-0", plants.zero_over_zero, _ONE, "mlp/adam", "bnconv/sgd"),
    # ---- not_reproducible
    _cases("not_reproducible", "bit", plants.flipped_bits(1, 30), _ONE, "mlp/adam", "conv/momentum", "gpt/adamw",
           "lstm/adam"),
    _cases("not_reproducible", "bits", plants.flipped_bits(8, "exponent"), _ONE, "mlp/sgd", "conv/adam",
           "coder/rmsprop"),
    _cases("not_reproducible", "tensor-scaled", plants.scaled_tensor, (2, 8), "mlp/adamw", "bnconv/adam",
           "gpt/momentum"),
    _cases("not_reproducible", "tensor-noisy", plants.noisy_tensor, (.5, 3), "mlp/momentum", "conv/rmsprop",
           "lstm/adam"),
    # ---- unexplained
    _cases("unexplained", "misread", spoilt.misread, (.7, 3), "mlp/adam", "conv/sgd", "gpt/adamw", "lstm/momentum"),
    _cases("unexplained", "tails", spoilt.heavy_tails, (1, 4), "mlp/sgd", "conv/adamw", "gpt/adam"),
    _cases("unexplained", "other-loss", spoilt.other_loss, (1, 4), "mlp/momentum", "conv/adam", "coder/adam"),
))
# fmt: on
