"""What the report tells of a guard: what it refused was not taken, what it did stays readable however often."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from foreshock.detect import scan
from foreshock.report import figures, summary, write
from foreshock.report.interventions import interventions, told
from foreshock.report.loss_curve import story as story_of
from foreshock.report.refused import fates
from foreshock.run import Event, Run, RunMemory
from foreshock.run.action import KINDS, Action, CutLr, Floor, Rollback, Skip, Stop
from foreshock.run.actions import Unknown, as_note

from .browser import needs_chromium, visit
from .runs import CHAPTER, guarded, spike, spiky


def page(tmp_path: Path, run: Run, **more: object) -> dict[str, object]:
    text = write(run, tmp_path / "page.html", **more).read_text(encoding="utf-8")  # type: ignore[arg-type]
    found = re.search(r'<script type="application/json" id="run-1-data">(.*?)</script>', text, re.DOTALL)
    assert found
    value: dict[str, object] = json.loads(found[1])
    return value


def test_a_run_without_a_guard_tells_nothing_of_one(tmp_path: Path) -> None:
    value = page(tmp_path, spiky(), events=[spike(200)])
    assert value["guard"] is None
    assert not {"refused", "undone", "bad_refused"} & set(value["loss"])  # type: ignore[call-overload]
    assert "uard" not in summary(spiky(), [spike(200)])


def test_the_line_is_the_loss_that_was_taken_and_the_rest_is_set_aside(tmp_path: Path) -> None:
    run = guarded()
    loss = page(tmp_path, run)["loss"]
    assert loss["refused"]["total"] == int((np.nan_to_num(run["skipped"]) > 0).sum()) - 1  # type: ignore[index]
    assert loss["undone"]["total"] == 15  # type: ignore[index]
    assert (loss["bad_total"], loss["bad_refused"]) == (1, 1)  # type: ignore[index]
    assert figures.loss(run, scan(run)).axes[0].lines[0].get_ydata().max() < 5  # what was taken in part is on it
    line = figures.loss(run).axes[0].lines[0]
    assert not set(line.get_xdata()) & {200, 204, 520, 900, 905}


def test_events_say_whether_the_training_took_their_steps(tmp_path: Path) -> None:
    run = guarded()
    events = scan(run)
    said = {event.onset: fates(run, events)[event.key].sentence for event in events}
    assert said[200] == "refused: the training took none of these 2 steps"
    assert said[520] == "refused: the training did not take this step"
    assert said[700] == "taken in part: its update was scaled or clipped"
    assert re.fullmatch(r"rolled back: 5 steps undone, 1 more refused", said[900])
    told_of = {event["onset"]: event["fate"] for event in page(tmp_path, run)["events"]}  # type: ignore[attr-defined]
    assert [told_of[onset]["spared"] for onset in (200, 520, 700, 900)] == [True, True, False, True]


def test_what_was_taken_comes_before_what_was_refused() -> None:
    loss = np.full(800, 2.0) + 0.01 * np.random.default_rng(0).standard_normal(800)
    loss[[300, 500]] += [9.0, 1.0]
    run = Run.from_arrays({"loss": loss, "skipped": np.arange(800) == 300})
    text = summary(run, scan(run))
    assert "2 spikes in 800 steps, 1 of them refused. The largest that was taken, at step 500, took the loss" in text
    only = Run.from_arrays({"loss": loss, "skipped": np.isin(np.arange(800), [300, 500])})
    assert "both refused. The largest, at step 300" in summary(only, scan(only))


def test_the_summary_tells_what_the_guard_did_and_that_it_ended_the_training() -> None:
    actions = (*CHAPTER, Stop(step=1499, reason="nothing helps"))
    text = summary(guarded(actions=actions), [])
    assert "The guard acted 49 times: 1 rollback, 1 stop, 40 second moments refilled and 8 others." in text
    assert "It ended the training at step 1,499: nothing helps." in text
    assert "rolled back (to step 890, 15 steps undone, the next 3 refused): 5 elevated" in text
    assert "... and 3 more" in text


def test_the_best_loss_is_one_that_was_taken() -> None:
    run = Run.from_arrays({"loss": [3.0, 2.0, 0.1, 2.5], "skipped": [0, 0, 1, 0]})
    assert "Best loss     2 " in summary(run, [])


def test_like_actions_are_one_line_until_something_else_or_a_gap() -> None:
    actions = [*(Floor(step=s) for s in range(10, 30, 2)), *(Skip(step=s) for s in (15, 16)), Floor(step=900)]
    run = guarded(actions=sorted(actions, key=lambda action: action.step))
    assert [(g.kind, g.first, g.last, len(g.actions)) for g in interventions(run)] == [
        ("floor", 10, 28, 10), ("skip", 15, 16, 2), ("floor", 900, 900, 1),
    ]  # fmt: skip


def test_a_group_knows_the_level_before_it_and_after_it_and_where_the_training_went_on() -> None:
    loss = np.r_[np.full(100, 3.0), 50.0, np.full(99, 2.0)]
    loss[80:100] = 30.0
    store = RunMemory()
    skipped = (np.arange(200) == 100).astype(float)
    store.append("step", ("loss", "skipped"), range(200), np.zeros(200), np.stack([loss, skipped], axis=1))
    store.note("action", **as_note(Rollback(step=100, before=80)))
    (group,) = interventions(store.run())
    assert (group.begin, group.before, group.after, group.on) == (80, 3.0, 2.0, 101)


def test_thousands_of_interventions_stay_readable_and_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    actions = [
        CutLr(step=int(step), factor=float(random.uniform(0.1, 0.9)), reason=f"chi {random.uniform(1, 2):.3f}")
        for step in np.sort(random.choice(6000, 4000, replace=False))
    ] + [Skip(step=step, cause=("spike", "loss", step)) for step in range(50, 6000, 150)]  # fmt: skip
    run = guarded(6000, actions)
    assert len(interventions(run)) <= 80
    assert sum(len(group.actions) for group in interventions(run)) == len(actions)
    bare, acted = (len(json.dumps(page(tmp_path, each))) for each in (guarded(6000, []), run))
    assert acted - bare < 60_000
    assert len(summary(run, []).splitlines()) < 40


@pytest.mark.parametrize("kind", [*KINDS.values(), Unknown], ids=lambda kind: kind.__name__)
def test_every_kind_of_action_has_its_words(tmp_path: Path, kind: type[Action]) -> None:
    given = {name: 3 for name in ("factor", "limit", "before") if name in kind.__dataclass_fields__}
    given |= {"name": "teleport"} if kind is Unknown else {}
    run = guarded(actions=[kind(step=700, reason="because", **given)])  # type: ignore[arg-type]
    guard = page(tmp_path, run)["guard"]
    assert [row["why"] for row in guard["rows"]] == ["because"]  # type: ignore[index]
    assert guard["counts"][0]["meaning"] or kind is Unknown  # type: ignore[index]
    assert told(run.actions).startswith("1 ")


def test_an_action_of_a_later_version_is_shown_by_its_name(tmp_path: Path) -> None:
    store = RunMemory()
    store.append("step", ("loss",), range(50), np.zeros(50), np.full((50, 1), 2.0))
    store.note("action", step=7, action="teleport", reason="far", to="<Mars>")
    (row,) = page(tmp_path, store.run())["guard"]["rows"]  # type: ignore[index]
    assert (row["title"], row["how"], row["why"]) == ("teleport", "to <Mars>", "far")
    assert "teleport (to <Mars>): far" in summary(store.run(), [])


def crossing() -> tuple[Run, Event]:
    """Returns a run in which chi came and went, with one refused attempt on the way, and the event of it."""
    at = np.arange(400)
    loss = np.exp(-at / 300) + 5.0 * (at == 210)
    chi = 0.8 + 0.3 * np.exp(-(((at - 200) / 20) ** 2))
    run = Run.from_arrays({"loss": loss, "chi": chi, "skipped": at == 210})
    return run, Event("watch", 190, 182, 200, 216, 0.1, 1.0, "chi")


def test_a_story_draws_the_loss_that_was_taken_and_points_that_were_not(tmp_path: Path) -> None:
    run, event = crossing()
    story = page(tmp_path, run, events=[event])["details"][0]["approach"]  # type: ignore[index]
    assert story["aside"]["x"] == [210, 1, 1]
    told_of = story_of(run, 150, 250, 400)
    assert told_of["loss"]["x"] != [150, 1, 101]  # type: ignore[index]
    assert "aside" not in story_of(run, 150, 200, 400)


@needs_chromium
def test_the_page_shows_interventions_in_a_strip_and_a_table_that_lead_to_each_other(tmp_path: Path) -> None:
    stopped = (*CHAPTER, Stop(step=1499, reason="enough"))
    run, event = crossing()
    runs = [guarded(), guarded(actions=stopped), spiky(), run]
    path = write(runs, tmp_path / "page.html", events=[*map(scan, runs[:3]), [event]])
    body = """
    const find = (what) => article.querySelector(what), every = (what) => [...article.querySelectorAll(what)];
    const part = find('[data-part="guard"]'), extra = {shown: !part.hidden};
    if (extra.shown) {
      extra.rows = every('[data-part="guard"] tbody tr').length;
      extra.counts = every('[data-part="guard"] .counts > span').length;
      extra.legend = find('[data-slot="legend"]').textContent;
      const plot = find('[data-part="loss"] .plot'), over = plot.querySelector(".u-over").getBoundingClientRect();
      const steps = 1499, at = (step) => over.left + over.width * step / steps;
      const place = (step, y) => ({bubbles: true, clientX: at(step), clientY: over.top + y});
      const point = (type, step, y) => plot.dispatchEvent(new PointerEvent(type, place(step, y)));
      point("pointermove", 905, -15);
      extra.tip = document.querySelector(".tip").textContent;
      point("pointermove", 905, 40);
      extra.gone = document.querySelector(".tip").hidden;
      plot.dispatchEvent(new MouseEvent("click", place(1200, -15)));
      extra.chosen = find('[data-part="guard"] tr[aria-current="true"] b').textContent;
      find('[data-part="guard"] tbody tr').click();
      await frame();
      extra.zoomed = !find('[data-act="reset"]').hidden;
      every('[data-part="guard"] .why button')[0].click();
      extra.event = find('[data-part="event"] h2').textContent;
      extra.fate = find('[data-part="event"] [data-slot="lede"]').textContent;
      document.querySelector(".theme").click();
      await frame();
    }
    """
    first, second, bare, crossed = visit(path, tmp_path, body)
    assert [page["errors"] for page in (first, second, bare, crossed)] == ["0"] * 4
    assert [page["blank"] for page in (first, second, bare, crossed)] == [0] * 4
    assert "chi passed 1" in crossed["text"]
    assert not bare["shown"]
    assert (first["rows"], second["rows"], first["counts"]) == (10, 11, 8)
    assert "not taken (6)" in first["legend"]
    assert "rolled back at step 905" in first["tip"]
    assert first["gone"]
    assert first["chosen"] == "softmax made exact"
    assert first["zoomed"]
    assert first["event"] == "Spike at step 204"
    assert first["fate"].endswith("refused: the training took none of these 2 steps")
