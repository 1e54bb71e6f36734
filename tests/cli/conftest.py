"""What the command line's tests share: a way to call it, and a run with one spike."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner, Result

from foreshock.cli import main
from foreshock.run import Run

SPIKE_AT = 300


@pytest.fixture
def foreshock(tmp_path, monkeypatch):
    """Calls the command line in an empty working directory: `foreshock("scan", "runs/a")`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if code is not None:
            assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def curve() -> np.ndarray:
    """A loss that falls with some noise; no event in it."""
    steps = np.arange(500)
    return 2 / (1 + steps / 100) + 0.02 * np.random.default_rng(0).standard_normal(500)


@pytest.fixture
def spiked(curve) -> np.ndarray:
    """The same loss with one spike."""
    curve = curve.copy()
    curve[SPIKE_AT : SPIKE_AT + 3] += [3.0, 1.5, 0.5]
    return curve


@pytest.fixture
def runs(foreshock, tmp_path, curve, spiked):
    """Two run directories: runs/calm and runs/spiked."""
    Run.from_arrays({"loss": curve}, name="calm").save(tmp_path / "runs" / "calm")
    Run.from_arrays({"loss": spiked}, name="spiked", lr=0.1).save(tmp_path / "runs" / "spiked")
    return tmp_path / "runs"
