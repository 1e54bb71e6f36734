"""Every example in a docstring of the rooms for stability and curvature is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import foreshock.curvature
import foreshock.stability

MODULES = sorted(
    {"foreshock.curvature", "foreshock.stability"}
    | {
        found.name
        for room in (foreshock.curvature, foreshock.stability)
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    }
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> int:
    return sum(len(each.examples) for each in FINDER.find(importlib.import_module(name)))


@pytest.mark.parametrize("name", [name for name in MODULES if examples(name)])
def test_the_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_rooms_are_searched() -> None:
    assert len([name for name in MODULES if examples(name)]) > 15
