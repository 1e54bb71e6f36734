"""The others who measure curvature, each set up as its manual says, on the work that `curvature.py` gives to all.

scipy stands for the best that can be written by hand today: ARPACK on a graph that is kept. curvlinops, PyHessian and
hessian-eigenthings are the libraries (`pip install -e '.[peers]'`). A contender is a function of a seed, so that what
it builds is built within the time that is measured; what every contender needs alike, W, is given to all.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvature_nets import Bench

# name on the package index, name of the module
PEERS = {
    "scipy": "scipy", "curvlinops": "curvlinops", "PyHessian": "pyhessian",
    "hessian-eigenthings": "hessian_eigenthings",
}
PACKAGES = {**{name: name for name in PEERS}, "curvlinops": "curvlinops-for-pytorch"}
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a contender found: eigenvalues or one vector, the products it used, and a word on how."""

    values: Tensor | Sequence[float] = ()
    products: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contender:
    who: str
    run: Callable[[int], Answer]


def installed() -> dict[str, str]:
    """Returns the peers that are here, with their versions; says of the others that they are left out."""
    found = {}
    for name, module in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
            found[name] = version(PACKAGES[name])
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def kept_graph(bench: Bench) -> Product:
    """Returns products by double backward on one graph, as one writes them by hand."""
    params = bench.params
    sizes = [param.numel() for param in params]
    grads = torch.autograd.grad(bench.loss(), params, create_graph=True)

    def product(flat: Tensor) -> Tensor:
        pieces = [piece.view_as(param) for piece, param in zip(flat.split(sizes), params, strict=True)]
        found = torch.autograd.grad(grads, params, pieces, retain_graph=True)
        return torch.cat([piece.reshape(-1) for piece in found])

    return product


class _Rows(nn.Module):
    """A model whose outputs of more than two dimensions are brought to two, for libraries that know no other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs.reshape(-1, outputs.shape[-1])


def curvlinops(bench: Bench, *, check: bool = True) -> Any:
    from curvlinops import HessianLinearOperator

    data = [(bench.inputs, bench.targets.reshape(-1))]
    model = _Rows(bench.model)
    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=check,
        batch_size_fn=lambda x: x.shape[0],
    )


def eigenthings(bench: Bench, method: Any = "autograd") -> Any:
    from hessian_eigenthings import HessianOperator

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return bench.criterion(model(batch[0]), batch[1])

    return HessianOperator(bench.model, [(bench.inputs, bench.targets)], loss, method=method)


@contextmanager
def pyhessian(bench: Bench) -> Iterator[tuple[Any, Counted]]:
    """Yields PyHessian's object with a count of its products; the gradients and the mode it leaves are put back."""
    from pyhessian import hessian

    module = sys.modules["pyhessian.hessian"]
    original = module.hessian_vector_product
    counted = module.hessian_vector_product = Counted(original)  # type: ignore[attr-defined]
    training = bench.model.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backward(create_graph=True)
            found = hessian(bench.model, bench.criterion, data=(bench.inputs, bench.targets), cuda=False)
        yield found, counted
    finally:
        module.hessian_vector_product = original  # type: ignore[attr-defined]
        for param in bench.params:
            param.grad = None
        bench.model.train(training)


def products(bench: Bench, vector: Tensor, here: Sequence[str]) -> Iterator[Contender]:
    """Yields one product with `vector`, shape (n,), each on an operator that is made beforehand."""
    by_hand = kept_graph(bench)
    yield Contender("by hand, kept graph", lambda seed: Answer(by_hand(vector), 1))
    if "PyHessian" in here:
        with pyhessian(bench) as (found, _):
            params, grads = found.params, found.gradsH
        sizes = [param.numel() for param in params]
        pieces = [piece.view_as(param) for piece, param in zip(vector.split(sizes), params, strict=True)]
        multiply = sys.modules["pyhessian.hessian"].hessian_vector_product
        yield Contender("PyHessian", lambda seed: Answer(_flat(multiply(grads, params, pieces)), 1))
    if "hessian-eigenthings" in here:
        other = eigenthings(bench)
        yield Contender("hessian-eigenthings", lambda seed: Answer(other.matvec(vector), 1))
    if "curvlinops" in here:
        yield Contender("curvlinops", _Lazily(lambda: curvlinops(bench, check=False), vector))


def differences(bench: Bench, vector: Tensor, here: Sequence[str]) -> Iterator[Contender]:
    """Yields one product by differences of gradients."""
    if "hessian-eigenthings" in here:
        operator = eigenthings(bench, "finite_difference")
        yield Contender("hessian-eigenthings, central", lambda seed: Answer(operator.matvec(vector), 1))


class _Lazily:
    """One product with an operator that is made at the first call, where what it raises is the answer."""

    def __init__(self, make: Callable[[], Any], vector: Tensor) -> None:
        self.make, self.vector, self.operator = make, vector, None

    def __call__(self, seed: int) -> Answer:
        if self.operator is None:
            self.operator = self.make()
        return Answer(self.operator @ self.vector, 1)


