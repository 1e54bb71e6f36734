"""A small character-level Transformer whose Hessian exists, and the batch of excerpts that it learns."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Reading", "Transformer", "reading"]


class Block(nn.Module):
    """Causal attention and a GELU layer, each behind a layer normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Returns (batch, length, width); `hidden` (length, length) is true where a character may not look.

        The attention is written out, since fused kernels have no second derivative.
        """
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return result


class Transformer(nn.Module):
    """Decoder over characters: two blocks of width 64, 112,512 parameters for 81 characters."""

    def __init__(self, characters: int, length: int, *, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        self.hidden: Tensor
        self.register_buffer("hidden", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, characters: Tensor) -> Tensor:
        """Returns logits (batch, length, characters) for what follows each of (batch, length) characters."""
        length = characters.shape[1]
        x = self.embedding(characters) + self.places.weight[:length]
        for block in self.blocks:
            x = block(x, self.hidden[:length, :length])
        result: Tensor = self.head(self.norm(x))
        return result


@dataclass(frozen=True, slots=True)
class Reading:
    """A Transformer and the excerpts that it learns.

    Attributes:
        model: the network.
        characters: (excerpts, length + 1), as numbers.
        floor: the least cross-entropy that any model of the same contexts can have, nats.
    """

    model: Transformer
    characters: Tensor
    floor: float

    def loss(self) -> Tensor:
        """Returns the cross-entropy of the next character less its floor, mean over all characters, nats.

        Excerpts that begin alike leave some of it whatever the model says; taken away, what is left goes to 0 as the
        excerpts are learned, and a rise out of 1e-4 is seen as what it is. Its derivatives are the same.
        """
        logits = self.model(self.characters[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), self.characters[:, 1:].flatten()) - self.floor


def reading(text: str, seed: int, *, excerpts: int = 16, length: int = 32) -> Reading:
    """Returns a Transformer with torch's default start, and excerpts from random places of a text; the global random
    stream is left as it was.

    Args:
        text: at least `length` + 1 characters.
        seed: of start and places.
        excerpts, length: of the batch.
    """
    kinds = {character: number for number, character in enumerate(sorted(set(text)))}
    starts = np.random.default_rng(seed).integers(len(text) - length, size=excerpts)
    rows = [[kinds[character] for character in text[start : start + length + 1]] for start in starts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(len(kinds), length)
    return Reading(model, torch.tensor(rows), _entropy(rows))


def _entropy(rows: Sequence[Sequence[int]]) -> float:
    """Returns the entropy of the next character given all before it in its row, mean over characters.

    >>> round(_entropy([[1, 2, 3], [1, 2, 4]]), 6)  # after 1 there is nothing to choose, after 1, 2 there is: ln 2 / 2
    0.346574
    """
    after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in rows:
        for place in range(1, len(row)):
            after[tuple(row[:place])][row[place]] += 1
    bits = [count * math.log(sum(each.values()) / count) for each in after.values() for count in each.values()]
    return math.fsum(bits) / sum(len(row) - 1 for row in rows)
