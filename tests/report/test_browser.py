from __future__ import annotations

from pathlib import Path

import pytest

from foreshock.report import write

from .browser import dump, needs_chromium, visit
from .runs import NASTY, odd_runs, spike, spiky

pytestmark = needs_chromium


def test_every_chart_is_drawn_without_an_error_also_for_odd_runs(tmp_path: Path) -> None:
    runs = odd_runs()
    every, events = zip(*runs.values(), strict=True)
    path = write(every, tmp_path / "page.html", events=events)
    seen = dict(zip(runs, visit(path, tmp_path), strict=True))
    assert {name: page["errors"] for name, page in seen.items()} == dict.fromkeys(runs, "0")
    assert {name: page["blank"] for name, page in seen.items()} == dict.fromkeys(runs, 0)
    # Loss and overview; each signal of the grid; each panel; a heat map and its scale, twice.
    assert seen["empty"]["canvases"] == 0
    assert seen["no_loss"]["canvases"] == 1
    assert seen["all_nan"]["canvases"] == 3
    assert seen["many_tensors"]["canvases"] == 2 + 2 + 4 + 4
    assert NASTY[0] in seen["names"]["text"]
    assert "5,000 spikes" in seen["many_events"]["text"]


def test_choosing_an_event_shows_it_and_links_to_it(tmp_path: Path) -> None:
    path = write(spiky(), tmp_path / "page.html", events=[spike(200), spike(420, severity=10)])
    body = """
    const title = () => article.querySelector('[data-part="event"] h2').textContent;
    const extra = {titles: [title()]};
    article.querySelector('tr[data-event="2"]').click();
    extra.titles.push(title());
    extra.hash = location.hash;
    article.querySelector('[data-act="prev"]').click();
    extra.titles.push(title());
    const plot = article.querySelector('[data-part="loss"] .plot');
    plot.dispatchEvent(new KeyboardEvent("keydown", {key: "n"}));
    extra.titles.push(title());
    await frame();
    extra.zoomed = !article.querySelector('[data-act="reset"]').hidden;
    plot.dispatchEvent(new KeyboardEvent("keydown", {key: "0"}));
    await frame();
    extra.reset = article.querySelector('[data-act="reset"]').hidden;
    document.querySelector(".theme").click();
    extra.theme = document.documentElement.dataset.theme;
    extra.rows = [...article.querySelectorAll("tbody tr")].map((row) => row.textContent);
    """
    (seen,) = visit(path, tmp_path, body)
    assert seen["titles"] == ["Spike at step 200", "Spike at step 420", "Spike at step 200", "Spike at step 420"]
    assert seen["hash"] == "#run-1/event-2"
    assert seen["zoomed"]
    assert seen["reset"]
    assert seen["theme"] == "dark"
    assert seen["errors"] == "0"
    assert len(seen["rows"]) == 2


@pytest.mark.parametrize(
    ("fragment", "title"), [("#run-2/event-2", "Spike at step 420"), ("#nonsense/event-99", "Spike at step 200")]
)
def test_an_address_leads_to_run_and_event_under_the_strict_policy(tmp_path: Path, fragment: str, title: str) -> None:
    path = write([spiky(), spiky()], tmp_path / "page.html", events=[[spike(200), spike(420)]] * 2)
    text = dump(path, tmp_path, fragment=fragment)
    assert 'data-ready="1"' in text
    assert 'data-errors="0"' in text
    assert title in text
    shown = [part for part in text.split("<article")[1:] if " hidden" not in part.partition(">")[0]]
    assert len(shown) == 1
    assert ('id="run-2"' in shown[0]) == fragment.startswith("#run-2")
