"""Probes: functions from one optimizer step to signals. They read, never write."""

from foreshock.probes.base import Every, Live, Moment, Probe, Signals, Step, UnavailableError, every, name_of
from foreshock.probes.cosine import GradientCosine
from foreshock.probes.curvature import Curvature
from foreshock.probes.moments import Moments
from foreshock.probes.noise import NoiseScale
from foreshock.probes.norms import GradientNorm, Update
from foreshock.probes.secant import Secant
from foreshock.probes.softmax import Softmax
from foreshock.probes.sweep import Part

FREE = (GradientNorm, Update, Moments, GradientCosine)
"""What is measured at every step: no extra pass, no wait for the device."""

DEFAULT = (*FREE, Secant, Curvature, Softmax)
"""What a monitor measures unless told otherwise: `FREE`, chi every 100 steps within 3 % of the wall time, with the
secants that call for it in between, and every 20 steps what rounding takes from the softmax, where there is one."""

__all__ = [
    "DEFAULT",
    "FREE",
    "Curvature",
    "Every",
    "GradientCosine",
    "GradientNorm",
    "Live",
    "Moment",
    "Moments",
    "NoiseScale",
    "Part",
    "Probe",
    "Secant",
    "Signals",
    "Softmax",
    "Step",
    "UnavailableError",
    "Update",
    "every",
    "name_of",
]
