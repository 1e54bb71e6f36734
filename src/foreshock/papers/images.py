"""Images in IDX files, the format of MNIST: by default Fashion-MNIST where Debian puts it."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foreshock.errors import MissingExtraError, UsageError

__all__ = ["DEBIAN", "Images", "images", "read_idx"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True, slots=True)
class Images:
    """Grey images and their classes.

    Attributes:
        pixels: (n, height, width), 0 to 255.
        labels: (n,) classes.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def images(part: str = "train", *, count: int | None = None, path: str | Path | None = None) -> Images:
    """Returns the first `count` images of a data set, all by default.

    Args:
        part: "train" or "test".
        count: how many.
        path: a folder with the four files of MNIST's naming, each with or without `.gz`; by default `DEBIAN`.

    Raises:
        MissingExtraError: the files are not there; the message says what to install.
        UsageError: a file that is no IDX file, or labels that do not fit the images.

    Source of the data: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.
    """
    if part not in _FILES:
        raise UsageError(f"images(part=...): 'train' or 'test', got {part!r}")
    folder = DEBIAN if path is None else Path(path)
    pixels, labels = (read_idx(_place(folder, name)) for name in _FILES[part])
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise UsageError(f"{folder}: {part} images of shape {pixels.shape} with labels of shape {labels.shape}")
    return Images(pixels[:count].astype(np.uint8), labels[:count].astype(np.int64))


def read_idx(file: str | Path) -> npt.NDArray[np.generic]:
    """Returns the array of an IDX file, gzipped or not.

    The header is two zero bytes, one for the type, one for the number of dimensions, and their lengths, big-endian.

    Raises:
        UsageError: it is not one, or it breaks off.
    """
    content = Path(file).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise UsageError(f"{file}: it cannot be unzipped ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise UsageError(f"{file}: it is no IDX file; those begin with two zero bytes and a type")
    kind, dimensions = np.dtype(_TYPES[content[2]]), content[3]
    begin = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, begin, 4))
    wanted = begin + math.prod(shape) * kind.itemsize
    if len(content) < begin or len(content) != wanted:
        raise UsageError(f"{file}: {len(content)} bytes where its header says {wanted}; it broke off or has more in it")
    return np.frombuffer(content, kind, offset=begin).reshape(shape)


def _place(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise MissingExtraError(
        f"no {name}[.gz] in {folder}: these trainings need Fashion-MNIST. On Debian or Ubuntu: "
        "apt install dataset-fashion-mnist; elsewhere give a folder that holds the four files of MNIST's naming, "
        "images(path=...)"
    )
