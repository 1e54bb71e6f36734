"""Trainings in closed form that something strikes at a step: what a monitor would have recorded, with noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from foreshock.run import Event, Run

N, AT = 300, 200
ADAM = {"class": "Adam", "groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}]}
TENSORS = ("a", "b", "c")


def calm(seed: int = 0, noise: float = 0.1, n: int = N) -> dict[str, np.ndarray]:
    """Returns the records of a training that nothing strikes: losses that fall, with the noise of batches."""
    random = np.random.default_rng(seed)

    def noisy(level: Any, size: float) -> np.ndarray:
        return level * np.exp(size * random.standard_normal(n))

    fall = np.exp(-np.arange(n) / 400)
    records = {
        "loss": noisy(fall, noise), "grad_norm": noisy(2 * fall, 2 * noise), "lr": np.full(n, 1e-3),
        "update_rms": noisy(np.full(n, 3e-4), noise), "v_ratio": noisy(np.full(n, 0.9995), 1e-4),
        "grad_cosine": random.uniform(-0.2, 0.4, n), "grad_sq_over_v_mean": noisy(np.full(n, 0.5), 2 * noise),
    }  # fmt: skip
    for name in TENSORS:
        records[f"grad_norm/{name}"] = records["grad_norm"] * noisy(np.full(n, 0.5), noise)
    return records


def times(records: dict[str, np.ndarray], factor: float, *names: str, at: int = AT, steps: int = 1) -> None:
    """Multiplies signals at some steps; "grad_norm" with all its tensors."""
    for name in names:
        for column in (key for key in records if key == name or key.startswith(f"{name}/")):
            records[column][at : at + steps] *= factor


def bad_batch(seed: int = 0, *, factor: float = 5.0, steps: int = 1, noise: float = 0.1) -> Run:
    """Returns a training in which the losses of some batches are off, and their gradients with them."""
    records = calm(seed, noise)
    times(records, factor, "loss", "grad_norm", steps=steps)
    times(records, factor**2, "grad_sq_over_v_mean", steps=steps)
    return Run.from_arrays(records, optimizers=[ADAM])


def burst(seed: int = 0, *, factor: float = 100.0, harm: float = 4.0, lag: int = 1, noise: float = 0.1) -> Run:
    """Returns a training in which a gradient is out of scale, and losses from `lag` steps later on are high."""
    records = calm(seed, noise)
    times(records, factor, "grad_norm")
    times(records, factor**2, "grad_sq_over_v_mean")
    times(records, factor**0.4, "update_rms", steps=5)
    decay = 1 + (harm - 1) * np.exp(-np.arange(N - AT - lag) / 15)
    records["loss"][AT + lag :] *= decay
    return Run.from_arrays(records, optimizers=[ADAM])


def build_up(seed: int = 0, *, growth: float = 1.35, steps: int = 14, noise: float = 0.02) -> Run:
    """Returns a training that goes over its edge: gradients alternate and grow from step to step, then losses."""
    records = calm(seed, noise)
    since = np.arange(N) - AT
    mode = np.where(since <= 0, growth ** np.clip(since + steps, 0, steps), growth ** (steps - 2.0 * since))
    mode[: AT - steps] = 0
    records["grad_norm"] = np.hypot(records["grad_norm"], 0.3 * mode)
    records["loss"] = records["loss"] + 1e-3 * mode**2
    records["grad_cosine"] = np.where((mode > 15) & (since < 0), -0.95, records["grad_cosine"])
    records["update_rms"] = records["update_rms"] * np.sqrt(1 + (0.05 * mode) ** 2)
    return Run.from_arrays({name: records[name] for name in records if "/" not in name}, optimizers=[ADAM])


def spike(at: int, *, kind: str = "spike", peak: int | None = None, signal: str = "loss") -> Event:
    """Returns an event as the detectors raise it."""
    return Event(kind, at + 1, at, at if peak is None else peak, at + 10, 3.0, 40.0, signal)


def only(run: Run, *names: str) -> Run:
    """Returns a run that has these signals and no more, as an imported one may."""
    return Run.from_arrays({"step": run.steps, **{name: run[name] for name in names}})
