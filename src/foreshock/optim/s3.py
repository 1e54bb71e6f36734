"""S3: sign descent that is soft where gradients disagree, with a step that no gradient history makes larger than lr."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.distributed import local, placed_like, sharded
from foreshock.errors import UsageError
from foreshock.optim.paths import take
from foreshock.optim.settings import settings_of
from foreshock.optim.transfer import Transfer, moved

__all__ = ["S3"]

MOMENTS = ("exp_avg", "exp_avg_root")


class S3(Optimizer):
    """SoftSignSGD: each coordinate moves by at most the learning rate, whatever the gradients were.

    Where the gradients of a coordinate agree its step is lr, as sign descent's; where they disagree it is smaller:

        m = beta m + (1 - beta) g                s = beta s + (1 - beta) |g|^p
        n = beta m + (1 - beta) g                b = (beta s + (1 - beta) |g|^p)^(1/p)
        theta = (1 - lr weight_decay) theta - lr n/(b + eps)

    Both averages give past gradients the same weights, so |n| <= (1 - beta^(t+1))^(1-1/p) b after t steps (Hoelder),
    with equality only if all of them were equal. From this follow

    - a warm-up of its own: the first step is (1 - beta^2)^(1-1/p) lr, .21 lr by default, and there is no step count;
    - calm after a burst: a gradient far above all others moves a coordinate by 3.98 lr in all (`burst_response`), where
      Adam(.9, .999) moves it by 31.8 lr;
    - a smaller typical step: .149 lr under noise, where Adam's is .23 lr, so a larger learning rate is needed for the
      same speed (`S3.from_adamw` derives it).

    Memory is Adam's, two buffers. The second holds s^(1/p), "exp_avg_root", which has the gradient's own scale: powers
    of gradients would leave float32's range (|g|^3 at 1e-13), roots are exact from 1e-30 to 1e30 for any p.
    A non-finite gradient makes its coordinate's parameter NaN, and no other; Guard is there to refuse such steps.

    Args:
        params: parameters or groups, as for any optimizer of torch; real and dense, of any floating-point type. Sharded
            ones (DTensor) are updated where they lie.
        lr: learning rate, the largest step of a coordinate. A number, or a tensor of one element, which is never read
            on the host where parameters are on an accelerator: schedule it in place under CUDA graphs and compilation.
        beta: coefficient of both averages, in [0, 1). 0 is sign descent.
        p: order of the denominator, at least 1. Larger means smaller typical steps and less after a burst (p = 1 never
            forgets one); 1, 2, 3, 4, 6, 8 and 9 have faster arithmetic than others.
        eps: added to b, in units of the gradient: coordinates whose gradients stay below it hardly move. 0 is allowed.
        weight_decay: decoupled, as AdamW's.
        beta2: another coefficient for the denominator alone (ablation). The step may then exceed lr, as Adam's does.
        nesterov: False takes n = m and b = s^(1/p) (ablation). Then S3(p=2) is Adam without bias correction.
        maximize: goes up instead of down.
        foreach: True, as by default, works on many tensors at once; False on one after the other, in torch operations.
        fused: True asks for a compiled step, one pass over memory, and raises where there is none; False stays with
            torch operations. By default a compiled step is taken on CPU where it can be had.
        capturable: nothing needs it, as there is no step count and nothing is read on the host; kept for code that sets
            it on any optimizer.
        state_dtype: type of both buffers; by default the parameter's. `torch.bfloat16` halves the memory of float32
            training: increments of 1 - beta = .05 are above its rounding, which those of Adam's .001 are not.

    Raises:
        UsageError: an argument out of its range; complex parameters or sparse gradients; `fused=True` where no compiled
            path can be had.

    Source: SoftSignSGD 2025, arXiv 2507.06464. Where eps goes, the root that is stored and decoupled decay are ours:
    the paper does not say.

    >>> weight = torch.zeros(3, requires_grad=True)
    >>> optimizer = S3([weight], lr=0.1)
    >>> weight.grad = torch.tensor([1e-8, -1.0, 1e8])  # any size: the first step is (1 - .95^2)^(2/3) lr
    >>> optimizer.step()
    >>> [round(each, 4) for each in weight.tolist()]
    [-0.0212, 0.0212, -0.0212]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        beta: float = 0.95,
        p: float = 3.0,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        *,
        beta2: float | None = None,
        nesterov: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "beta": beta, "p": p, "eps": eps, "weight_decay": weight_decay, "beta2": beta2,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "fused": fused, "capturable": capturable,
            "state_dtype": state_dtype,
        }
        self.transfers: tuple[Transfer, ...] = ()
        super().__init__(params, defaults)

    @classmethod
    def from_adamw(
        cls, source: Optimizer | Mapping[str, Any], params: Iterable[Any] | None = None, *,
        match: str | float = "rms", **settings: Any,
    ) -> S3:  # fmt: skip
        """Returns an S3 in place of an AdamW, with learning rates and decays transferred group by group.

        Args:
            source: AdamW or Adam, or its settings (`lr`, `betas`, `weight_decay`; what is missing is as in torch).
            params: what is to be trained, where `source` is settings. An optimizer's own parameters are taken
                with their groups, names and further settings of a group, its state is not.
            match: what is to be equal: "rms", the typical step under noise (1.54 times AdamW's lr where beta1 = .9);
                "burst", how far one burst of gradient moves a coordinate in all (7.98 times for betas .9 and .999);
                "peak", how far it moves it at once (14.9 times); or the factor itself. 10 is what the paper reports as
                stable; try {1.5, 3, 10}. lr weight_decay is kept in all cases.
            settings: of S3, for all groups: `beta`, `p`, ...

        Returns:
            S3, whose `transfers` hold for each group the numbers and, as `.text`, the reasons.

        Raises:
            UsageError: `source` is no Adam; settings without parameters; `match` is none of these.

        >>> weight = torch.zeros(2, requires_grad=True)
        >>> optimizer = S3.from_adamw(torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1), match=10)
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]
        (0.01, 0.01)
        >>> optimizer.transfers[0].text[:35]
        'lr 0.001 x 10 = 0.01, as asked for.'
        """
        groups, transfers = moved(source, params, match, settings)
        made = cls(groups, **{"lr": transfers[0].lr, **settings})
        made.transfers = transfers
        return made

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with settings of their own; what is not given is as the optimizer was made.

        Raises:
            UsageError: a setting is out of its range, or a parameter complex.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if not param.is_floating_point():
                self.param_groups.pop()
                raise UsageError(
                    f"a parameter is {param.dtype}, S3 needs real floating-point ones; give it torch.view_as_real(z) "
                    "of a complex z as a parameter, which bounds the step of the real and the imaginary part"
                )
        self._note_scaling()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one step, and returns what the closure returns where there is one.

        Args:
            closure: computes loss and gradients anew; called once, with gradients enabled.

        Raises:
            UsageError: a gradient is sparse, or `fused=True` cannot be had for these tensors.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = getattr(self, "found_inf", None)  # as `torch.amp.GradScaler` leaves it for one that unscales itself
        if found is not None and bool(found):
            return loss
        scaled = getattr(self, "grad_scale", None)
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            exp_avgs: list[Tensor] = []
            roots: list[Tensor] = []
            self._init_group(group, params, grads, exp_avgs, roots)
            if scaled is not None:
                for grad in grads:
                    grad.div_(scaled.to(grad.device))
            take(params, grads, exp_avgs, roots, settings_of(group), foreach=group["foreach"], fused=group["fused"])
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        roots: list[Tensor],
    ) -> None:
        """Fills the lists with what of a group has a gradient, this rank's part of what is sharded."""
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise UsageError(
                    f"a gradient is sparse ({grad.layout}), and S3's averages decay at every step also where it has no "
                    "entry: use sparse=False in the embedding, or torch.optim.SparseAdam for it"
                )
            state = self.state[param]
            if not state:
                for name in MOMENTS:
                    state[name] = torch.zeros_like(
                        param, dtype=group["state_dtype"] or param.dtype, memory_format=torch.preserve_format
                    )
            four = param, grad, state["exp_avg"], state["exp_avg_root"]
            if sharded(param):
                four = local(param), local(placed_like(grad, param)), local(four[2]), local(four[3])
            for into, each in zip((params, grads, exp_avgs, roots), four, strict=True):
                into.append(each)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, with its settings; buffers keep the type they were saved in.

        Raises:
            UsageError: it is another optimizer's state, or keeps the moment in another form than its root.
        """
        given: list[dict[str, Any]] = []
        seen = self.register_load_state_dict_pre_hook(lambda _, state: given.append(state))  # after those of others
        try:
            _refuse_others(state_dict)
            super().load_state_dict(state_dict)
        finally:
            seen.remove()
        for group, saved in zip(self.param_groups, given[-1]["param_groups"], strict=True):
            for param, key in zip(group["params"], saved["params"], strict=True):
                for name in MOMENTS:  # torch has cast them to the parameter's type
                    was = given[-1]["state"].get(key, {}).get(name)
                    if was is not None and was.dtype is not self.state[param][name].dtype:
                        self.state[param][name] = was.to(device=param.device, copy=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.transfers = getattr(self, "transfers", ())
        for group in self.param_groups:
            for name, value in _ABSENT.items():
                group.setdefault(name, value)
        self._note_scaling()

    def _note_scaling(self) -> None:
        """Tells `torch.amp.GradScaler` to leave unscaling and skipping to the step, as torch's fused optimizers do."""
        self._step_supports_amp_scaling = any(group["fused"] for group in self.param_groups)


