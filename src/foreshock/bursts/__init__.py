"""How far an optimizer goes after one burst of gradient: closed forms, from its name and settings. No torch."""

from __future__ import annotations

from foreshock.bursts.response import BurstResponse, burst_response, of_group, one_burst, worded
from foreshock.bursts.table import known

__all__ = ["BurstResponse", "burst_response", "known", "of_group", "one_burst", "worded"]
