"""Symmetric matrices with a prescribed spectrum, which every solver and estimator is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreshock.curvature import ExplicitOperator


def symmetric(spectrum: Tensor | Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns a dense symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    vectors, _ = torch.linalg.qr(square)
    matrix = vectors @ torch.diag(values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def operator(spectrum: Tensor | Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> ExplicitOperator:
    return ExplicitOperator(symmetric(spectrum, seed, dtype))


def outliers(n: int = 300) -> Tensor:
    """Returns eigenvalues like those of a network's Hessian: a bulk, outliers, a cluster, a negative end."""
    bulk = torch.linspace(-0.05, 0.1, n - 9, dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([-2.0, -1.9, 3.0, 3.0, 3.01, 4.0, 5.0, 5.001, 9.0], dtype=torch.float64)])
