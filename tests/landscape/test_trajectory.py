"""The components are numpy's, whatever the window, the memory and the smaller side; a state goes on where it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.errors import UsageError
from foreshock.landscape import Trajectory, components, pca, plane_of
from tests.landscape import tl


def reference(rows):
    """Returns components as rows, shares of the variance, and the mean, by numpy's SVD."""
    table = np.asarray(rows, dtype=float)
    mean = table.mean(0)
    _, s, vt = np.linalg.svd(table - mean, full_matrices=False)
    return vt, s**2 / (s**2).sum(), mean


def walk(m, n, seed=0):
    draws = np.random.default_rng(seed)
    scales = 2.0 ** -np.arange(n)
    return 5 + np.cumsum(draws.standard_normal((m, n)) * scales, axis=0)


def split(flat):
    return [flat[:2].view(2), flat[2:].view(-1, 1)]


@pytest.mark.parametrize(("m", "n"), [(12, 40), (40, 12), (7, 7)])
def test_components_are_those_of_the_svd(m, n):
    rows = walk(m, n)
    params = split(torch.zeros(n, dtype=torch.float64))
    found = pca(params, list(torch.from_numpy(rows)), 3)
    vectors, shares, mean = reference(rows)
    np.testing.assert_allclose(found.explained, shares[:3], rtol=1e-9)
    for i in range(3):
        component = torch.cat([piece.flatten() for piece in found.components[i]]).numpy()
        assert abs(component @ vectors[i]) == pytest.approx(1.0, abs=1e-9)
        np.testing.assert_allclose(found.scores[:, i], (rows - mean) @ component, atol=1e-9)
        assert found.scores[-1, i] >= found.scores[0, i]
    np.testing.assert_allclose(torch.cat([piece.flatten() for piece in found.mean]).numpy(), mean)


def test_small_deviations_from_large_parameters_keep_their_digits():
    rows = 1e4 + 1e-3 * walk(10, 30)
    found = pca([torch.zeros(30)], [torch.from_numpy(row).float() for row in rows], 2)  # stored in float32
    _, shares, _ = reference(rows.astype(np.float32))
    np.testing.assert_allclose(found.explained, shares[:2], rtol=1e-6)


def test_columns_are_taken_some_at_a_time(monkeypatch):
    rows = walk(9, 100)
    whole = pca([torch.zeros(100, dtype=torch.float64)], list(torch.from_numpy(rows)), 2)
    monkeypatch.setattr(components, "_BYTES", 9 * 8 * 7)
    parts = pca([torch.zeros(100, dtype=torch.float64)], list(torch.from_numpy(rows)), 2)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-10)
    for a, b in zip(parts.components, whole.components, strict=True):
        assert torch.allclose(a[0], b[0], atol=1e-10)


def test_many_snapshots_of_many_parameters_take_the_top_alone(monkeypatch):
    rows = walk(60, 80)
    monkeypatch.setattr(components, "_DENSE", 10)
    found = pca([torch.zeros(80, dtype=torch.float64)], list(torch.from_numpy(rows)), 2)
    vectors, shares, _ = reference(rows)
    np.testing.assert_allclose(found.explained, shares[:2], rtol=1e-5)
    assert abs(found.components[0][0].numpy() @ vectors[0]) == pytest.approx(1.0, abs=1e-6)


def test_fewer_components_are_found_than_asked_for_where_there_are_fewer():
    line = [t * torch.tensor([1.0, 2.0, 3.0]) for t in range(5)]
    assert pca([torch.zeros(3)], line, 3).explained == pytest.approx([1.0])


@pytest.mark.parametrize(("first", "last", "place"), [(5000, 5400, 2), (5115, 5230, 1), (5140, 5200, 0)])
def test_the_sharpest_direction_is_a_later_component_of_a_longer_window(first, last, place):
    net = tl.Net(5000)
    trajectory = Trajectory(net.params)
    for t in range(5000, 5401):
        trajectory.add(tl.at(t), step=t)
    _, vectors = tl.sharpest(5150)
    found = trajectory.pca(3, first=first, last=last, top=vectors[0])
    assert found.alignments.argmax() == place
    assert found.alignments[place] > 0.99
    assert bool(found.notes) == (place == 2)
    assert trajectory.pca(2, first=5000, last=5100, top=vectors[0]).notes[0].startswith("none of the 2 components")


def test_the_plane_of_a_trajectory_holds_it():
    rows = walk(8, 2)
    lifted = np.concatenate([rows, rows @ np.array([[1.0, 2.0], [0.5, -1.0]])], axis=1)
    trajectory = Trajectory(split(torch.zeros(4, dtype=torch.float64)))
    for row in lifted:
        trajectory.add(torch.from_numpy(row))
    plane = trajectory.plane()
    found = plane.project(trajectory)
    assert plane.names == ("PC 1", "PC 2")
    np.testing.assert_allclose(found.off, 0, atol=1e-10)
    np.testing.assert_allclose(np.stack([found.alphas, found.betas], 1), trajectory.pca().scores, atol=1e-10)
    assert plane.lengths == pytest.approx(tuple(np.ptp(trajectory.pca().scores, axis=0)))


