"""How large a part of the batches new classes are taken for: a half beside rehearsed ones, their own in a text."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from foreshock.heads import HeadStatistics, init_new_rows

D, TOKENS, NEW = 24, 40, [40, 41, 42]
SAID = "new classes are taken for"


def text(n: int, seed: int, share: float = 0.06) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features and next tokens: old tokens by Zipf's law, features that tell a little of what follows."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(TOKENS + len(NEW), D, generator=torch.Generator().manual_seed(9))
    odds = torch.cat([(1 - share) * functional.normalize(1 / torch.arange(1.0, TOKENS + 1), p=1, dim=0),
                      torch.full((len(NEW),), share / len(NEW))])  # fmt: skip
    tokens = torch.multinomial(odds, n, replacement=True, generator=draw)
    return torch.randn(n, D, generator=draw) + 0.4 * means[tokens], tokens


def trained() -> nn.Linear:
    h, y = text(3000, 1)
    torch.manual_seed(0)
    head = nn.Linear(D, TOKENS + len(NEW), bias=False)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        old = y < TOKENS
        functional.cross_entropy(head(h[old])[:, :TOKENS], y[old]).backward()
        optimizer.step()
    return head


def first_loss(head: nn.Linear, **settings: object) -> tuple[float, tuple[str, ...]]:
    statistics = HeadStatistics(D)
    statistics.update(*text(3000, 2))
    told = init_new_rows(head, statistics, NEW, loss="ce", **settings)
    h, y = text(3000, 3)
    return functional.cross_entropy(head(h), y).item(), told.warnings


def test_new_tokens_of_a_text_count_as_often_as_they_come():
    own, said = first_loss(trained())
    half, unsaid = first_loss(trained(), new_share=0.5)
    random, _ = first_loss(trained(), method="random")
    assert own < min(half, random)
    assert any(SAID in each for each in said)
    assert not any(SAID in each for each in unsaid)


@pytest.mark.parametrize("new", [20, 300])
def test_beside_rehearsed_classes_new_ones_are_half_of_a_batch(new):
    draw = torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(5).repeat_interleave(30), torch.full((new,), 5)])
    h = torch.randn(len(y), D, generator=draw) + 2 * torch.eye(6, D)[y]
    told = []
    for settings in ({}, {"new_share": 0.5}, {"batch": (h[-100:], y[-100:])}):
        torch.manual_seed(0)
        head, statistics = nn.Linear(D, 6), HeadStatistics(D)
        statistics.update(h, y)
        told.append((init_new_rows(head, statistics, [5], loss="ce", **settings), head.weight.detach().clone()))
    assert torch.equal(told[0][1], told[1][1])
    assert not any(SAID in each for each in told[0][0].warnings)
    assert torch.equal(told[2][1], told[0][1]) == (not 0 < (y[-100:] == 5).double().mean() < 1)


def test_the_share_of_a_given_batch_is_taken():
    h, y = text(400, 4)
    y[:40] = 40
    rows = []
    for settings in ({"batch": (h, y)}, {"new_share": float((y >= TOKENS).double().mean())}):
        head, statistics = trained(), HeadStatistics(D)
        statistics.update(*text(3000, 2))
        init_new_rows(head, statistics, NEW, loss="ce", **settings)
        rows.append(head.weight.detach()[NEW].clone())
    assert torch.equal(*rows)
