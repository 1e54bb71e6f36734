"""The sweep as one compiled loop: optional, for CPU, five times faster than a dozen torch kernels a tensor.

`sweep.c` is built when foreshock is installed where there is a C compiler (`hatch_build.py`). Where it is not there,
does not load or fails its self-check, on other devices and for models that mix float64 with narrower types, the torch
path gives the same signals. `FORESHOCK_NATIVE=0` in the environment turns it off.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.probes.packs import Pack, working_dtype
from foreshock.probes.second_moment import SecondMoment

QUANTITIES = (
    "grad_squares", "grad_products", "v_squares", "v", "ratio", "ratio_most", "param_squares", "update_squares",
)
"""What the loop computes for each tensor, in the order of its output."""

COSINE, KEEP_GRADIENT, SECOND_MOMENT, RATIO, PARAMETERS, UPDATE = (1 << bit for bit in range(6))

SHARED = 1 << 22
"""From this many elements on the tensors are shared out among torch's number of threads."""

_VERSION = 2
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@cache
def library() -> Mapping[torch.dtype, Callable[..., None]] | None:
    """Returns the compiled loop for each type it works in, or None where there is none that works."""
    if os.environ.get("FORESHOCK_NATIVE", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(Path(__file__).with_name("_sweep.so")))
        if loaded.foreshock_sweep_version() != _VERSION:
            return None
        sweeps = {torch.float32: loaded.foreshock_sweep_float32, torch.float64: loaded.foreshock_sweep_float64}
    except (OSError, AttributeError):
        return None
    for sweep in sweeps.values():
        sweep.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 8, ctypes.c_int64, ctypes.c_int32]
        sweep.restype = None
    return sweeps if all(_works(sweep, dtype) for dtype, sweep in sweeps.items()) else None


def _works(sweep: Callable[..., None], dtype: torch.dtype) -> bool:
    """Returns whether the loop gives what it should on a small case."""
    x = np.arange(1.0, 38.0, dtype=_NUMPY[dtype])
    arrays = [x, x[::-1].copy(), x * x, x + 2, x.copy()]
    places = [np.array([array.ctypes.data], np.uint64) for array in arrays]
    constants, out, count = np.array([[1, 0, 0.5, 1e-9]], x.dtype), np.zeros((8, 1)), np.array([37], np.int64)
    products = float(x @ arrays[1])
    sweep(1, count.ctypes.data, *(place.ctypes.data for place in places), constants.ctypes.data, out.ctypes.data, 1, 63)
    expected = [
        np.square(x).sum(), products, np.square(x * x).sum(), (x * x).sum(), 74.0, 2.0, np.square(x + 2).sum(), 148.0,
    ]
    kept = np.array_equal(arrays[1], x) and np.array_equal(arrays[4], x + 2)
    return kept and bool(np.allclose(out[:, 0], expected, rtol=1e-6))


