"""Watching a demo training: nothing about it changes, and only an older demo is ever replaced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from foreshock import demo
from foreshock.cli import main
from foreshock.demo import BAD_BATCH, SCENARIOS, Scenario, Training, train
from foreshock.demo.runner import make_room, watch
from foreshock.errors import RunError
from foreshock.run import Run


def shortened(scenario: Scenario, steps: int = 120) -> Scenario:
    def build(seed: int) -> Training:
        whole = scenario.build(seed)
        return Training(whole.model, whole.optimizer, whole.loss, steps)

    return replace(scenario, build=build)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_watched_training_is_bitwise_the_unwatched_one(scenario, tmp_path):
    threads = torch.get_num_threads()
    scenario = shortened(scenario)
    seen = []
    outcome = watch(scenario, 1, tmp_path / "run", lambda *state: seen.append(state))
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    alone = torch.stack(train(scenario.build(1))).numpy()
    torch.set_num_threads(threads)
    assert np.array_equal(outcome.run["loss"], alone)
    assert seen[-1][:2] == (120, 120)
    meta = Run.load(tmp_path / "run").meta
    assert meta["title"] == scenario.title
    assert meta["demo"] == scenario.name


def test_only_a_demo_is_replaced(tmp_path):
    make_room(tmp_path / "absent")
    watch(shortened(BAD_BATCH, 5), 0, tmp_path / "demo")
    make_room(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    Run.from_arrays({"loss": [1.0]}).save(tmp_path / "precious")
    (tmp_path / "folder").mkdir()
    for place in ("precious", "folder"):
        with pytest.raises(RunError, match="not from an earlier demo"):
            make_room(tmp_path / place)
        assert (tmp_path / place).exists()


def test_the_command_ends_in_a_table_and_one_page(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SCENARIOS", tuple(map(shortened, SCENARIOS)))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time replaces the first
        result = CliRunner().invoke(main, ["demo", "-o", "page.html"], catch_exceptions=False)
        assert result.exit_code == 0
        for scenario in SCENARIOS:
            assert scenario.title in result.stdout
            assert len(Run.load(tmp_path / "runs" / "demo" / scenario.name)) == 120
    page = (tmp_path / "page.html").read_text()
    assert all(scenario.title in page for scenario in SCENARIOS)
