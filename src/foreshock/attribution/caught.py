"""What an operation adds to its output when its parameters move along their tangents and its inputs are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foreshock.attribution.arguments import arguments_of, by_frequency, replaced, tensors_of
from foreshock.errors import UsageError

Tangents = Mapping[int, Tensor]  # by the id of a parameter, or of what was made of parameters

_CONVOLUTIONS = (
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
# names and places of the parameters that an output is linear in, all of them together; the first has to be there
_LINEAR: dict[Any, tuple[tuple[str, int], ...]] = {
    F.linear: (("weight", 1), ("bias", 2)),
    **dict.fromkeys(_CONVOLUTIONS, (("weight", 1), ("bias", 2))),
    F.layer_norm: (("weight", 2), ("bias", 3)),
    F.rms_norm: (("weight", 2),),
    F.group_norm: (("weight", 2), ("bias", 3)),
    F.batch_norm: (("weight", 3), ("bias", 4)),
    F.instance_norm: (("weight", 3), ("bias", 4)),
    F.embedding: (("weight", 1),),
    F.embedding_bag: (("weight", 1),),
}
# operations linear in each factor by itself
_MATMULS = frozenset({
    torch.matmul, torch.mm, torch.bmm, torch.einsum, torch.tensordot,
    Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__,
})  # fmt: skip
_PRODUCTS = _MATMULS | {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_SUMS = frozenset({
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__,
})  # fmt: skip
# inputs of these are rounded to the output's type before, under autocast
_ROUNDED = frozenset({F.linear, torch.addmm, *_CONVOLUTIONS, *_MATMULS})
_ROUTING = frozenset({
    "index_select", "index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_", "gather",
    "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "take", "take_along_dim", "masked_select",
    "masked_scatter", "masked_scatter_", "sort", "argsort", "topk", "nonzero", "unique",
})  # fmt: skip
# Python functions made of others that have parameters
_COMPOSED = frozenset({F.multi_head_attention_forward})


def plain(function: Any) -> bool:
    """Returns whether an operation's output may be written over: the operation itself does not need it again."""
    return function in _LINEAR or function in _PRODUCTS or function in _SUMS or function is torch.addmm


def in_place(function: Any) -> bool:
    """Returns whether an operation writes to its first argument, so that what that was is gone."""
    name = getattr(function, "__name__", "")
    private = name.startswith("__") and name.endswith("__")
    return name == "__setitem__" or (name[2:3] == "i" and name[3:-2] in _AUGMENTED if private else name.endswith("_"))


_AUGMENTED = frozenset({"add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"})


@cache
def opened(function: Any) -> Any:
    """Returns a composed function that goes on to its parts where it would hand itself over whole; None for others."""
    if function not in _COMPOSED:
        return None
    names = {**function.__globals__, "has_torch_function": _never}
    inside = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def _never(*_: Any) -> bool:
    return False


def routes(function: Any, args: Sequence[Any]) -> bool:
    """Returns whether an operation moves activations to where data, or other activations, send them."""
    name = getattr(function, "__name__", "")
    if name in ("__getitem__", "__setitem__"):
        return len(args) > 1 and next(tensors_of([args[1]]), None) is not None
    return name in _ROUTING


