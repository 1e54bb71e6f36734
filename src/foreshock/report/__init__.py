"""The report: one offline HTML page, a short text for terminals, and figures for papers.

`foreshock.report(run, "page.html")` writes the page; the module itself is callable, so that its parts stay reachable:

- `foreshock.report.write(runs, path)`: the same, by its name;
- `foreshock.report.summary(run, events)`: plain text;
- `foreshock.report.figures`: matplotlib figures (needs `pip install 'foreshock[figures]'`);
- `foreshock.report.Section`: a block of text that later knowledge (causes, advice) adds beside an event.
"""

from __future__ import annotations

import sys
from types import ModuleType

from foreshock.report import figures
from foreshock.report.page import write
from foreshock.report.sections import Section
from foreshock.report.summary import summary

__all__ = ["Section", "figures", "summary", "write"]


class _CallableModule(ModuleType):
    """A module that can be called: `foreshock.report(...)` is `foreshock.report.write(...)`."""

    __call__ = staticmethod(write)


sys.modules[__name__].__class__ = _CallableModule
