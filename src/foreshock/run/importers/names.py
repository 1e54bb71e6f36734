"""Which column of another tool's log holds which signal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from foreshock.errors import ImportFormatError

# Spellings are compared in lower case with every other character than letters and digits as one underscore, so
# "train/loss", "Train Loss" and "train.loss" are one. The first that a file has is taken.
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "step": (
        "step", "global_step", "trainer_global_step", "train_global_step", "iteration", "iterations", "iter", "it",
        "steps", "train_step", "training_step", "num_updates", "update", "n_iter", "num_steps", "batch_step",
    ),
    "loss": (
        "loss", "train_loss", "training_loss", "train_loss_step", "loss_train", "loss_training", "lm_loss",
        "train_lm_loss", "total_loss", "train_total_loss", "loss_total", "batch_loss", "ce_loss", "nll_loss",
        "cross_entropy", "cross_entropy_loss", "train_cross_entropy", "train_ce_loss", "losses_train",
        "train_loss_epoch",
    ),
    "grad_norm": (
        "grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "global_grad_norm", "total_grad_norm",
        "grad_norm_total", "gnorm", "train_gnorm", "gradient_norm_total", "grad_2_0_norm_total", "grad_norm_global",
    ),
    "lr": (
        "lr", "learning_rate", "train_lr", "train_learning_rate", "lr_group0", "lr_0", "lr_adam", "lr_adamw", "lr_sgd",
        "optim_lr", "optimizer_lr",
    ),
    "loss_scale": ("loss_scale", "train_loss_scale", "grad_scale", "amp_loss_scale"),
    "param_norm": ("param_norm", "params_norm", "train_param_norm", "weight_norm"),
    "time": ("timestamp", "wall_time", "walltime", "time", "unix_time"),
}
_VALUE = "value"  # the one column of a chart that TensorBoard exports as CSV, next to "Wall time" and "Step"


def choose(columns: Collection[str], given: Mapping[str, str] | None, path: Path) -> dict[str, str]:
    """Returns signal -> column of the file: what the user said, then what the spelling suggests.

    Raises:
        ImportFormatError: the user named a column that the file does not have.
    """
    chosen: dict[str, str] = {}
    for signal, column in (given or {}).items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has: {listed(columns)}"
            raise ImportFormatError(f"{path} has no column {column!r} (asked for as {signal!r}); {hint}")
        chosen[signal] = column
    free = [column for column in columns if column not in chosen.values()]
    spelled: dict[str, str] = {}
    for column in free:
        spelled.setdefault(simplified(column), column)
    for signal, spellings in _SPELLINGS.items():
        found = next((spelled[name] for name in spellings if name in spelled), None)
        if signal not in chosen and found is not None:
            chosen[signal] = found
    if "loss" not in chosen and [name for name in spelled if name not in ("step", "wall_time")] == [_VALUE]:
        chosen["loss"] = spelled[_VALUE]
    return chosen


def simplified(column: str) -> str:
    """Returns the name as spellings are compared.

    >>> simplified("Train/Loss ")
    'train_loss'
    """
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def listed(columns: Collection[str]) -> str:
    """Returns the names for a message, the first dozen of them."""
    some = [repr(column) for column in list(columns)[:12]]
    return ", ".join(some) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "") or "none"
