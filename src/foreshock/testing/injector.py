"""Makes faults happen in a training loop, whatever guards it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.testing.batches import checksum, constant_like, random_like
from foreshock.testing.cells import bit_number, draw, flip_bit

if TYPE_CHECKING:
    from foreshock.testing.faults import Fault

Result = TypeVar("Result")
_TENSORS = ("scaled_gradient", "nan_gradient", "bit_flip")  # what strikes parameters or their gradients


class Injector:
    """Makes faults happen in a loop, in one of three ways; whatever guards the loop sees them as it would real ones.

    The loop says where it is::

        injector = faults.Injector(faults.standard(300).values(), model, optimizer, seed=0)
        for step, batch in enumerate(loader):
            batch = injector.batch(step, batch)         # first of all: weights are flipped here
            loss = loss_fn(model(batch))
            loss.backward()
            injector.gradients(step)
            injector.before_step(step)                  # learning rates, optimizer state
            guard.step()                                # or optimizer.step(), or any other guard
            injector.after_step(step)

    Or the injector counts, `take = injector.around(guard.step)`, then `injector.batch(injector.step, batch)` and
    `take()`. Or, in a loop without a guard that only calls `optimizer.step()`, `with injector:` uses hooks of model and
    optimizer; batches come from `injector.batches(loader)`.

    What a fault draws depends on the seed, its place among the faults, the step and, for batches, what is in the batch.
    So a run that was resumed or rolled back meets the same, and `injector.batch(identity, batch)` with the batch's own
    number in place of the step spoils a batch in the same way whenever it comes back.

    Args:
        faults: a fault or some, which may overlap; see `foreshock.testing.faults`.
        model: its weights are flipped, and it says what the parameters are called.
        optimizer: its learning rates are raised and its state is lost; without a model, its parameters are struck.
        seed: of all that is drawn.

    Attributes:
        step: the step that `around`, or the hooks, are at.
        injected: (step, kind) of what was really done, in order, each once.
    """

    def __init__(
        self,
        faults: Fault | Iterable[Fault],
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults) if isinstance(faults, Iterable) else (faults,)
        for fault in self.faults:
            if not hasattr(fault, "active"):
                raise UsageError(f"faults: must be faults, as of faults.random_batch(300), got {fault!r}")
            if optimizer is None and fault.kind in ("raised_lr", "state_reset"):
                raise UsageError(f"optimizer: {fault.kind} needs one")
            if model is None and (fault.parameter is not None or (optimizer is None and fault.kind in _TENSORS)):
                raise UsageError(f"model: {fault.kind} needs one")
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self.step = 0
        self.injected: list[tuple[int, str]] = []
        self._flipped: set[tuple[int, int]] = set()
        self._sources: dict[int, Iterator[Any]] = {}
        self._rates: list[tuple[dict[str, Any], Any, float]] = []
        self._lowering: Any = None
        self._hooks: list[Any] = []

    def batch(self, step: int, batch: Any) -> Any:
        """Returns the batch that the step gets, a new one if a fault strikes it; flips the weights that are due."""
        self._flip(step)
        return self._spoil(step, batch)

    def gradients(self, step: int) -> None:
        """Strikes the gradients; call it after `backward`, before anything looks at them.

        Raises:
            UsageError: there are no gradients.
        """
        for place, fault in self._due(step, "scaled_gradient", "nan_gradient"):
            grads = [(name, p.grad) for name, p in self._parameters() if p.grad is not None]
            if not grads:
                raise UsageError(
                    f"gradients: no parameter has one at step {step}; call injector.gradients(step) after backward"
                )
            with torch.no_grad():
                if fault.kind == "scaled_gradient":
                    for _, grad in grads:
                        grad.mul_(fault.factor)
                else:
                    for cell in draw(self._named(fault, grads), fault.count, self._generator(place, step)):
                        cell.fill_(fault.value)
            self._log(step, fault)

    def before_step(self, step: int) -> None:
        """Raises the learning rates and loses the optimizer's state; call it before the optimizer or guard steps."""
        self._flip(step)  # of loops that give no batch
        self._lower()
        for _, fault in self._due(step, "state_reset"):
            assert self.optimizer is not None
            if fault.how == "clear":
                self.optimizer.state.clear()
            else:
                _zero(list(self.optimizer.state.values()))
            self._log(step, fault)
        raised = [fault for _, fault in self._due(step, "raised_lr")]
        if raised:
            assert self.optimizer is not None
            factor = math.prod(fault.factor for fault in raised)
            for group in self.optimizer.param_groups:
                before = group["lr"]
                group["lr"] = before * factor
                self._rates.append((group, before, float(group["lr"])))
            # put back before a scheduler steps, and, as the last hook registered, after a monitor has read it
            self._lowering = self.optimizer.register_step_post_hook(self._put_back)
            for fault in raised:
                self._log(step, fault)

    def after_step(self, step: int) -> None:
        """Puts the learning rates back where no update has done so; call it after the step, taken or refused."""
        self._lower()

    def around(self, take: Callable[..., Result]) -> Callable[..., Result]:
        """Returns a function that does what `take` does, `guard.step` for example, with the faults of its turn.

        It counts in `step`; each call is the next step, starting with what `step` is.
        """

        def struck(*args: Any, **kwargs: Any) -> Result:
            self.gradients(self.step)
            self.before_step(self.step)
            try:
                return take(*args, **kwargs)
            finally:
                self.after_step(self.step)
                self.step += 1

        return struck

    def batches(self, data: Iterable[Any]) -> SpoiledBatches:
        """Returns the data with the faults that strike batches; `at` is the number of the batch, over all epochs."""
        return SpoiledBatches(self, data)

    def __enter__(self) -> Injector:
        if self.optimizer is None:
            raise UsageError("optimizer: `with injector:` uses its hooks; give one, or call the injector's methods")
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_hook),
            self.optimizer.register_step_post_hook(self._after_hook),
        ]
        first = getattr(self.optimizer, "_optimizer_step_pre_hooks", None)
        if first is not None:  # before the hook of a monitor, which is to see what the faults have done
            first.move_to_end(self._hooks[0].id, last=False)
        if self.model is not None:
            self._hooks.append(self.model.register_forward_pre_hook(lambda *_: self._flip(self.step)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lower()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_hook(self, *_: Any) -> None:
        self.gradients(self.step)
        self.before_step(self.step)

    def _after_hook(self, *_: Any) -> None:
        self.step += 1

    def _due(self, step: int, *kinds: str) -> list[tuple[int, Fault]]:
        return [(i, fault) for i, fault in enumerate(self.faults) if fault.kind in kinds and fault.active(step)]

    def _log(self, step: int, fault: Fault) -> None:
        if (step, fault.kind) not in self.injected:
            self.injected.append((step, fault.kind))

    def _generator(self, *key: int) -> torch.Generator:
        """Returns a stream of its own for the seed and these numbers."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {key}").getrandbits(63))

    def _spoil(self, step: int, batch: Any) -> Any:
        for place, fault in self._due(step, "wrong_mixture", "random_batch", "constant_batch"):
            if fault.kind == "wrong_mixture":
                batch = self._other(place, fault, step)
            elif fault.kind == "random_batch":
                generator = self._generator(place, step, checksum(batch))
                batch = random_like(batch, generator, vocabulary=fault.vocabulary)
            else:
                batch = constant_like(batch, self._generator(place, step, checksum(batch)))
            self._log(step, fault)
        return batch

    def _other(self, place: int, fault: Fault, step: int) -> Any:
        source = fault.source
        assert source is not None
        if callable(source):
            return source(step)
        if isinstance(source, Sequence) and len(source):
            return source[(step - fault.at) % len(source)]
        for _ in range(2):
            if place in self._sources:
                try:
                    return next(self._sources[place])
                except StopIteration:
                    pass
            self._sources[place] = iter(source)
        raise UsageError(f"source: the batches of the wrong mixture have run out at step {step}; give more, or a list")

    def _parameters(self) -> list[tuple[str, Tensor]]:
        if self.model is not None:
            return list(self.model.named_parameters())
        assert self.optimizer is not None
        return [("", p) for group in self.optimizer.param_groups for p in group["params"]]

    def _flip(self, step: int) -> None:
        for place, fault in self._due(step, "bit_flip"):
            if (place, step) in self._flipped:
                continue
            self._flipped.add((place, step))
            generator = self._generator(place, step)
            with torch.no_grad():
                for cell in draw(self._named(fault, self._parameters()), fault.count, generator):
                    flip_bit(cell, bit_number(fault.bit, cell.dtype, generator))
            self._log(step, fault)

    @staticmethod
    def _named(fault: Fault, tensors: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
        """Returns the tensors that the fault may strike."""
        found = [tensor for name, tensor in tensors if fault.parameter in (None, name)]
        if not found:
            names = ", ".join(name for name, _ in tensors)
            raise UsageError(f"parameter: there is no {fault.parameter!r} to strike; there are {names}")
        return found

    def _put_back(self, *_: Any) -> None:
        """Takes back what still stands; a rate that a guard has changed for its update is seen to later."""
        for group, before, raised in self._rates:
            if float(group["lr"]) == raised:
                group["lr"] = before

    def _lower(self) -> None:
        self._put_back()
        for group, before, raised in self._rates:
            now, usual = float(group["lr"]), float(before)
            if now * usual > 0.0 and abs(math.log(now / raised)) < abs(math.log(now / usual)):
                group["lr"] = now * usual / raised  # a scheduler has gone on from what it found
        self._rates = []
        if self._lowering is not None:
            self._lowering.remove()
            self._lowering = None


class SpoiledBatches:
    """Data that can be gone through as often as the data beneath, some of its batches spoilt by their number."""

    def __init__(self, injector: Injector, data: Iterable[Any]) -> None:
        self._injector = injector
        self._data = data
        self._number = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            number, self._number = self._number, self._number + 1
            yield self._injector._spoil(number, batch)

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]


def _zero(state: Any) -> None:
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in parts:
        if isinstance(value, Tensor) and key != "step" and (value.is_floating_point() or value.is_complex()):
            value.detach().zero_()
        elif isinstance(value, (dict, list, tuple)):
            _zero(value)
