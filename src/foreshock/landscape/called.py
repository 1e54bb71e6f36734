"""Which modules a function runs, found by running it once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from foreshock.curvature.harmless import harmless
from foreshock.curvature.surroundings import modules_of, surroundings


def modules_called(run: Callable[[], object], params: Sequence[Tensor], function: Any = None) -> list[nn.Module]:
    """Returns the outermost modules that a function runs, however it reaches them; one forward pass, without a trace.

    A module is seen at its first call, before it does anything, and is put back afterwards as it was then.

    Args:
        run: runs the function.
        params: parameters that it reads, put back as well.
        function: what to look at for modules that its code names, where `run` only wraps it.
    """
    roots = modules_of(run if function is None else function)
    known = {id(inner) for root in roots for inner in root.modules()}
    with ExitStack() as stack:
        stack.enter_context(harmless(params, list(roots)))
        stack.enter_context(surroundings([inner for root in roots for inner in root.modules()], params[0].device))

        def notice(module: nn.Module, _: Any) -> None:
            if id(module) not in known:
                known.update(id(inner) for inner in module.modules())
                roots.append(module)
                stack.enter_context(harmless((), module))

        hook = register_module_forward_pre_hook(notice)
        stack.callback(hook.remove)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        with torch.set_grad_enabled(False):
            try:
                run()
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                with torch.enable_grad():
                    run()
    return roots


def together(roots: Sequence[nn.Module]) -> nn.Module | None:
    """Returns one module that holds them all, for calls that take one; None where there are none."""
    return nn.ModuleList(roots) if roots else None
