"""Single numbers of tensors: drawn at random, and with one bit flipped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foreshock.errors import UsageError

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw(tensors: Sequence[Tensor], count: int, generator: torch.Generator) -> list[Tensor]:
    """Returns views of `count` different elements of the tensors, each element as likely as the other.

    Of a sharded tensor those that this rank holds, of a sparse one those that are stored; complex numbers are two.

    Raises:
        UsageError: there are fewer elements.

    >>> weights = [torch.zeros(2, 3), torch.zeros(())]
    >>> for cell in draw(weights, 7, torch.Generator()):
    ...     cell += 1
    >>> weights
    [tensor([[1., 1., 1.],
            [1., 1., 1.]]), tensor(1.)]
    """
    held = [_held(tensor) for tensor in tensors]
    total = sum(tensor.numel() for tensor in held)
    if count > total:
        raise UsageError(f"count: {count} elements to strike, but there are {total}")
    chosen: list[int] = []
    while len(chosen) < count:
        index = int(torch.randint(total, (), generator=generator))
        if index not in chosen:
            chosen.append(index)
    return [_element(held, index) for index in chosen]


def flip_bit(cell: Tensor, bit: int) -> None:
    """Flips one bit of a tensor of one element, in place; bit 0 is the last of the mantissa.

    >>> weight = torch.tensor(0.5)
    >>> flip_bit(weight, 30)
    >>> weight == 2.0**127
    tensor(True)
    """
    whole = cell.detach().view(_SAME_SIZE[cell.element_size()])
    width = 8 * cell.element_size()
    whole.bitwise_xor_(1 << bit if bit < width - 1 else -(1 << bit))


def exponent_bits(dtype: torch.dtype) -> range:
    """Returns the bits that hold the exponent of a floating point type, lowest first.

    >>> exponent_bits(torch.float32), exponent_bits(torch.bfloat16), exponent_bits(torch.float16)
    (range(23, 31), range(7, 15), range(10, 15))
    """
    facts = torch.finfo(dtype)
    return range(round(-math.log2(facts.eps)), facts.bits - 1)


def bit_number(bit: int | str, dtype: torch.dtype, generator: torch.Generator) -> int:
    """Returns the number of the bit that is meant: itself, the "top" one of the exponent, or one drawn from the
    "exponent" or from "any"; of integers the upper half without the sign counts as the exponent.

    Raises:
        UsageError: the type has fewer bits.

    >>> bit_number("top", torch.float32, torch.Generator()), bit_number(3, torch.bfloat16, torch.Generator())
    (30, 3)
    """
    width = 8 * dtype.itemsize
    exponent = exponent_bits(dtype) if dtype.is_floating_point else range(width // 2, width - 1)
    if bit == "top":
        return exponent[-1]
    if isinstance(bit, str):
        among = exponent if bit == "exponent" else range(width)
        return among[int(torch.randint(len(among), (), generator=generator))]
    if bit >= width:
        raise UsageError(f"bit: must be below {width} for a weight of type {dtype}, got {bit}")
    return bit


def _held(tensor: Tensor) -> Tensor:
    """Returns the numbers that this rank holds of a tensor: a shard, the values of a sparse one, real parts apart."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor._values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _element(tensors: Sequence[Tensor], index: int) -> Tensor:
    for tensor in tensors:
        if index < tensor.numel():
            return tensor[tuple(int(i) for i in torch.unravel_index(torch.tensor(index), tensor.shape))]
        index -= tensor.numel()
    raise AssertionError(f"element {index} is beyond the last")