def movement(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moves: Tangents, kind: torch.dtype
) -> list[Tensor | None]:
    """Returns df/dw U, for each tensor that f returns, to be broadcast to it; float32 or wider.

    Args:
        function: f, an operation that does not write to its arguments, or a sum.
        args: its arguments.
        kwargs: those with names.
        moves: U of each parameter among them.
        kind: the type of f's output.

    Raises:
        NotImplementedError: f has no second derivative, or writes to its argument.
        UsageError: an embedding that divides by how often an entry is looked up, over all examples.
    """
    wide = torch.promote_types(kind, torch.float32)
    rounded = function in _ROUNDED

    def still(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return (tensor.detach().to(kind) if rounded else tensor.detach()).to(wide)

    device = next(iter(moves.values())).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        if function in _LINEAR:
            found = _linear(function, args, kwargs, moves, still, wide)
            if found is not None:
                return [found]
        elif function in _PRODUCTS or function in _SUMS:
            factors = list(tensors_of((args, kwargs)))
            mine = [each for each in factors if id(each) in moves]
            if len(mine) == 1 and function in _PRODUCTS:
                arguments, names = replaced(
                    (args, kwargs), lambda each: moves[id(each)].to(wide) if each is mine[0] else still(each)
                )
                return [function(*arguments, **names)]
            if len(mine) == 1 and not kwargs and len(args) == len(factors) == 2:
                return [moves[id(mine[0])].to(wide)]
        elif function is torch.addmm and not kwargs and id(args[1]) not in moves:
            bias, inputs, weight = args
            found = inputs.new_zeros((), dtype=wide) if id(bias) not in moves else moves[id(bias)].to(wide)
            return [found if id(weight) not in moves else found + still(inputs) @ moves[id(weight)].to(wide)]
        if in_place(function):
            raise NotImplementedError(f"{function.__name__} writes to its argument")
        return _general(function, args, kwargs, moves, still, wide)


def _linear(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moves: Tangents, still: Any, wide: torch.dtype
) -> Tensor | None:
    """Returns the operation with U for its parameters, nothing for those that do not move; None for other cases."""
    found: Tensor
    arguments, names = list(args), dict(kwargs)
    expected: set[int] = set()
    for i, (name, place) in enumerate(_LINEAR[function]):
        given = arguments[place] if place < len(arguments) else names.get(name)
        moving = given is not None and id(given) in moves
        expected.add(id(given))
        if i == 0 and not moving:
            return None
        if not moving and place < len(arguments):
            arguments[place] = None
        elif not moving and name in names:
            names[name] = None
    if not set(moves) <= expected or (args and id(args[0]) in moves):
        return None  # the input moves as well
    arguments, names = replaced(
        (arguments, names), lambda each: moves[id(each)].to(wide) if id(each) in moves else still(each)
    )
    asked = {} if function in _ROUNDED else arguments_of(function, arguments, names)
    if function is F.instance_norm and asked["use_input_stats"]:
        asked.update(running_mean=None, running_var=None)
    if function is F.instance_norm:
        found = F.instance_norm(**asked)
        return found
    if function in (F.embedding, F.embedding_bag):
        if asked["scale_grad_by_freq"]:
            raise UsageError(by_frequency())
        if function is F.embedding_bag and asked["mode"] == "max":
            return None
        if function is F.embedding_bag:
            asked.update(max_norm=None, sparse=False)
            found = F.embedding_bag(**asked)
            return found
        found = F.embedding(asked["input"], asked["weight"])
        if asked["padding_idx"] is not None:
            padding = asked["padding_idx"] % asked["weight"].shape[0]
            found.masked_fill_((asked["input"] == padding)[..., None], 0.0)
        return found
    return function(*arguments, **names)  # type: ignore[no-any-return]


def along(outputs: Sequence[Tensor], leaves: Sequence[Tensor], moves: Sequence[Tensor]) -> list[Tensor | None]:
    """Returns J U for each of the outputs, by two derivatives in reverse mode: of v -> <J'v, U>, which is linear in v.

    Unlike forward mode, which begins by loading the half of torch that compiles, it is there at once.

    Raises:
        RuntimeError: an operation has no second derivative.
    """
    with torch.enable_grad():
        vs = [torch.zeros_like(output).requires_grad_() for output in outputs]
        product = torch.stack([(output * v).sum().to(vs[0]) for output, v in zip(outputs, vs, strict=True)]).sum()
        grads = torch.autograd.grad(product, list(leaves), create_graph=True, allow_unused=True)
        dots = [(g * u.to(g)).sum().to(product) for g, u in zip(grads, moves, strict=True) if g is not None]
        found = torch.autograd.grad(torch.stack(dots).sum(), vs, allow_unused=True)
    return [None if each is None else each.detach() for each in found]


def _general(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moves: Tangents, still: Any, wide: torch.dtype
) -> list[Tensor | None]:
    """Returns what the results of any operation move by."""
    leaves: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in moves:
            return still(tensor)  # type: ignore[no-any-return]
        return leaves.setdefault(id(tensor), tensor.detach().to(wide).requires_grad_())

    try:
        with torch.enable_grad():
            arguments, names = replaced((args, kwargs), moved)
            given = function(*arguments, **names)
            results = [given] if isinstance(given, Tensor) else list(given)
            ours = [each for each in results if isinstance(each, Tensor) and each.requires_grad]
            found = along(ours, list(leaves.values()), [moves[key].to(wide) for key in leaves])
    except RuntimeError as error:
        raise NotImplementedError(str(error)) from error
    tangents = iter(found)
    return [next(tangents) if any(each is own for own in ours) else None for each in results]
