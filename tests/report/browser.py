"""Opens a page in headless Chromium and reads back what its own scripts made of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (chromium, chromium-browser, google-chrome)")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1280,1600"
)  # fmt: skip

# Visits every run, waits for its charts, and writes what it saw into the document.
PROBE = """
(async () => {
  const frame = () => new Promise((done) => setTimeout(done, 40));
  const seen = [];
  for (const article of document.querySelectorAll("article.run")) {
    location.hash = article.id;
    const pixels = (c) => new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
    let canvases = [], blank = [];
    for (let i = 0; i < 40; i++) {
      await frame();
      canvases = [...article.querySelectorAll("canvas")].filter((c) => c.width > 1 && c.offsetParent);
      blank = canvases.filter((c) => !pixels(c).some(Boolean));
      if (i > 3 && canvases.length && !blank.length) break;
    }
    BODY
    const { errors, error } = document.documentElement.dataset;
    seen.push({canvases: canvases.length, blank: blank.length, errors, error, text: article.innerText, ...extra});
  }
  const out = document.createElement("script");
  out.type = "application/json"; out.id = "probe"; out.textContent = JSON.stringify(seen).replace(/</g, "\\\\u003c");
  document.body.append(out);
})();
"""


def dump(path: Path, tmp_path: Path, *, fragment: str = "") -> str:
    """Returns the document of a page after its scripts ran."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def visit(path: Path, tmp_path: Path, body: str = "const extra = {};") -> list[dict[str, Any]]:
    """Returns what each run of a page looks like in the browser: canvases, blank ones, errors, visible text.

    The probe is added to a copy of the page whose content security policy is lifted.

    Args:
        path: the page.
        tmp_path: room for the copy and the browser's profile.
        body: JavaScript run for each `article`; has to set `extra`, an object whose fields are returned as well.
    """
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", path.read_text(encoding="utf-8"))
    head, end, tail = text.rpartition("</body>")
    copy = tmp_path / "probed.html"
    copy.write_text(f"{head}<script>{PROBE.replace('BODY', body)}</script>{end}{tail}", encoding="utf-8")
    found = re.search(r'<script type="application/json" id="probe">(.*?)</script>', dump(copy, tmp_path), re.DOTALL)
    assert found, "the probe did not finish"
    seen: list[dict[str, Any]] = json.loads(found[1])
    return seen
