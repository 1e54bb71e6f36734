"""What all contracts share: the error that names a broken clause."""

from __future__ import annotations


class ContractError(AssertionError):
    """A clause of a contract that a class broke; the message names the clause, what was done and what was seen."""
