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

`python benchmarks/forecast.py --seed-from 1`: 62 trainings of 53,350 steps in all, small tanh, convolutional and
recurrent networks, Transformers and autoencoders under Adam, AdamW, NAdam, RMSprop, Adafactor, plain and heavy-ball
gradient descent; 100 spikes by curvature (the loss rises 1.5 times out of calm) and 50 by noise: small batches, wrong
labels, bursts of the gradient, leaps of the learning rate. "dev" are families of networks that the detector may be
tuned on (30 trainings, seed 1), "held out" are others (32, seed 11). Seeds 0 and 10 had been looked at when the rules
were last changed; 1 and 11 had not. Foretold is a spike whose alarm was raised before the rise; the lead is the steps
between, in the median and of the tenth that were shortest; false is an alarm that no spike follows.

| alarm | foretold, dev | held out | both | lead: median, tenth | false per 10,000 steps | on noise |
|---|---|---|---|---|---|---|
| `watch` | 44 of 47 | 52 of 53 | 96 % | 26, 7 | 2.8 | 1 of 50 |
| `imminent` | 34 of 47 | 43 of 53 | 77 % | 8, 3 | 3.0 | 1 of 50 |
| gradient norm, z > 3 | 13 | 16 | 29 % | 6, 1 | 16.7 | 19 of 50 |
| gradient norm, z > 6 | 8 | 6 | 14 % | 8, 2 | 4.1 | 10 of 50 |
| OLMo's skip-step rule | 7 | 6 | 13 % | 6, 2 | 3.2 | 11 of 50 |
| ZClip's rule | 23 | 32 | 55 % | 14, 1 | 25.7 | 18 of 50 |
| trainscope 1.8.1's CUSUM, rises | 1 | 3 | 4 % | 47, 15 | 1.3 | 12 of 50 |

On the seeds that had been looked at the same `watch` foretells 51 of 51 and 42 of 44, median lead 49, with 1.3 false
alarms per 10,000 steps: fresh seeds have twice as many.

The others look at losses and gradients, and are right to see noise; most were made to catch a spike, not to foretell
it. None of the 15 false alarms was raised by a training that was to be calm or noisy (21,000 steps): six came from
those that live at their edge (8 per 10,000 steps), nine from those with spikes (4). Eleven were followed by a rise of
1.12 to 1.47 times, two by rises of 3.2 and 5.2 out of a loss that had not been calm, which no label counts, one by a
rise of 59 that is held to be noise's. All four misses are on batches of 95 to 99 % of the data, where chi comes within
1 % of 1 before the loss rises and is not read above it three times in a row.

This takes readings as often as the schedule wants them: 270 a run on dev, 174 on held out in the median, and training
takes 8 times as long in the median, 11 times in all. With `Monitor(..., max_overhead=0.03)`, the default, these
trainings of 1.0 to 1.6 ms a step spend what they may borrow, 3.6 seconds, early: 42 readings a run, 35 of the 100
spikes foretold (16 of 47 and 19 of 53; median lead 55), 1.5 false alarms per 10,000 steps; runs of about a second take
3 seconds longer, 3.4 times as long in the median. It is wall time that is borrowed: with the machine busier, 33. (Other
work shared the machine in both; times are processor time.)
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
