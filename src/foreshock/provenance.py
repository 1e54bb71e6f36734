"""Where a run comes from: versions, commit, device, optimizer and its settings."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.probes import native


def metadata(optimizer: Optimizer, tensors: Sequence[str]) -> dict[str, Any]:
    """Returns what a run's `run.json` says about the process, as plain JSON values."""
    from foreshock import __version__

    params = [param for group in optimizer.param_groups for param in group["params"]]
    devices = sorted({_describe(param.device) for param in params})
    return {
        "argv": list(sys.argv),
        "git": git_state(),
        "versions": {
            "foreshock": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
        "device": ", ".join(devices),
        "dtypes": sorted({str(param.dtype).removeprefix("torch.") for param in params}),
        "threads": torch.get_num_threads(),
        "compiled_sweep": native.library() is not None,
        "optimizers": [describe(optimizer)],
        "tensors": list(tensors),
        "parameters": sum(param.numel() for param in params),
    }


def describe(optimizer: Optimizer) -> dict[str, Any]:
    """Returns an optimizer's class and, for each parameter group, its settings and number of tensors."""
    groups = []
    for group in optimizer.param_groups:
        settings = {name: plain(value) for name, value in group.items() if name != "params"}
        groups.append(settings | {"tensors": len(group["params"])})
    return {"class": type(optimizer).__name__, "groups": groups}


def git_state(folder: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """Returns {"commit", "dirty"} of the repository around the script (or the working directory), None outside one."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    where = Path(folder) if folder is not None else script.parent if script.is_file() else Path.cwd()
    try:
        commit = _git(where, "rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_git(where, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def plain(value: Any) -> Any:
    """Returns a setting as plain JSON values."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else str(tuple(value.shape))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
