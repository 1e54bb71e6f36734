"""Ghost dot products: <U, g_i> from what each operation on a parameter is given and the gradient at its output.

Where an operation y = f(x, w) has a parameter, its part of <U, g_i> is the sum over example i's slice of e * (df/dw U),
e the gradient at y: for a linear layer sum_t e_t . (U a_t), for a convolution the same convolution of the same input
with U as its weight, for a norm or an embedding the same norm or lookup. One forward pass with one more operation for
each that has parameters, and one backward pass that goes through the activations alone, give the rows of all examples.

Operations are caught, not modules (`torch.overrides.TorchFunctionMode`): bare parameters, packed projections, tied
weights and modules used twice need no cases of their own, and there are no hooks to take away. What is made of
parameters alone (a chunk, a cast, a normalised weight) is a parameter with a tangent of its own. What cannot be caught
stays in the graph, where it is found.

Whose slice of an output is which is tried out, not assumed: a second backward pass weights the losses by powers of two,
which scale exactly, and every output has to follow place by place. Losses that share activations (statistics of the
batch, contrast within it) do not.

Source: Goodfellow 2015, Efficient per-example gradient computations, arXiv 1510.01799 (linear layers); DualSFT,
arXiv 2605.06166 (the dot product). Deviations: 1. operations, not modules; 2. convolutions, norms, embeddings and bare
parameters are covered; 3. the layout is proven.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from foreshock.attribution.catching import Catch, CoupledError, Met
from foreshock.attribution.layouts import Layout, dimensions, layouts

# By how much, relative to its size, an output may miss the factors of its slices. They are powers of two: only numbers
# too small for their type, and sums in another order, miss them at all.
_CLOSE, _CLOSE_HALF = 1e-5, 2e-3
_LEVELS, _LEVELS_HALF = 16, 4  # of the weights, powers of two; float16 has no room for many
_ROUNDS = 8  # forward passes: parameters that are not caught and outputs without slices are found on the way
_HALF_SCALE = 2.0**12  # the losses' factor where float16 is about, as a scaler has it


@dataclass(slots=True)
class Known:
    """What a batch has taught about a model, for the next one.

    Attributes:
        deep: operations, by their numbers, whose outputs' second dimension may have to do with examples.
        leave: those to leave alone.
        rest: ids of parameters that cannot be caught.
        proven: layouts of outputs, by n, the number of the operation and the shape.
        coupled: whether ghost products are of no use here.
    """

    deep: set[int] = field(default_factory=set)
    leave: set[int] = field(default_factory=set)
    rest: set[int] = field(default_factory=set)
    proven: dict[tuple[int, int, tuple[int, ...]], Layout] = field(default_factory=dict)
    coupled: bool = False


@dataclass(frozen=True, slots=True)
class Ghosts:
    """Rows, shape (n,); the ids of parameters that are left out of them, with all their uses; gradients asked for."""

    rows: Tensor
    rest: frozenset[int]
    grads: tuple[Tensor | None, ...]


def ghost_rows(
    closure: Callable[[], Tensor],
    tangents: dict[int, Tensor],
    params: Sequence[Tensor],
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    known: Known | None = None,
    wanted: Sequence[Tensor] = (),
) -> Ghosts:
    """Returns <U, g_i> of all examples.

    Args:
        closure: returns the losses, shape (n,), the same each time: a surprise is met by calling it again.
        tangents: U, by the id of each parameter that has one.
        params: all parameters there are.
        within: makes the block in which each call, and what is differentiated of it, takes place.
        known: what earlier batches taught; layouts that were proven for the same shapes are not proven again, unless
            activations are sent about by data, as to experts.
        wanted: parameters whose gradient of the sum of the losses is taken in the same backward pass.

    Raises:
        CoupledError: the losses share activations.
        RuntimeError: the parameters are used by other means than torch functions alone.
    """
    known = Known() if known is None else known
    for _ in range(_ROUNDS):
        with within():
            inner = {key: each for key, each in tangents.items() if key not in known.rest}
            catch = Catch(inner, params, known.deep, known.leave)
            with catch:
                losses = closure()
            catch.count = losses.numel()
            uncaught = catch.uncaught(losses)
            shapeless = {met.number for met in catch.met if not dimensions(met.shape, catch.count)}
            if not uncaught and not shapeless:
                rows, wrong, grads = _passes(catch, losses, known, wanted)
                if not wrong:
                    return Ghosts(rows, frozenset(known.rest), grads)
                known.leave |= wrong & known.deep
                known.deep |= wrong
        known.rest |= uncaught
        known.leave |= shapeless
        if known.rest >= set(tangents):
            break
    if not known.deep:
        raise RuntimeError("these parameters are used by operations that cannot be caught")
    raise CoupledError("the losses share activations, so that no slice of an output is an example's")


def _passes(
    catch: Catch, losses: Tensor, known: Known, wanted: Sequence[Tensor]
) -> tuple[Tensor, set[int], tuple[Tensor | None, ...]]:
    """Returns the rows, the numbers of the operations whose outputs have no slices for examples, and gradients."""
    count, wide = catch.count, torch.promote_types(losses.dtype, torch.float32)
    half = losses.dtype == torch.float16 or any(met.half for met in catch.met)
    codes = torch.tensor(weights(count, _LEVELS_HALF if half else _LEVELS), dtype=losses.dtype, device=losses.device)
    used: list[Met] = []
    grads: Sequence[Tensor | None] = ()
    proven = False
    for scale in (_HALF_SCALE, 1.0) if half else (1.0,):
        for met in catch.met:
            met.parts.clear()
        (_, *grads) = torch.autograd.grad(
            losses.sum() * scale, [catch.anchor, *wanted], retain_graph=True, allow_unused=True
        )
        used = [met for met in catch.met if met.parts]
        proven = not catch.routed and all((count, met.number, met.shape) in known.proven for met in used)
        if not proven:
            torch.autograd.grad((losses * (codes * scale)).sum(), catch.anchor, retain_graph=half, allow_unused=True)
        finite = [bool(torch.isfinite(part).all()) for met in used for part in met.parts] if half else []
        if all(finite):
            break
    rows = losses.detach().new_zeros(count, dtype=wide)
    wrong: set[int] = set()
    for met in used:
        key = (count, met.number, met.shape)
        layout = known.proven[key] if proven else _layout(met, codes, count, _CLOSE_HALF if half else _CLOSE)
        if layout is None:
            wrong.add(met.number)
        else:
            known.proven[key] = layout
            rows += layout.rows(met.parts[0], count).to(rows) / scale
    return rows, wrong, tuple(None if grad is None else grad.to(wide) / scale for grad in grads)


@lru_cache(maxsize=64)
def weights(count: int, levels: int) -> tuple[float, ...]:
    """Returns a power of two for each of n examples, in an order that no layout has by chance.

    In every row of `levels` that begins at a multiple of it no two are alike, and each such row has its own order.

    >>> sorted(weights(4, 4)), weights(8, 4)[:4] == weights(4, 4)
    ([0.5, 1.0, 2.0, 4.0], True)
    """
    stream, found = random.Random(levels), list[float]()
    while len(found) < count:
        found += (2.0**power for power in stream.sample(range(1 - levels // 2 + levels % 2, 1 + levels // 2), levels))
    return tuple(found[:count])


def _layout(met: Met, codes: Tensor, count: int, close: float) -> Layout | None:
    """Returns the layout by which an output's gradient follows the weights of the examples, None if there is none."""
    plainly, coded = met.parts
    least = close * torch.linalg.vector_norm(plainly)
    for layout in layouts(tuple(plainly.shape), count):
        if not torch.linalg.vector_norm(layout.unweighted(coded, codes.to(plainly)) - plainly) > least:
            return layout
    return None
