"""The page's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "new-heads.md"


def test_the_example_of_the_page_starts_low(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    exec(block, names)
    assert names["report"].init_spike_ratio < 1 / 3
    assert capsys.readouterr().out.startswith("2 new rows by ls")
