"""How large a batch should be: the gradient noise scale with its band, goodput, and when to change the batch.

Numbers only: nothing here needs torch but what measures steps or changes an optimizer's state, which import it when
they are asked for. Names are imported at first use.

>>> from foreshock.batch_size import NoiseScale
>>> scale = NoiseScale(8, 64)
>>> scale.update([3.0] * 8, 1.0)
>>> scale.value().status
'undefined'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# at once, since a function that is named like its file would be hidden by it when that is imported first
from foreshock.batch_size.gain import gain
from foreshock.batch_size.goodput import goodput

if TYPE_CHECKING:
    from foreshock.batch_size.advice import Steady, SwitchAdvice, switch_advice
    from foreshock.batch_size.average import MovingMean
    from foreshock.batch_size.estimate import NoiseEstimate, NoiseScale
    from foreshock.batch_size.gain import Gain, efficiency, lr_factor
    from foreshock.batch_size.goodput import Goodput, critical_batch, optimum
    from foreshock.batch_size.pairs import Pair, adaptdl_pair, pair
    from foreshock.batch_size.pollux import geometric_batches, pollux_seconds
    from foreshock.batch_size.ratio import Ratio, ratio_band
    from foreshock.batch_size.recorded import FromRun, recorded_advice
    from foreshock.batch_size.schedule import BatchSchedule, Phase, schedule_advice
    from foreshock.batch_size.split import Split, feasible
    from foreshock.batch_size.times import StepTimes, recorded_times, step_times

# name -> module of this package
_LAZY = {
    "BatchSchedule": "schedule",
    "FromRun": "recorded",
    "Gain": "gain",
    "Goodput": "goodput",
    "MovingMean": "average",
    "NoiseEstimate": "estimate",
    "NoiseScale": "estimate",
    "Pair": "pairs",
    "Phase": "schedule",
    "Ratio": "ratio",
    "Split": "split",
    "Steady": "advice",
    "StepTimes": "times",
    "SwitchAdvice": "advice",
    "adaptdl_pair": "pairs",
    "critical_batch": "goodput",
    "efficiency": "gain",
    "feasible": "split",
    "geometric_batches": "pollux",
    "lr_factor": "gain",
    "optimum": "goodput",
    "pair": "pairs",
    "pollux_seconds": "pollux",
    "ratio_band": "ratio",
    "recorded_advice": "recorded",
    "recorded_times": "times",
    "schedule_advice": "schedule",
    "step_times": "times",
    "switch_advice": "advice",
}

__all__ = [
    "BatchSchedule",
    "FromRun",
    "Gain",
    "Goodput",
    "MovingMean",
    "NoiseEstimate",
    "NoiseScale",
    "Pair",
    "Phase",
    "Ratio",
    "Split",
    "Steady",
    "StepTimes",
    "SwitchAdvice",
    "adaptdl_pair",
    "critical_batch",
    "efficiency",
    "feasible",
    "gain",
    "geometric_batches",
    "goodput",
    "lr_factor",
    "optimum",
    "pair",
    "pollux_seconds",
    "ratio_band",
    "recorded_advice",
    "recorded_times",
    "schedule_advice",
    "step_times",
    "switch_advice",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock.batch_size' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"foreshock.batch_size.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
