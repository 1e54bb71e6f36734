"""Shares of a step along directions."""

from __future__ import annotations

import pytest
import torch

from foreshock.attribution import attribute
from foreshock.attribution.directions import project
from tests.attribution.cases import batch, classifier, losses_of

WIDE = torch.float64


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def test_orthogonal_directions_add_up_to_the_tensor():
    e, before, after = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    basis = torch.linalg.qr(drawn(3, 3, seed=3)).Q
    columns = torch.linalg.qr(drawn(4, 4, seed=4)).Q
    given = {f"rows{i}": ("w", 7 * basis[:, i]) for i in range(3)}
    given |= {f"columns{i}": ("w", columns[:, i : i + 1]) for i in range(4)}
    found = project(given, ["w"], [e], [before], [after])
    for kind in ("rows", "columns"):
        parts = [part for name, part in found.items() if name.startswith(kind)]
        assert sum(part.share for part in parts) == pytest.approx(1.0)
        assert sum(part.energy for part in parts) == pytest.approx(1.0)
        assert sum(part.value for part in parts) == pytest.approx(float((e * (after - before)).sum()))


def test_a_direction_of_all_tensors_is_one_vector():
    e, before, after = ([drawn(2, seed=i), drawn(3, 2, seed=i + 9)] for i in range(3))
    delta = [b - a for a, b in zip(before, after, strict=True)]
    found = project({"itself": delta, "one": [None, e[1]]}, ["a", "b"], e, before, after)
    assert found["itself"].share == pytest.approx(1.0)
    assert found["itself"].energy == pytest.approx(1.0)
    u = e[1] / e[1].norm()
    assert found["one"].value == pytest.approx(float((u * delta[1]).sum() * (u * e[1]).sum()))


def test_the_direction_of_a_whole_tensor_is_one_vector_too():
    e, before, after = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    part = project({"u": ("w", after - before)}, ["w"], [e], [before], [after])["u"]
    assert part.share == pytest.approx(1.0)
    assert part.of == "w"


def test_directions_reach_the_result():
    net = classifier()
    before = [p.detach().clone() for p in net.parameters()]
    after = [b + 0.1 * drawn(*b.shape, seed=i) for i, b in enumerate(before)]
    directions = {"mean": ("4.weight", torch.ones(8)), "all": [b - a for a, b in zip(before, after, strict=True)]}
    found = attribute(losses_of(net, batch(0)), list(net.parameters()), before, after, names=net, directions=directions)
    assert found.projections["all"].value == pytest.approx(found.total)
    assert 0 < found.projections["mean"].energy < 1
    assert found.to_dict()["projections"]["mean"]["of"] == "4.weight"
