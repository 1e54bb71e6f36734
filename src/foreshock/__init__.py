"""foreshock measures, predicts, explains and prevents loss spikes in neural-network training.

>>> import foreshock as fs
>>> run = fs.Run.from_arrays({"loss": [1.0] * 200 + [9.0] + [1.0] * 200})
>>> [(event.kind, event.peak) for event in fs.scan(run)]
[('spike', 200)]

`Monitor` watches a training; `Run` reads what was recorded; `scan` finds the events; `report` writes the page;
`diagnose` ranks its causes, `replay` proves them with one thing changed at a time, `attribute` says which tensors and
examples did it; `Guard` stops them, as one of `policies` decides; `stability_threshold` and `edge` say how
far an optimizer is from its edge of stability; `landscape` draws the loss around a training; `cross_entropy` is torch's
with an exact gradient, `S3` an optimizer whose steps are bounded; `init_new_rows` starts new classes without a jump,
and `goodput` says how large a batch pays. Names are imported at first use, so that reading runs never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foreshock.errors import (
    CorruptRunError,
    ForeshockError,
    ForeshockWarning,
    ImportFormatError,
    MissingExtraError,
    RunError,
    StoppedError,
    UsageError,
)

if TYPE_CHECKING:
    from foreshock import attribution, batch_size, heads, landscape, numerics, optim, policies, probes, report
    from foreshock.attribution import Attribution, attribute, attribute_event
    from foreshock.batch_size import goodput
    from foreshock.curvature import (
        EdgeTracker,
        GaussNewton,
        Hessian,
        eigsh,
        generalized_sharpness,
        spectral_density,
    )
    from foreshock.curvature.edge import Edge, edge
    from foreshock.detect import scan
    from foreshock.diagnose.rank import diagnose
    from foreshock.guard.guard import Guard
    from foreshock.guard.snapshots import Snapshots
    from foreshock.heads import HeadStatistics, init_new_rows
    from foreshock.history import History
    from foreshock.monitor import Monitor
    from foreshock.noise import noise_scale
    from foreshock.numerics.absorption import absorption
    from foreshock.numerics.cross_entropy import cross_entropy
    from foreshock.numerics.linear import linear_cross_entropy
    from foreshock.optim import S3, burst_response
    from foreshock.probes import every
    from foreshock.replay import Replay, what_if
    from foreshock.replay.replay import replay
    from foreshock.requeue import Requeue
    from foreshock.run import Event, Run
    from foreshock.stability import edge_weights, stability_threshold

__version__ = "0.1.0.dev0"

# name -> module; an empty string stands for the module of that name itself (`foreshock.report(run, path)` is callable).
_LAZY = {
    "Attribution": "foreshock.attribution",
    "Edge": "foreshock.curvature",
    "EdgeTracker": "foreshock.curvature",
    "Event": "foreshock.run",
    "GaussNewton": "foreshock.curvature",
    "Guard": "foreshock.guard.guard",
    "HeadStatistics": "foreshock.heads",
    "Hessian": "foreshock.curvature",
    "History": "foreshock.history",
    "Monitor": "foreshock.monitor",
    "Replay": "foreshock.replay",
    "Requeue": "foreshock.requeue",
    "Run": "foreshock.run",
    "S3": "foreshock.optim",
    "Snapshots": "foreshock.guard.snapshots",
    "absorption": "foreshock.numerics",
    "attribute": "foreshock.attribution",
    "attribute_event": "foreshock.attribution",
    "attribution": "",
    "batch_size": "",
    "burst_response": "foreshock.optim",
    "cross_entropy": "foreshock.numerics",
    "diagnose": "",
    "edge": "foreshock.curvature",
    "edge_weights": "foreshock.stability",
    "eigsh": "foreshock.curvature",
    "every": "foreshock.probes",
    "generalized_sharpness": "foreshock.curvature",
    "goodput": "foreshock.batch_size",
    "heads": "",
    "init_new_rows": "foreshock.heads",
    "landscape": "",
    "linear_cross_entropy": "foreshock.numerics",
    "noise_scale": "foreshock.noise",
    "numerics": "",
    "optim": "",
    "policies": "",
    "probes": "",
    "replay": "",
    "report": "",
    "scan": "foreshock.detect",
    "spectral_density": "foreshock.curvature",
    "stability_threshold": "foreshock.stability",
    "what_if": "foreshock.replay",
}

__all__ = [
    "S3",
    "Attribution",
    "CorruptRunError",
    "Edge",
    "EdgeTracker",
    "Event",
    "ForeshockError",
    "ForeshockWarning",
    "GaussNewton",
    "Guard",
    "HeadStatistics",
    "Hessian",
    "History",
    "ImportFormatError",
    "MissingExtraError",
    "Monitor",
    "Replay",
    "Requeue",
    "Run",
    "RunError",
    "Snapshots",
    "StoppedError",
    "UsageError",
    "__version__",
    "absorption",
    "attribute",
    "attribute_event",
    "attribution",
    "batch_size",
    "burst_response",
    "cross_entropy",
    "diagnose",
    "edge",
    "edge_weights",
    "eigsh",
    "every",
    "generalized_sharpness",
    "goodput",
    "heads",
    "init_new_rows",
    "landscape",
    "linear_cross_entropy",
    "noise_scale",
    "numerics",
    "optim",
    "policies",
    "probes",
    "replay",
    "report",
    "scan",
    "spectral_density",
    "stability_threshold",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name] or f"foreshock.{name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
