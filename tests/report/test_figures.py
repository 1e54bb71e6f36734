from __future__ import annotations

import builtins
import io
import sys
from typing import Any

import numpy as np
import pytest

from foreshock.errors import MissingExtraError, UsageError
from foreshock.report import figures
from foreshock.run import Run

from .runs import odd_runs, spike, spiky

matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib")


def size(figure: Any) -> int:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=60)
    return len(buffer.getvalue())


def test_figures_show_the_run_without_touching_pyplot_or_defaults() -> None:
    before = {key: matplotlib.rcParams[key] for key in ("font.size", "axes.grid", "figure.dpi")}
    run, events = spiky(), [spike(200), spike(420)]
    assert size(figures.loss(run, events)) > 2000
    figure = figures.event(run, events[0], events)
    assert size(figure) > 5000
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "loss"
    assert {"grad_norm [gradient]", "v_ratio"} <= set(titles)
    assert size(figures.heatmap(run, "grad_norm")) > 2000
    assert {key: matplotlib.rcParams[key] for key in before} == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_loss_figure_keeps_a_peak_of_one_step_in_a_long_run() -> None:
    loss = np.ones(100_000)
    loss[54_321] = 7.0
    line = figures.loss(Run.from_arrays({"loss": loss})).axes[0].lines[0]
    assert line.get_ydata().max() == 7.0
    assert len(line.get_xdata()) < 4000


def test_a_signal_with_an_edge_shows_it() -> None:
    loss = np.ones(400)
    loss[300:303] = 9.0
    run = Run.from_arrays({"loss": loss, "chi": 0.3 * loss, "grad_norm": loss})
    figure = figures.event(run, spike(300), [spike(300)])
    dashed = {
        axes.get_title(loc="left"): [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        for axes in figure.axes
    }
    assert dashed["chi"] == [1.0]
    assert dashed["loss"] == []


@pytest.mark.parametrize(
    "name", ["one_step_event", "all_nan", "negative", "half_nan", "sparse_steps", "event_past_end"]
)
def test_odd_runs_can_be_drawn_or_say_why_not(name: str) -> None:
    run, events = odd_runs()[name]
    if "loss" in run:
        assert size(figures.loss(run, events)) > 500
    for event in events:
        assert size(figures.event(run, event, events)) > 500


def test_a_missing_signal_is_named() -> None:
    with pytest.raises(UsageError, match="no per-tensor 'v_ratio' in this run; it has: grad_norm"):
        figures.heatmap(spiky(), "v_ratio")
    with pytest.raises(UsageError, match="holds no records"):
        figures.event(Run.from_arrays({}), spike(3))


def test_without_matplotlib_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingExtraError, match=r"pip install 'foreshock\[figures\]'"):
        figures.loss(spiky())
