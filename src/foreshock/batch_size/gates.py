"""What forbids a change of the batch: absorption in the softmax, a gated noise scale, an edge that would be passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ABSORBED", "RESIDUAL", "active"]

ABSORBED, RESIDUAL = 0.5, 0.1
"""Share of absorbed rows, and class sum, beyond which gradients are what rounding leaves.

Source: Liu et al. 2026, arXiv 2605.06152; the levels are those of the detector of absorption.
"""

_ABSORBED = ("softmax_absorbed", "sc_frac")
_RESIDUAL = ("softmax_residual", "rho")
_TEXTS = {"noise_gated": "the noise scale is gated"}


def active(gates: Sequence[str] | Mapping[str, float | bool]) -> tuple[str, ...]:
    """Returns the reasons, in words, that hold the batch where it is.

    Args:
        gates: reasons as they are; or name -> value: signals of a record, among which `softmax_absorbed` (or
            `sc_frac`) above 0.5 with `softmax_residual` (or `rho`) above 0.1 is absorption, and any other name,
            such as `noise_gated`, a gate that is shut where its value is true.

    >>> active({"sc_frac": 0.8, "rho": 0.3})
    ('the softmax absorbs: 80% of the rows have lost their gradient, and class sums hold 0.3 of what is left',)
    >>> active({"sc_frac": 0.8, "rho": 1e-4}), active(["loss scale found an overflow"])
    ((), ('loss scale found an overflow',))
    """
    if isinstance(gates, str):
        return (gates,)
    if not isinstance(gates, Mapping):
        return tuple(str(each) for each in gates if each)
    found = []
    absorbed, residual = _first(gates, _ABSORBED), _first(gates, _RESIDUAL)
    if absorbed > ABSORBED and residual > RESIDUAL:
        found.append(
            f"the softmax absorbs: {absorbed:.0%} of the rows have lost their gradient, and class sums hold "
            f"{residual:.2g} of what is left"
        )
    for name, value in gates.items():
        if name not in _ABSORBED + _RESIDUAL and value == value and bool(value):
            found.append(_TEXTS.get(name, name))
    return tuple(found)


def _first(values: Mapping[str, float | bool], names: Sequence[str]) -> float:
    return next((float(values[name]) for name in names if name in values), 0.0)
