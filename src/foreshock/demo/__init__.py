"""Three short trainings on real data, each spiking for a different reason."""

from __future__ import annotations

from foreshock.demo.absorption import SCENARIO as ABSORPTION
from foreshock.demo.bad_batch import SCENARIO as BAD_BATCH
from foreshock.demo.preconditioner import SCENARIO as PRECONDITIONER
from foreshock.demo.scenario import Scenario, Training, train

__all__ = ["ABSORPTION", "BAD_BATCH", "PRECONDITIONER", "SCENARIOS", "Scenario", "Training", "train"]

SCENARIOS: tuple[Scenario, ...] = (ABSORPTION, BAD_BATCH, PRECONDITIONER)
