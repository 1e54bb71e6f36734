"""Small files of a run directory: JSON documents and JSON lines that carry their own checksum.

Each document and each line ends with a field `crc32`: the CRC-32 of the text before that field. It makes a damaged
byte visible that would still be valid JSON, such as a digit that changed.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LINE_SEAL = re.compile(rb', "crc32": (\d+)\}\Z')
_DOCUMENT_SEAL = re.compile(rb',\n  "crc32": (\d+)\n\}\n\Z')


def encode_line(fields: Mapping[str, Any]) -> bytes:
    """Returns the fields (at least one) as one sealed line; NaN and inf are written as `NaN` and `Infinity`."""
    body = json.dumps(_unsealed(fields))[:-1].encode()
    return body + b', "crc32": %d}\n' % zlib.crc32(body)


def encode_document(fields: Mapping[str, Any]) -> bytes:
    """Returns the fields (at least one) as a sealed, indented document."""
    body = json.dumps(_unsealed(fields), indent=2)[:-2].encode()
    return body + b',\n  "crc32": %d\n}\n' % zlib.crc32(body)


def decode(text: bytes) -> tuple[dict[str, Any], str]:
    """Returns the fields of a sealed line (without its newline) or document, and what is wrong with it ("" if nothing).

    Text that is no JSON object gives no fields; text whose checksum is missing or does not match gives the fields it
    still holds.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        return {}, f"is not JSON ({error})"
    if not isinstance(fields, dict):
        return {}, "is not a JSON object"
    found = _LINE_SEAL.search(text) or _DOCUMENT_SEAL.search(text)
    if found is None:
        return _unsealed(fields), "has no checksum"
    if zlib.crc32(text[: found.start()]) != int(found[1]):
        return _unsealed(fields), "does not match its checksum"
    return _unsealed(fields), ""


def replace(path: Path, content: bytes) -> None:
    """Writes a whole file so that a reader sees either the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create(path: Path, content: bytes) -> bool:
    """Writes a whole new file as `replace` does and returns True, or False where somebody else just made it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links here
        if path.exists():
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def to_plain(value: Any) -> Any:
    """Returns the value as plain JSON data; what JSON does not know is kept as its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    return str(value)


def _unsealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): to_plain(value) for name, value in fields.items() if name != "crc32"}
