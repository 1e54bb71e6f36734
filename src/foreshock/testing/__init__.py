"""Contracts that anybody can run on a class or a function of their own, and faults to try a guard with.

`check_detector`, `check_policy` and `check_optimizer` raise `ContractError` at the first clause that is broken.
`foreshock.testing.faults` makes trainings go wrong. Imports torch only where it is asked for what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foreshock.testing.contract import ContractError
from foreshock.testing.detectors import check_detector

if TYPE_CHECKING:
    from foreshock.testing.optimizers import check_optimizer
    from foreshock.testing.policies import check_policy

_LAZY = {"check_optimizer": "foreshock.testing.optimizers", "check_policy": "foreshock.testing.policies"}

__all__ = ["ContractError", "check_detector", "check_optimizer", "check_policy"]


def __getattr__(name: str) -> Any:
    if name == "faults":
        return importlib.import_module("foreshock.testing.faults")
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
