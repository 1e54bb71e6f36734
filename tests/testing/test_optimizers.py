"""The public contract of optimizers: torch's keep it, and each known way to break it is named, with the way out."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from foreshock.errors import UsageError
from foreshock.optim import S3
from foreshock.testing import ContractError, check_optimizer

SHAPES = {"Muon": ((4, 3), (3, 5)), "SparseAdam": ((6, 3), (4, 2))}
SETTINGS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.5, "centered": True}}
CLASSES = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"LBFGS"}))
def test_the_optimizers_of_torch_keep_the_contract(name):
    settings = {"lr": 0.05} | SETTINGS.get(name, {})
    shapes = SHAPES.get(name, ((4, 3), (3,), ()))
    check_optimizer(lambda params: CLASSES[name](params, **settings), shapes=shapes, sparse=name == "SparseAdam")


def test_torch_has_the_optimizers_that_are_meant():
    assert {"SGD", "Adam", "AdamW", "Adafactor", "RMSprop", "LBFGS", "NAdam"} <= CLASSES.keys()


def test_an_optimizer_at_hand_stands_for_its_class_and_settings():
    weight = torch.ones(3, requires_grad=True)
    check_optimizer(AdamW([weight], lr=torch.tensor(0.01), amsgrad=True))
    assert torch.equal(weight, torch.ones(3))
    assert weight.grad is None
    with pytest.raises(ContractError, match="skip: Decays"):
        check_optimizer(Decays([weight], lr=0.01))


def test_the_check_leaves_the_random_stream_alone():
    before = torch.random.get_rng_state()
    check_optimizer(SGD)
    with pytest.raises(ContractError):
        check_optimizer(Noisy)
    assert torch.equal(torch.random.get_rng_state(), before)


class Plain(Optimizer):
    """Gradient descent with momentum, written as people write it; the broken ones below change one thing of it."""

    def __init__(self, params, lr=0.1, decay=0.01):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.one(p, group)
        return loss

    def one(self, p, group):
        if p.grad is None:
            return
        m = self.state[p].setdefault("m", torch.zeros_like(p))
        m.mul_(0.9).add_(p.grad)
        p.mul_(1 - group["lr"] * group["decay"])
        p.add_(self.direction(m), alpha=-group["lr"])

    def direction(self, m):
        return m


class Decays(Plain):
    def one(self, p, group):
        p.mul_(1 - group["lr"] * group["decay"])
        super().one(p, group)


class Remakes(Plain):
    """Takes a missing gradient for zero, so that momentum and decay go on."""

    def one(self, p, group):
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        super().one(p, group)


class FadesMomentum(Plain):
    def one(self, p, group):
        if p.grad is None and "m" in self.state.get(p, ()):
            self.state[p]["m"] *= 0.9
        super().one(p, group)


class CountsEveryCall(Plain):
    calls = 0

    def step(self, closure=None):
        self.calls += 1
        return super().step(closure)

    def direction(self, m):
        return m / self.calls


class RefusesNone(Plain):
    def one(self, p, group):
        p.grad.shape  # noqa: B018
        super().one(p, group)


class WantsAll(Plain):
    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        if any(g is not None for g in grads):
            assert all(g is not None for g in grads)
        return super().step(closure)


class GoesOnWithMomentum(Plain):
    """Steps a parameter without a gradient by its momentum, as long as any other has one."""

    def one(self, p, group):
        if p.grad is None and "m" in self.state.get(p, ()) and any(q.grad is not None for q in group["params"]):
            p.add_(self.state[p]["m"], alpha=-group["lr"])
        super().one(p, group)


class Hides(Plain):
    """Keeps its momentum on itself; nothing of it is saved."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.hidden = {}

    def one(self, p, group):
        if p.grad is not None:
            m = self.hidden.setdefault(p, torch.zeros_like(p))
            m.mul_(0.9).add_(p.grad)
            p.add_(m, alpha=-group["lr"])


class ForgetsWhenSaved(Plain):
    def state_dict(self):
        return super().state_dict() | {"state": {}}


class WritesGradients(Plain):
    def one(self, p, group):
        if p.grad is not None:
            p.grad.add_(p, alpha=group["decay"])
        super().one(p, group)


class Noisy(Plain):
    def direction(self, m):
        return m + 0.01 * torch.randn(m.shape)


class OwnStream(Plain):
    stream = torch.Generator().manual_seed(0)

    def direction(self, m):
        return m + 0.01 * torch.randn(m.shape, generator=self.stream)


