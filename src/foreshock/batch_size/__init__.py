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

if TYPE_CHECKING:
    from foreshock.batch_size.average import MovingMean
    from foreshock.batch_size.estimate import NoiseEstimate, NoiseScale
    from foreshock.batch_size.pairs import Pair, adaptdl_pair, pair
    from foreshock.batch_size.ratio import Ratio, ratio_band

# name -> module of this package
_LAZY = {
    "MovingMean": "average",
    "NoiseEstimate": "estimate",
    "NoiseScale": "estimate",
    "Pair": "pairs",
    "Ratio": "ratio",
    "adaptdl_pair": "pairs",
    "pair": "pairs",
    "ratio_band": "ratio",
}

__all__ = [
    "MovingMean",
    "NoiseEstimate",
    "NoiseScale",
    "Pair",
    "Ratio",
    "adaptdl_pair",
    "pair",
    "ratio_band",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock.batch_size' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"foreshock.batch_size.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
