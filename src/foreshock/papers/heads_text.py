"""A small language model of characters that is given whole words: rows of a head, tied to the embedding or not."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.heads import HeadStatistics, grow_rows, init_new_rows
from foreshock.heads.state import fresh_state
from foreshock.monitor import Monitor
from foreshock.papers.heads_measures import readings, row, summary
from foreshock.papers.heads_training import BEFORE, PAPER, TAIL, Boundary, Classes, Trace, loss_peaks
from foreshock.papers.studies import Found, Live, Shelf
from foreshock.papers.text import novels
from foreshock.papers.transformer import Transformer

__all__ = ["METHODS", "Corpus", "corpus", "words"]

CHARACTERS = 600_000  # of the novels that are read
WORDS = 24  # the most frequent ones, with the space before them
LENGTH, BATCH, LR = 32, 16, 3e-3
BASE, STEPS = 700, 120
SAMPLED, TESTED = 300, 150  # excerpts that statistics are made of, and that are tested on
MARKS = (1, 2, 3, 5, 7, 10, 14, 20, 30, 45, 60, 80, 100)

METHODS: Mapping[str, tuple[str, dict[str, Any] | None]] = {
    "random": ("random", None),
    "mean-row": ("mean of old rows", None),
    "pieces": ("mean of its letters' rows", None),
    "unit-mean": ("unit mean", {"method": "unit_mean", "calibrate": None}),
    "ls": ("LS", {"calibrate": None}),
    "as-classes": ("foreshock, half new", {"new_share": 0.5}),
    "foreshock": ("foreshock", {}),
}
"""Name -> (title, settings of `init_new_rows`, None where it is not asked)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text in two spellings.

    Attributes:
        letters: (n,) characters as numbers.
        tokens: (m,) the same with frequent words as one token each.
        starts: (m,) place in `letters` at which each token begins.
        pieces: the characters of each word.
        kinds: number of characters.
    """

    letters: Tensor
    tokens: Tensor
    starts: Tensor
    pieces: tuple[tuple[int, ...], ...]
    kinds: int


def corpus(text: str, count: int = WORDS) -> Corpus:
    """Returns a text as characters, and as characters and its most frequent words, each with the space before it."""
    names = {character: number for number, character in enumerate(sorted(set(text)))}
    found = re.findall(r" [A-Za-z]{2,}\b", text)
    values, counts = np.unique(np.array(found), return_counts=True)
    chosen = [str(values[at]) for at in np.argsort(-counts, kind="stable")[:count]]
    number = {word: len(names) + at for at, word in enumerate(chosen)}
    tokens, starts, at = [], [], 0
    for match in re.finditer(rf"(?:{'|'.join(map(re.escape, chosen))})\b", text):
        for place in range(at, match.start()):
            tokens.append(names[text[place]])
            starts.append(place)
        tokens.append(number[match.group()])
        starts.append(match.start())
        at = match.end()
    for place in range(at, len(text)):
        tokens.append(names[text[place]])
        starts.append(place)
    return Corpus(
        torch.tensor([names[each] for each in text]), torch.tensor(tokens), torch.tensor(starts),
        tuple(tuple(names[each] for each in word) for word in chosen), len(names),
    )  # fmt: skip


def words(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns what 24 words as new tokens do to a language model, by how their rows were chosen.

    Raises:
        MissingExtraError: the novels are not installed.
    """
    text = corpus(novels()[:CHARACTERS])
    numbers: dict[str, float] = {}
    runs, rows, drawn = {}, [], {}
    for place, tied in enumerate((False, True)):
        name, title = ("words-tied", "novels, tied") if tied else ("words", "novels, 24 words")
        setting = Classes(name, title, ((), ()), steps=steps or STEPS)
        live(0.5 * place, f"seed {seed}, {setting.title}: letters")
        start = _begin(text, seed, tied)
        traces: dict[str, Trace] = {}
        read = {}
        for at, (name, (title, _)) in enumerate(METHODS.items()):
            live(0.5 * place + 0.2 + 0.3 * at / len(METHODS), f"seed {seed}, {setting.title}, {title}")
            traces[name] = _learn(text, start, setting, name, seed)
            read[name] = readings(traces[name], traces["random"])
            found = summary(read[name], read["random"])
            numbers |= {f"{setting.name}, {name}: {what}": value for what, value in found.items()}
            runs[f"{setting.name}-{name}-seed-{seed}"] = traces[name].run
            rows.append(row(traces[name], read[name], title))
        drawn[setting.name] = (traces, read)
    return Found(numbers, runs, rows, drawn)


@dataclass(slots=True)
class _Start:
    model: Transformer
    optimizer: dict[str, Any]
    draw: Tensor


