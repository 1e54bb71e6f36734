"""What the page, the terminal and the figures say of an event of the curvature family."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreshock.cli import main
from foreshock.diagnose import advice, approach
from foreshock.errors import UsageError
from foreshock.report import figures, summary, write
from foreshock.report.approach import lines, to_json, told, unread
from foreshock.report.phrase import plain
from foreshock.run import ABSENT, Event, Run

from ..detect.test_stages import descent_run, of_kind, quad_run, thinned, tl_run, watched
from .browser import needs_chromium, visit


def spike_of(run: Run, place: int = 1) -> Event:
    return of_kind(run, "spike")[place]


def said(run: Run, event: Event) -> str:
    found = told(run, event)
    assert found is not None
    return plain(found.sentence)


def test_the_sentence_says_who_when_how_long_before_where_and_what_would_help() -> None:
    run = thinned(tl_run(), 100)
    event = spike_of(run, 3)
    text, how, held = said(run, event), approach(run, event), advice(run, event)
    assert "second moment decayed freely" in text
    assert f"chi passed 1 at step {how.marks.crossing:,}" in text
    assert f"{how.lead_turn} steps before the loss turned and {how.lead_rise} before it had risen 1.5 times" in text
    assert f"The unstable direction lay in {how.tensor}" in text
    assert re.search(r"eps ≥ [\d.e-]+ from then on would have held it\.$", text)
    assert held["eps"].value > 0


def test_gradient_descent_is_a_matter_of_the_landscape() -> None:
    event = next(event for event in watched(descent_run()) if event.onset > 4400)
    text = said(descent_run(), event)
    assert text.startswith("The landscape sharpened until the step was too long: chi passed 1 at step 4,52")
    assert "lr ≤ 0.04" in text


def test_an_alarm_that_goes_on_says_what_is_known_so_far() -> None:
    watch = watched(tl_run())[1]
    run = tl_run().window(0, watch.raised + 4)
    event = Event("watch", watch.raised, watch.onset, watch.raised, None, 0.0, 1.0, "chi")
    assert "the loss still falls" in said(run, event)
    assert "would hold it" in said(run, event)
    foretold = replace(event, data={"expected": 3.2, "expected_in": 41.0})
    assert f"foretold to rise 3.2 times, 1.5 times by step {watch.raised + 41:,}" in said(run, foretold)


def test_a_summary_ends_with_what_is_coming() -> None:
    watches = watched(tl_run())
    part = tl_run().window(0, watches[2].raised + 6)
    now = replace(watches[2], peak=watches[2].raised, end=watches[2].raised + 5)
    text = summary(part, [*of_kind(part, "spike"), *watches[:2], now])
    assert "Now, at the last record, chi is above 1." in text
    assert f"chi passed 1 at step {watches[2].onset:,} and stands at" in text
    whole = summary(tl_run(), [*of_kind(tl_run(), "spike"), *watches])
    assert "Now" not in whole


def test_chi_that_came_and_went_and_chi_that_stayed_low() -> None:
    n = 400
    chi = 0.8 + 0.3 * np.exp(-(((np.arange(n) - 200) / 20) ** 2))
    run = Run.from_arrays({"loss": np.exp(-np.arange(n) / 300), "chi": chi})
    assert "fell back below it" in said(run, watched(run)[0])
    loss = np.ones(n)
    loss[300:304] = 5
    event = Event("spike", 300, 300, 300, 303, 4.0, 50.0, "loss")
    calm = Run.from_arrays({"loss": loss, "chi": np.full(n, 0.4)})
    assert said(calm, event).startswith("Not made by curvature: chi stayed at 0.4")
    assert told(Run.from_arrays({"loss": loss}), event) is None
    assert told(calm, Event("drift", 300, 300, 300, 303, 4.0, 50.0, "loss")) is None


def test_one_line_for_each_crossing() -> None:
    run = thinned(tl_run(), 100)
    events = [*watched(run), *of_kind(run, "spike")]
    found = lines(run, events)
    crossings = {approach(run, event).marks.crossing for event in watched(run)}
    assert len(found) == len(crossings)
    assert all(each.startswith("spike at step") for each in found)
    assert re.search(r"preconditioner \d+\s%.* landscape \d+\s%|preconditioner \d+\s% \(landscape", found[-1])
    assert re.search(r"; edge in [wbac]; chi passed 1 at step \d", found[-1])
    text = summary(run, events)
    assert "How it came about:" in text
    assert found[0] in text
    assert lines(Run.from_arrays({"loss": run["loss"]}), events) == []


def test_the_page_holds_the_story_within_what_it_shows(tmp_path: Path) -> None:
    run = thinned(tl_run(), 100)
    events = of_kind(run, "spike")
    text = write(run, tmp_path / "page.html", events=events).read_text(encoding="utf-8")
    found = re.search(r'id="run-1-data">(.*?)</script>', text, re.DOTALL)
    details = [detail["approach"] for detail in json.loads(found[1])["details"]]
    assert len(details) == len(events)
    for story in details:
        names = [name for name, *_ in story["stages"]]
        assert names[-4:] == ["silent", "onset", "refill", "decay"]
        assert story["first"] < story["crossing"] < story["risen"] <= story["peak"] <= story["last"]
        assert sum(part["share"] for part in story["shares"]) == pytest.approx(1, abs=0.02)
        assert [item["label"] for item in story["advice"]][:3] == ["eps", "floor under sqrt(v)", "learning rate"]
        assert story["drivers"]["parts"].keys() == {"preconditioner", "landscape"}
        assert story["second"]["tensor"] in {"w", "b", "a", "c"}
    assert len(json.dumps(details[0])) < 60_000


def test_a_story_costs_the_page_little_however_long_the_run() -> None:
    run = quad_run()
    found = told(run, watched(run)[0])
    assert len(json.dumps(to_json(run, found))) < 60_000
    n = 30_000
    chi = np.where(np.arange(n) < n - 200, 0.3 + 0.7 * np.arange(n) / (n - 200), 1.05)
    long = Run.from_arrays({"loss": np.exp(-np.arange(n) / n), "chi": chi, "chi_gradient": chi})
    found = told(long, watched(long)[0])
    assert found.first >= n - 20_500
    assert len(json.dumps(to_json(long, found))) < 60_000


def test_figures_shade_the_stages_and_name_them() -> None:
    run = thinned(tl_run(), 100)
    event = spike_of(run)
    figure = figures.approach(run, event)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"decoupled", "silent"} <= texts
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "chi", "parts of ln chi"]
    assert "chi passed 1" in figure._suptitle.get_text().replace("\n", " ")
    assert len(figures.event(run, event).axes[0].patches) >= 4  # one for each stage in sight
    with pytest.raises(UsageError, match="no reading of chi around this spike"):
        figures.approach(Run.from_arrays({"loss": run["loss"]}), event)


@needs_chromium
def test_the_story_is_drawn_and_its_controls_work(tmp_path: Path) -> None:
    run = thinned(tl_run(), 100)
    loss, n = np.ones(400), 400
    loss[300:304] = 5
    calm = Run.from_arrays({"loss": loss, "chi": np.full(n, 0.4)})
    bump = Event("spike", 300, 300, 300, 303, 4.0, 50.0, "loss")
    descent = next(event for event in watched(descent_run()) if event.onset > 4400)
    path = write(
        [run, descent_run(), calm], tmp_path / "page.html", events=[of_kind(run, "spike", "watch"), [descent], [bump]]
    )
    body = """
    const find = (what) => article.querySelector(`[data-slot="approach"] ${what}`);
    const nodes = (what) => [...article.querySelectorAll(`[data-slot="approach"] ${what}`)];
    const all = (what) => nodes(what).map((node) => node.textContent);
    const extra = {story: all(".story"), chips: all(".chip b"), labels: all(".panel .label b")};
    extra.cards = all(".cardrow h4");
    extra.bar = article.querySelectorAll('[data-slot="approach"] .bar-d span').length;
    extra.charts = article.querySelectorAll('[data-slot="approach"] canvas').length;
    const over = find(".u-over"), box = over.getBoundingClientRect();
    const at = {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + 20, movementX: 5};
    for (const type of ["mouseenter", "mousemove"]) over.dispatchEvent(new MouseEvent(type, at));
    await frame();
    extra.cursors = all(".now").filter((text) => text.includes(" at ")).length;
    find(".chip")?.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
    extra.tip = document.querySelector(".tip")?.textContent;
    article.querySelector('[data-act="next"]').click();
    document.querySelector(".theme").click();
    await frame();
    extra.after = all(".story");
    """
    adam, plain_descent, noise = visit(path, tmp_path, body)
    assert [page["errors"] for page in (adam, plain_descent, noise)] == ["0"] * 3
    assert [page["blank"] for page in (adam, plain_descent, noise)] == [0] * 3
    assert adam["chips"][-5:] == ["decoupled", "silent", "onset", "refill", "decay"]
    assert adam["labels"] == ["loss", "chi", "who drove ln chi", "|v|"]
    assert adam["charts"] == 4
    assert adam["bar"] >= 3
    assert adam["cards"][:2] == ["eps", "floor under sqrt(v)"]
    assert adam["cursors"] >= 3
    assert "would have held it" in adam["story"][0]
    assert adam["tip"]
    assert plain_descent["labels"] == ["loss", "chi", "who drove ln chi"]
    assert plain_descent["cards"] == ["learning rate"]
    assert noise["story"][0].startswith("Not made by curvature")
    assert noise["chips"] == []
    assert math.isclose(noise["bar"], 0)


def test_readings_that_are_too_far_from_a_spike_are_said_to_be(tmp_path: Path) -> None:
    loss, chi = np.ones(400), np.full(400, ABSENT)
    loss[300:304] = 5
    chi[[100, 200, 350]] = [0.5, 0.7, 0.6]
    run = Run.from_arrays({"loss": loss, "chi": chi})
    event = Event("spike", 300, 300, 300, 303, 4.0, 50.0, "loss")
    [section] = unread(run, event)
    assert section.text.startswith("chi was 0.7 at step 200, before the onset, and 0.6 at step 350.")
    assert section.text in json.dumps(write(run, tmp_path / "page.html", events=[event]).read_text("utf-8"))
    assert unread(Run.from_arrays({"loss": loss}), event) == []


def test_scan_prints_a_line_for_each_crossing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = thinned(tl_run(), 100).save(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["scan", str(path)])
    printed = capsys.readouterr().out
    assert printed.count("; chi passed 1 at step") == len(watched(thinned(tl_run(), 100)))
