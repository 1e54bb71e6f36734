"""Writes the generated pages of the documentation: `make docs`. A test fails when one is out of date."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import foreshock
from foreshock.detect import default_detectors
from foreshock.run import KINDS
from foreshock.signals import markdown_table

SIGNALS = """\
# Signals

Every number foreshock measures, defined once, in `foreshock/signals.py`, from which this page is generated
(`make docs`). A run-wide signal is a column of its own name; per tensor it is `name/parameter.name`, or
`name/module.name` where the tensors of a large model are grouped. "Over ranks" says how the ranks' values, and inside
a group the tensors' values, become one. The unit "1" marks ratios and counts.

"""

DETECTORS = """\
# Detectors

A detector is a fold over records that emits events. The same object runs live (the monitor feeds it at each flush) and
over a stored run (`foreshock.scan`), and finds the same in both: it never sees the future, and never the whole run. It
costs O(1) a record, its state is plain values (`state_dict`), and it learns its baseline from what it did not flag.

An event is raised once and then grows: its later versions have the same kind, signal and `raised`, and the last one
counts. `onset`, `peak` and `end` are step numbers; `end` is None while it is open. `height` is in units of the signal,
`severity` in robust standard deviations of the noise before it.

All detectors have one default setting, and `foreshock.testing.check_detector` runs the contract on any detector, also
on one of your own ([an example](../examples/own_detector.py)). Generated from the docstrings in `foreshock/detect/`
(`make docs`); kinds that no section below raises belong to detectors that need numerics.

"""

FORECAST = """
## How well the forecast foretells

`python benchmarks/forecast.py`: 62 trainings of 53,350 steps in all, small tanh, convolutional and recurrent networks,
Transformers and autoencoders under Adam, AdamW, NAdam, RMSprop, Adafactor, plain and heavy-ball gradient descent; 95
spikes by curvature (the loss rises 1.5 times out of calm) and 43 by noise: small batches, wrong labels, bursts of the
gradient, leaps of the learning rate. "dev" are families of networks that the detector may be tuned on, "held out" are
others. Foretold is a spike whose alarm was raised before the rise; the lead is the steps between; false is an alarm that
no spike follows.

| alarm | foretold, dev | held out | both | lead, median | false per 10,000 steps | on noise |
|---|---|---|---|---|---|---|
| `watch` | 49 of 51 | 43 of 44 | 97 % | 46 | 1.3 | 0 of 43 |
| `imminent` | 41 of 51 | 36 of 44 | 81 % | 7 | 1.5 | 0 of 43 |
| gradient norm, z > 3 | 21 | 19 | 42 % | 8 | 17.8 | 11 of 43 |
| gradient norm, z > 6 | 16 | 12 | 29 % | 8 | 3.2 | 12 of 43 |
| OLMo's skip-step rule | 14 | 9 | 24 % | 8 | 1.9 | 11 of 43 |
| ZClip's rule | 39 | 33 | 76 % | 4 | 23.8 | 13 of 43 |
| trainscope 1.8.1's CUSUM, rises | 6 | 2 | 8 % | 16 | 0.9 | 9 of 43 |

The others look at losses and gradients, and are right to see noise; most were made to catch a spike, not to foretell
it. Six of the seven false alarms were followed by a rise of 1.26 to 1.37 times; four were raised by trainings that live
at their edge (10 per 10,000 steps there). Two of the three misses are one training in turmoil, whose top direction
changes at every step; the third broke out within ten steps, between two readings.

This takes readings as often as the schedule wants them. They cost 8 to 10 products with the Hessian each: with
`Monitor(..., max_overhead=0.03)`, the default, these trainings of 0.8 to 1.4 ms a step get two readings a run and 2 of
the 95 spikes are foretold. With all the readings (124 to 188 a run in the median) training takes 12 times as long.
"""

NAMES = """\
# Public names

What `import foreshock` offers; generated from the docstrings (`make docs`), which say more: `help(foreshock.Run)`.

| name | what it is |
|---|---|
"""


def names() -> str:
    """Returns a row for each public name: its call and the first sentence of its docstring."""
    rows = []
    for name in foreshock.__all__:
        value = getattr(foreshock, name)
        text = "The installed version." if isinstance(value, str) else inspect.getdoc(value) or ""
        paragraph = re.sub(r"::$", ".", text.partition("\n\n")[0])
        first = re.split(r"(?<=[^.]\.)\s", paragraph.replace("\n", " "), maxsplit=1)[0]
        cell = first.replace("|", "\\|")
        call = '()' if callable(value) and not inspect.isclass(value) else ''
        rows.append(f"| `{name}{call}` | {cell} |\n")
    return "".join(rows)


def detectors() -> str:
    """Returns the kinds of events as a table, and a section for each shipped detector: its docstring."""
    table = "".join(f"| `{kind}` | {meaning} |\n" for kind, meaning in KINDS.items())
    sections = "".join(
        f"\n## {type(detector).__name__}\n\n{(inspect.getdoc(type(detector)) or '').partition('>>>')[0].rstrip()}\n"
        for detector in default_detectors()
    )
    return f"| kind | what it is |\n|---|---|\n{table}{sections}"


def pages() -> dict[str, str]:
    """Returns {file name in docs/: its text}."""
    return {
        "signals.md": SIGNALS + markdown_table(),
        "names.md": NAMES + names(),
        "detectors.md": DETECTORS + detectors() + FORECAST,
    }


if __name__ == "__main__":
    for name, text in pages().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
