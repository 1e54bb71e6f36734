"""Calls back once a module has been imported by somebody else. Never imports it itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["when_imported"]


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Calls `call()` right after the module `name` has been imported; now, when it has been already.

    Importing torch on behalf of a script would be seen by it: environment variables that it sets first would come
    too late, and a script that does not train would start a second later.
    """
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Finder(name, call))


class _Finder:
    """Finds nothing itself: asks the finders behind it, and has the loader they name call back once."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._hook(spec)
                return spec
        return None

    def _hook(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:
            return
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == self.name and self in sys.meta_path:  # a loader may serve other modules as well
                vars(loader).pop("exec_module", None)
                sys.meta_path.remove(self)
                self.call()

        setattr(loader, "exec_module", exec_module)  # noqa: B010
