"""A copy of an optimizer whose denominators and counters stand still while its momenta answer to tiny gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability.slots import Place, Slots, Value, blank, differ, nonzero, settled
from foreshock.stability.twins import advance, parameters, twin

__all__ = ["Frozen", "NothingFrozenError"]

ROUNDS = 240  # a moment with coefficient beta settles as (1 - beta)^n: enough for beta >= .1
DOUBT = 40  # after as many rounds states that have not settled are asked whether they matter
NOISE = 1e-6  # a decay per step below it is rounding of a step that is made in single precision
UNEVEN = 1e-2  # relative spread over entries at which a decay is not one
PARTS = (1e-9, 5e-6)  # of a tensor's largest entry, to move by: for double precision, and where a step rounds to single
TELL = 10  # drives this many times stronger must move this many times further


class NothingFrozenError(UsageError):
    """A state that no step without gradient arrives at: a second moment that is the last gradient alone."""


class Frozen:
    """Linear response of a copy of an optimizer, from a state at which a step without gradient changes nothing.

    The state is the stored one, or the one after a step with `grads`. Its even part (what gradients of both signs
    change alike: second moments, counters) is set back before every step to the values from which a step arrives at
    that state; its odd part (momenta) starts from zero, and so do the parameters: nothing large hides the response.

    Attributes:
        params: the copy's parameters; `moved` says which of them a step moves.
        theta: their values in the optimizer.
    """

    def __init__(self, optimizer: Optimizer, grads: Sequence[Tensor | None] | None) -> None:
        if any(hasattr(param, "to_local") for param in parameters(optimizer)):
            raise UsageError(
                f"a Nyquist probe cannot step a copy of {type(optimizer).__name__} on sharded parameters; "
                "register a rule for its class with foreshock.stability.register"
            )
        try:
            self._begin(optimizer, grads, torch.float64)
        except NothingFrozenError:
            raise
        except (UsageError, TypeError):  # a kernel for single precision only, or a device without float64
            self._begin(optimizer, grads, None)

    def run(
        self, drives: Iterable[float], mask: Sequence[Tensor] | None = None, scale: float = 1.0
    ) -> Iterator[list[Tensor]]:
        """Yields, for each drive d, the move of every parameter over -e where gradients are d e in every entry."""
        strength = self._tiny * scale
        self._slots.load(self._base)
        for drive in drives:
            moves = self._step(drive * strength, mask)
            self._hold()
            yield [each / (-strength * sign) for each, sign in zip(moves, self._signs, strict=True)]

    def decay(self, response: Sequence[Tensor]) -> list[tuple[float, float]]:
        """Returns (l2, 1 - a) of each parameter: decay through the gradient, and decay of the parameter by itself.

        Both are NaN where the parameter moves by itself in a way that is no decay by one factor.

        Args:
            response: the first answer of `run` to a drive of 1.
        """
        self._slots.load(self._base)
        start = [each * self._small for each in self.theta]
        moves = self._step(0.0, at=start)
        again = self._step(0.0)  # from zero: only what a momentum took up from the decay still moves
        result: list[tuple[float, float] | None] = []
        single: list[tuple[int, Tensor, Tensor]] = []
        for move, late, first, begin in zip(moves, again, response, start, strict=True):
            told = begin != 0
            direct = -move[told] / begin[told]
            if not direct.numel() or not bool((direct.abs() > NOISE).any()):
                result.append((0.0, 0.0))
                continue
            through, positive = direct / first[told], bool((first[told] > 0).all())
            if direct.numel() == 1 and positive and not bool(late.any()):
                single.append((len(result), through, direct))
                result.append(None)
                continue
            coupled = positive and (bool(late.any()) or _spread(through) < 0.1 * _spread(direct))
            result.append(_decay(coupled, through, direct))
        known = [each for each in result if each is not None]
        for place, through, direct in single:  # one entry shows no spread: it decays as others of the optimizer do
            like = [(abs(float(through) - l2), True) for l2, _ in known if l2 > 0]
            like += [(abs(float(direct) - alone), False) for _, alone in known if alone > 0]
            if like:
                result[place] = _decay(min(like)[1], through, direct)
            else:
                throughs, directs = torch.cat([each[1] for each in single]), torch.cat([each[2] for each in single])
                result[place] = _decay(_spread(throughs) < 0.1 * _spread(directs), through, direct)
        return [each for each in result if each is not None]

    def complaint(self, response: Sequence[Tensor], l2: Sequence[float], decays: Sequence[float]) -> str:
        """Returns why the response is not that of a linear elementwise optimizer, or an empty string.

        Args:
            response: the first answer of `run` to a drive of 1.
            l2: coupled decay of each parameter.
            decays: decay of each parameter by itself.
        """
        if any(number != number for number in l2):
            return "without a gradient its entries move by themselves, and not by one common decay"
        kept = self._positions()
        if kept:
            return f"its state {kept} is a position of its own (an average of iterates, a sum of all gradients)"
        [stronger] = self.run([1.0], scale=TELL)
        if not _close(stronger, response, 1e-3):
            return "its step is not linear in the gradient at frozen moments (a sign, a polar factor or a clipping)"
        mask = [(torch.arange(each.numel(), device=each.device) % 2 == 0).view(each.shape) for each in self.params]
        [masked] = self.run([1.0], mask=mask)
        if not _close(masked, [each * kept for each, kept in zip(response, mask, strict=True)], 1e-3):
            return "it is not elementwise: the step of an entry depends on the gradients of others"
        against = [
            each * -sign * number for each, sign, number in zip(self.theta, self._signs, l2, strict=True)
        ]  # takes coupled decay back, which would change the moments
        self._slots.load(self._base)
        still = self._step(1.0, against, at=self.theta)
        self._hold()
        later = self._step(1.0, against, at=self.theta)  # an average of parameters would have gone on by now
        for move, each, first, through, alone in zip(later, self.theta, response, l2, decays, strict=True):
            slack = 0.02 * (first * through + alone) * each.abs() + NOISE * each.abs()
            if bool(((move + alone * each).abs() > slack).any()):
                return "its parameters are drawn to a position of its own (an average of iterates)"
        if not any(self._same_at_theta(response, against, still, part) for part in PARTS):
            return "its step size depends on the size of the parameters (a trust ratio or a relative step)"
        return ""

    def _positions(self) -> str:
        """Returns the name of a momentum that a step without gradient leaves as it is, an empty string without one."""
        pushed = self._after(self._base, self._tiny)
        after = self._after(self._base | {place: v for place, v in pushed.items() if place[2] in self._momenta}, 0.0)
        for name in sorted(self._momenta):
            mine = [place for place in pushed if place[2] == name and place in after]
            if any(nonzero(pushed[place]) for place in mine) and all(
                settled(after[place], pushed[place]) for place in mine
            ):
                return name
        return ""

    def _same_at_theta(
        self, response: Sequence[Tensor], against: Sequence[Tensor], still: Sequence[Tensor], part: float
    ) -> bool:
        """Returns whether parameters move from their real values as from zero, by `part` of the largest of a tensor."""
        drive = []
        for each, first in zip(self.theta, response, strict=True):
            largest = each.abs().amax() if each.numel() else each.new_zeros(())
            size = part * largest / first.clamp(min=torch.finfo(first.dtype).tiny)
            drive.append(torch.where(first > 0, size, 0.0))
        pattern = [each * sign + back for each, sign, back in zip(drive, self._signs, against, strict=True)]
        self._slots.load(self._base)
        moves = self._step(1.0, pattern, at=self.theta)
        seen = [before - after for before, after in zip(still, moves, strict=True)]
        return _close(seen, [each * first for each, first in zip(drive, response, strict=True)], 0.05)

    def _begin(self, optimizer: Optimizer, grads: Sequence[Tensor | None] | None, dtype: torch.dtype | None) -> None:
        self._optimizer, self.params = twin(optimizer, dtype)
        self._slots = Slots(self._optimizer, self.params)
        self._signs = [
            -1.0 if group.get("maximize") else 1.0 for group in self._optimizer.param_groups for _ in group["params"]
        ]
        double = all(each.dtype == torch.float64 for each in self.params)
        self._tiny, self._small = (1e-20, 1e-12) if double else (1e-12, 1e-6)
        self.theta = [each.detach().clone() for each in self.params]
        states = [self._optimizer.state.get(each) or {} for each in self.params]
        self.moved = [each.requires_grad for each in self.params]
        fresh = not any(states)
        self._before: dict[Place, Value] = {}
        if grads is not None:
            self._before = self._slots.snapshot()
            self.moved = [each is not None for each in grads]
            self._advance([None if each is None else each.detach() for each in grads])
        elif fresh:
            self._advance(self._filled(0.0))
            self._refuse_fresh()
        else:
            self.moved = [bool(state) for state in states]
        self._stored = self._slots.snapshot()
        self._momenta, self._moments = self._told_apart()
        self._base = self._pulled_back()

    def _refuse_fresh(self) -> None:
        """Refuses a state of zeros, unless it is all momentum: it would be divided by."""
        self._stored = self._slots.snapshot()
        zeros = {
            place[2]
            for place, value in self._stored.items()
            if place[0] == "state" and isinstance(value, Tensor) and value.dim() and not value.any()
        }
        if zeros and zeros - self._told_apart()[0]:
            raise UsageError(
                f"{type(self._optimizer).__name__} has taken no step yet, so its denominators do not exist; "
                "pass grads, the gradients of the step about to be taken"
            )

    def _told_apart(self) -> tuple[set[str], set[str]]:
        """Returns the names of momenta and of second moments among the states.

        Momenta carry the gradient on: they are odd in it, and move parameters by themselves. An odd state that moves
        nothing (the mean of a centered second moment) belongs to the denominator. Second moments change alike for
        gradients of both signs, but not without one.
        """
        [plus, minus, none] = [self._after(self._stored, sign) for sign in (1.0, -1.0, 0.0)]
        odd = {place[2] for place in plus if place in minus and differ(plus[place], minus[place])}
        even = {place[2] for place in plus if place in none and differ(plus[place], none[place])} - odd
        momenta = set()
        for name in odd:
            self._slots.load({place: blank(v) if place[2] in odd - {name} else v for place, v in self._stored.items()})
            stored_anything = any(nonzero(v) for place, v in self._stored.items() if place[2] == name)
            if not stored_anything or any(bool(move.any()) for move in self._step(0.0)):
                momenta.add(name)
        return momenta, even

    def _pulled_back(self) -> dict[Place, Value]:
        """Returns the state from which a step without gradient arrives at the stored one, momenta at zero."""
        aim = {place: blank(v) if place[2] in self._momenta else v for place, v in self._stored.items()}
        left = set(self._momenta)
        start = {place: v if place[2] in left else self._before.get(place, v) for place, v in aim.items()}
        for turn in range(ROUNDS):
            found = self._after(start, 0.0)
            moving = [place for place in aim if place[2] not in left and not settled(found[place], aim[place])]
            if turn == DOUBT:  # an average of the iterates, a copy of the last gradient: written, but never used
                names = {place[2] for place in moving} - self._moments
                left |= {name for name in names if not self._matters(name, start)}
            if not moving:
                return start
            start |= {place: start[place] + (aim[place] - found[place]) for place in moving}
        raise NothingFrozenError(
            f"{type(self._optimizer).__name__} forgets its {moving[0][2]} too fast for a frozen denominator to exist; "
            "register a rule for its class with foreshock.stability.register"
        )

    def _matters(self, name: str, values: Mapping[Place, Value]) -> bool:
        answers = []
        for without in (False, True):
            self._slots.load({place: blank(v) if without and place[2] == name else v for place, v in values.items()})
            answers.append(self._step(self._tiny))
        return any(map(differ, *answers))

    def _hold(self) -> None:
        """Puts back everything but the momenta."""
        self._slots.load({place: value for place, value in self._base.items() if place[2] not in self._momenta})

    def _after(self, values: Mapping[Place, Value], drive: float) -> dict[Place, Value]:
        self._slots.load(values)
        self._step(drive)
        return self._slots.snapshot()

    def _step(
        self, drive: float, pattern: Sequence[Tensor] | None = None, at: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Returns the moves of one step from `at`, zero by default, with gradients drive * pattern."""
        for place, param in enumerate(self.params):
            param.detach().copy_(at[place]) if at is not None else param.detach().zero_()
        grads = self._filled(drive)
        if pattern is not None:
            grads = [None if one is None else one * two for one, two in zip(grads, pattern, strict=True)]
        self._advance(grads)
        return [
            param.detach().clone() if at is None else param.detach() - at[place]
            for place, param in enumerate(self.params)
        ]

    def _advance(self, grads: Sequence[Tensor | None]) -> None:
        advance(self._optimizer, grads)

    def _filled(self, value: float) -> list[Tensor | None]:
        return [
            torch.full_like(param, value) if moved else None
            for param, moved in zip(self.params, self.moved, strict=True)
        ]


def _close(seen: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> bool:
    return all(
        bool(((one - two).abs() <= tolerance * two.abs() + torch.finfo(one.dtype).tiny).all())
        for one, two in zip(seen, wanted, strict=True)
    )


def _decay(coupled: bool, through: Tensor, direct: Tensor) -> tuple[float, float]:
    """Returns (l2, 1 - a), NaN where the entries do not agree."""
    told = through if coupled else direct
    if not _spread(told) < UNEVEN:
        return float("nan"), float("nan")
    return (float(told.median()), 0.0) if coupled else (0.0, float(told.median()))


def _spread(values: Tensor) -> float:
    return float((values.max() - values.min()) / values.abs().max())
