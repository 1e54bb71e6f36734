"""The rules by which optimizers make a step of gradient, momentum and decay, each read off its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreshock.attribution.terms import Terms
from foreshock.stability.rules.bounded import mixed_root
from foreshock.stability.rules.moments import rectification

__all__ = ["RULES", "Kept", "find"]


class Kept:
    """The state of one parameter as it was before a step, or as it is after it: both tell what the step did.

    Args:
        state: what the optimizer keeps of the parameter.
        taken: whether the step has been taken already.
        like: whose shape and working type (float32 or wider) moments have.
    """

    def __init__(self, state: Mapping[str, Any], taken: bool, like: Tensor) -> None:
        self._state, self.taken, self._like = state, taken, like

    def step(self) -> float:
        """Returns the number of the step, the first one's is 1."""
        count = float(self._state.get("step", 0.0))
        return count if self.taken else count + 1.0

    def tensor(self, name: str) -> Tensor | None:
        """Returns a state in the working type, None where there is none."""
        found = self._state.get(name)
        return found.detach().to(self._like) if isinstance(found, Tensor) else None

    def number(self, name: str, otherwise: float) -> float:
        """Returns a state that is one number."""
        return float(self._state.get(name, otherwise))

    def before(self, name: str, keep: float, added: Tensor) -> Tensor:
        """Returns m_before of m = keep m_before + added."""
        kept = self.tensor(name)
        if kept is None:
            return torch.zeros_like(self._like)
        if not self.taken:
            return kept
        return (kept - added) / keep if keep else torch.zeros_like(kept)

    def after(self, name: str, keep: float, added: Tensor) -> Tensor:
        """Returns m = keep m_before + added."""
        kept = self.tensor(name)
        if kept is None:
            return added
        return kept if self.taken else kept * keep + added

    def largest(self, name: str, value: Tensor, keep: float = 1.0) -> Tensor:
        """Returns max(keep m_before, value)."""
        kept = self.tensor(name)
        if kept is None:
            return value
        return kept if self.taken else torch.maximum(kept * keep, value)


SAME = 1e-5  # relative difference of two gradients of one batch that is rounding

# (param group, parameter before the step, its state, its gradient) -> Terms; tensors in the working type
SplitRule = Callable[[Mapping[str, Any], Tensor, Kept, Tensor], Terms]


