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


def test_every_control_works_without_an_error(tmp_path: Path) -> None:
    path = write(spiky(), tmp_path / "page.html", events=[spike(30 + 30 * i, severity=float(i)) for i in range(18)])
    body = """
    const find = (what) => article.querySelector(what);
    const mouse = (node, type, x, y) => {
      const box = node.getBoundingClientRect();
      const at = {bubbles: true, movementX: 5, clientX: box.left + x * box.width, clientY: box.top + y * box.height};
      node.dispatchEvent(new MouseEvent(type, at));
      node.dispatchEvent(new PointerEvent(type.replace("mouse", "pointer"), {...at, pointerId: 1}));
    };
    const extra = {};
    const over = find('[data-part="loss"] .u-over'), reset = find('[data-act="reset"]');
    for (const [type, x] of [["move", .3], ["down", .3], ["move", .6], ["up", .6]]) mouse(over, `mouse${type}`, x, .5);
    await frame();
    extra.dragged = !reset.hidden;
    extra.readout = find('[data-slot="readout"]').textContent;
    over.dispatchEvent(new MouseEvent("dblclick", {bubbles: true}));
    await frame();
    extra.whole = reset.hidden;
    find('[data-scale="log"]').click();
    extra.log = find('[data-scale="log"]').getAttribute("aria-pressed");
    const panels = [...article.querySelectorAll(".panel .u-over")];
    for (const [type, x] of [["mouseenter", .5], ["mousemove", .5]]) mouse(panels[1], type, x, .5);
    await frame();
    const every = (what) => [...article.querySelectorAll(what)].map((node) => node.textContent);
    extra.cursors = every(".panel .now").filter((text) => text.includes(" at ")).length;
    extra.panels = panels.length;
    const area = find('[data-part="event"] .heat-area canvas');
    mouse(area, "mousemove", .5, .5);
    extra.tip = document.querySelector(".tip").textContent;
    extra.cross = !find('[data-part="event"] .cross').hidden;
    const names = () => every('[data-part="event"] .heat-names span');
    extra.model = names();
    find('[data-part="event"] .heat-foot button:last-child').click();
    extra.moved = names();
    const rows = () => article.querySelectorAll("tbody tr").length;
    extra.rows = [rows()];
    find('[data-act="more"]').click();
    extra.rows.push(rows());
    article.querySelectorAll("thead button").forEach((button) => { button.click(); });
    extra.sorted = find("th[aria-sort]").textContent + " " + find("th[aria-sort]").getAttribute("aria-sort");
    find(".panel [data-tip]").dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
    extra.meaning = document.querySelector(".tip").textContent;
    await frame();
    """
    (seen,) = visit(path, tmp_path, body)
    assert seen["errors"] == "0"
    assert seen["dragged"]
    assert seen["whole"]
    assert seen["readout"].startswith("step ")
    assert seen["log"] == "true"
    assert seen["cursors"] == seen["panels"] >= 3
    assert "grad_norm" in seen["tip"]
    assert seen["cross"]
    assert seen["model"] == [f"layer{i}.weight" for i in range(5)]
    assert sorted(seen["moved"]) == seen["model"]
    assert seen["rows"] == [15, 18]
    assert seen["sorted"] == "Robust sigmas descending"
    assert seen["meaning"].startswith("training loss as observed")
