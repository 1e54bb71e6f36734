"""What the page about the landscape shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_blocks_of_the_page_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "landscape.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, "landscape.md", "exec"), names)
    assert names["loss"].notes[0].startswith("one batched pass")
    assert (tmp_path / "surface.png").stat().st_size > 10_000


def test_the_picture_is_there_and_small() -> None:
    picture = (ROOT / "docs" / "images" / "landscape-surface.png").read_bytes()
    assert picture[:4] == b"\x89PNG"
    assert len(picture) < 400_000
