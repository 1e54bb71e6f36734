"""Runs a script or a module as `python` would, so that it cannot tell the difference. Never imports torch."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from foreshock.errors import UsageError

__all__ = ["Code", "embedded", "execute", "find_code", "run_like_python", "without_our_frames"]

INTERRUPTED = 128 + 2  # what a shell shows for a program that SIGINT ended

_OUR_FOLDER = str(Path(__file__).resolve().parent) + os.sep


@dataclass(frozen=True, slots=True)
class Code:
    """Where the code of a main module comes from.

    Attributes:
        file: absolute path of the source, which becomes `__file__` and `sys.argv[0]` of a module run by name.
        typed: what was typed, which becomes `sys.argv[0]` of a script.
        folder: what becomes `sys.path[0]`: a script's folder, or the working directory for a module.
        spec: the module's spec; None for a script, as `python` has it.
    """

    file: str
    typed: str
    folder: str
    spec: ModuleSpec | None


def find_code(target: str, *, module: bool = False) -> Code:
    """Returns where the code of `target` is, without running any of it (packages above a module are imported).

    Args:
        target: path of a script, or with `module` a dotted name as after `python -m`.
        module: whether it is a name.

    Raises:
        UsageError: there is no such script or module, or it cannot be run as one.
    """
    if not module:
        path = Path(target)
        if path.is_dir():
            inside = f"; did you mean {str(path / '__main__.py')!r}?" if (path / "__main__.py").exists() else ""
            raise UsageError(f"{target!r} is a folder, not a script{inside}")
        if not path.is_file():
            near = sorted(str(found) for found in path.parent.glob("*.py"))[:5] if path.parent.is_dir() else []
            raise UsageError(f"there is no script {target!r}" + (f"; scripts there: {', '.join(near)}" if near else ""))
        # `python` follows links for sys.path[0] but shows the path as it was given in __file__.
        return Code(os.path.join(os.getcwd(), target), target, str(path.resolve().parent), None)
    _put_first(os.getcwd())
    try:
        spec = importlib.util.find_spec(target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{target}.__main__")
    except (ImportError, ValueError) as error:
        raise UsageError(f"there is no module {target!r} to run: {error}") from error
    if spec is None or spec.origin is None or not spec.has_location:
        raise UsageError(f"there is no module {target!r} with Python code to run, in {os.getcwd()} or installed")
    return Code(spec.origin, target, os.getcwd(), spec)


def execute(code: Code, arguments: Sequence[str]) -> None:
    """Runs the code as `__main__`, with its own `sys.argv` and `sys.path[0]`; returns when it ends.

    The module stays `sys.modules["__main__"]`, as exit handlers and pickling expect. Whatever the code raises,
    `SystemExit` included, comes out of here.
    """
    main = ModuleType("__main__")
    named: dict[str, Any] = {"__file__": code.file, "__builtins__": builtins, "__cached__": None}
    if code.spec is None:
        named |= {"__loader__": SourceFileLoader("__main__", code.file), "__package__": None}
        compiled = _compile(code.file)
    else:
        named |= {"__loader__": code.spec.loader, "__package__": code.spec.parent, "__spec__": code.spec}
        named["__cached__"] = code.spec.cached
        compiled = code.spec.loader.get_code(code.spec.name)  # type: ignore[union-attr]
    main.__dict__.update(named)
    sys.modules["__main__"] = main
    sys.argv[:] = [code.typed if code.spec is None else code.file, *arguments]
    _put_first(code.folder)
    exec(compiled, main.__dict__)


@contextmanager
def embedded() -> Iterator[None]:
    """Puts back `__main__`, `sys.argv` and `sys.path` where foreshock is a guest, as in a notebook or a test.

    Where foreshock is the program itself, they stay the script's until the process ends, as exit handlers expect.
    """
    main = sys.modules["__main__"]
    file = Path(getattr(main, "__file__", None) or "-")
    guest = "foreshock" not in (file.stem, file.parent.stem)
    argv, path = list(sys.argv), list(sys.path)
    try:
        yield
    finally:
        if guest:
            sys.modules["__main__"], sys.argv[:], sys.path[:] = main, argv, path


def run_like_python(code: Code, arguments: Sequence[str]) -> None:
    """Runs the code and ends as `python` would: an error is printed by `sys.excepthook`, without foreshock's frames.

    Raises:
        SystemExit: what the code raised itself, else 1 after an error and 130 after Ctrl-C.
    """
    try:
        execute(code, arguments)
    except SystemExit:
        raise
    except BaseException as error:
        without_our_frames(error)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1) from None


def _compile(file: str) -> CodeType:
    with io.open_code(file) as source:
        return compile(source.read(), file, "exec", dont_inherit=True)


def _put_first(folder: str) -> None:
    """Makes a folder `sys.path[0]`, in place of the folder of the `foreshock` command itself."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def without_our_frames(error: BaseException) -> BaseException:
    """Takes foreshock's frames out of the traceback of an error and of those behind it, and returns the error.

    What is left is what `python SCRIPT` would have printed.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _strip(current.__traceback__)
        pending += [current.__cause__, current.__context__]
    return error


def _strip(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
            kept.append(traceback)
        traceback = traceback.tb_next
    for link, following in pairwise(kept):
        link.tb_next = following
    if kept:
        kept[-1].tb_next = None
    return kept[0] if kept else None
