"""What the page shows of experiments: the replay, who is to blame, what to change; whatever the findings look like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foreshock.detect import scan
from foreshock.report import summary, write
from foreshock.report.data import Budget, closely, place_of
from foreshock.report.detail import harmful
from foreshock.report.experiments import attributed, replayed
from foreshock.report.explained import explained
from foreshock.report.explanation import explanation
from foreshock.report.phrase import plain
from foreshock.report.proof import blame_json, replay_json
from foreshock.run import Event, Run

from .browser import needs_chromium, visit
from .findings import ARMS, attribution, picture, replay
from .runs import NASTY, spike, spiky

ODD: tuple[Any, ...] = (None, "nan", "x", [], {}, [None, {}], -1, 1e300, float("inf"), float("nan"), True)


def proved(*events: Event, images: bool = False, **more: Any) -> Run:
    """Returns a run in which a replay and an attribution of each event are kept."""
    run = spiky(at=[event.onset for event in events])
    for event in events:
        run.add_finding(replay(event, **more))
        run.add_finding(attribution(event, images=images))
    return run


def details(path: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="run-1-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    value: list[dict[str, Any]] = json.loads(found[1])["details"]
    return value


def test_an_event_shows_its_own_replay_and_nobody_elses(tmp_path: Path) -> None:
    first, second = spike(200), spike(420, severity=10)
    run = spiky()
    run.add_finding(replay(first))
    run.add_finding(attribution(second))
    shown, other = details(write(run, tmp_path / "page.html", events=[first, second]))
    assert [arm["name"] for arm in shown["proof"]["arms"]][:3] == ["floor", "beta2", "cut_lr"]
    assert shown["proof"]["head"].startswith("55 steps again from the snapshot at step 170; with nothing changed, bit")
    assert shown["proof"]["head"].endswith("It does not come with `floor` and `beta2`.")
    assert shown["blame"] is None
    assert shown["remedy"]["proved"]
    assert other["proof"] is None
    assert next(tensor["name"] for tensor in other["blame"]["tensors"]) == "2.weight"
    assert not other["remedy"]["proved"]


def test_the_newest_replay_counts_and_keeps_what_was_tried_before() -> None:
    event = spike(200)
    run = proved(event)
    again = [dict(arm, verdict="stays", share=1.0) for arm in replay(event)["arms"] if arm["name"] == "floor"]
    mine = dict(again[0], name="mine", verdict="removed", share=0.1)
    run.add_finding(replay(event, cures=["mine"], arms=[*again, mine]))
    found = replayed(run, event)
    assert found is not None
    assert {arm.name for arm in found.arms} == {*ARMS, "mine"}
    assert found.cures == ("mine", "beta2")
    run.add_finding(replay(event, start=event.onset - 12, cures=[], arms=again))
    elsewhere = replayed(run, event)
    assert elsewhere is not None
    assert [arm.name for arm in elsewhere.arms] == ["floor"]


def test_every_arm_has_its_verdict_and_the_best_come_first() -> None:
    event = spike(200)
    found = replayed(proved(event), event)
    assert found is not None
    verdicts = [arm.verdict for arm in found.arms]
    assert verdicts == ["removed"] * 2 + ["weakened"] * 2 + ["stays"] * 2 + ["worse", "not applicable", "failed"]
    assert {arm.name for arm in found.arms} == set(ARMS)
    assert [arm.share for arm in found.arms[:4]] == [0.01, 0.04, 0.41, 0.72]


def test_an_attribution_in_units_of_the_loss_is_read_as_shares() -> None:
    event = spike(200)
    run = spiky()
    run.add_finding({
        "kind": "attribution", "event": list(event.key), "step": 199, "total": 4.0, "measured": 4.002,
        "columns": {"a": 3.0, "b": 1.5, "c": -0.5}, "culprits": [{"index": 5, "value": 2.0}], "culprit_count": 32,
        "victims": [{"index": 6, "value": 1.0}], "batch": 2.8, "history": 1.0, "decay": 0.04, "l2": 0.0, "rest": 0.16,
        "coverage": 1.0, "notes": ["Batch statistics were held still."],
    })  # fmt: skip
    found = attributed(run, event)
    assert found is not None
    assert found.columns == (("a", 0.75), ("b", 0.375), ("c", -0.125))
    assert found.parts == pytest.approx({
        "the examples": 0.7, "momentum from before": 0.25, "weight decay": 0.01, "L2 term": 0.0,
        "not accounted for": 0.04,
    })  # fmt: skip
    assert [(one.step, one.index, one.share) for one in found.culprits] == [(199, 5, 0.5)]
    assert found.examples == 32
    assert str(blame_json(found)["foot"]).endswith("Batch statistics were held still.")


def test_where_the_batch_is_odd_its_examples_come_first() -> None:
    event = spike(200)
    run = spiky()
    odd = [{ "index": i, "value": 3.0 - i, "text": f"odd {i}"} for i in range(5)]
    run.add_finding(attribution(event, from_step=0.1, from_batch=6.0, seen=195, suspects=odd))
    found = explained(run, event)
    assert found.blame is not None
    shown: Any = blame_json(found.blame)
    assert [each["title"] for each in shown["examples"]] == [
        "Odd examples of the batch of step 200", "Examples that pushed, at step 200",
        "Examples that suffered, at step 200",
    ]  # fmt: skip
    run.add_finding(attribution(event, from_step=0.1, from_batch=6.0, measured=0.01, suspects=odd))
    slight = explained(run, event).blame
    assert slight is not None
    harmless: Any = blame_json(slight)
    assert [each["title"] for each in harmless["examples"]] == ["Odd examples of the batch of step 200"]
    assert (harmless["tensors"], harmless["parts"], harmless["foot"]) == ([], [], "")
    assert harmless["head"].endswith(": it did no harm.")
    assert [row["share"] for row in shown["examples"][0]["rows"]] == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert shown["head"].startswith("The batch of step 200 is odd: at the same weights its loss is 6 above that of the")
    assert found.remedy is not None
    assert found.remedy.text.endswith(
        "Look first at examples 0, 1 and 2 of step 200: they carry 100\N{NO-BREAK SPACE}% of what its loss has more "
        "than others."
    )


def test_hostile_names_and_texts_stay_text_and_only_pictures_are_pictures(tmp_path: Path) -> None:
    event = spike(200)
    run = spiky()
    arms = [dict(arm, name=NASTY[i % 6], what=NASTY[0], why=NASTY[1]) for i, arm in enumerate(replay(event)["arms"])]
    run.add_finding(replay(event, arms=arms, cures=[NASTY[0]], summary=NASTY[0]))
    images = ("data:text/html;base64,PGI+", "https://example.org/a.png", picture(0) + '"><script>', picture(0))
    rows = [{"index": 90 + i, "step": 1, "share": 0.1, "image": image} for i, image in enumerate(images)]
    rows += [{"index": i, "step": 1, "share": 0.1, "text": text} for i, text in enumerate(NASTY)]
    run.add_finding(attribution(event, columns=dict.fromkeys(NASTY, 0.2), culprits=rows))
    path = write(run, tmp_path / "page.html", events=[event])
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text)) == 3  # two of the page's own, one of data
    assert "https:" not in text
    assert not re.search(r"\bsrc=", text)
    assert "img-src" not in text
    shown = details(path)[0]["blame"]["examples"][0]["rows"]
    assert [row.get("image") for row in shown if row["index"] >= 90] == [picture(0)]
    found = attributed(run, event)
    assert found is not None
    assert [bool(row.image) for row in found.culprits[:4]] == [False, False, False, True]


@pytest.mark.parametrize("make", [replay, attribution])
def test_a_finding_of_which_anything_is_missing_or_odd_is_still_shown(tmp_path: Path, make: Any) -> None:
    event = spike(200)
    whole = make(event)
    fields = [name for name in whole if name not in ("kind", "version", "event")]
    cases = [{k: v for k, v in whole.items() if k != name} for name in fields]
    cases += [whole | {name: ODD[(7 * i + j) % len(ODD)]} for i, name in enumerate(fields) for j in range(1)]
    cases += [whole | {name: value} for name in ("arms", "columns", "culprits", "original") for value in ODD]
    cases += [{"kind": whole["kind"], "event": whole["event"]}]
    for case in cases:
        run = spiky(90, at=(60,), tensors=0)
        run.add_finding(case | {"event": list(spike(60).key)})
        found = explanation(run, spike(60), [spike(60)])
        assert found.mechanism
        assert found.known.remedy is not None
        assert found.known.remedy.text
        if found.known.blame is not None:
            blame_json(found.known.blame)
    write(run, tmp_path / "page.html", events=[spike(60)])


def test_pictures_never_make_a_page_too_large(tmp_path: Path) -> None:
    event = spike(200)
    run = spiky(tensors=0)
    image = "data:image/png;base64," + "A" * 60_000
    rows = [{"index": i, "step": 1, "share": 0.01, "image": image} for i in range(30)]
    run.add_finding(attribution(event, culprits=rows, victims=rows))
    path = write([run] * 2, tmp_path / "page.html", events=[[event]] * 2)
    assert path.stat().st_size < 3e6
    alone = details(write(run, tmp_path / "page.html", events=[event]))[0]["blame"]
    pushed, suffered = alone["examples"]
    assert sum("image" in row for row in pushed["rows"] + suffered["rows"]) == 4
    assert suffered["rows"][-1]["text"] == "a picture too large for this page"


def test_the_page_of_a_run_with_findings_is_the_same_each_time(tmp_path: Path) -> None:
    event = spike(200)
    pages = [write(proved(event, images=True), tmp_path / name, events=[event]).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_the_verdict_and_the_summary_say_what_the_replay_proved() -> None:
    event = spike(200)
    text = summary(proved(event), [event])
    assert "Replayed with floor alone, it does not come." in " ".join(text.split())
    run = spiky(at=(200,))
    run.add_finding(replay(event, reproducible=False, differs_at=190))
    sentence = plain(explained(run, event).sentence or ())
    assert "Replayed from the same state, it went another way." in sentence
    run.add_finding(replay(event, reproducible=False, differs_at=190, returns=True, drawn=True))
    found = explained(run, event)
    assert "it does not come" in plain(found.sentence or ())
    assert found.proof is not None
    told = " ".join(str(replay_json(found.proof)["head"]).split())
    assert "differ from the training's own from step 190 on, for want of the random numbers that were drawn" in told
    assert "yet the event comes again. It does not come with `floor` and `beta2`." in told


def test_an_event_in_focus_has_its_details_however_many_are_worse(tmp_path: Path) -> None:
    events = [spike(30 + 9 * i, severity=float(9 - i), length=2) for i in range(8)]
    run, budget = spiky(at=(), tensors=0), Budget(details=3)
    shown = [item.detail.span.event for item in closely(run, events, budget, None)]
    assert shown == events[:3]
    focused = [item.detail.span.event for item in closely(run, events, budget, None, events[-1])]
    assert focused == [events[0], events[-1], *events[1:3]]
    assert place_of(run, events, events[-1]) == 8
    write(run, tmp_path / "page.html", events=events, focus=spike(5))  # none of this run's: as if nothing was asked for


@needs_chromium
def test_proof_blame_and_advice_are_drawn_and_answer_the_pointer(tmp_path: Path) -> None:
    events = [spike(200), spike(420, severity=10)]
    run = proved(events[0])
    run.add_finding(replay(events[1], reproducible=False, differs_at=400, cures=[], summary=""))
    run.add_finding(attribution(events[1], images=True))
    path = write(run, tmp_path / "page.html", events=events)
    body = """
    const all = (what) => [...article.querySelectorAll(what)];
    const text = (what) => all(what).map((node) => node.textContent);
    const extra = {arms: text(".arms .arm b"), words: text(".arms td.word"), idle: text(".armsbox p")};
    extra.charts = all(".proofchart canvas").length;
    extra.tried = text(".tried");
    const drawn = () => all(".proofchart canvas")[0].toDataURL();
    const before = drawn(), row = article.querySelector('tr[data-arm="cut_lr"]');
    row.dispatchEvent(new MouseEvent("mouseenter"));
    await frame();
    extra.on = row.classList.contains("on");
    extra.changed = drawn() !== before;
    row.dispatchEvent(new MouseEvent("mouseleave"));
    await frame();
    extra.back = drawn() === before;
    extra.bars = text(".bars .name");
    extra.texts = text(".examples q");
    extra.remedy = text(".remedy")[0];
    extra.wide = document.scrollingElement.scrollWidth - innerWidth;
    article.querySelector('[data-act="next"]').click();
    document.querySelector(".theme").click();
    const drawing = () => !all(".proofchart canvas").length || all("canvas.thumb").some((canvas) => canvas.width < 2);
    for (let i = 0; i < 300 && drawing(); i++) await frame();
    extra.second = text(".told");
    extra.pictures = all("canvas.thumb").map((canvas) => canvas.width);
    extra.later = all(".proofchart canvas").length;
    """
    (seen,) = visit(path, tmp_path, body)
    assert seen["errors"] == "0"
    assert seen["blank"] == 0
    assert seen["arms"] == ["floor", "beta2", "cut_lr", "clip_update", "skip", "hold_lr", "clip_grad"]
    assert seen["words"][:3] == ["removed", "removed", "weakened"]
    assert seen["idle"] == ["Not applicable: exact_softmax (no softmax in the loss).", "Failed: float64."]
    assert (seen["charts"], seen["on"], seen["changed"], seen["back"]) == (1, True, True, True)
    assert seen["bars"][:5] == ["2.weight", "0.weight", "4.weight", "0.bias", "embedding.weight"]
    assert seen["texts"][0] == "The quick brown fox</script>"
    assert "proved by the replay" in seen["remedy"]
    assert seen["wide"] <= 0
    assert seen["tried"] == ["proved", "replayed"]
    assert "they differ from the training's own from step 400 on" in seen["second"][0]
    assert seen["pictures"] == [14] * 8
    assert seen["later"] == 1


def test_the_harmful_events_are_those_that_scan_numbers() -> None:
    run = spiky()
    events = scan(run)
    assert [event.onset for event in harmful(events)] == [200, 420]
    assert [explanation(run, event, events).place for event in events if event.kind == "spike"] == [1, 2]
    warning = next(event for event in events if event.kind == "precursor")
    found = explanation(run, warning, events)
    assert found.place is None
    assert found.mechanism.endswith(".")


@pytest.mark.slow
@needs_chromium
def test_odd_experiments_are_drawn_without_an_error(tmp_path: Path) -> None:
    event, nan, inf = spike(60), float("nan"), float("inf")
    arm = replay(event)["arms"][0]
    cases: dict[str, dict[str, Any]] = {
        "nothing": {"original": [], "arms": [], "cures": []},
        "one step": {"steps": [60], "original": [3.0], "arms": [dict(arm, steps=[60], losses=[2.0])]},
        "not finite": {"original": [2.0, nan, inf, -inf], "steps": [1, 2, 3, 4], "peak": inf, "arms": [
            dict(arm, losses=[inf, inf], steps=[1, 2], peak=inf, share=inf, verdict="worse"),
            dict(arm, name="b", losses=[nan], steps=[1], peak=nan, share=nan),
        ]},
        "huge": {"original": [1e-300, 1e300, 0.0], "steps": [1, 2, 3], "base": 1e-300},
        "all the same": {"original": [2.0] * 40, "steps": list(range(40)), "arms": [dict(arm, losses=[2.0] * 40)] * 40},
        "arms alone": {"original": []},
    }  # fmt: skip
    blames: tuple[dict[str, Any], ...] = (
        {"columns": {}, "culprits": [], "victims": [], "history": nan, "decay": nan, "completeness": nan},
        {"columns": {f"t{i}": 0.01 for i in range(100)}, "total": -1.0},
        {"columns": {"a": -1.0}, "culprits": [{"share": nan, "index": None, "image": "data:image/png;base64,AAAA"}]},
    )
    runs = []
    for i, case in enumerate(cases.values()):
        run = spiky(120, at=(60,), tensors=0)
        run.add_finding(replay(event, **case))
        run.add_finding(attribution(event, **blames[i % 3]))
        runs.append(run)
    body = """
    const extra = {arms: article.querySelectorAll(".arms tbody tr").length};
    for (let i = 0; i < 300 && article.querySelector("canvas.thumb"); i++) await frame();
    extra.failed = article.querySelectorAll(".thumb.none").length;
    """
    path = write(runs, tmp_path / "page.html", events=[[event]] * len(runs))
    seen = dict(zip(cases, visit(path, tmp_path, body), strict=True))
    assert {name: page["errors"] for name, page in seen.items()} == dict.fromkeys(cases, "0")
    assert [page["arms"] for page in seen.values()][:3] == [0, 1, 2]
    assert seen["not finite"]["failed"] == 1  # what is no picture says so
    assert "It comes whatever is changed" not in seen["nothing"]["text"]
