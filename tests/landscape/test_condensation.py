"""Cosines of input weights against the definition, in every shape a layer comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from foreshock.errors import UsageError
from foreshock.landscape import condensation, cosines


def directly(rows):
    """Returns C by numpy, rows without zeros."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.abs(units @ units.T)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(30, 5), (8, 3, 2, 2), (12,), (4, 200)])
def test_the_measures_are_their_definitions(seed, shape):
    draws = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(shape, generator=draws), torch.randn(shape[0], generator=draws)
    found = condensation(weight, bias, aligned=0.6)
    rows = torch.cat([weight.reshape(shape[0], -1), bias[:, None]], 1).double().numpy()
    table = directly(rows)
    pairs = table[np.triu_indices(shape[0], 1)]
    np.testing.assert_allclose(found.cosines, table, atol=1e-12)
    assert found.mean == pytest.approx(pairs.mean())
    assert found.share_aligned == pytest.approx((pairs > 0.6).mean())
    values = np.linalg.eigvalsh(table)
    assert found.effective == pytest.approx(values.sum() ** 2 / (values**2).sum())
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gram = np.linalg.eigvalsh(units @ units.T)
    assert found.effective == pytest.approx(gram.sum() ** 2 / (gram**2).sum())


def test_the_bias_is_part_of_a_neuron():
    weight = torch.tensor([[1.0], [1.0]])
    assert condensation(weight).mean == pytest.approx(1.0)
    assert condensation(weight, torch.tensor([1.0, -1.0])).mean == pytest.approx(0.0)


def test_extremes_have_one_direction_and_as_many_as_there_are_inputs():
    line = torch.outer(torch.tensor([1.0, -3.0, 0.5, 2.0]), torch.tensor([1.0, 2.0, -1.0]))
    assert condensation(line).effective == pytest.approx(1.0)
    assert condensation(line).share_aligned == 1.0
    assert condensation(torch.eye(6)).effective == pytest.approx(6.0)
    assert condensation(torch.eye(6)).mean == 0.0


def test_the_order_brings_groups_together():
    draws = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    centres = torch.eye(8)[:2]
    weight = 3 * centres[groups] + 0.05 * torch.randn(8, 8, generator=draws)
    found = condensation(weight)
    assert groups[found.order.copy()].tolist() == [0] * 5 + [1] * 3
    np.testing.assert_allclose(found.map, found.cosines[np.ix_(found.order, found.order)])


def test_neurons_without_weights_are_left_out_and_counted():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = condensation(weight)
    assert (found.neurons, found.zeros) == (3, 2)
    assert found.kept.tolist() == [1, 3, 4]
    assert set(found.order.tolist()) == {1, 3, 4}
    assert found.map.shape == (3, 3)
    assert found.mean == pytest.approx(1 / 3)


def test_one_neuron_or_none_has_no_pairs():
    single = condensation(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert (single.neurons, single.effective) == (1, 1.0)
    assert np.isnan(single.mean)
    none = condensation(torch.zeros(3, 2))
    assert (none.neurons, none.zeros, none.effective) == (0, 3, 0.0)


def test_tiny_and_huge_weights_have_directions():
    found = condensation(torch.tensor([[1e-38, 0.0], [1e38, 1e38]]))
    assert found.mean == pytest.approx(2**-0.5)
    assert condensation(torch.tensor([[1e-300, 0.0], [0.0, 1e300]], dtype=torch.float64)).neurons == 2


def test_large_layers_are_measured_in_parts(monkeypatch):
    weight = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    whole = condensation(weight)
    monkeypatch.setattr(cosines, "_ROWS", 70 * 9)
    monkeypatch.setattr(cosines, "_MAP", 50)
    parts = condensation(weight)
    assert parts.cosines is None
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.effective == pytest.approx(whole.effective)
    leading = np.abs(np.linalg.eigh(whole.cosines)[1][:, -1])
    assert (np.diff(leading[parts.order]) < 1e-3 * leading.max()).all()
    with pytest.raises(UsageError, match="keep=True"):
        _ = parts.map
    assert condensation(weight, keep=True).map.shape == (70, 70)


def test_layers_of_torch_are_taken_as_they_are():
    layer = nn.Conv1d(4, 7, 3)
    assert condensation(layer.weight, layer.bias).neurons == 7
    assert layer.weight.grad is None
    half = nn.Linear(4, 6).bfloat16()
    assert condensation(half.weight, half.bias).cosines.dtype == np.float64


def test_senseless_arguments_are_refused():
    with pytest.raises(UsageError, match="bias"):
        condensation(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(UsageError, match="one row"):
        condensation(torch.ones(0, 2))
    with pytest.raises(UsageError, match="NaN"):
        condensation(torch.tensor([[float("nan")]]))
    with pytest.raises(UsageError, match="aligned"):
        condensation(torch.ones(3, 2), aligned=1.5)
