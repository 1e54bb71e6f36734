"""Every example in a docstring of this room is run, and every public name is there."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from foreshock import landscape

MODULES = [f"foreshock.landscape.{found.name}" for found in pkgutil.iter_modules(landscape.__path__)]
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> int:
    return sum(len(each.examples) for each in FINDER.find(importlib.import_module(name)))


@pytest.mark.parametrize("name", [name for name in MODULES if examples(name)])
def test_the_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_room_is_searched() -> None:
    assert len([name for name in MODULES if examples(name)]) >= 10


@pytest.mark.parametrize("name", landscape.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    value = getattr(landscape, name)
    assert (value.__doc__ or "").strip()
    assert name in dir(landscape)


def test_no_module_has_the_name_of_a_function() -> None:
    """It would take the function's place in the package once it is imported."""
    assert {name.rpartition(".")[2] for name in MODULES} & set(landscape.__all__) == {"figures"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quake'"):
        _ = landscape.quake
