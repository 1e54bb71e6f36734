"""Made-up findings: what a replay and an attribution of an event leave with a run."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from foreshock.run import Event

# name -> (what was changed, share of the rise that is left, verdict)
ARMS = {
    "cut_lr": ("learning rate times 0.5", 0.41, "weakened"),
    "hold_lr": ("learning rate as at the snapshot", 1.0, "stays"),
    "floor": ("denominator of at least 0.0038", 0.01, "removed"),
    "beta2": ("beta2 0.9", 0.04, "removed"),
    "clip_update": ("update of each tensor at most one learning rate", 0.72, "weakened"),
    "clip_grad": ("gradient norm at most twice the usual", 1.31, "worse"),
    "skip": ("steps 198 to 204 not taken", 0.97, "stays"),
    "exact_softmax": ("softmax with an exact gradient", float("nan"), "not applicable"),
    "float64": ("model and loss in float64", float("nan"), "failed"),
}


def replay(
    event: Event, *, base: float = 2.0, rise: float = 6.0, start: int | None = None, **more: Any
) -> dict[str, Any]:
    """Returns a replay of an event in which a floor and a smaller beta2 remove it."""
    begin = event.onset - 30 if start is None else start
    steps = np.arange(begin, event.peak + 25)
    shape = np.exp(-np.abs(steps - event.peak) / 5) * (steps >= event.onset - 1)
    wobble = 0.03 * base * np.sin(1.7 * steps)

    def losses(share: float) -> list[float]:
        return (base + wobble + share * rise * shape).tolist()

    arms = [
        {
            "name": name, "what": what, "share": share, "verdict": verdict, "peak": base + share * rise,
            "why": "no softmax in the loss" if verdict == "not applicable" else "",
            "steps": steps.tolist() if share == share else [], "losses": losses(share) if share == share else [],
        }
        for name, (what, share, verdict) in ARMS.items()
    ]  # fmt: skip
    return {
        "kind": "replay", "version": 1, "event": list(event.key), "start": int(begin), "steps": steps.tolist(),
        "original": losses(1.0), "base": base, "peak": base + rise, "reproducible": True, "differs_at": None,
        "summary": "Unchanged, the steps repeat bit for bit. The spike is gone with `floor` and `beta2`.",
        "cures": ["floor", "beta2"], "arms": arms,
        "edge": {
            "steps": [170, 180, 190], "chi": [0.8, 0.97, 1.06], "passed": 186, "lead": 9, "verdict": "preconditioner",
            "shares": {"preconditioner": 0.9, "landscape": 0.1, "learning rate": 0.0},
        },
    } | more  # fmt: skip


def attribution(event: Event, *, images: bool = False, **more: Any) -> dict[str, Any]:
    """Returns an attribution of an event to five tensors and six examples."""
    columns = {"2.weight": 0.56, "0.weight": 0.31, "4.weight": 0.17, "0.bias": 0.01, "embedding.weight": -0.05}
    texts = ("The quick brown fox</script>", "0 0 0 0 0 0 0 0 0 0 0 0", "jumps over the lazy dog\nand back " * 9)
    shares = (0.52, 0.21, 0.06, 0.03, 0.02, -0.01)
    culprits: list[dict[str, Any]] = [
        {"step": event.onset, "index": 7 * i + 3, "share": share, "text": texts[i % 3]}
        for i, share in enumerate(shares)
    ]
    if images:
        for i, each in enumerate(culprits):
            del each["text"]
            each["image"] = picture(i)
    return {
        "kind": "attribution", "version": 1, "event": list(event.key), "step": event.onset, "columns": columns,
        "history": 0.36, "decay": 0.004, "total": 4.11, "measured": 4.112, "completeness": 0.0005, "coverage": 0.98,
        "culprits": culprits, "victims": culprits[:3], "seen": event.onset + 1, "from_step": 4.1, "from_batch": 0.2,
        "concentration": 3, "examples": 64,
    } | more  # fmt: skip


def picture(seed: int, size: int = 14) -> str:
    """Returns a small grey picture as a data address."""
    y, x = np.mgrid[:size, :size]
    grey = 255 * np.exp(-(((x - size / 2 - np.sin(seed) * 3) ** 2 + (y - size / 2) ** 2 - 14) ** 2) / (60 + 20 * seed))
    lines = b"".join(b"\0" + row.tobytes() for row in grey.astype(np.uint8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()
