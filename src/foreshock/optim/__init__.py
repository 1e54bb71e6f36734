"""Optimizers whose step stays bounded, and what a gradient burst does to any optimizer."""

from __future__ import annotations

from foreshock.optim.burst import BurstResponse, burst_response
from foreshock.optim.s3 import S3
from foreshock.optim.transfer import Transfer

__all__ = ["S3", "BurstResponse", "Transfer", "burst_response"]
