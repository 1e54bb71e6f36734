"""Builds `foreshock/probes/sweep.c` where there is a C compiler. Without one the package is pure Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "src/foreshock/probes/sweep.c", "src/foreshock/probes/_sweep.so"
# sums may be taken in any order (so that they use vector instructions), but NaN and infinity keep their meaning
FLAGS = ["-O3", "-fPIC", "-shared", "-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]


class Build(BuildHookInterface):
    """Compiles the optional sweep; whatever goes wrong only leaves it out."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = Path(self.root) / LIBRARY
        library.unlink(missing_ok=True)
        if self.target_name != "wheel" or os.environ.get("FORESHOCK_NATIVE", "1") == "0":
            return
        if not compile_sweep(Path(self.root) / SOURCE, library):
            print("foreshock: no working C compiler, so the optional compiled sweep is left out", file=sys.stderr)
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_sweep(source: Path, library: Path) -> bool:
    """Returns whether the library could be built: with versions for newer processors where the compiler can."""
    compiler = os.environ.get("CC", "").split() or [shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")]
    if compiler[0] is None:
        return False
    fresh = library.with_suffix(".so.new")
    for extra in (["-DFORESHOCK_CLONES"], []):
        command = [*compiler, *FLAGS, *extra, "-o", str(fresh), str(source), "-lm"]
        try:
            if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
                fresh.replace(library)  # a process that has the old one loaded keeps it
                return True
        except (OSError, subprocess.SubprocessError):
            return False
    return False
