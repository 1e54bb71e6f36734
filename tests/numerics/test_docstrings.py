"""Every example in a docstring of the numerics is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import foreshock.numerics

MODULES = [found.name for found in pkgutil.walk_packages(foreshock.numerics.__path__, "foreshock.numerics.")]
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> int:
    # the kernels are written in Triton, which need not be there
    parts = [] if name.endswith(".kernel") else FINDER.find(importlib.import_module(name))
    return sum(len(part.examples) for part in parts)


@pytest.mark.parametrize("name", [name for name in MODULES if examples(name)])
def test_the_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_numerics_are_searched() -> None:
    assert len([name for name in MODULES if examples(name)]) > 5
