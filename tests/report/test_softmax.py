"""What the page and the terminal say of a softmax in low precision, and of the causes of an event."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreshock.cli import main
from foreshock.detect import scan
from foreshock.report import summary, write
from foreshock.report.explained import explained, lines
from foreshock.report.phrase import plain
from foreshock.run import Event, Run

from ..detect.softmax import HEALTHY, PERIOD, SPIKE, constant, slingshot
from ..detect.test_stages import of_kind, thinned, tl_run
from .browser import needs_chromium, visit


@cache
def run() -> Run:
    return slingshot()


@cache
def events() -> list[Event]:
    return scan(run())


def spike(step: int = SPIKE) -> Event:
    """Returns the spike whose onset is nearest to a step."""
    found = [event for event in events() if event.kind == "spike"]
    return min(found, key=lambda event: abs(event.onset - step))


def details(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="run-1-data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1])["details"]


def test_the_sentence_says_since_when_what_inflated_how_long_before_and_what_ends_it() -> None:
    text = plain(explained(run(), spike()).sentence)
    assert text.startswith("A softmax in low precision: from step 630 on the right class's gradient of 70 to 92")
    assert re.search(r"the class mean of the head grew 5\.\d-fold and the mean feature grew \d\d-fold against it", text)
    assert re.search(r"until one step shifted a logit by [34]\.\d nats\. It began 610 steps before the loss", text)
    assert text.endswith("Float64 finds another gradient for the same logits; foreshock.cross_entropy ends it.")


def test_a_warning_before_the_loss_moves_says_so() -> None:
    part = run().window(0, 900)
    warning = next(event for event in scan(part) if event.kind == "inflating")
    text = plain(explained(part, warning).sentence)
    assert "The loss has not risen yet." in text
    assert "nats" not in text


def test_a_later_cycle_speaks_of_the_features_alone() -> None:
    text = plain(explained(run(), spike(SPIKE + PERIOD)).sentence)
    assert re.search(r"the mean feature grew 1\.[1-4]-fold", text)
    assert "class mean of the head" not in text


def test_the_levels_are_bands_that_follow_each_other_up_to_the_rise() -> None:
    found = explained(run(), spike()).softmax
    assert [name for name, _, _ in found.levels] == ["absorbing", "inflating", "imminent"]
    assert all(a[2] + 1 == b[1] for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert found.levels[0][1] == 630
    assert found.levels[-1][2] == found.slide.rise
    assert found.first < 630 < found.slide.rise < found.last


def test_chi_tells_no_story_of_its_own_where_the_softmax_did_it() -> None:
    at = np.arange(len(run()))
    chi = np.where((at >= SPIKE) & (at < SPIKE + 5), 3.0, 0.4)
    columns = {name: run()[name] for name in run().columns if name not in ("step", "time")}
    both = Run.from_arrays(columns | {"chi": chi})
    found = explained(both, spike())
    assert found.softmax is not None
    assert found.curvature is None
    assert not any("chi passed 1" in line for line in lines(both, [spike()]))


def test_one_line_for_each_slide() -> None:
    found = lines(run(), events())
    assert len(found) == 3
    assert found[0].startswith("spike at step")
    assert "softmax in low precision: absorbed from 630, inflated from 800, above a nat a step from 1,020" in found[0]
    assert found[0].endswith("610 steps ahead of the loss")
    text = summary(run(), events())
    assert "How it came about:" in text
    assert found[1] in text
    assert re.search(r"3 absorptions, 3 head inflations,? .*3 softmax alarms|3 softmax alarms", text)
    assert "curvature alarm" not in text


@pytest.mark.parametrize("name", ["exact loss", "half of the rows collapsed"])
def test_a_spike_of_another_kind_has_no_such_story(name: str) -> None:
    healthy = constant(1300, **HEALTHY[name])
    rise = Event("spike", 1280, 1280, 1281, 1290, 0.3, 80.0, "loss")
    assert explained(healthy, rise).softmax is None
    assert lines(healthy, [rise]) == []


def test_a_spike_that_curvature_and_softmax_are_innocent_of_points_at_the_data() -> None:
    at = np.arange(1300)
    loss = np.where((at >= 1280) & (at < 1283), 5.0, 1.0)
    healthy = Run.from_arrays({
        "loss": loss, "chi": np.full(1300, 0.4), "softmax_absorbed": np.zeros(1300),
        "softmax_residual": np.full(1300, 1e-7),
    })  # fmt: skip
    text = plain(explained(healthy, Event("spike", 1280, 1280, 1280, 1283, 4.0, 80.0, "loss")).sentence)
    assert text.startswith("Not made by curvature: chi stayed at 0.4")
    assert text.endswith("nor by the softmax, whose gradients are exact enough. Look at the data and the noise.")


def test_the_page_holds_story_and_causes(tmp_path: Path) -> None:
    found = details(write(run(), tmp_path / "page.html", events=events()))
    told = [detail for detail in found if detail["softmax"]]
    assert len(told) >= 9  # three of each level, and the spikes
    for detail in told:
        story = detail["softmax"]
        assert [panel["name"] for panel in story["panels"]] == ["absorbed", "head", "features", "cosine", "step"]
        assert detail["approach"] is None
        best = detail["causes"]["causes"][0]
        assert best["name"] == "softmax_absorption"
        assert any("foreshock.cross_entropy(logits, target)" in line for line in best["advice"])
        assert len(json.dumps(detail["softmax"])) < 30_000


def test_spikes_of_curvature_get_their_causes_and_no_advice_twice(tmp_path: Path) -> None:
    curved = thinned(tl_run(), 100)
    found = details(write(curved, tmp_path / "page.html", events=of_kind(curved, "spike")))
    for detail in found:
        names = [cause["name"] for cause in detail["causes"]["causes"]]
        assert set(names) & {"preconditioner", "landscape"}
        assert detail["approach"]["advice"]
        assert all(not cause["advice"] for cause in detail["causes"]["causes"])
        assert detail["causes"]["unjudged"][0]["title"] == "a softmax in low precision"


def test_a_run_without_a_head_shows_what_there_is(tmp_path: Path) -> None:
    bare = constant(1300, absorbed=0.9, residual=0.5, error=0.5, wrong=1e-8)
    rise = Event("spike", 1280, 1280, 1281, 1290, 0.3, 80.0, "loss")
    [detail] = details(write(bare, tmp_path / "page.html", events=[rise]))
    assert [panel["name"] for panel in detail["softmax"]["panels"]] == ["absorbed"]


def test_scan_says_it_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run().save(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["scan", str(path)])
    assert capsys.readouterr().out.count("softmax in low precision: absorbed from") == 3


@needs_chromium
def test_story_and_causes_are_drawn_without_an_error(tmp_path: Path) -> None:
    page = write(run(), tmp_path / "page.html", events=events())
    place = 1 + sorted(events(), key=lambda event: (event.onset, event.raised)).index(spike())
    body = f"""
    location.hash = article.id + "/event-{place}";
    for (let i = 0; i < 10; i++) await frame();
    const story = article.querySelector('[data-slot="approach"]'), why = article.querySelector('[data-slot="causes"]');
    const charts = [...story.querySelectorAll("canvas")];
    const extra = {{
      title: article.querySelector('[data-slot="title"]').innerText, story: story.innerText, why: why.innerText,
      drawn: charts.length, empty: charts.filter((c) => !pixels(c).some(Boolean)).length,
      bars: why.querySelectorAll(".score").length, open: why.querySelectorAll("details[open]").length,
    }};
    """
    [seen] = visit(page, tmp_path, body)
    assert seen["errors"] == "0", seen["error"]
    assert (seen["drawn"], seen["empty"]) == (6, 0)
    assert "absorbing 630" in seen["story"].replace("\n", " ")
    assert seen["why"].startswith("Why")
    assert "loss = foreshock.cross_entropy(logits, target)" in seen["why"]
    assert (seen["bars"] >= 1, seen["open"]) == (True, 1)