_ABSENT: Mapping[str, Any] = {
    "beta2": None, "nesterov": True, "maximize": False, "foreach": None, "fused": None, "capturable": False,
    "state_dtype": None,
}
"""What groups of older checkpoints, or of other writers, are taken to mean where they say nothing."""


def _check(group: Mapping[str, Any]) -> None:
    """Raises where a group's settings are out of range."""
    lr, p = group["lr"], group["p"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise UsageError(f"lr is a tensor of {lr.numel()} elements, it must have one; use a group for each lr")
    for name in ("lr", "beta", "p", "eps", "weight_decay", "beta2"):
        value = group[name]
        if isinstance(value, numbers.Real) or (name == "lr" and isinstance(value, Tensor)):
            continue
        if name != "beta2" or value is not None:
            pair = "; S3 has one coefficient for both averages" if isinstance(value, (tuple, list)) else ""
            raise UsageError(f"{name} must be a number; {value!r} was given{pair}")
    # a tensor on an accelerator is not read here, nor anywhere
    if not (isinstance(lr, Tensor) and not lr.is_cpu) and not 0 <= lr < math.inf:
        raise UsageError(f"lr must be a number that is not negative, or a tensor of one; {lr} was given")
    for name in ("beta", "beta2"):
        if group[name] is not None and not 0 <= group[name] < 1:
            raise UsageError(f"{name} must be in [0, 1), the share of an average that is kept; {group[name]} was given")
    if p == math.inf:
        raise UsageError(
            "p = inf would keep the largest gradient there ever was (what is left of it halves in 13.5 p steps at "
            "beta = .95), so steps would shrink for good; take a large finite p such as 10, or torch.optim.Adamax"
        )
    if not 1 <= p < math.inf:
        raise UsageError(f"p must be at least 1, otherwise the step is not bounded by lr; {p} was given")
    for name in ("eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise UsageError(f"{name} must not be negative; {group[name]} was given")
    if group["foreach"] and group["fused"]:
        raise UsageError("foreach=True and fused=True are two ways to do the same; give one of them")
    kind = group["state_dtype"]
    if kind is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise UsageError(f"state_dtype must be a floating-point torch.dtype such as torch.bfloat16; {kind} was given")


def _refuse_others(state_dict: Mapping[str, Any]) -> None:
    for state in state_dict["state"].values():
        missing = [name for name in MOMENTS if name not in state]
        if state and missing:
            raise UsageError(
                f"the state holds {sorted(map(str, state))} and no {', '.join(missing)}: it is not S3's. Where it is "
                "Adam's, begin S3 without it: it needs no warm-up; S3.from_adamw() transfers the settings"
            )
