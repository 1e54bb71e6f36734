"""Whether there is memory for a look at the curvature."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

VECTORS = 16  # weights, gradient, product, and a basis of ten, as long as all parameters together


def lacking(params: Sequence[Tensor], vectors: int = VECTORS) -> str:
    """Returns why a reading on these parameters had better not be tried; empty where there is room.

    What the graph of a second derivative takes, about 3.5 times the activations, is not known beforehand and not
    counted: where it does not fit, the reading fails and says so. On the CPU, where nothing fails in time, a quarter
    of the machine's memory is the limit.

    Args:
        params: of the optimizer.
        vectors: how many copies of them are wanted.
    """
    n = sum(param.numel() for param in params)
    wanted = vectors * n * max(4, params[0].element_size())
    device = params[0].device
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 if hasattr(os, "sysconf") else 1 << 31
    if wanted <= free:
        return ""
    return f"vectors of {n} numbers need {wanted / 2**30:.1f} GiB, and about {free / 2**30:.1f} may be used"
