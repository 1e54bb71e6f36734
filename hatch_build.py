"""Builds the compiled loops, `PARTS`, where there is a C compiler. Without one the package is pure Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOM = Path("src/foreshock")
# NaN and infinity keep their meaning, but nobody reads errno or the sign of a zero
FLAGS = ["-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math"]
# source, library, and what else this one may: the sweep's sums may be taken in any order, to use vector instructions
PARTS = (
    (ROOM / "probes/sweep.c", ROOM / "probes/_sweep.so", ["-fassociative-math"]),
    (ROOM / "optim/s3.c", ROOM / "optim/_s3.so", []),
)


class Build(BuildHookInterface):
    """Compiles the optional loops; whatever goes wrong only leaves them out."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for _, library, _ in PARTS:
            (root / library).unlink(missing_ok=True)
        if self.target_name != "wheel" or os.environ.get("FORESHOCK_NATIVE", "1") == "0":
            return
        built = [library for source, library, extra in PARTS if compile_loop(root / source, root / library, extra)]
        if len(built) < len(PARTS):
            print("foreshock: no working C compiler, so optional compiled loops are left out", file=sys.stderr)
        if built:
            build_data["artifacts"].extend(str(library) for library in built)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_loop(source: Path, library: Path, flags: Sequence[str] = ()) -> bool:
    """Returns whether the library could be built: with versions for newer processors where the compiler can."""
    compiler = os.environ.get("CC", "").split() or [shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")]
    if compiler[0] is None:
        return False
    fresh = library.with_suffix(".so.new")
    for extra in (["-DFORESHOCK_CLONES"], []):
        command = [*compiler, *FLAGS, *flags, *extra, "-o", str(fresh), str(source), "-lm"]
        try:
            if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
                fresh.replace(library)  # a process that has the old one loaded keeps it
                return True
        except (OSError, subprocess.SubprocessError):
            return False
    return False


if __name__ == "__main__":  # python hatch_build.py: builds them in place, in a checkout
    for source, library, extra in PARTS:
        print(library, "built" if compile_loop(source, library, extra) else "not built")
