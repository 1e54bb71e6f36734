"""Tables of modular arithmetic, the data of the grokking literature: part of the table is taught, the rest is asked.

Source: Power et al. 2022, Grokking, arXiv 2201.02177.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foreshock.errors import UsageError

__all__ = ["OPERATIONS", "Split", "split", "table"]

OPERATIONS = ("addition", "division")


@dataclass(frozen=True, slots=True)
class Split:
    """Questions in two parts: the one-hot codes of both operands side by side, (n, 2p) float32, and results (n,)."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def table(prime: int, operation: str) -> tuple[Tensor, Tensor]:
    """Returns all questions of an operation modulo a prime, and their results.

    Args:
        prime: p.
        operation: "addition", a + b of p^2 pairs, or "division", a b^-1 of the p (p - 1) pairs with b > 0.

    Returns:
        Pairs (n, 2) and results (n,), int64, in the order of (a, b).

    Raises:
        UsageError: p is no prime, or another operation.

    >>> pairs, results = table(5, "division")
    >>> len(pairs), pairs[5].tolist(), results[5].item()  # 1/2 = 3, since 2 * 3 = 6 = 1
    (20, [1, 2], 3)
    """
    if prime < 2 or any(prime % each == 0 for each in range(2, int(prime**0.5) + 1)):
        raise UsageError(f"table(prime=...): must be a prime, so that every number has an inverse, got {prime}")
    if operation not in OPERATIONS:
        raise UsageError(f"table(operation=...): one of {', '.join(OPERATIONS)}, got {operation!r}")
    numbers = torch.arange(prime)
    if operation == "addition":
        pairs = torch.cartesian_prod(numbers, numbers)
        return pairs, pairs.sum(dim=1) % prime
    pairs = torch.cartesian_prod(numbers, numbers[1:])
    inverse = torch.tensor([0, *(pow(each, -1, prime) for each in range(1, prime))])
    return pairs, pairs[:, 0] * inverse[pairs[:, 1]] % prime


def split(prime: int, operation: str, share: float, generator: torch.Generator) -> Split:
    """Returns a random part of the questions to learn from, and the rest to be asked.

    Args:
        prime, operation: as for `table`.
        share: of the questions that is learnt from, above 0 and below 1, rounded down.
        generator: draws which.

    Raises:
        UsageError: as `table`, or one of the parts is empty.
    """
    pairs, results = table(prime, operation)
    taught = int(share * len(pairs)) if 0 < share < 1 else 0
    if not 0 < taught < len(pairs):
        raise UsageError(f"split(share=...): both parts need a question of {len(pairs)}, got {share}")
    order = torch.randperm(len(pairs), generator=generator)
    codes = functional.one_hot(pairs, prime).flatten(1).float()
    learnt, asked = order[:taught], order[taught:]
    return Split(codes[learnt], results[learnt], codes[asked], results[asked])
