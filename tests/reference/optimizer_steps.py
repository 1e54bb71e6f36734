"""One step of every optimizer along an eigenpair, as its paper or torch writes it, with the denominator frozen at 1.

A step maps the state (parameter first) linearly; the eigenvalues of that map decide between decay and growth. Nothing
here knows of filters, gains or thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

State = np.ndarray
Step = Callable[[State, float, Mapping[str, float]], State]


def matrix(step: Step, curvature: float, settings: Mapping[str, float], size: int = 4) -> np.ndarray:
    """Returns the matrix of a step on `size` numbers; those a step does not use become zero after it."""
    return np.stack([step(unit, curvature, settings) for unit in np.eye(size)], axis=1)


def growth(step: Step, curvature: float, settings: Mapping[str, float]) -> float:
    """Returns the factor per step of whatever grows fastest."""
    return float(np.abs(np.linalg.eigvals(matrix(step, curvature, settings))).max())


def state(*values: float) -> State:
    return np.array([*values, *[0.0] * (4 - len(values))])


def sgd(old, curvature, s):
    theta, buffer = old[:2]
    g = (curvature + s["weight_decay"]) * theta
    if not s["momentum"]:
        return state(theta - s["lr"] * s.get("grafting", 1.0) * g)
    buffer = s["momentum"] * buffer + (1 - s["dampening"]) * g
    move = g + s["momentum"] * buffer if s["nesterov"] else buffer
    return state(theta - s["lr"] * s.get("grafting", 1.0) * move, buffer)


def asgd(old, curvature, s):
    theta = old[0]
    eta = s["lr"] / (1 + s["lambd"] * s["lr"] * (s["step"] - 1)) ** s["alpha"]
    return state(theta * (1 - s["lambd"] * eta) - eta * (curvature + s["weight_decay"]) * theta)


def qhm(old, curvature, s):
    theta, m = old[:2]
    g = (curvature + s["weight_decay"]) * theta
    m = s["momentum"] * m + (1 - s["momentum"]) * g
    return state(theta - s["lr"] * ((1 - s["nu"]) * g + s["nu"] * m), m)


def schedule_free(old, curvature, s):
    """State: z and x; the gradient and the decay are taken at y between them."""
    z, x = old[:2]
    c = s["c"] if "c" in s else (0.0 if math.isinf(s["step"]) else s["step"] ** s["r"] / power_sum(s["step"], s["r"]))
    y = (1 - s["beta1"]) * z + s["beta1"] * x
    z = z - s["lr"] * (curvature + s["weight_decay"]) * y
    return state(z, (1 - c) * x + c * z)


def power_sum(steps: float, power: float) -> float:
    return sum(i**power for i in range(1, int(steps) + 1))


def cascade(old, curvature, s):
    theta, first, second = old[:3]
    first = s["beta1"] * first + (1 - s["beta1"]) * curvature * theta
    second = s["beta2"] * second + (1 - s["beta2"]) * first
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * second, first, second)


def rmsprop(old, curvature, s):
    theta, buffer = old[:2]
    buffer = s["momentum"] * buffer + (curvature + s["weight_decay"]) * theta
    return state(theta - s["lr"] * buffer, buffer)


def adagrad(old, curvature, s):
    clr = s["lr"] / (1 + (s["step"] - 1) * s["lr_decay"])
    return state(old[0] - clr * (curvature + s["weight_decay"]) * old[0])


def adadelta(old, curvature, s):
    return state(old[0] - s["lr"] * (curvature + s["weight_decay"]) * old[0])


def adam(old, curvature, s):
    theta, m = old[:2]
    decoupled = s.get("decoupled_weight_decay", False)
    m = s["beta1"] * m + (1 - s["beta1"]) * (curvature + (not decoupled) * s["weight_decay"]) * theta
    return state((1 - decoupled * s["lr"] * s["weight_decay"]) * theta - s["lr"] * m, m)


def adamw(old, curvature, s):
    return adam(old, curvature, {**s, "decoupled_weight_decay": True})


def lamb(old, curvature, s):
    """The denominator divided by the trust ratio is frozen at 1: the ratio is left in the decay."""
    theta, m = old[:2]
    m = s["beta1"] * m + (1 - s["beta1"]) * curvature * theta
    return state((1 - s["lr"] * s["trust_ratio"] * s["weight_decay"]) * theta - s["lr"] * m, m)


def nadam(old, curvature, s):
    theta, m = old[:2]
    decoupled, b = s["decoupled_weight_decay"], s["beta1"]
    psi = s["momentum_decay"]

    def momentum(t):
        return b * (1 - 0.5 * 0.96 ** (t * psi if psi else 0))

    t = s["step"]
    product = 0.0 if math.isinf(t) else float(np.prod([momentum(i) for i in range(1, int(t) + 1)]))
    g = (curvature + (not decoupled) * s["weight_decay"]) * theta
    m = b * m + (1 - b) * g
    theta = (1 - decoupled * s["lr"] * s["weight_decay"]) * theta
    theta = theta - s["lr"] * (1 - momentum(t)) / (1 - product) * g
    return state(theta - s["lr"] * momentum(t + 1) / (1 - product * momentum(t + 1)) * m, m)


def adafactor(old, curvature, s):
    alpha = max(s["eps2"], s["rms"]) * min(s["lr"], s["step"] ** -0.5)
    clip = max(1.0, s["update_rms"] / s["d"])
    return state((1 - s["lr"] * s["weight_decay"]) * old[0] - alpha / clip * curvature * old[0])


def qhadam(old, curvature, s):
    theta, m = old[:2]
    g = (curvature + s["weight_decay"]) * theta
    m = s["beta1"] * m + (1 - s["beta1"]) * g
    corrected = m / (1 - s["beta1"] ** s["step"])
    return state(theta - s["lr"] * ((1 - s["nu"]) * g + s["nu"] * corrected), m)


def ademamix(old, curvature, s):
    theta, fast, slow = old[:3]
    fast = s["beta1"] * fast + (1 - s["beta1"]) * curvature * theta
    slow = s["beta3"] * slow + (1 - s["beta3"]) * curvature * theta
    move = fast / (1 - s["beta1"] ** s["step"]) + s["alpha"] * slow
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * move, fast, slow)


def s3(old, curvature, s):
    theta, m = old[:2]
    g = curvature * theta
    m = s["beta"] * m + (1 - s["beta"]) * g
    move = s["beta"] * m + (1 - s["beta"]) * g if s["nesterov"] else m
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * move, m)


def lion(old, curvature, s):
    theta, m = old[:2]
    g = curvature * theta
    move = s["beta1"] * m + (1 - s["beta1"]) * g
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * move, s["beta2"] * m + (1 - s["beta2"]) * g)


def muon(old, curvature, s):
    theta, m = old[:2]
    mu = s["momentum"]
    g = curvature * theta
    m = mu * m + (1 - mu) * g
    move = mu * m + (1 - mu) * g if s["nesterov"] else m
    wide = 0.2 * math.sqrt(max(s["rows"], s["columns"]))
    scale = wide if s["match_rms_adamw"] else math.sqrt(max(1, s["rows"] / s["columns"]))
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * scale * move, m)


def signsgd(old, curvature, s):
    theta, m = old[:2]
    m = s["momentum"] * m + (1 - s["momentum"]) * curvature * theta
    return state((1 - s["lr"] * s["weight_decay"]) * theta - s["lr"] * m, m)


def rprop(old, curvature, s):
    return state(old[0] - s["lr"] * curvature * old[0])


STEPS: dict[str, Step] = {
    "SGD": sgd, "ASGD": asgd, "QHM": qhm, "ScheduleFree": schedule_free, "Cascade": cascade, "RMSprop": rmsprop,
    "Adagrad": adagrad, "Adadelta": adadelta, "Adam": adam, "AdamW": adamw, "Adamax": adam, "Padam": adam,
    "AdaBelief": adamw, "Yogi": adam, "AdamMini": adamw, "LAMB": lamb, "NAdam": nadam, "RAdam": adam,
    "Adafactor": adafactor, "QHAdam": qhadam, "AdEMAMix": ademamix, "Shampoo": sgd, "SOAP": adamw, "S3": s3,
    "Lion": lion, "Muon": muon, "SignSGD": signsgd, "Rprop": rprop,
}