def _seen(group: Mapping[str, Any], theta: Tensor, grad: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Returns g' = sign g + l2 theta, and sign, l2 and decay for the terms."""
    sign = -1.0 if group.get("maximize") else 1.0
    amount = float(group.get("weight_decay", 0.0))
    decoupled = bool(group.get("decoupled_weight_decay"))
    l2 = 0.0 if decoupled else amount
    decay = float(group["lr"]) * amount if decoupled else 0.0
    felt = grad * sign + theta * l2 if l2 else grad * sign
    return felt, {"sign": sign, "l2": l2, "decay": decay}


def sgd(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """SGD; the first gradient enters the buffer whole, whatever the dampening."""
    felt, common = _seen(group, theta, grad)
    lr, mu = float(group["lr"]), float(group.get("momentum", 0.0))
    if not mu:
        return Terms(direct=lr, **common)
    buffer = kept.tensor("momentum_buffer")
    first = buffer is None or (kept.taken and float((buffer - felt).norm()) <= SAME * float(felt.norm()))
    admit = 1.0 if first else 1.0 - float(group.get("dampening", 0.0))
    past = None if first else kept.before("momentum_buffer", mu, felt * admit)
    nesterov = bool(group.get("nesterov"))
    return Terms(
        momentum=past, keep=mu, admit=admit, through=lr * mu if nesterov else lr, direct=lr if nesterov else 0.0,
        **common,
    )  # fmt: skip


def adam(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """Adam and AdamW, amsgrad included: d = sqrt(v)/sqrt(1 - beta2^t) + eps."""
    felt, common = _seen(group, theta, grad)
    beta1, beta2, step = *_betas(group), kept.step()
    v = _second(group, kept, felt, beta2)
    if group.get("amsgrad"):
        v = kept.largest("max_exp_avg_sq", v)
    d = v.sqrt() / (1.0 - beta2**step) ** 0.5 + float(group["eps"])
    return _ema(kept, felt, beta1, _over(float(group["lr"]) / (1.0 - beta1**step), d), common)


def adamw(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """AdamW; implementations without the flag decay apart from the gradient as well."""
    return adam({**group, "decoupled_weight_decay": True}, theta, kept, grad)


def nadam(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """NAdam: gradient and momentum have their own step sizes over one denominator."""
    felt, common = _seen(group, theta, grad)
    beta1, beta2, step = *_betas(group), kept.step()
    lr, psi = float(group["lr"]), float(group["momentum_decay"])
    now, following = (beta1 * (1.0 - 0.5 * 0.96 ** (at * psi)) for at in (step, step + 1.0))
    product = kept.number("mu_product", 1.0) * (1.0 if kept.taken else now)
    d = (_second(group, kept, felt, beta2) / (1.0 - beta2**step)).sqrt() + float(group["eps"])
    terms = _ema(kept, felt, beta1, _over(lr * following / (1.0 - product * following), d), common)
    return replace(terms, direct=_over(lr * (1.0 - now) / (1.0 - product), d))


def radam(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """RAdam: without a denominator as long as its variance cannot be rectified."""
    felt, common = _seen(group, theta, grad)
    beta1, beta2, step = *_betas(group), kept.step()
    v = _second(group, kept, felt, beta2)
    rate, rectified = float(group["lr"]) / (1.0 - beta1**step), rectification(beta2, step)
    if not rectified:
        return _ema(kept, felt, beta1, rate, common)
    d = v.sqrt() + float(group["eps"])
    return _ema(kept, felt, beta1, _over(rate * rectified * (1.0 - beta2**step) ** 0.5, d), common)


def adamax(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """Adamax: u = max(beta2 u, abs(g) + eps)."""
    felt, common = _seen(group, theta, grad)
    beta1, beta2 = _betas(group)
    u = kept.largest("exp_inf", felt.abs() + float(group["eps"]), beta2)
    return _ema(kept, felt, beta1, _over(float(group["lr"]) / (1.0 - beta1 ** kept.step()), u), common)


def rmsprop(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """RMSprop, centered or not: momentum is of gradients already divided by sqrt(v) + eps."""
    felt, common = _seen(group, theta, grad)
    alpha, lr, mu = float(group["alpha"]), float(group["lr"]), float(group.get("momentum", 0.0))
    v = kept.after("square_avg", alpha, felt * felt * (1.0 - alpha))
    if group.get("centered"):
        mean = kept.after("grad_avg", alpha, felt * (1.0 - alpha))
        v = v - mean * mean
    each = _over(1.0, v.sqrt() + float(group["eps"]))
    if not mu:
        return Terms(direct=each * lr, **common)
    return Terms(
        momentum=kept.before("momentum_buffer", mu, felt * each), keep=mu, admit=each, through=lr, **common
    )  # fmt: skip


def adagrad(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """Adagrad: lr/(1 + (t - 1) lr_decay) over the root of the sum of squares."""
    felt, common = _seen(group, theta, grad)
    total = kept.after("sum", 1.0, felt * felt)
    lr = float(group["lr"]) / (1.0 + (kept.step() - 1.0) * float(group.get("lr_decay", 0.0)))
    return Terms(direct=_over(lr, total.sqrt() + float(group["eps"])), **common)


def adadelta(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """Adadelta: the root of the averaged squares of moves over that of gradients."""
    felt, common = _seen(group, theta, grad)
    rho, eps = float(group["rho"]), float(group["eps"])
    v = kept.after("square_avg", rho, felt * felt * (1.0 - rho)) + eps
    moves = kept.tensor("acc_delta")
    if moves is None:
        moves = torch.zeros_like(v)
    elif kept.taken:  # d = rho d_before + (1 - rho) (d_before + eps)/v g^2
        share = felt * felt / v * (1.0 - rho)
        moves = (moves - share * eps) / (share + rho)
    return Terms(direct=((moves + eps) / v).sqrt() * float(group["lr"]), **common)


def asgd(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """ASGD: a step size that falls with the steps, and a decay of its own."""
    _, common = _seen(group, theta, grad)
    lr, slow = float(group["lr"]), float(group["lambd"])
    eta = lr / (1.0 + slow * lr * (kept.step() - 1.0)) ** float(group["alpha"])
    if not kept.taken:
        eta = kept.number("eta", eta)
    return Terms(direct=eta, **{**common, "decay": slow * eta})


def lion(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """Lion: sign(c) = c/abs(c), c = beta1 m + (1 - beta1) g, while m itself moves with beta2."""
    felt, common = _seen({**group, "decoupled_weight_decay": True}, theta, grad)
    beta1, beta2 = _betas(group)
    past = kept.before("exp_avg", beta2, felt * (1.0 - beta2))
    rate = _over(float(group["lr"]), (past * beta1 + felt * (1.0 - beta1)).abs())
    if not beta2:
        return Terms(direct=rate * (1.0 - beta1), **common)
    return Terms(
        momentum=past, keep=beta2, admit=1.0 - beta2, through=rate * (beta1 / beta2),
        direct=rate * (1.0 - beta1 - beta1 * (1.0 - beta2) / beta2), **common,
    )  # fmt: skip


def s3(group: Mapping[str, Any], theta: Tensor, kept: Kept, grad: Tensor) -> Terms:
    """S3: the Nesterov mix is a direct way of the gradient, over a denominator that mixes it in as well."""
    felt, common = _seen({**group, "decoupled_weight_decay": True}, theta, grad)
    beta, p, nesterov = float(group["beta"]), float(group["p"]), bool(group.get("nesterov", True))
    keep = beta if group.get("beta2") is None else float(group["beta2"])
    b, size = kept.tensor("exp_avg_root"), felt.abs()
    if b is None:
        power = kept.tensor("exp_avg_p")
        b = torch.zeros_like(size) if power is None else power ** (1 / p)
    for _ in range(int(not kept.taken) + int(nesterov)):  # into the average, and once more into the mix
        b = mixed_root(b, size, keep, p)
    rate = _over(float(group["lr"]), b + float(group["eps"]))
    terms = _ema(kept, felt, beta, rate * beta if nesterov else rate, common)
    return replace(terms, direct=rate * (1.0 - beta)) if nesterov else terms


RULES: dict[str, SplitRule] = {
    "SGD": sgd, "Adam": adam, "AdamW": adamw, "NAdam": nadam, "RAdam": radam, "Adamax": adamax, "RMSprop": rmsprop,
    "Adagrad": adagrad, "Adadelta": adadelta, "ASGD": asgd, "Lion": lion, "S3": s3,
}  # fmt: skip


def find(kind: type | str) -> SplitRule | None:
    """Returns the rule for an optimizer's class, or the nearest of its ancestors, by name."""
    names = [kind] if isinstance(kind, str) else [each.__name__ for each in kind.__mro__]
    return next((RULES[name] for name in names if name in RULES), None)


def _betas(group: Mapping[str, Any]) -> tuple[float, float]:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)


def _second(group: Mapping[str, Any], kept: Kept, felt: Tensor, beta2: float) -> Tensor:
    return kept.after("exp_avg_sq", beta2, felt * felt * (1.0 - beta2))


def _ema(kept: Kept, felt: Tensor, beta1: float, through: Tensor | float, common: dict[str, Any]) -> Terms:
    past = kept.before("exp_avg", beta1, felt * (1.0 - beta1)) if beta1 else None
    return Terms(momentum=past, keep=beta1, admit=1.0 - beta1, through=through, **common)


def _over(rate: float, d: Tensor) -> Tensor:
    """Returns rate/d, 0 where the optimizer would divide 0 by 0 or nothing moves."""
    return torch.where(d > 0, rate / d, torch.zeros_like(d))
