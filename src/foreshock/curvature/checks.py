"""Checks of an operator against itself and against the loss: they would have caught every wrong product known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreshock.curvature.differences import Differences
from foreshock.curvature.graph import NotTwiceError, not_twice
from foreshock.curvature.objective import Repeatable
from foreshock.curvature.operator import Operator
from foreshock.curvature.routes import Route
from foreshock.curvature.space import Space, dot, norm
from foreshock.errors import UsageError


def symmetry_check(operator: Operator, generator: torch.Generator | None = None) -> float:
    """Returns |u'Av - v'Au| relative to the larger of |u| |Av| / sqrt(n) and |v| |Au| / sqrt(n): two products.

    For random u and v that is the size of u'Av itself, so the number does not fade with the dimension. A Hessian by
    double backward is near 1e-6 in float32; the silently wrong routes through LayerNorm are at 1e-2 and above. 0 for
    products that are both zero.

    Args:
        operator: A.
        generator: where u and v are drawn from; by default one of their own, seeded 0.

    >>> import torch
    >>> from foreshock.curvature import ExplicitOperator
    >>> symmetry_check(ExplicitOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))) < 1e-6
    True
    >>> symmetry_check(ExplicitOperator(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))) > 1e-2
    True
    """
    if generator is None:
        generator = torch.Generator(operator.device).manual_seed(0)
    u, v = operator.space.normal(generator), operator.space.normal(generator)
    au, av = operator.multiply(u), operator.multiply(v)
    scale = max(norm(u) * norm(av), norm(v) * norm(au)) / math.sqrt(operator.space.n)
    if scale == 0.0:
        return 0.0
    return abs(dot(u, av) - dot(v, au)) / scale


def asymmetry_limit(operator: Operator) -> float:
    """Returns what `symmetry_check` may say of sound products: 1e-3, or 0.2 where they are coarse by their own notes.

    Exact products in float32 are at 1e-6, the wrong routes at 3e-3 to 6e-2; differences and 16-bit numbers are good to
    some percent along random directions, which are the worst for them.
    """
    coarse = any("differences of gradients" in note or "good to about" in note for note in operator.notes)
    return 0.2 if coarse else 1e-3


def difference_check(
    operator: Operator, closure: Callable[[], Tensor], vector: Tensor | Sequence[Tensor] | None = None
) -> float:
    """Returns |A v - d| / |A v|, d the central difference of a closure's gradients along v.

    One product, three gradients. On a loss with kinks (ReLU) the number says nothing.

    Limited by the precision of the gradients: about 1e-3 in float32 along stiff directions, 1e-2 and more along soft
    ones; 1e-6 in float64.

    Args:
        operator: a Hessian, of the closure's loss at the present parameters.
        closure: computes the loss.
        vector: the direction, flat or as tensors; by default the gradient's.

    Raises:
        UsageError: there is no direction, or the loss has kinks or cannot be differentiated.
    """
    objective = Repeatable(closure, operator.params)
    source = Differences(objective, operator.space, central=True, smooth=True)
    flat = source.gradient if vector is None else operator.space.take(vector)
    length = norm(flat)
    if length == 0.0:
        raise UsageError("vector: the direction is zero")
    product = operator.multiply(flat)
    size = norm(product)
    return norm(product - source.multiply(flat)) / size if size > 0 else norm(source.multiply(flat)) / length


# A product and a difference along the gradient may be this far apart in float32: smooth networks agree to 1e-3 there,
# and where a missing part of the derivative is less it moves the top eigenvalue by less than a fifth of it.
_APART = 0.01


def verify_custom(source: Route, space: Space) -> list[str]:
    """Returns notes on functions of others in the graph, after comparing with differences where that is possible.

    Args:
        source: an exact route that was just opened.
        space: the layout of the parameters.

    Raises:
        NotTwiceError: the product is not the derivative of the gradient.
    """
    names = ", ".join(source.facts.custom)
    if not isinstance(source.objective, Repeatable) or source.facts.kinks or source.facts.low_precision is not None:
        return [f"not verified: the second derivative of {names}, a function that torch takes on trust"]
    compared = Differences(source.objective, space, central=True, smooth=True)
    flat = source.gradient
    product, difference = source.multiply(flat), compared.multiply(flat)
    if not norm(product - difference) <= _APART * norm(difference) + compared.noise * norm(flat):
        raise NotTwiceError(not_twice(f"{names}, whose backward pass is not the derivative that it looks like"))
    return [f"compared with differences along the gradient, because of {names}"]
