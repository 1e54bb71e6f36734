"""What one burst of gradient does to the parameters under an optimizer, from its name and settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from foreshock.bursts import table
from foreshock.bursts.rule import Burst, Rule, over
from foreshock.bursts.settings import label, read
from foreshock.errors import UsageError

__all__ = ["BurstResponse", "burst_response", "first_updates", "largest_update", "of_group", "one_burst", "worded"]

ROUNDING = 1e-12  # so near to 1, an update neither grows nor falls
REST = 1e-9  # of the sum, beside which what comes later does not count
LONGEST = 400_000  # updates that are summed up
SHOWN, WITHIN = 10_000, 1e-7  # updates that are kept, and the part of the sum that those left out may be
SINGULAR = re.compile("(rate|move|step)s")
ENDLESS = 1000  # of a course that does not end


@dataclass(frozen=True, slots=True)
class BurstResponse:
    """How far an optimizer moves a coordinate after one gradient that dwarfs all others.

    Attributes:
        optimizer: its name.
        settings: those that count, with the usual values of what was not given.
        first: size of the update at the burst, in `unit`.
        peak: size of its largest update; a later one where momentum outlives the second moment.
        displacement: the sum of the sizes of all its updates, D; inf where they do not end.
        sup: the largest that any gradients can make an update, at `step` where one is given; inf where nothing bounds
            it, NaN where not known.
        course: size of each update from the burst on, until what is left does not count.
        method: "closed form" or "simulated".
        unit: what the numbers are counted in, "learning rates" for most.
        label: the optimizer as one would write it down, as in "AdamW(0.9, 0.95)".
        text: one sentence for people.
        ratio: size of the burst, in gradients of the usual size; inf for one beside which nothing else counts.
        step: number of the step that it comes at; inf in the long run.
        formulas: `first`, `displacement` and `sup` as text, where they are short and hold for this burst.
        reference: where the update rule is from.
        groups: the responses of a live optimizer's parameter groups, where they differ: the object is the worst one.
    """

    optimizer: str
    settings: Mapping[str, float]
    first: float
    peak: float
    displacement: float
    sup: float
    course: tuple[float, ...] = field(repr=False)
    method: str
    unit: str
    label: str
    text: str
    ratio: float = math.inf
    step: float = math.inf
    formulas: Mapping[str, str] = field(default_factory=dict, repr=False)
    reference: str = field(default="", repr=False)
    groups: tuple[BurstResponse, ...] = field(default=(), repr=False)

    @property
    def bounded(self) -> bool:
        """Whether no gradients at all can make an update larger than some number of learning rates."""
        return math.isfinite(self.sup)

    def __str__(self) -> str:
        return self.text


def burst_response(
    optimizer: str | type,
    *,
    ratio: float = math.inf,
    step: float = math.inf,
    usual: float = math.inf,
    **settings: object,
) -> BurstResponse:
    """Returns how far an optimizer moves a coordinate after one isolated burst of gradient.

    The coordinate has seen gradients of one size and random sign; one comes that is `ratio` times as large; then the
    same noise goes on. Updates are the mean over the signs of the noise, u_k = a_k/(c_k + ...)^(1/p) with the weights
    a_k, c_k that the gradient of k steps ago has in numerator and denominator, in learning rates.

    Args:
        optimizer: its name in any spelling, or a class of that name.
        ratio: size of the burst in usual gradients, |g|/sqrt(v) of an adaptive optimizer in the long run; beside an
            infinite one nothing else counts. Adagrad: |g| over the root of its sum.
        step: number of the step that the burst comes at, from 1 on: an optimizer that is young corrects its averages,
            and has little else in them.
        usual: size of a usual gradient, where eps is to count beside it.
        settings: as torch spells them: betas=(.9, .999), beta1=.9, alpha=.99, p=3; those without a bearing on the
            response (lr, weight_decay) may be given as well.

    Errors: UsageError for an unknown name or setting, with near ones, and for a value out of range.

    Source: SoftSignSGD 2025, arXiv 2507.06464 (S3; its bound); the sums are derived.

    >>> adam = burst_response("adam", betas=(0.9, 0.999))
    >>> round(adam.peak, 3), round(adam.displacement, 2), round(adam.sup, 2)
    (3.162, 31.77, 7.27)
    >>> print(burst_response("s3"))
    S3(0.95, p=3) moves a coordinate 3.98 learning rates after one burst, 0.212 of them in its largest step.
    >>> burst_response("adam", step=1).first
    1.0
    """
    if not isinstance(optimizer, (str, type)):
        raise UsageError(
            f"optimizer must be a name such as 'adam', or a class of that name, not {type(optimizer).__name__}; a live "
            "optimizer is asked by foreshock.optim.burst_response(optimizer)"
        )
    return _response(optimizer, settings, one_burst(ratio, step, usual))


def _response(optimizer: str | type, settings: Mapping[str, object], burst: Burst) -> BurstResponse:
    written, rule, preset = table.find(optimizer if isinstance(optimizer, str) else _named(optimizer))
    known = read(rule, preset, settings)
    power = rule.power(known)
    scale = 1.0 if not power else math.inf if not burst.quiet else burst.quiet**-power
    course, total, whole = _summed(rule, known, burst)
    exact = not burst.quiet and math.isinf(burst.step)
    if exact and rule.displacement is not None and math.isfinite(total):
        total = rule.displacement(known)
    top = max(course)
    if not burst.quiet and rule.decay(known) > 1 + ROUNDING:
        top = math.inf
    name = label(written, rule, preset, known)
    return BurstResponse(
        optimizer=written, settings=MappingProxyType(known),
        first=_times(course[0], scale), peak=_times(top, scale), displacement=_times(total, scale),
        sup=rule.sup(known, burst.step), course=tuple(_times(each, scale) for each in course[:whole]),
        method="closed form", unit=rule.unit, label=name,
        text=worded(name, (course[0], top, total), burst, unit=rule.unit, power=power),
        ratio=over(1.0, burst.quiet), step=burst.step, reference=rule.reference,
        formulas=MappingProxyType(dict(rule.formulas(known)) if exact else {}),
    )  # fmt: skip


def of_group(
    kind: str | type,
    group: Mapping[str, object],
    *,
    ratio: float = math.inf,
    step: float = math.inf,
    usual: float = math.inf,
) -> BurstResponse | None:
    """Returns the response of an optimizer by its class and a parameter group; None where they do not tell enough.

    Args:
        kind: its class, or the name of that.
        group: settings of one of its parameter groups; what a rule does not know is left out.
        ratio, step, usual: as for `burst_response`.

    Errors: UsageError where one of these is out of range.
    """
    burst = one_burst(ratio, step, usual)
    try:
        return _response(kind, _counting(kind, group), burst)
    except UsageError:
        return None


def largest_update(kind: str | type, group: Mapping[str, object]) -> tuple[str, float]:
    """Returns (name of the rule, sup|u| in the long run); arguments as for `of_group`, NaN where nothing is known.

    >>> largest_update("AMSGrad", {"lr": 1e-3, "betas": [0.9, 0.9]})[0], largest_update("Sophia", {})
    ('Adam', ('', nan))
    """
    try:
        _, rule, preset = table.find(kind if isinstance(kind, str) else _named(kind))
        return rule.name, rule.sup(read(rule, preset, _counting(kind, group)), math.inf)
    except UsageError:
        return "", math.nan


def first_updates(kind: str | type, group: Mapping[str, object], burst: Burst, count: int) -> list[float]:
    """Returns the sizes of the first updates from a burst on; arguments and errors as for `burst_response`."""
    _, rule, preset = table.find(kind if isinstance(kind, str) else _named(kind))
    known = read(rule, preset, _counting(kind, group))
    scale = burst.quiet ** -rule.power(known) if burst.quiet else 1.0
    return [scale * abs(each) for each in islice(rule.course(known, burst), count)]


def _counting(kind: str | type, group: Mapping[str, object]) -> dict[str, object]:
    """Returns those settings of a group that its rule knows."""
    _, rule, _ = table.find(kind if isinstance(kind, str) else _named(kind))
    names = {*rule.settings, "betas", "nus"}
    return {key: value for key, value in group.items() if key in names}


def one_burst(ratio: float, step: float, usual: float) -> Burst:
    """Returns a burst of the given size and time; errors: UsageError for numbers out of range."""
    return Burst(1 / _positive("ratio", ratio), _positive("step", step, least=1.0), _positive("usual", usual))


def _named(kind: type) -> str:
    """Returns the name of the nearest ancestor that is in the table."""
    for ancestor in kind.__mro__:
        try:
            table.find(ancestor.__name__)
        except UsageError:
            continue
        return ancestor.__name__
    return kind.__name__


def _positive(name: str, value: object, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least or not value > 0:
        raise UsageError(f"{name} must be a number {f'of at least {least:g}' if least else 'above 0'}; given {value!r}")
    return float(value)


def _summed(rule: Rule, known: Mapping[str, float], burst: Burst) -> tuple[list[float], float, int]:
    """Returns (sizes of the updates, their sum, how many of them are worth showing)."""
    sizes: Iterator[float] = map(abs, rule.course(known, burst))
    rate = rule.fade(known) if burst.quiet else rule.decay(known)
    if rate >= 1 - ROUNDING:  # never ends
        course = list(islice(sizes, ENDLESS))
        return course, math.inf, len(course)
    gap = REST * (1 - rate) * min(1.0, burst.quiet or 1.0)
    terms = 4 if rate <= 0 else 4 + math.ceil(math.log(gap) / math.log(rate))
    course = list(islice(sizes, min(terms, LONGEST)))
    total = math.fsum(course)
    shown, rest = len(course), 0.0
    while shown > 1 and rest + course[shown - 1] <= WITHIN * total:
        shown -= 1
        rest += course[shown]
    return course, total, min(shown, SHOWN)


def _times(value: float, scale: float) -> float:
    return value * scale if value else 0.0


def worded(
    name: str, numbers: tuple[float, float, float], burst: Burst, *, unit: str = "learning rates", power: float = 0.0
) -> str:
    """Returns a response as a sentence.

    Args:
        name: of the optimizer with its settings.
        numbers: size of the first and of the largest update, and sum of all; for a burst of size 1 where the update
            grows with it.
        burst: the burst.
        unit: what updates are counted in.
        power: the update grows with the burst to this power.
    """
    first, peak, total = numbers
    when = "" if math.isinf(burst.step) else f" at step {burst.step:g}"
    what = f"one gradient {_number(1 / burst.quiet)} times the usual" if burst.quiet else "one burst"
    what = f"{what}{when}"
    if power or math.isinf(first):
        far = "in proportion to the gradient" if power in (0, 1) else f"as the gradient to the power of {power:g}"
        if math.isfinite(total) and burst.quiet:
            far = f"by {_counted(_times(total, burst.quiet**-power), unit)}"
        elif math.isfinite(total) and power == 1:
            far = f"by {_counted(total, 'learning rates')} times the gradient"
        return f"{name} moves a coordinate {far} after {what}: nothing bounds it."
    if math.isinf(peak):
        return f"{name} moves a coordinate ever faster after {what}, as its momentum outlives its second moment."
    if math.isinf(total):
        return (
            f"{name} goes on moving a coordinate by up to {_counted(peak, unit)} a step after {what}, until other "
            "gradients drown it."
        )
    if total <= peak * (1 + 1e-9):
        return f"{name} moves a coordinate {_counted(total, unit)} after {what}, all of it in one step."
    largest = "its largest step" if peak <= first * (1 + 1e-9) else "its largest step, which is not the first"
    return f"{name} moves a coordinate {_counted(total, unit)} after {what}, {_number(peak)} of them in {largest}."


def _counted(value: float, unit: str) -> str:
    number = _number(value)
    return f"{number} {SINGULAR.sub(lambda found: found[1], unit, count=1) if number == '1' else unit}"


def _number(value: float) -> str:
    """Returns a number with three digits."""
    if 1e-3 <= abs(value) < 999.5 or not value or math.isinf(value):
        return f"{value:.3g}"
    return f"{value:,.0f}" if 1 < value < 1e6 else f"{value:.2e}"
