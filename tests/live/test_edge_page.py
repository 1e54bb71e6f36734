"""What the pages about the edge and about the forecast show is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"


def run(page: str) -> tuple[int, dict[str, Any]]:
    """Runs the blocks of a page, one after the other; returns how many there are, and their names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "loss_fn": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(40)],
    }
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return len(blocks), names


def test_the_blocks_of_the_page_about_the_edge_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks, names = run("edge.md")
    assert blocks == 3
    assert names["steps"].tolist() == [10, 20, 30]
    assert (names["chi"] > 0).all()


def test_the_blocks_of_the_page_about_the_forecast_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks, names = run("forecast.md")
    assert blocks == 2
    assert len(names["monitor"].run) == 40
