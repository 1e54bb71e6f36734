from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import foreshock.report
from foreshock.errors import CorruptRunError, UsageError
from foreshock.report import Section, write
from foreshock.report.settings import byline
from foreshock.run import Event, Run, RunWriter

from .runs import NASTY, odd_runs, spike, spiky


class Document(HTMLParser):
    """Collects the tags and the text a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += data


def page(tmp_path: Path, runs: Run | list[Run], events: object = (), **more: object) -> str:
    return write(runs, tmp_path / "page.html", events=events, **more).read_text(encoding="utf-8")  # type: ignore[arg-type]


def data(text: str, run: int = 1) -> dict[str, object]:
    found = re.search(rf'<script type="application/json" id="run-{run}-data">(.*?)</script>', text, re.DOTALL)
    assert found
    value: dict[str, object] = json.loads(found[1])
    return value


def test_the_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    text = page(tmp_path, spiky(), [spike(200)])
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", text)
    assert not re.search(r"url\(|@import|\bsrc=", text)
    assert "default-src 'none'" in text
    assert [attrs for tag, attrs in Document(text).tags if tag in ("link", "img", "iframe", "object", "embed")] == []


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run, events = odd_runs.__wrapped__()["names"]
    run.meta |= {"argv": list(NASTY), "device": NASTY[0]}
    run.meta["optimizers"] = [{"class": NASTY[0], "groups": [{NASTY[1]: NASTY[0]}]}]
    run.problems.append(CorruptRunError(NASTY[0]))
    text = page(tmp_path, [run], [events], title=NASTY[0])
    document = Document(text)
    scripts = [attrs for tag, attrs in document.tags if tag == "script"]
    assert len(scripts) == 3
    assert document.text.count(NASTY[0]) >= 4
    assert "alert(1)" not in "".join(re.findall(r"<script>(.*?)</script>", text, re.DOTALL))
    assert f"my {NASTY[0]}" in {curve["column"] for curve in data(text)["signals"]}  # type: ignore[attr-defined]


def test_the_module_is_the_function_and_holds_its_parts(tmp_path: Path) -> None:
    path = foreshock.report(spiky(), tmp_path / "sub" / "page.html", events=[spike(200)])
    assert path == tmp_path / "sub" / "page.html"
    assert path.stat().st_size > 10_000
    assert foreshock.report.figures.loss is not None


def test_events_default_to_what_scan_finds(tmp_path: Path) -> None:
    text = write(spiky(), tmp_path / "page.html").read_text(encoding="utf-8")
    found = {event["kind"] for event in data(text)["events"]}  # type: ignore[attr-defined]
    assert "spike" in found


def test_events_that_do_not_match_the_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one list of events was given for 2 runs"):
        page(tmp_path, [spiky(), spiky()], [spike(200)])
    with pytest.raises(UsageError, match="3 lists of events were given for 2 runs"):
        page(tmp_path, [spiky(), spiky()], [[], [], []])
    with pytest.raises(UsageError, match="no run was given"):
        page(tmp_path, [])


def test_several_runs_share_a_page_with_a_link_each(tmp_path: Path) -> None:
    runs = [spiky(title="Alpha", mechanism="bad batch"), spiky(title="Beta", subtitle="why it happened")]
    text = page(tmp_path, runs, [[spike(200)], []])
    links = [attrs["href"] for tag, attrs in Document(text).tags if tag == "a" and attrs.get("role") == "tab"]
    assert links == ["#run-1", "#run-2"]
    for said in ("Alpha", "bad batch", "Beta", "why it happened", "No event"):
        assert said in Document(text).text


def test_notes_problems_and_settings_are_shown(tmp_path: Path) -> None:
    adam = {"class": "AdamW", "groups": [{"lr": 0.001, "betas": [0.9, 0.95], "amsgrad": False}]}
    git = {"commit": "0123456789abcdef", "dirty": True}
    path = spiky(device="cuda:0", git=git, argv=["train.py", "--lr", "1"], optimizers=[adam]).save(tmp_path / "run")
    with RunWriter(path, resume=Run.load(path).meta["id"]) as writer:
        writer.note("probe_disabled", step=12, name="norms", error="KeyError: x")
        writer.note("resumed", step=20, by="hand")
    run = Run.load(path)
    run.problems.append(CorruptRunError("rank-0/step.bin, byte 812: breaks off"))
    said = Document(page(tmp_path, run, [])).text
    for part in ("AdamW", "0.9, 0.95", "cuda:0", "0123456789ab with local changes", "train.py --lr 1", "byte 812",
                 "probe norms was switched off at step 12: KeyError: x", "resumed at step 20 (by: hand)"):  # fmt: skip
        assert part in said
    assert "amsgrad" not in said


def test_later_knowledge_fills_the_sections_of_an_event(tmp_path: Path) -> None:
    def explain(run: Run, event: Event) -> list[Section]:
        return [Section("Cause", f"a bad batch at {event.peak}", tone="cause"), Section("Advice", points=("skip it",))]

    detail = data(page(tmp_path, spiky(), [spike(200)], explain=explain))["details"][0]  # type: ignore[index]
    assert [section["title"] for section in detail["sections"]] == ["Cause", "Advice"]
    assert detail["sections"][0]["text"] == "a bad batch at 200"


def test_an_event_shows_the_loss_first_and_what_moved_by_distance(tmp_path: Path) -> None:
    detail = data(page(tmp_path, spiky(), [spike(200)]))["details"][0]  # type: ignore[index]
    columns = [panel["column"] for panel in detail["panels"]]
    assert columns[0] == "loss"
    assert set(columns[1:3]) == {"grad_norm", "v_ratio"}
    assert {panel["column"]: panel["departure"]["lead"] for panel in detail["panels"]}["grad_norm"] == 5
    assert " left its range 5 steps before the onset, at step 195." in detail["sections"][0]["text"]


def test_the_window_of_an_event_is_at_full_resolution(tmp_path: Path) -> None:
    run = spiky(200_000, at=(120_000,), tensors=0)
    value = data(page(tmp_path, run, [spike(120_000)]))
    panel = value["details"][0]["panels"][0]  # type: ignore[index]
    first, last = (value["details"][0][key] for key in ("first", "last"))  # type: ignore[index]
    assert panel["x"] == [first, 1, last - first + 1]
    assert value["loss"]["decimated"]  # type: ignore[index]


@pytest.mark.parametrize("name", odd_runs())
def test_odd_runs_make_a_page(name: str, tmp_path: Path) -> None:
    run, events = odd_runs()[name]
    text = page(tmp_path, run, events)
    assert len(text) < 1.5e6
    assert len(data(text)["events"]) == len(events)  # type: ignore[arg-type]


def test_a_long_run_with_thousands_of_events_and_tensors_stays_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    n = 20_000
    columns = {f"grad_norm/t{i}": np.exp(random.standard_normal(n)).astype(np.float32) for i in range(200)}
    columns |= {f"signal{i}": random.standard_normal(n) for i in range(50)} | {"loss": random.standard_normal(n)}
    events = [spike(4 * i, severity=float(i), length=2) for i in range(5000)]
    assert len(page(tmp_path, Run.from_arrays(columns), events)) < 3e6


def test_a_run_still_being_written_is_reported(tmp_path: Path) -> None:
    run = spiky()
    path = run.save(tmp_path / "run")
    stored = path / "rank-0" / "step.bin"
    stored.write_bytes(stored.read_bytes()[:-7])
    text = page(tmp_path, Run.load(path), [Event("divergence", 580, 570, 590, None, 3.0, 20.0, "loss")])
    assert data(text)["n"] == 599
    assert "1 divergence" in Document(text).text


def test_the_report_imports_no_torch_and_no_matplotlib() -> None:
    code = "import sys, foreshock.report; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_the_byline_tells_what_ran_and_how_it_ended() -> None:
    adam = {"class": "Adam", "groups": [{"lr": 0.02}]}
    meta = {"argv": ["train.py"], "optimizers": [adam], "parameters": 6001, "created": "2026-01-02T03:04:05+00:00"}
    assert byline(spiky(**meta, ended="normally")) == ["Adam, lr 0.02", "6,001 parameters", "2026-01-02 03:04 UTC"]
    assert byline(spiky(**meta, ended="KeyboardInterrupt"))[-1] == "ended by KeyboardInterrupt"
    assert byline(spiky(**meta))[-1] == "no end recorded: still running, or killed"
    assert byline(spiky()) == []
