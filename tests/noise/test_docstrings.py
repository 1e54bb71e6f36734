"""What the docstrings of the noise scale show is what happens."""

from __future__ import annotations

import doctest
import importlib

import pytest

SHOWN = (
    "noise.examples", "noise.layers", "noise.catch", "noise.once", "batch_size.estimate", "batch_size.pairs",
    "batch_size.ratio", "batch_size.collapse",
)  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"foreshock.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
