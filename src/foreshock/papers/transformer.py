"""A small character-level Transformer whose Hessian exists, and the batch of excerpts that it learns."""

from __future__ import annotations

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
    """A Transformer and the excerpts that it learns: characters (excerpts, length + 1) as numbers."""

    model: Transformer
    characters: Tensor

    def loss(self) -> Tensor:
        """Returns the cross-entropy of the next character, mean over all of them, nats."""
        logits = self.model(self.characters[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), self.characters[:, 1:].flatten())


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
    return Reading(model, torch.tensor(rows))
