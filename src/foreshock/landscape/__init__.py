"""The landscape around a training: surfaces, floors, trajectories, frequencies of the output, condensation.

Names are imported at first use. Everything here is offline work at points that a caller chooses: it runs a loss or a
model often and leaves no trace in it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreshock.landscape import figures
    from foreshock.landscape.components import PCA, pca
    from foreshock.landscape.cosines import Condensation, condensation
    from foreshock.landscape.floor import Floor, floor_index, floor_of
    from foreshock.landscape.frequency import ProjectionSpectrum, projection_spectrum, share_low, spectrum_1d, widths
    from foreshock.landscape.llas import LlasIndex, llas_index
    from foreshock.landscape.outputs import output_change, output_changes, real_change
    from foreshock.landscape.plane import Plane, Projection, drift_plane, plane_of
    from foreshock.landscape.projections import EigenProjections, eigen_projections
    from foreshock.landscape.surfaces import Surface, sharpness, surface
    from foreshock.landscape.trajectory import Trajectory

# name -> module of this package; an empty string stands for the module of that name itself.
_LAZY = {
    "PCA": "components",
    "Condensation": "cosines",
    "EigenProjections": "projections",
    "Floor": "floor",
    "LlasIndex": "llas",
    "Plane": "plane",
    "Projection": "plane",
    "ProjectionSpectrum": "frequency",
    "Surface": "surfaces",
    "Trajectory": "trajectory",
    "condensation": "cosines",
    "drift_plane": "plane",
    "eigen_projections": "projections",
    "figures": "",
    "floor_index": "floor",
    "floor_of": "floor",
    "llas_index": "llas",
    "output_change": "outputs",
    "output_changes": "outputs",
    "pca": "components",
    "plane_of": "plane",
    "projection_spectrum": "frequency",
    "real_change": "outputs",
    "share_low": "frequency",
    "sharpness": "surfaces",
    "spectrum_1d": "frequency",
    "surface": "surfaces",
    "widths": "frequency",
}

__all__ = [
    "PCA",
    "Condensation",
    "EigenProjections",
    "Floor",
    "LlasIndex",
    "Plane",
    "Projection",
    "ProjectionSpectrum",
    "Surface",
    "Trajectory",
    "condensation",
    "drift_plane",
    "eigen_projections",
    "figures",
    "floor_index",
    "floor_of",
    "llas_index",
    "output_change",
    "output_changes",
    "pca",
    "plane_of",
    "projection_spectrum",
    "real_change",
    "share_low",
    "sharpness",
    "spectrum_1d",
    "surface",
    "widths",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foreshock.landscape' has no attribute {name!r}")
    module = importlib.import_module(f"foreshock.landscape.{_LAZY[name] or name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
