"""Data that is given back: batches that a guard refused come again later, at once, or never."""

from __future__ import annotations

from foreshock.requeue.wrapper import OUTCOMES, Requeue

__all__ = ["OUTCOMES", "Requeue"]
