from __future__ import annotations

import numpy as np
import pytest

from foreshock.report import heat
from foreshock.report.heat import around, whole
from foreshock.run import Run

from .runs import spiky


def test_cells_are_log_ratios_to_the_level_before_the_event() -> None:
    table = np.ones((100, 3)) * [1.0, 10.0, 1e-8]
    table[60:, 1] *= np.e**2
    found = around("grad_norm", ("a", "b", "c"), np.arange(100), table, before=60, rows=3, columns=100)
    assert found is not None
    assert found.ratio
    np.testing.assert_allclose(found.reference, [1.0, 10.0, 1e-8])
    np.testing.assert_allclose(found.values[1], np.where(np.arange(100) < 60, 0, 2.0), atol=1e-12)
    np.testing.assert_allclose(found.values[[0, 2]], 0, atol=1e-12)


def test_the_tensors_that_moved_most_are_shown_in_model_order() -> None:
    table = np.ones((50, 30))
    table[40, 20], table[41, 7] = 9.0, 0.01
    names = tuple(f"t{i}" for i in range(30))
    found = around("grad_norm", names, np.arange(50), table, before=30, rows=2, columns=50)
    assert found is not None
    assert found.names == ("t7", "t20")
    assert found.total == 30


def test_signals_that_can_be_negative_show_differences() -> None:
    table = np.full((40, 1), 0.9)
    table[30:] = -0.5
    found = around("grad_cosine", ("a",), np.arange(40), table, before=30, rows=5, columns=40)
    assert found is not None
    assert not found.ratio
    assert found.values[0, -1] == pytest.approx(-1.4)


def test_nothing_measured_is_no_heat_map() -> None:
    assert around("a", ("x",), np.arange(3), np.full((3, 1), np.nan), before=2, rows=1, columns=3) is None
    assert whole(Run.from_arrays({"grad_norm/a": np.full(5, np.nan)}), "grad_norm", rows=1, columns=3) is None
    assert whole(Run.from_arrays({}), "grad_norm", rows=1, columns=3) is None


@pytest.mark.parametrize("cells", [50, 4_000_000])
def test_reading_in_pieces_changes_nothing_and_keeps_one_step_peaks(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spiky()
    monkeypatch.setattr(heat, "CELLS_AT_ONCE", cells)
    found = whole(run, "grad_norm", rows=10, columns=60)
    assert found is not None
    assert found.names == tuple(f"layer{i}.weight" for i in range(5))
    assert found.values.shape == (5, 60)
    ratio = run["grad_norm/layer2.weight"].max() / found.reference[2]
    assert np.exp(found.values[2].max()) == pytest.approx(ratio, rel=0.2)
    assert any(at - 10 <= found.starts[found.values[2].argmax()] < at + 20 for at in (200, 420))


def test_a_signal_measured_now_and_then_has_no_empty_columns() -> None:
    sparse = np.full(1000, np.nan)
    sparse[::50] = 1.0
    found = whole(Run.from_arrays({"loss": np.ones(1000), "grad_norm/a": sparse}), "grad_norm", rows=1, columns=400)
    assert found is not None
    assert np.isfinite(found.values).all()


def test_a_cell_shows_the_median_but_never_hides_an_unusual_step() -> None:
    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal((10_000, 1)))
    noise[7_777] = 50.0
    found = around("grad_norm", ("a",), np.arange(10_000), noise, before=5_000, rows=1, columns=100)
    assert found is not None
    assert found.values[0, 77] == pytest.approx(np.log(50), abs=0.1)
    assert np.abs(np.delete(found.values[0], 77)).max() < 0.5
    assert np.median(np.abs(found.values[0])) < 0.05
