"""The noise scale among the key figures of a run."""

from __future__ import annotations

import numpy as np
import pytest

from foreshock.report.columns import BOOKKEEPING
from foreshock.report.noise import noise_figure
from foreshock.report.summary import tiles
from foreshock.run import Run
from foreshock.run.absent import ABSENT


def recorded(*rows: dict[str, float]) -> Run:
    names = sorted({name for row in rows for name in row})
    columns = {name: np.array([row.get(name, ABSENT) for row in rows]) for name in names}
    return Run.from_arrays({"loss": np.ones(len(rows)), **columns})


READ = {"noise_trace": 4.0, "noise_square": 0.1, "noise_gated": 0.0}
KNOWN = READ | {"noise_scale": 40.0, "noise_low": 30.0, "noise_high": 60.0}


@pytest.mark.parametrize(
    ("rows", "value", "note"),
    [
        ([KNOWN, {}], "40", "30 to 60 examples, at step 0"),
        ([KNOWN, READ], "none", "not distinguishable"),
        ([READ], "none", "not distinguishable"),
        ([KNOWN, {"noise_gated": 1.0}, {}], "none", "gated at step 1"),
    ],
)
def test_the_last_reading_is_shown_with_its_band_or_why_there_is_none(rows, value, note):
    run = recorded(*rows)
    found = noise_figure(run)
    assert found[0] == value
    assert note in found[1]
    (tile,) = [tile for tile in tiles(run, []) if tile.label == "Noise scale"]
    assert (tile.value, tile.note) == found


def test_a_run_without_it_shows_nothing_and_its_band_is_no_sign_of_anything():
    run = Run.from_arrays({"loss": np.ones(5)})
    assert noise_figure(run) is None
    assert {"noise_scale", "noise_low", "noise_high", "noise_factor", "noise_gated"} <= BOOKKEEPING
