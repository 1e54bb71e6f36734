"""Sets a live training aside: whatever is done to it meanwhile, afterwards it is what it was, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import attach
from foreshock.errors import UsageError
from foreshock.guard.holding import Holding
from foreshock.guard.snapshots import Snapshots
from foreshock.hooks import MODULE_TABLES, lifted
from foreshock.monitor import Monitor
from foreshock.replay.slots import Kept


@contextmanager
def aside(
    holding: Holding, *, monitor: Monitor | None = None, memory: int | None = None, beside: Sequence[Kept] = ()
) -> Iterator[None]:
    """Lets the training be used for something else inside.

    Put back at the end, also after an error: parameters, buffers, the optimizer with its options and state, scheduler,
    scaler and averages, gradients, modes, `requires_grad`, and the random streams. Inside, gradients are None, and
    neither the monitor nor this library's hooks on model and optimizer see anything; the loop's own hooks do.

    Args:
        holding: the live objects.
        monitor: what watches them; it sleeps meanwhile.
        memory: bytes of host memory that the present state may take; None for a quarter of what is available.
        beside: what else is put back, as it was kept before.

    Raises:
        UsageError: the state does not fit.
    """
    present = Snapshots(keep=1, memory=memory)
    present.attach(
        holding.model, holding.optimizer, scheduler=holding.scheduler, scaler=holding.scaler, ema=holding.ema
    )
    if not present.take(0):
        raise UsageError(f"the present state cannot be kept while something else is tried: {present.refused}")
    params = _params(holding)
    grads = [(param, param.grad, param.requires_grad) for param in params]
    modes = [] if holding.model is None else [(module, module.training) for module in holding.model.modules()]
    with ExitStack() as stack:
        stack.enter_context(asleep(monitor))
        stack.enter_context(unhooked(holding.optimizer, holding.model))
        for param in params:
            param.grad = None
        try:
            yield
        finally:
            for each in beside:
                each.put_back()
            for module, mode in modes:
                module.training = mode
            for param, _, wanted in grads:
                param.requires_grad_(wanted)
            present.restore(0, rng=True)
            for param, grad, _ in grads:
                param.grad = grad


@contextmanager
def asleep(monitor: Monitor | None) -> Iterator[None]:
    """Keeps a monitor from seeing what happens inside."""
    if monitor is None:
        yield
        return
    process, monitor._process = monitor._process, attach.ASLEEP
    try:
        yield
    finally:
        monitor._process = process


def unhooked(optimizer: Optimizer, model: nn.Module | None) -> AbstractContextManager[None]:
    """Takes this library's own hooks away from an optimizer and a model, and puts them back in their places."""
    tables = [getattr(optimizer, name) for name in vars(optimizer) if name.endswith("_hooks")]
    for module in () if model is None else model.modules():
        tables += [table for name in MODULE_TABLES if (table := getattr(module, name, None))]
    return lifted([table for table in tables if isinstance(table, dict)])



def _params(holding: Holding) -> list[Tensor]:
    """Returns every parameter of optimizer and model, each once."""
    owned = [param for group in holding.optimizer.param_groups for param in group["params"]]
    models = [] if holding.model is None else list(holding.model.parameters())
    return list({id(param): param for param in (*owned, *models)}.values())