class FixedRate(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.rate = lr

    def one(self, p, group):
        super().one(p, {"lr": self.rate, "decay": 0.0})


class NoRate(Plain):
    def __init__(self, params):
        Optimizer.__init__(self, params, {"rate": 0.1})

    def one(self, p, group):
        super().one(p, {"lr": group["rate"], "decay": 0.0})


class GoesPastHooks(Plain):
    def __init__(self, params):
        super().__init__(params)
        self.step = self.own

    def own(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                self.one(p, self.param_groups[0])
        return loss


class WithoutHooks(Plain):
    register_step_pre_hook = property()


class NormOfAll(Plain):
    def one(self, p, group):
        if p.grad is not None:
            norm = sum(q.grad.square().sum() for q in group["params"] if q.grad is not None).sqrt()
            p.add_(p.grad / norm, alpha=-group["lr"])


class WrongForeach(Plain):
    def __init__(self, params):
        Optimizer.__init__(self, params, {"lr": 0.1, "decay": 0.01, "foreach": None})

    def one(self, p, group):
        super().one(p, group)
        if group["foreach"] and p.grad is not None:
            p.mul_(0.99)


class TwiceThroughHooks(Adam):
    """A subclass whose step calls that of its base: torch runs the hooks of both."""

    def step(self, closure=None):
        return super().step(closure)


class Replaces(Plain):
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["params"] = [p.detach().clone().requires_grad_() for p in group["params"]]
        return loss


class WithoutClosure(Plain):
    def step(self):
        return super().step()


class ForgetsTheLoss(Plain):
    def step(self, closure=None):
        super().step(closure)


class WithoutGradients(Plain):
    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


class Idle(Plain):
    def one(self, p, group):
        pass


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Decays, r"skip: Decays after 0 steps, all gradients dropped, then step\(\): parameter 0 moved by"),
        (Remakes, "skip: Remakes after 0 steps, .* parameter 0 moved by"),
        (FadesMomentum, "skip: .* its state changed"),
        (CountsEveryCall, "skip: .* something was counted"),
        (RefusesNone, "skip: .* raised AttributeError"),
        (WantsAll, "none: .* raised AssertionError"),
        (GoesOnWithMomentum, "none: parameter 0 had no gradient"),
        (WritesGradients, "gradients: the gradient of parameter 0 was changed"),
        (Hides, "state: going back to step 0 .* kept outside of the state"),
        (ForgetsWhenSaved, "state: 1 steps, state_dict, load_state_dict into a fresh"),
        (Noisy, "step: .* with a closure is another|deterministic: the global random stream"),
        (OwnStream, "step: .* with a closure is another|deterministic: two fresh"),
        (FixedRate, "lr: half of the learning rate"),
        (NoRate, "lr: the groups of NoRate have no lr"),
        (GoesPastHooks, "hooks: a step fired none"),
        (TwiceThroughHooks, "hooks: a step fired .'before', 'before', 'after', 'after'."),
        (WithoutHooks, "hooks: .*super"),
        (NormOfAll, "apart: a gradient of zero in tensor 0"),
        (WrongForeach, "variants: foreach=True differs"),
        (Replaces, "step: parameters were replaced"),
        (WithoutClosure, "step: it takes no closure"),
        (ForgetsTheLoss, "step: a closure must be called once"),
        (WithoutGradients, "step: a closure must be called once with gradients enabled"),
        (Idle, "step: two steps with gradients changed no parameter"),
        (torch.optim.LBFGS, "step: LBFGS asks for a closure"),
    ],
)
def test_each_broken_clause_is_named(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_optimizer(broken)


def test_gradients_that_are_made_anew_are_named():
    class MovesAndRemakes(Plain):
        def one(self, p, group):
            super().one(p, group)
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    with pytest.raises(ContractError, match=r"gradients: .* made anew"):
        check_optimizer(MovesAndRemakes)


def test_the_plain_one_that_they_change_is_sound():
    check_optimizer(Plain)


def test_one_that_cannot_be_skipped_by_dropping_gradients_is_told_the_way_out():
    with pytest.raises(ContractError, match=r"guard\.step\(\) in place of optimizer\.step\(\).*whose grad is None"):
        check_optimizer(Decays)


def test_what_makes_no_optimizer_is_an_error_of_use():
    with pytest.raises(UsageError, match="cannot be called with a list of parameters"):
        check_optimizer(lambda: SGD([torch.ones(1)], 0.1))
    with pytest.raises(ContractError, match=r"is no torch\.optim\.Optimizer"):
        check_optimizer(lambda params: params)
    same = SGD([torch.ones((), requires_grad=True)], 0.1)
    with pytest.raises(ContractError, match="the same optimizer twice"):
        check_optimizer(lambda params: same)


class Mirrors(Plain):
    """Takes maximize for a decay that grows."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.param_groups[0]["maximize"] = False

    def one(self, p, group):
        if p.grad is not None and group["maximize"]:
            p.mul_(1 + 2 * group["lr"] * group["decay"])
        super().one(p, group)


class HalvesItsLr(Plain):
    def one(self, p, group):
        super().one(p, group)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].mul_(1 - 1e-7)


class SizesComplexOnes(Plain):
    def direction(self, m):
        return m / (m.abs() + 1e-8)


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        (Mirrors, {}, "maximize=True is another step"),
        (HalvesItsLr, {}, "wrote to the tensor that is its lr"),
        (SizesComplexOnes, {"strict": True}, "strict: a complex parameter"),
        (lambda params: AdamW(params, lr=0.1), {"bound": 1.0}, "bound: gradients that grow"),
        (lambda params: SGD(params, lr=0.1), {"bound": 10.0}, "bound: gradients that grow"),
    ],
)
def test_clauses_about_variants_and_claims_are_checked(kind, asked, said):
    with pytest.raises(ContractError, match=said):
        check_optimizer(kind, **asked)
    if asked:
        check_optimizer(kind)  # which claims nothing of the kind


def test_claims_that_hold_pass():
    check_optimizer(lambda params: S3(params, lr=0.1), bound=1.0, strict=True)
    check_optimizer(lambda params: S3(params, lr=0.1, p=1.0, nesterov=False, weight_decay=0.1), bound=1.0, strict=True)
    check_optimizer(lambda params: AdamW(params, lr=0.1), bound=7.3, strict=True)
