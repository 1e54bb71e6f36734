"""Small pictures of arrays as data addresses that a page can hold: PNG by the standard library alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from torch import Tensor

from foreshock.errors import UsageError

__all__ = ["picture"]

LARGEST = 256  # pixels along a side; larger ones are thinned


def picture(values: Any) -> str:
    """Returns an image as "data:image/png;base64,...".

    Args:
        values: array or tensor of shape (H, W), (H, W, 1), (H, W, 3), or (1, H, W), (3, H, W) as torch has them. Bytes
            are taken as they are; other numbers as 0 ... 1 where they lie in there, else from their least to their
            largest.

    Raises:
        UsageError: another shape, or nothing finite.

    >>> picture(np.array([[0.0, 1.0]]))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    image = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values)
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[-1] not in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3) or not image.size:
        raise UsageError(f"decode: an image has shape (H, W) or (H, W, 3), got {tuple(image.shape)}")
    stride = -(-max(image.shape[:2]) // LARGEST)
    pixels = _bytes(image[::stride, ::stride])
    height, width = pixels.shape[:2]
    lines = b"".join(b"\x00" + pixels[row].tobytes() for row in range(height))
    kind = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _bytes(image: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    numbers = image.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        raise UsageError("decode: an image without a finite number cannot be shown")
    low, high = numbers[finite].min(), numbers[finite].max()
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scaled = (np.where(finite, numbers, low) - low) / ((high - low) or 1.0)
    return np.ascontiguousarray(np.rint(scaled * 255.0).astype(np.uint8))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
