"""What the guard's benchmark trains: a tiny GPT on real text.

The text is the novels that Debian's r-cran-janeaustenr holds; where it is not installed, Python's own help pages. The
text of another kind, for faults of the data mixture, is the help pages beside the novels and source code beside them.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from foreshock.errors import MissingExtraError
from foreshock.papers.text import novels

LENGTH = 64  # characters of context


@dataclass
class Task:
    """One training, at its first step.

    Attributes:
        model, optimizer, scheduler: the scheduler steps once for every step of the optimizer.
        draw: batch of this number; the same whenever it is asked for.
        foreign: batch of this number of data that do not belong here.
        loss: mean loss of a batch, with its graph.
        validate: returns the loss on data never trained on.
        vocabulary: how many kinds of characters there are; None where the data are no text.
        steps: that the schedule is made for.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    draw: Callable[[int], Any]
    foreign: Callable[[int], Any]
    loss: Callable[[Any], Tensor]
    validate: Callable[[], float]
    vocabulary: int | None
    steps: int


class Block(nn.Module):
    """Causal attention and a GELU layer, each behind a layer normalisation."""

    def __init__(self, width: int, dropout: float, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """Decoder over characters, started as GPT-2 is (normal, .02): 115,000 parameters at width 64 and two blocks."""

    def __init__(self, characters: int, *, width: int = 64, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*[Block(width, dropout) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                shrink = (2 * blocks) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * shrink)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places.weight)))  # type: ignore[no-any-return]


@functools.cache
def texts() -> tuple[Tensor, Tensor, Tensor, int]:
    """Returns a text to train on, one to validate on, one of another kind, all as numbers, and how many kinds."""
    from pydoc_data.topics import topics

    helps = "\n".join(topics[name] for name in sorted(topics))
    try:
        text, other = novels(), helps
    except MissingExtraError:
        text, other = helps, inspect.getsource(inspect) + inspect.getsource(functools)
    kinds = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([kinds[character] for character in text])
    strange = torch.tensor([kinds.get(character, kinds[" "]) for character in other])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], strange, len(kinds)


def excerpts(text: Tensor, count: int, *key: int) -> Tensor:
    """Returns (count, 65) characters from random places of a text, the same for the same key."""
    generator = torch.Generator().manual_seed(random.Random(f"{key}").getrandbits(63))
    starts = torch.randint(len(text) - LENGTH, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(LENGTH + 1)]


def warm_cosine(optimizer: Optimizer, steps: int, warm_up: int) -> LambdaLR:
    """Returns a linear warm-up followed by half a cosine down to nothing at the last step."""
    return LambdaLR(optimizer, lambda t: min((t + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(t / steps, 1.0))))


def gpt(
    seed: int, steps: int, *, batch: int = 8, width: int = 64, dropout: float = 0.0, amp: bool = False,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
) -> Task:
    """Returns the tiny GPT: AdamW .9/.99 with decay .1, lr 3e-3 after a warm-up of 60 steps, cosine to 0, no clipping.

    Args:
        seed: of the start and of the batches.
        steps: of the schedule.
        batch: excerpts of 64 characters a step.
        width, dropout: of the network, two blocks.
        amp: forward pass in bfloat16 autocast.
        optimizer, schedule: others than these.
    """
    text, held_out, other, kinds = texts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(kinds, width=width, dropout=dropout)
    adam = (optimizer or (lambda net: torch.optim.AdamW(net.parameters(), 3e-3, (0.9, 0.99), weight_decay=0.1)))(model)
    rows = excerpts(held_out, 1024, 0)

    def cast() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if amp else nullcontext()

    def loss(characters: Tensor) -> Tensor:
        with cast():
            logits = model(characters[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), characters[:, 1:].flatten())

    def validate() -> float:
        model.eval()
        with torch.no_grad():
            found = sum(loss(part).item() for part in rows.split(128)) / 8
        model.train()
        return found

    scheduler = schedule(adam, steps) if schedule else warm_cosine(adam, steps, 60)
    return Task(
        model, adam, scheduler, lambda i: excerpts(text, batch, seed, i), lambda i: excerpts(other, batch, seed, i),
        loss, validate, kinds, steps,
    )
