"""S3's update on CPU, block by block, so that what is computed on the way stays in the cache.

The same arithmetic as `foreshock.optim.update`, which says what is computed and why. Large tensors are cut into blocks,
small ones laid end to end, and where torch has several threads the blocks are shared out among them: one wait a step
instead of one for each operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Unpack

import torch
from torch import Tensor

from foreshock.optim.settings import Settings

__all__ = ["Tensors", "blocked", "least", "power_plan", "root_plan", "scale"]

BLOCK = 1 << 16
"""Elements worked on at once: three scratch buffers and four operands of float32 fill 2 MB of cache."""

SHARED = 1 << 15
"""The same where blocks are shared out: torch does not split what is not larger among threads of its own."""

WORTHWHILE = 1 << 20
"""From this many elements on, threads are worth their start."""

Tensors = list[Tensor] | tuple[Tensor, ...]
Block = tuple[Tensor, Tensor, Tensor, Tensor]


def scale(p: float, beta2: float, work: torch.dtype) -> float:
    """Returns c, the share of |g| that the scale of a coordinate is not below.

    c^p = 2^-30 (1 - beta2)/beta2 (float64: 2^-60): where c |g| takes the place of r, r^p is less than that share of
    the mix, so it is rounded away, and (1 - beta2) y <= 2^30 beta2 is far from overflow.

    >>> scale(1.0, 0.5, torch.float32) == 2.0**-30
    True
    """
    bits = -60.0 if work is torch.float64 else -30.0
    return float(min(1.0, 2.0 ** ((bits + math.log2((1 - beta2) / beta2)) / p)))


def least(eps: float, work: torch.dtype) -> float:
    """Returns eps, or the smallest normal number where that is larger: zero history is 0/least = 0."""
    return max(eps, torch.finfo(work).tiny)


def power_plan(p: float) -> tuple[tuple[float, ...], float]:
    """Returns how to raise to the p-th power: the squares and cubes to take in turn, and the power that is left.

    What is left, where it is not 1, is exp(rest log y), because torch's own pow costs ten times as much. Its error is
    |rest log y| roundings of y^p: less than one of 1 + y^p where y < 1, a few where y is large.

    >>> power_plan(3.0), power_plan(12.0), power_plan(2.5)
    (((3.0,), 1.0), ((2.0, 2.0, 3.0), 1.0), ((), 2.5))
    """
    factors = []
    for factor in (2.0, 3.0):
        while p == int(p) and p % factor == 0:
            p /= factor
            factors.append(factor)
    return tuple(factors), p


def root_plan(p: float) -> tuple[int, float]:
    """Returns how to take the p-th root: how many square roots where p is a power of 2, else the p of exp(log(y)/p).

    >>> root_plan(1.0), root_plan(4.0), root_plan(3.0)
    ((0, 1.0), (2, 1.0), (0, 3.0))
    """
    mantissa, exponent = math.frexp(p)
    return (exponent - 1, 1.0) if mantissa == 0.5 else (0, p)


def blocked(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, roots: Tensors, **settings: Unpack[Settings]
) -> None:
    """Makes one step of S3 in place, as `update` does, on plain tensors that are on CPU."""
    if not params:
        return
    work = torch.promote_types(params[0].dtype, torch.float32)
    step = _Step(work, settings)
    elements = sum(param.numel() for param in params)
    workers = torch.get_num_threads() if elements >= WORTHWHILE else 1
    size = SHARED if workers > 1 else BLOCK
    cut: list[Block] = []
    small: list[Block] = []
    for block in zip(params, grads, exp_avgs, roots, strict=True):
        if block[0].numel() * 4 > size and _alike(block):
            cut.extend(zip(*(torch.split(_flat(each), size) for each in block), strict=True))
        else:
            small.append(block)

    def run(share: Sequence[Block]) -> None:
        with torch.no_grad():  # each thread has its own
            scratch = torch.empty(3 * size, dtype=work, device="cpu")
            for block in share:
                step(*block, scratch)

    with torch.no_grad():
        for pack in _packs(small, size):
            _packed(step, pack, work)
    shares = _shares(cut, workers)
    if len(shares) > 1:
        with ThreadPoolExecutor(len(shares) - 1) as pool:
            others = [pool.submit(run, share) for share in shares[1:]]
            run(shares[0])
            for other in others:
                other.result()
    elif cut:
        run(cut)


class _Step:
    """The update of one block, with what is the same for all of them."""

    def __init__(self, work: torch.dtype, settings: Settings) -> None:
        lr, beta, beta2, p = float(settings["lr"]), settings["beta"], settings["beta2"], settings["p"]
        self.work, self.beta, self.beta2 = work, beta, beta2
        self.maximize, self.nesterov = settings["maximize"], settings["nesterov"]
        (self.factors, self.rest), (self.squares, self.order) = power_plan(p), root_plan(p)
        self.large = scale(p, beta2, work) if beta2 else 1.0
        self.tiny = torch.finfo(work).tiny
        self.eps = least(settings["eps"], work)
        self.epsilon, self.keep, self.keep_below = (
            torch.tensor(each, dtype=work, device="cpu") for each in (self.eps, beta2, beta2 * beta2)
        )
        self.shrink = 1 - lr * settings["weight_decay"]
        # n = beta (m + g (1 - beta)/beta): one operation instead of an interpolation's two
        self.mixed = (1 - beta) / beta if beta else 0.0
        self.rate = -lr * (beta if self.nesterov and beta else 1.0)

    def __call__(self, param: Tensor, grad: Tensor, exp_avg: Tensor, root: Tensor, scratch: Tensor) -> None:
        """Makes the update in place on flat tensors of the same length; `scratch` is three times as long or longer."""
        count, work = grad.numel(), self.work
        both = scratch[: 2 * count]  # what is rooted lies together: one call for two operands
        a, b, d = both[:count], both[count:], scratch[2 * count : 3 * count]
        same = param.dtype is grad.dtype is exp_avg.dtype is root.dtype is work
        g, m, r, theta = (grad, exp_avg, root, param) if same else (t.to(work) for t in (grad, exp_avg, root, param))
        if self.maximize:
            g = g.neg()
        m.lerp_(g, 1 - self.beta)
        torch.abs(g, out=a)
        if self.beta2:
            torch.mul(a, self.large, out=d)
            torch.maximum(d, r, out=d)
            torch.add(d, self.tiny, out=b)
            torch.div(a, b, out=b)
            self._raise(b)
            torch.add(self.keep, b, alpha=1 - self.beta2, out=a)
            if self.nesterov:
                torch.add(self.keep_below, b, alpha=1 - self.beta2 * self.beta2, out=b)
                self._root(both)
                torch.addcmul(self.epsilon, b, d, out=b)
                torch.mul(a, d, out=r)
            else:
                self._root(a)
                torch.mul(a, d, out=r)
                torch.add(r, self.eps, out=b)
        else:
            r.copy_(a)
            torch.add(a, self.eps, out=b)
        n = m if not self.nesterov else torch.add(m, g, alpha=self.mixed, out=d) if self.beta else g
        if self.shrink != 1:
            theta.mul_(self.shrink)
        theta.addcdiv_(n, b, value=self.rate)
        for into, new in ((exp_avg, m), (root, r), (param, theta)):
            if new is not into:
                into.copy_(new)

    def _raise(self, tensor: Tensor) -> None:
        for factor in self.factors:
            tensor.pow_(factor)
        if self.rest != 1:
            tensor.log_().mul_(self.rest).exp_()

    def _root(self, tensor: Tensor) -> None:
        for _ in range(self.squares):
            tensor.sqrt_()
        if self.order != 1:
            tensor.log_().mul_(1 / self.order).exp_()


def _packed(step: _Step, pack: Sequence[Block], work: torch.dtype) -> None:
    """Makes the update of several tensors laid end to end in copies, which also serves those of any layout."""
    params, _, exp_avgs, roots = zip(*pack, strict=True)
    p, g, m, r = (torch.cat([each.reshape(-1) for each in tensors]).to(work) for tensors in zip(*pack, strict=True))
    step(p, g, m, r, torch.empty(3 * p.numel(), dtype=work, device="cpu"))
    sizes = [param.numel() for param in params]
    for tensors, flat in ((params, p), (exp_avgs, m), (roots, r)):
        parts = torch.split(flat, sizes)
        torch._foreach_copy_(tensors, [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)])


def _packs(small: Sequence[Block], size: int) -> list[list[Block]]:
    """Returns tensors in lists of at most `size` elements, or of one tensor."""
    packs: list[list[Block]] = []
    room = 0
    for block in small:
        if not packs or block[0].numel() > room:
            packs.append([])
            room = size
        packs[-1].append(block)
        room -= block[0].numel()
    return packs


def _shares(blocks: Sequence[Block], workers: int) -> list[list[Block]]:
    """Returns blocks dealt out to workers, about equally many each."""
    step = max(1, math.ceil(len(blocks) / workers))
    return [list(blocks[start : start + step]) for start in range(0, len(blocks), step)]


def _alike(block: Block) -> bool:
    """Returns whether tensors lie alike and without gaps, so that all are the same walk through memory."""
    first = block[0]
    if any(each.stride() != first.stride() for each in block):
        return False
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _flat(tensor: Tensor) -> Tensor:
    """Returns a gapless tensor's elements in the order of memory, as a view."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
