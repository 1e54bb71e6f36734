"""Images in IDX files: read, refused, missing."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from foreshock.errors import MissingExtraError, UsageError
from foreshock.papers.images import images, read_idx


def idx(values: np.ndarray) -> bytes:
    """The bytes of an IDX file, written after its description: magic, lengths, numbers, all big-endian."""
    kinds = {"u1": 8, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    big = values.astype(values.dtype.newbyteorder(">"))
    lengths = b"".join(struct.pack(">I", length) for length in values.shape)
    return bytes([0, 0, kinds[values.dtype.str[1:]], values.ndim]) + lengths + big.tobytes()


def data_set(folder, pixels, labels, *, zipped=True):
    """Writes the four files of a data set, the test images those of training in reverse."""
    for part, order in (("train", 1), ("t10k", -1)):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            content, name = idx(np.ascontiguousarray(values[::order])), f"{part}-{kind}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_every_type_and_shape_is_read_back(tmp_path, dtype, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    (tmp_path / "a").write_bytes(idx(values))
    found = read_idx(tmp_path / "a")
    assert found.shape == shape
    assert np.array_equal(found, values)
    assert found.dtype.kind == np.dtype(dtype).kind


@pytest.mark.parametrize("zipped", [True, False])
def test_a_part_of_a_data_set_is_found_zipped_or_not(tmp_path, zipped):
    draw = np.random.default_rng(1)
    pixels, labels = draw.integers(0, 256, (6, 5, 4)).astype("u1"), np.arange(6, dtype="u1")
    data_set(tmp_path, pixels, labels, zipped=zipped)
    train = images("train", path=tmp_path)
    assert np.array_equal(train.pixels, pixels)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    test = images("test", count=2, path=str(tmp_path))
    assert np.array_equal(test.pixels, pixels[:3:-1])
    assert test.labels.tolist() == [5, 4]
    assert test.labels.dtype == np.int64


def test_without_the_files_it_is_said_what_to_install(tmp_path):
    with pytest.raises(MissingExtraError, match=r"apt install dataset-fashion-mnist.*images\(path=\.\.\.\)") as error:
        images(path=tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PNG\r\n", "no IDX file"), (b"", "no IDX file"), (idx(np.arange(9, dtype="u1"))[:-1], "it broke off"),
        (idx(np.arange(9, dtype="u1")) + b"!", "has more in it"),
        (gzip.compress(b"x" * 50, mtime=0)[:-9], "cannot be unzipped"), (bytes([0, 0, 8, 3, 0]), "it broke off"),
    ],
    ids=["another format", "empty", "short", "long", "half an archive", "half a head"],
)
def test_what_is_no_idx_file_is_refused_with_its_name(tmp_path, content, said):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        read_idx(tmp_path / "bad")
    assert "bad" in str(error.value)


def test_labels_must_fit_the_images(tmp_path):
    data_set(tmp_path, np.zeros((3, 2, 2), "u1"), np.zeros(4, "u1"))
    with pytest.raises(UsageError, match=r"shape \(3, 2, 2\) with labels of shape \(4,\)"):
        images(path=tmp_path)
    with pytest.raises(UsageError, match="'train' or 'test', got 'valid'"):
        images("valid", path=tmp_path)
