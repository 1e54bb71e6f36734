"""Contracts that anybody can run on a class of their own."""

from __future__ import annotations

from foreshock.testing.detectors import ContractError, check_detector

__all__ = ["ContractError", "check_detector"]
