"""The page on batch sizes shows what happens."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "batch-size.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    with torch.random.fork_rng(devices=[]):
        for block in found:
            exec(compile(block, "batch-size.md", "exec"), names)
    assert len(found) >= 4
    assert "done" in names
