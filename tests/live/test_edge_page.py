"""What the page about the edge shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "edge.md"


def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "loss_fn": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(40)],
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "edge.md", "exec"), names)
    assert names["steps"].tolist() == [10, 20, 30]
    assert (names["chi"] > 0).all()