def _begin(text: Corpus, seed: int, tied: bool) -> _Start:
    """Returns a model that has read letters up to 150 steps before the words come."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(text.kinds, LENGTH)
    if tied:
        with torch.no_grad():
            model.embedding.weight.mul_(model.embedding.weight.shape[1] ** -0.5)
        model.head.weight = model.embedding.weight
    optimizer, draw = _optimizer(model), torch.Generator().manual_seed(seed)
    for _ in range(BASE - TAIL):
        _step(model, optimizer, _drawn(text.letters, BATCH, draw))
    return _Start(model, copy.deepcopy(optimizer.state_dict()), draw.get_state())


def _learn(text: Corpus, start: _Start, setting: Classes, name: str, seed: int) -> Trace:
    begun = time.process_time()
    model = copy.deepcopy(start.model)
    optimizer, draw = _optimizer(model), torch.Generator()
    optimizer.load_state_dict(copy.deepcopy(start.optimizer))
    draw.set_state(start.draw)
    test = _drawn(text.tokens, TESTED, torch.Generator().manual_seed(31 + seed))
    with Monitor(model, optimizer) as monitor:
        losses = [_step(model, optimizer, _drawn(text.letters, BATCH, draw), monitor) for _ in range(TAIL)]
        new = _grow(model, optimizer, text)
        before = _accuracies(model, test, text.kinds, masked=True)[0]
        report = _choose(text, model, optimizer, monitor, name, new, seed)
        batches = torch.Generator().manual_seed(7 + seed)
        first = _drawn(text.tokens, BATCH, batches)
        with torch.no_grad():
            other = copy.deepcopy(model)
            _random(other, new, seed)
            random = float(_loss(other, first))
        told = [(0, *_accuracies(model, test, text.kinds))]
        taken = []
        for step in range(setting.steps):
            if step in MARKS:
                told.append((step, *_accuracies(model, test, text.kinds)))
            taken.append(_step(model, optimizer, first if step == 0 else _drawn(text.tokens, BATCH, batches), monitor))
        told.append((setting.steps, *_accuracies(model, test, text.kinds)))
        run, events = monitor.run, monitor.events
    table = np.array(told)
    share = float((test[:, 1:] >= text.kinds).double().mean())
    boundary = Boundary(
        TAIL, tuple(new), share, float(np.mean(losses[-BEFORE:])), taken[0], random, before, np.array(taken),
        table[:, 0].astype(int), table[:, 1], table[:, 2], 0.0, report, loss_peaks(events, TAIL),
    )
    title = f"{setting.title}, {name}, seed {seed}"
    run.meta.update(paper=PAPER, arm=name, setting=setting.name, seed=seed, name=title)
    return Trace(setting, name, seed, [boundary], run, time.process_time() - begun)


def _grow(model: Transformer, optimizer: torch.optim.Optimizer, text: Corpus) -> range:
    """Adds tokens: as input each is the mean of its letters, and the optimizer knows nothing of it."""
    new = grow_rows(model.head, len(text.pieces), model=model, optimizer=optimizer)
    if model.embedding.weight is not model.head.weight:
        grow_rows(model.embedding, len(text.pieces), model=model, optimizer=optimizer)
    fresh_state(optimizer, [model.head.weight, model.embedding.weight], new, zero=True)
    _pieces(model.embedding, text, new)
    return new


def _pieces(layer: nn.Embedding | nn.Linear, text: Corpus, new: range) -> None:
    with torch.no_grad():
        for place, letters in zip(new, text.pieces, strict=True):
            layer.weight[place] = layer.weight[list(letters)].mean(dim=0)


def _random(model: Transformer, new: range, seed: int) -> None:
    """Draws the head's rows: as torch draws those of a new layer, or of an embedding as short as this one's."""
    weight = model.head.weight
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if weight is model.embedding.weight:
            weight[list(new)] = weight.shape[1] ** -0.5 * torch.randn(len(new), weight.shape[1], generator=draw)
        else:
            bound = weight.shape[1] ** -0.5
            weight[list(new)] = bound * (2 * torch.rand(len(new), weight.shape[1], generator=draw) - 1)


def _choose(
    text: Corpus, model: Transformer, optimizer: torch.optim.Optimizer, monitor: Monitor, name: str, new: range,
    seed: int,
) -> dict[str, Any]:
    settings = METHODS[name][1]
    if name == "random":
        _random(model, new, seed)
    elif name == "mean-row":
        with torch.no_grad():
            model.head.weight[list(new)] = model.head.weight[: text.kinds].mean(dim=0)
    elif name == "pieces":
        _pieces(model.head, text, new)
    if settings is None:
        return {}
    told = init_new_rows(
        model.head, _statistics(text, model, seed), new, loss="ce", monitor=monitor,
        optimizer=optimizer if name in ("as-classes", "foreshock") else None, **settings,
    )  # fmt: skip
    return told.to_dict()


def _statistics(text: Corpus, model: Transformer, seed: int) -> HeadStatistics:
    """Returns statistics of excerpts: what the head reads before each token, and which token it is."""
    statistics = HeadStatistics(model.head.in_features)
    excerpts = _drawn(text.tokens, SAMPLED, torch.Generator().manual_seed(97 + seed))
    for part in torch.split(excerpts, BATCH):
        statistics.update(_features(model, part[:, :-1]), part[:, 1:])
    return statistics


def _features(model: Transformer, characters: Tensor) -> Tensor:
    kept: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    with torch.no_grad():
        model(characters)
    hook.remove()
    return kept[0]


def _accuracies(model: Transformer, test: Tensor, kinds: int, *, masked: bool = False) -> tuple[float, float]:
    """Returns how often the next token is told right: where it is a character, and where it is a word."""
    with torch.no_grad():
        logits = model(test[:, :-1])
        if masked:
            logits[..., kinds:] = -torch.inf
        right = logits.argmax(dim=-1) == test[:, 1:]
    word = test[:, 1:] >= kinds
    return float(right[~word].double().mean()), float(right[word].double().mean())


def _loss(model: Transformer, excerpts: Tensor) -> Tensor:
    return functional.cross_entropy(model(excerpts[:, :-1]).flatten(0, 1), excerpts[:, 1:].flatten())


def _step(
    model: Transformer, optimizer: torch.optim.Optimizer, excerpts: Tensor, monitor: Monitor | None = None
) -> float:
    loss = _loss(model, excerpts)
    if monitor is not None:
        monitor.observe(loss)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _drawn(tokens: Tensor, count: int, draw: torch.Generator) -> Tensor:
    starts = torch.randint(len(tokens) - LENGTH - 1, (count,), generator=draw)
    return tokens[starts[:, None] + torch.arange(LENGTH + 1)]


def _optimizer(model: Transformer) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
