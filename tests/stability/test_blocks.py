"""Blocks act like the matrices they stand for."""

from __future__ import annotations

import functools

import pytest
import torch

from foreshock.stability.blocks import KroneckerBlock, RotatedBlock, eigen

torch.set_num_threads(1)


def positive(size, generator, rank=None):
    made = torch.randn(size, rank or size, dtype=torch.float64, generator=generator)
    return made @ made.T


def orthogonal(size, generator):
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


def kron(*matrices):
    return functools.reduce(torch.kron, [matrix.contiguous() for matrix in matrices])


def pseudo_power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > 1e-10 * values.max()
    return vectors[:, kept] @ torch.diag(values[kept] ** exponent) @ vectors[:, kept].T


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def blocks(generator):
    A, B, C = (positive(size, generator) for size in (3, 2, 4))
    eye = torch.eye(4, dtype=torch.float64)
    yield KroneckerBlock(torch.Size((3, 2)), (eigen(A, 1.0), eigen(B, 1.0))), kron(A, B)
    yield KroneckerBlock(torch.Size((3, 4)), (eigen(A, 1.0), None), scale=0.3), 0.3 * kron(A, eye)
    yield (
        KroneckerBlock(torch.Size((3, 2, 4)), (eigen(A, 0.5), eigen(B, 0.25), eigen(C, 1.0))),
        kron(pseudo_power(A, 0.5), pseudo_power(B, 0.25), C),
    )
    yield (
        KroneckerBlock(torch.Size((3, 2, 2)), (eigen(A, 1.0), eigen(C, 1.0)), view=torch.Size((3, 4))),
        kron(A, C),
    )
    low = positive(4, generator, rank=2)
    yield KroneckerBlock(torch.Size((4, 2)), (eigen(low, 0.5), None)), kron(pseudo_power(low, 0.5), eye[:2, :2])
    P, Q = orthogonal(3, generator), orthogonal(4, generator)
    d = torch.rand(3, 4, dtype=torch.float64, generator=generator) + 0.1
    basis = kron(P, Q)
    yield RotatedBlock(torch.Size((3, 4)), (P, Q), d), basis @ torch.diag(d.flatten()) @ basis.T
    basis = kron(torch.eye(3, dtype=torch.float64), Q)
    yield RotatedBlock(torch.Size((6, 2)), (None, Q), d), basis @ torch.diag(d.flatten()) @ basis.T


@pytest.mark.parametrize("exponent", [1.0, 0.5, -0.5, -1.0, 2.0])
def test_powers_are_those_of_the_dense_matrix(generator, exponent):
    for block, matrix in blocks(generator):
        x = torch.randn(block.shape, dtype=torch.float64, generator=generator)
        wanted = (pseudo_power(matrix, exponent) @ x.flatten()).reshape(block.shape)
        torch.testing.assert_close(block.power(x, exponent), wanted)
        torch.testing.assert_close(block.power(x.float(), exponent), wanted.float(), rtol=1e-3, atol=1e-3)


def test_dense_and_reciprocal(generator):
    for block, matrix in blocks(generator):
        torch.testing.assert_close(block.dense(), matrix)
        torch.testing.assert_close(block.reciprocal(3.0).dense(), 3.0 * pseudo_power(matrix, -1.0))
        torch.testing.assert_close(block.reciprocal(3.0).reciprocal(3.0).dense(), matrix)
        assert not block.reciprocal(0.0).dense().any()
