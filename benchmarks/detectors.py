"""Scores the shipped detectors, at their one default setting, on the labelled corpus of loss curves.

python benchmarks/detectors.py [CORPUS]

CORPUS is the folder that holds `index.json`, `score.py` and `curves/`; without it the environment variable
FORESHOCK_CORPUS, else `../shared/corpus` next to this repository. An alarm is the step at which an event of any kind
was raised. The peer is the rolling z-score of ten lines.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from foreshock.detect import default_detectors, scan
from foreshock.run import StepRecord

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = ("loss", "grad_norm", "lr")
Alarms = dict[str, list[int]]


def rolling_z_score(records: Sequence[StepRecord]) -> list[int]:
    """Returns the indices where the loss is 6 standard deviations above the mean of the last 100, or not finite."""
    window: deque[float] = deque(maxlen=100)
    alarms = []
    for i, record in enumerate(records):
        loss = record.values["loss"]
        if len(window) >= 20:
            mean = sum(window) / len(window)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in window) / len(window))
            if not loss <= mean + 6.0 * deviation:
                alarms.append(i)
        if math.isfinite(loss):
            window.append(loss)
    return alarms


def foreshock_default(records: Sequence[StepRecord]) -> list[int]:
    """Returns the indices at which the default detectors raised an event."""
    index = {record.step: i for i, record in enumerate(records)}
    return sorted({index[event.raised] for event in scan(records, default_detectors())})


def load(corpus: Path, curve: str) -> list[StepRecord]:
    """Returns the records of one curve: loss, gradient norm and learning rate."""
    arrays = np.load(corpus / "curves" / f"{curve}.npz")
    columns = [arrays[name].tolist() for name in SIGNALS]
    rows = zip(arrays["step"].tolist(), *columns, strict=True)
    return [StepRecord(step, dict(zip(SIGNALS, values, strict=True))) for step, *values in rows]


def balanced(result: dict[str, Any], index: Sequence[dict[str, Any]], bad: Callable[[str], bool]) -> dict[str, float]:
    """Returns three family-balanced scores: means over families of F1, where a family without events scores ...

    `share`: 1 minus its share of curves with a false alarm; `episodes`: 1 / (1 + false episodes); `events only`: not.
    """
    share, episodes, only = [], [], []
    for family, (found, total, false) in result["by_family"].items():
        f1 = 2 * found / max(1, found + total + false)
        if total:
            only.append(f1)
        curves = [curve["id"] for curve in index if curve["family"] == family]
        share.append(f1 if total else 1 - sum(map(bad, curves)) / len(curves))
        episodes.append(f1 if total else 1 / (1 + false))
    return {"share": float(np.mean(share)), "episodes": float(np.mean(episodes)), "events only": float(np.mean(only))}


def early_share(scorer: ModuleType, alarms: Alarms, index: Sequence[dict[str, Any]]) -> float:
    """Returns the share of the events with a precursor that raised an alarm before the loss moved."""
    hits = [hit for curve in index for hit in scorer.score_curve(alarms[curve["id"]], curve)["hits"]]
    delays = [delay for event, delay in hits if event.get("precursor") is not None]
    return sum(delay is not None and delay < 0 for delay in delays) / len(delays)


def score(scorer: ModuleType, detect: Callable[..., list[int]], curves: dict[str, Any], index: Any) -> dict[str, Any]:
    """Returns the table row of one detector; time is processor time a record, the best of three passes."""
    best, alarms = math.inf, {}
    for _ in range(3):
        start = time.process_time()
        alarms = {curve: detect(records) for curve, records in curves.items()}
        best = min(best, time.process_time() - start)
    by_id = {curve["id"]: curve for curve in index}
    result = scorer.score(alarms, index)
    result["balanced"] = balanced(
        result, index, lambda curve: scorer.score_curve(alarms[curve], by_id[curve])["fp_episodes"] > 0
    )
    result["early"] = early_share(scorer, alarms, index)
    result["us"] = 1e6 * best / sum(map(len, curves.values()))
    return result


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    given = arguments[0] if arguments else os.environ.get("FORESHOCK_CORPUS")
    corpus = Path(given) if given else ROOT.parent / "shared" / "corpus"
    missing = [name for name in ("index.json", "score.py", "curves") if not (corpus / name).exists()]
    if missing:
        print(
            f"no corpus of labelled curves at {corpus}: it lacks {', '.join(missing)}.\n"
            "Give its folder as the argument, or in the environment variable FORESHOCK_CORPUS.",
            file=sys.stderr,
        )
        return 2
    index = json.loads((corpus / "index.json").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("corpus_score", corpus / "score.py")
    assert spec is not None
    assert spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    curves = {curve["id"]: load(corpus, curve["id"]) for curve in index}
    events = sum(len(curve["events"]) for curve in index)
    print(f"{len(curves)} curves, {events} events, {sum(map(len, curves.values()))} records\n")
    titles = ("precision", "recall", "F1", "false/10k", "balanced (share, episodes, events)", "catastrophic", "early")
    print("| detector | " + " | ".join(titles) + " | us a record |\n|" + "---|" * (len(titles) + 2))
    for name, detect in (("foreshock, default", foreshock_default), ("rolling z > 6, ten lines", rolling_z_score)):
        row = score(scorer, detect, curves, index)
        by_family = ", ".join(f"{value:.3f}" for value in row["balanced"].values())
        print(
            f"| {name} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['fp_per_10k']:.2f} "
            f"| {by_family} | {row['recall_by_severity']['catastrophic']:.2f} | {row['early']:.2f} | {row['us']:.1f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