def usable(tensors: Sequence[Tensor]) -> bool:
    """Returns whether the compiled loop is there and serves these (dense, real) tensors."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and len({working_dtype(tensor) for tensor in tensors}) == 1 and library() is not None


class Native:
    """Calls the compiled loop for one plan, each of whose packs is one tensor.

    Args:
        packs: the plan's; they own the last gradient and the copy from before the step.

    Attributes:
        out: (quantities, packs) float64, what was last computed.
    """

    def __init__(self, packs: Sequence[Pack]) -> None:
        sweeps = library()
        assert sweeps is not None
        self._dtype = packs[0].dtype if packs else torch.float32
        self._sweep, self._packs = sweeps[self._dtype], packs
        self.out = torch.zeros(len(QUANTITIES), len(packs), dtype=torch.float64)
        self._sizes = np.array([pack.elements for pack in packs], np.int64)
        self._shares = _shares(self._sizes)
        self._sizes_at = self._sizes.ctypes.data
        self._places_type = ctypes.c_uint64 * len(packs)
        self._nowhere = self._places_type()
        self._owned: dict[str, ctypes.Array[ctypes.c_uint64]] = {}
        self._constants = np.zeros((len(packs), 4), _NUMPY[self._dtype])
        self._moments: tuple[SecondMoment | None, ...] = ()
        self._second: list[Tensor | None] = []
        self._alive: list[Tensor] = []

    def run(
        self, what: int, grads: Sequence[Tensor | None], params: Sequence[Tensor],
        second: Sequence[Tensor | None] | None, moments: tuple[SecondMoment | None, ...],
    ) -> None:
        """Computes what is asked for into `out`.

        Args:
            what: a sum of the flags above.
            grads, params: for each tensor of the plan.
            second: the second moments, where `what` asks for them.
            moments: for each parameter group how its second moment is kept.
        """
        if second is not None and (moments is not self._moments or any(v is None for v in self._second)):
            self._read_constants(moments, second)
        g, p = self._places(grads), self._places(params)
        v = self._nowhere if second is None else self._places(second)
        last = self._places_of("last_grad") if what & (COSINE | KEEP_GRADIENT) else self._nowhere
        before = self._places_of("before") if what & UPDATE else self._nowhere
        columns = [(self._sizes_at, 8), *((ctypes.addressof(places), 8) for places in (g, last, v, p, before))]
        columns.append((self._constants.ctypes.data, 4 * self._constants.itemsize))
        if len(self._shares) == 1 or torch.get_num_threads() == 1:
            self._call(columns, 0, len(self._packs), what)
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(lambda share: self._call(columns, share[0], share[1], what), self._shares))
        self._alive.clear()  # converted copies, which live until the call is over

    def _call(self, columns: Sequence[tuple[int, int]], first: int, stop: int, what: int) -> None:
        """Runs over some of the packs; each column is where it starts and how many bytes a pack has of it."""
        places = [start + first * size for start, size in columns]
        self._sweep(stop - first, *places, self.out.data_ptr() + 8 * first, len(self._packs), what)

    def _places(self, tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_uint64]:
        """Returns where each pack's elements lie, in the type worked in, in the pack's order; 0 for no tensor.

        Looked up anew at every call: the loop reads as many elements as the pack has, so nothing may be taken on trust.
        """
        return self._places_type(*[self._place(pack, tensors[pack.index[0]]) for pack in self._packs])

    def _place(self, pack: Pack, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        if tensor.numel() != pack.elements:
            raise UsageError(f"a tensor of {tensor.numel()} elements where the parameter has {pack.elements}")
        if tensor.dtype is self._dtype and pack.in_order and tensor.is_contiguous():
            return tensor.data_ptr()
        flat = pack.flat(tensor).to(self._dtype).contiguous()
        self._alive.append(flat)
        return flat.data_ptr()

    def _places_of(self, name: str) -> ctypes.Array[ctypes.c_uint64]:
        found = self._owned.get(name)
        if found is None:
            found = self._owned[name] = self._places_type(*[pack.own(name).data_ptr() for pack in self._packs])
        return found

    def _read_constants(self, moments: tuple[SecondMoment | None, ...], second: Sequence[Tensor | None]) -> None:
        self._moments, self._second = moments, [second[pack.index[0]] for pack in self._packs]
        for i, (pack, v) in enumerate(zip(self._packs, self._second, strict=True)):
            moment = moments[pack.group]
            if moment is not None and v is not None:
                sign = -1.0 if moment.maximizes else 1.0
                self._constants[i] = sign, moment.decay, moment.admit_less(v.dtype), moment.least(self._dtype)


def _shares(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Returns [first, stop) ranges of tensors of about `SHARED` elements each."""
    edges = [0]
    taken = 0
    for i, size in enumerate(sizes.tolist()):
        if taken and taken + size > SHARED:
            edges.append(i)
            taken = 0
        taken += size
    return list(zip(edges, [*edges[1:], len(sizes)], strict=True))