def eigenvalues(bench: Bench, k: int, here: Sequence[str], root: Tensor | None = None) -> Iterator[Contender]:
    """Yields the k largest eigenvalues of H, or of W^(1/2) H W^(1/2) where `root`, W^(1/2) of shape (n,), is given."""
    if "scipy" in here:
        ncv = 8 if k == 1 else 20  # 20, its default, takes 21 products for one eigenvalue as well
        yield Contender(f"scipy by hand, ncv {ncv}", _Arpack(bench, lambda: kept_graph(bench), k, ncv, root))
    if "curvlinops" in here:
        yield Contender("curvlinops + eigsh", _Arpack(bench, lambda: _product_of(curvlinops(bench)), k, None, root))
    if "hessian-eigenthings" in here:
        yield Contender("hessian-eigenthings", lambda seed: _lanczos(bench, k, root, seed))
    if "PyHessian" in here and root is None:
        yield Contender("PyHessian", lambda seed: _power(bench, k, seed))


def _product_of(operator: Any) -> Product:
    def product(flat: Tensor) -> Tensor:
        found: Tensor = operator @ flat
        return found

    return product


class _Arpack:
    """scipy's eigsh, which = "LA", tol = 1e-2."""

    def __init__(self, bench: Bench, make: Callable[[], Product], k: int, ncv: int | None, root: Tensor | None) -> None:
        self.n = sum(param.numel() for param in bench.params)
        self.make, self.k, self.ncv, self.root = make, k, ncv, root

    def __call__(self, seed: int) -> Answer:
        product, root = self.make(), self.root
        counted = Counted(product if root is None else lambda flat: root * product(root * flat))
        return arpack(counted, self.k, n=self.n, ncv=self.ncv, seed=seed)


def arpack(
    product: Counted, k: int, *, n: int, ncv: int | None = None, seed: int = 0, tol: float = 1e-2,
    dtype: Any = np.float32,
) -> Answer:
    """Returns the k largest eigenvalues by scipy's ARPACK."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def matvec(vector: Any) -> Any:
        return product(torch.from_numpy(np.array(vector, dtype=dtype).reshape(-1))).numpy()

    start = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    values = eigsh(
        LinearOperator((n, n), matvec=matvec, dtype=dtype), k, which="LA", tol=tol, ncv=ncv, v0=start,
        return_eigenvectors=False,
    )
    return Answer(sorted(map(float, values), reverse=True), product.calls)


def _lanczos(bench: Bench, k: int, root: Tensor | None, seed: int) -> Answer:
    """hessian-eigenthings with the least steps that are right: its own choice, 2 k, is off by 30 to 100 %."""
    from hessian_eigenthings import LambdaOperator, lanczos

    inner = eigenthings(bench)
    counted = Counted(inner.matvec if root is None else lambda flat: root * inner.matvec(root * flat))
    operator = LambdaOperator(counted, inner.size)
    found = lanczos(operator, k=k, max_iter=20 if k == 1 else 40, which="LA", seed=seed)
    return Answer(found.eigenvalues.tolist(), counted.calls)


def _power(bench: Bench, k: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian(bench) as (found, counted):
        values, _ = found.eigenvalues(top_n=k)
    return Answer(values, counted.calls)


def densities(bench: Bench, steps: int, here: Sequence[str]) -> Iterator[Contender]:
    """Yields the spectral density by `steps` Lanczos steps from one random vector; values: its largest node."""
    if "hessian-eigenthings" in here:
        yield Contender("hessian-eigenthings", lambda seed: _eigenthings_density(bench, steps, seed))
    if "curvlinops" in here:
        yield Contender("curvlinops", lambda seed: _curvlinops_density(bench, steps, seed))
    if "PyHessian" in here:
        yield Contender("PyHessian", lambda seed: _pyhessian_density(bench, steps, seed))


def _eigenthings_density(bench: Bench, steps: int, seed: int) -> Answer:
    from hessian_eigenthings import LambdaOperator, spectral_density

    inner = eigenthings(bench)
    counted = Counted(inner.matvec)
    found = spectral_density(LambdaOperator(counted, inner.size), num_runs=1, lanczos_steps=steps, seed=seed)
    return Answer([float(found.raw_eigenvalues.max())], counted.calls)


def _curvlinops_density(bench: Bench, steps: int, seed: int) -> Answer:
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

    torch.manual_seed(seed)
    np.random.seed(seed)
    operator = curvlinops(bench)
    kind = type(operator)
    original = kind._matmat
    counted = Counted(original)
    kind._matmat = lambda self, matrix: counted(self, matrix)
    try:
        lanczos_approximate_spectrum(operator, steps)
    finally:
        kind._matmat = original
    return Answer((), counted.calls, "gives a curve, no nodes")


def _pyhessian_density(bench: Bench, steps: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian(bench) as (found, counted):
        nodes, _ = found.density(iter=steps, n_v=1)
    return Answer([max(nodes[0])], counted.calls)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
