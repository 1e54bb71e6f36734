"""How far an optimizer goes after one burst of gradient: closed forms, from its name and settings. No torch."""

from __future__ import annotations

from foreshock.bursts.response import (
    BurstResponse,
    burst_response,
    first_updates,
    largest_update,
    of_group,
    one_burst,
    worded,
)
from foreshock.bursts.table import known

__all__ = [
    "BurstResponse", "burst_response", "first_updates", "known", "largest_update", "of_group", "one_burst", "worded",
]  # fmt: skip