def test_memory_is_bounded_and_parity_is_kept():
    w = torch.zeros(10)
    trajectory = Trajectory([w], memory=10 * 4 * 12)
    for t in range(200):
        with torch.no_grad():
            w.fill_((-1.0) ** t)
        trajectory.add()
        assert len(trajectory) <= 12
    assert trajectory.stride == 27
    assert trajectory.steps.tolist() == list(range(0, 200, 27))
    assert [float(row[0]) for row in trajectory] == [(-1.0) ** t for t in trajectory.steps]


def test_before_memory_is_full_nothing_is_left_out():
    w = torch.zeros(10)
    trajectory = Trajectory([w], memory=10 * 4 * 12)
    for _ in range(12):
        trajectory.add()
    assert trajectory.steps.tolist() == list(range(12))
    assert trajectory.stride == 1


def test_snapshots_are_copies():
    w = torch.zeros(3, requires_grad=True)
    trajectory = Trajectory([w])
    trajectory.add()
    flat = torch.ones(3)
    trajectory.add(flat)
    with torch.no_grad():
        w.fill_(7.0)
        flat.fill_(7.0)
    assert [row.tolist() for row in trajectory] == [[0.0] * 3, [1.0] * 3]
    assert not any(row.requires_grad for row in trajectory)


def test_a_snapshot_is_the_last_before_a_step():
    trajectory = Trajectory([torch.zeros(2, 2)])
    for step in (0, 10, 20):
        trajectory.add([torch.full((2, 2), float(step))], step=step)
    assert trajectory.snapshot(15)[0].tolist() == [[10.0, 10.0], [10.0, 10.0]]
    with pytest.raises(UsageError, match="steps 0 to 20"):
        trajectory.snapshot(-1)


def test_a_trajectory_may_be_told_its_parameters_by_the_first_snapshot():
    trajectory = Trajectory()
    with pytest.raises(UsageError, match="pass them"):
        trajectory.add()
    for value in (0.0, 1.0):
        trajectory.add([torch.full((2,), value), torch.full((1, 2), -value)])
    assert trajectory.pca(1).explained == pytest.approx([1.0])


def test_a_saved_trajectory_goes_on_where_it_was():
    def steps(trajectory, w, begin, end):
        for t in range(begin, end):
            with torch.no_grad():
                w.copy_(torch.tensor([float(t), -float(t) ** 2]))
            trajectory.add(step=3 * t)

    w = torch.zeros(2)
    whole, half = (Trajectory([w], memory=2 * 4 * 9) for _ in range(2))
    steps(whole, w, 0, 40)
    steps(half, w, 0, 21)
    state = half.state_dict()
    steps(half, w, 21, 25)  # what goes on does not reach into what was saved
    other = Trajectory([w], memory=2 * 4 * 9)
    other.load_state_dict(state)
    steps(other, w, 21, 40)
    assert other.steps.tolist() == whole.steps.tolist()
    assert all(torch.equal(a, b) for a, b in zip(other, whole, strict=True))
    with pytest.raises(UsageError, match="of 2 numbers for parameters of 5"):
        Trajectory([torch.zeros(5)]).load_state_dict(state)


@pytest.fixture
def sharded():
    """A parameter that is sharded over the ranks of a group of one."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = dist.init_device_mesh("cpu", (1,))
    yield torch.nn.Parameter(distribute_tensor(torch.arange(6.0).view(3, 2), mesh, [Shard(0)]))
    dist.destroy_process_group()


def test_sharded_parameters_are_gathered_for_a_trajectory_and_refused_for_a_plane(sharded):
    trajectory = Trajectory([sharded])
    trajectory.add()
    with torch.no_grad():
        sharded.add_(1.0)
    trajectory.add()
    assert [row.tolist() for row in trajectory] == [[0.0, 1, 2, 3, 4, 5], [1.0, 2, 3, 4, 5, 6]]
    assert trajectory.pca(1).explained == pytest.approx([1.0])
    with pytest.raises(UsageError, match="sharded"):
        plane_of([sharded], torch.ones(6), torch.arange(6.0))


def test_senseless_arguments_are_refused():
    w = torch.zeros(3)
    with pytest.raises(UsageError, match="memory"):
        Trajectory([w], memory=30).add()
    trajectory = Trajectory([w])
    trajectory.add(step=5)
    with pytest.raises(UsageError, match="steps must grow"):
        trajectory.add(step=5)
    with pytest.raises(UsageError, match="1 snapshots in the window"):
        trajectory.pca()
    with pytest.raises(UsageError, match="all the same"):
        pca([w], [w, w])
    with pytest.raises(UsageError, match="NaN"):
        pca([w], [w, w + float("nan")])
    with pytest.raises(UsageError, match="positive integer"):
        pca([w], [w, w + 1], 0)
    with pytest.raises(UsageError, match="two of the 1 components"):
        pca([w], [w, w + 1]).plane()
