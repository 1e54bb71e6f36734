"""Small, slow versions of optimizers from outside torch, in the conventions and state names of their authors' code."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.optim import Optimizer


class Slow(Optimizer):
    """Steps parameter by parameter; a subclass says how."""

    usual: ClassVar[dict[str, object]] = {}

    def __init__(self, params, **settings):
        unknown = set(settings) - set(self.usual)
        assert not unknown, unknown
        super().__init__(params, {**self.usual, **settings})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    state["step"] = int(state.get("step", 0)) + 1
                    self.update(group, param, param.grad, state)

    def update(self, group, param, grad, state):
        raise NotImplementedError


def moment(state, key, like, start=0.0):
    return state.setdefault(key, torch.full_like(like, start))


class Lion(Slow):
    usual: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}

    def update(self, group, param, grad, state):
        beta1, beta2 = group["betas"]
        m = moment(state, "exp_avg", param)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_((beta1 * m + (1 - beta1) * grad).sign(), alpha=-group["lr"])
        m.mul_(beta2).add_(grad, alpha=1 - beta2)


class Padam(Slow):
    usual: ClassVar = {
        "lr": 1e-1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "partial": 0.25,
    }

    def update(self, group, param, grad, state):
        beta1, beta2 = group["betas"]
        m, v = moment(state, "exp_avg", param), moment(state, "exp_avg_sq", param)
        grad = grad + group["weight_decay"] * param
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            top = moment(state, "max_exp_avg_sq", param)
            v = top.copy_(torch.maximum(top, v))
        size = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        param.addcdiv_(m, (v.sqrt() + group["eps"]) ** (2 * group["partial"]), value=-size)


class QHM(Slow):
    usual: ClassVar = {"lr": 1.0, "momentum": 0.9, "nu": 0.7, "weight_decay": 0.0, "weight_decay_type": "grad"}

    def update(self, group, param, grad, state):
        del state["step"]
        if group["weight_decay_type"] == "grad":
            grad = grad + group["weight_decay"] * param
        else:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        buffer = moment(state, "momentum_buffer", param)
        buffer.mul_(group["momentum"]).add_(grad, alpha=1 - group["momentum"])
        param.add_(group["nu"] * buffer + (1 - group["nu"]) * grad, alpha=-group["lr"])


class QHAdam(Slow):
    usual: ClassVar = {
        "lr": 1e-3, "betas": (0.995, 0.999), "nus": (0.7, 1.0), "weight_decay": 0.0, "decouple_weight_decay": False,
        "eps": 1e-8,
    }

    def update(self, group, param, grad, state):
        (beta1, beta2), (nu1, nu2) = group["betas"], group["nus"]
        if group["decouple_weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        else:
            grad = grad + group["weight_decay"] * param
        weights = [1 + beta * state.get(f"beta{i}_weight", 0.0) for i, beta in ((1, beta1), (2, beta2))]
        state["beta1_weight"], state["beta2_weight"] = weights
        m, v = moment(state, "exp_avg", param), moment(state, "exp_avg_sq", param)
        one, two = (1 - 1 / weight for weight in weights)
        m.mul_(one).add_(grad, alpha=1 - one)
        v.mul_(two).addcmul_(grad, grad, value=1 - two)
        root = (nu2 * v + (1 - nu2) * grad**2).sqrt() + group["eps"]
        param.addcdiv_(nu1 * m + (1 - nu1) * grad, root, value=-group["lr"])


class AdEMAMix(Slow):
    usual: ClassVar = {
        "lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 8.0, "beta3_warmup": None, "alpha_warmup": None,
        "eps": 1e-8, "weight_decay": 0.0,
    }

    def update(self, group, param, grad, state):
        (beta1, beta2, beta3), step = group["betas"], state["step"]
        alpha = group["alpha"]
        if group["alpha_warmup"] and step < group["alpha_warmup"]:
            alpha *= step / group["alpha_warmup"]
        if group["beta3_warmup"] and step < group["beta3_warmup"]:
            def life(beta):
                return math.log(0.5) / math.log(beta + 1e-8) - 1

            part = step / group["beta3_warmup"]
            beta3 = math.pow(0.5, 1 / ((1 - part) * life(beta1) + part * life(beta3) + 1))
        fast, slow = moment(state, "exp_avg_fast", param), moment(state, "exp_avg_slow", param)
        v = moment(state, "exp_avg_sq", param)
        fast.mul_(beta1).add_(grad, alpha=1 - beta1)
        slow.mul_(beta3).add_(grad, alpha=1 - beta3)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (v / (1 - beta2**step)).sqrt() + group["eps"]
        update = (fast / (1 - beta1**step) + alpha * slow) / root + group["weight_decay"] * param
        param.add_(update, alpha=-group["lr"])


class AdaBelief(Slow):
    usual: ClassVar = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.0, "amsgrad": False, "rectify": False,
        "weight_decouple": True, "fixed_decay": False,
    }

    def update(self, group, param, grad, state):
        (beta1, beta2), eps, step = group["betas"], group["eps"], state["step"]
        if group["weight_decouple"]:
            param.mul_(1 - group["weight_decay"] * (1.0 if group["fixed_decay"] else group["lr"]))
        else:
            grad = grad + group["weight_decay"] * param
        m, s = moment(state, "exp_avg", param), moment(state, "exp_avg_var", param)
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        s.mul_(beta2).addcmul_(grad - m, grad - m, value=1 - beta2)
        s.add_(eps)
        first, second = 1 - beta1**step, 1 - beta2**step
        size = group["lr"] / first
        if group["rectify"]:
            longest = 2 / (1 - beta2) - 1
            length = longest - 2 * step * beta2**step / second
            if length < 5:
                param.add_(m, alpha=-size)
                return
            size *= math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        param.addcdiv_(m, s.sqrt() / math.sqrt(second) + eps, value=-size)


class Yogi(Slow):
    usual: ClassVar = {
        "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "initial_accumulator": 1e-6, "weight_decay": 0.0,
    }

    def update(self, group, param, grad, state):
        (beta1, beta2), step = group["betas"], state["step"]
        grad = grad + group["weight_decay"] * param
        m = moment(state, "exp_avg", param, group["initial_accumulator"])
        v = moment(state, "exp_avg_sq", param, group["initial_accumulator"])
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.addcmul_((v - grad**2).sign(), grad**2, value=beta2 - 1)
        root = v.sqrt() / math.sqrt(1 - beta2**step) + group["eps"]
        param.addcdiv_(m, root, value=-group["lr"] / (1 - beta1**step))


class Lamb(Slow):
    """timm's: gradients clipped together, bias corrections, trust ratio of each tensor."""

    usual: ClassVar = {
        "lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01,
        "grad_averaging": True, "max_grad_norm": 1.0, "trust_clip": False, "always_adapt": False,
    }

    def step(self, closure=None):
        for group in self.param_groups:
            grads = [param.grad for param in group["params"] if param.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads])).item()
            self.shrink = 1 / max(1.0, norm / group["max_grad_norm"]) if group["max_grad_norm"] else 1.0
        return super().step(closure)

    def update(self, group, param, grad, state):
        (beta1, beta2), step = group["betas"], state["step"]
        grad = grad * self.shrink
        m, v = moment(state, "exp_avg", param), moment(state, "exp_avg_sq", param)
        m.mul_(beta1).add_(grad, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + group["eps"])
        update = update + group["weight_decay"] * param
        trust = 1.0
        if group["weight_decay"] or group["always_adapt"]:
            size, length = param.norm().item(), update.norm().item()
            trust = size / length if size and length else 1.0
        param.add_(update, alpha=-group["lr"] * (min(trust, 1.0) if group["trust_clip"] else trust))


class Adam_mini(Slow):  # noqa: N801, their name
    """One v for each row."""

    usual: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}

    def update(self, group, param, grad, state):
        (beta1, beta2), step = group["betas"], state["step"]
        rows = grad.reshape(len(grad), -1)
        m, v = moment(state, "m", param), moment(state, "vmean", rows[:, :1].clone())
        param.mul_(1 - group["lr"] * group["weight_decay"])
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).add_((rows**2).mean(dim=1, keepdim=True), alpha=1 - beta2)
        root = (v / (1 - beta2**step)).sqrt() + group["eps"]
        param.add_((m.reshape(len(grad), -1) / root).reshape(param.shape), alpha=-group["lr"] / (1 - beta1**step))


class S3(Slow):
    usual: ClassVar = {"lr": 1e-3, "beta": 0.95, "p": 3.0, "eps": 1e-12, "weight_decay": 0.0}

    def update(self, group, param, grad, state):
        beta, p = group["beta"], group["p"]
        m, s = moment(state, "exp_avg", param), moment(state, "exp_avg_p", param)
        m.mul_(beta).add_(grad, alpha=1 - beta)
        s.mul_(beta).add_(grad.abs() ** p, alpha=1 - beta)
        size = (beta * s + (1 - beta) * grad.abs() ** p) ** (1 / p) + group["eps"]
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.addcdiv_(beta * m + (1 - beta) * grad, size, value=-group["lr"])


def inverse_root(matrix, order):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values ** (-1 / order)) @ vectors.T


class Shampoo(Slow):
    """The paper's: statistics summed up, power -1/(2k), heavy-ball momentum on what comes out."""

    usual: ClassVar = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "epsilon": 1e-4}

    def update(self, group, param, grad, state):
        grad = grad + group["weight_decay"] * param
        if "preconditioners" not in state:
            state["preconditioners"] = [group["epsilon"] * torch.eye(size, dtype=grad.dtype) for size in grad.shape]
        for dim, statistic in enumerate(state["preconditioners"]):
            flat = grad.movedim(dim, 0).reshape(grad.shape[dim], -1)
            statistic.add_(flat @ flat.T)
        for dim, statistic in enumerate(state["preconditioners"]):
            root = inverse_root(statistic, 2 * grad.dim())
            grad = torch.movedim(torch.tensordot(root, grad, dims=([1], [dim])), 0, dim)
        buffer = moment(state, "momentum_buffer", param)
        buffer.mul_(group["momentum"]).add_(grad)
        param.add_(buffer, alpha=-group["lr"])


class SOAP(Slow):
    """In a given eigenbasis: updating it is another matter than stepping in it."""

    usual: ClassVar = {
        "lr": 3e-3, "betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.01, "correct_bias": True,
    }

    def update(self, group, param, grad, state):
        if "Q" not in state:
            state["Q"] = [torch.linalg.qr(torch.randn(size, size, dtype=grad.dtype))[0] for size in grad.shape]
            state["step"] = 0
            return
        (beta1, beta2), step = group["betas"], state["step"]
        m, v = moment(state, "exp_avg", param), moment(state, "exp_avg_sq", param)
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).add_(self.turned(grad, state["Q"], 0) ** 2, alpha=1 - beta2)
        size = group["lr"]
        if group["correct_bias"]:
            size *= math.sqrt(1 - beta2**step) / (1 - beta1**step)
        update = self.turned(self.turned(m, state["Q"], 0) / (v.sqrt() + group["eps"]), state["Q"], 1)
        param.add_(update, alpha=-size)
        param.add_(param, alpha=-group["lr"] * group["weight_decay"])

    @staticmethod
    def turned(tensor, bases, side):
        for basis in bases:
            if len(basis):
                tensor = torch.tensordot(tensor, basis, dims=([0], [side]))
            else:
                tensor = tensor.permute([*range(1, tensor.dim()), 0])
        return tensor


class AdamWScheduleFree(Slow):
    """schedulefree's: y in the parameters, z in the state."""

    usual: ClassVar = {
        "lr": 2.5e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0,
        "weight_lr_power": 2.0, "k": 0, "train_mode": True, "weight_sum": 0.0, "lr_max": -1.0,
    }

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            k, warmup = group["k"], group["warmup_steps"]
            self.lr = group["lr"] * ((k + 1) / warmup if k < warmup else 1.0)
            group["lr_max"] = max(self.lr, group["lr_max"])
            weight = (k + 1) ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            self.c = weight / group["weight_sum"]
        super().step(closure)
        for group in self.param_groups:
            group["k"] += 1

    def update(self, group, param, grad, state):
        del state["step"]
        beta = group["betas"][0] if "betas" in group else group["momentum"]
        z = state.setdefault("z", param.clone())
        if "betas" in group:
            beta2 = group["betas"][1]
            v = moment(state, "exp_avg_sq", param)
            v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            grad = grad / ((v / (1 - beta2 ** (group["k"] + 1))).sqrt() + group["eps"])
        grad = grad + group["weight_decay"] * param
        param.lerp_(z, self.c)
        param.add_(grad, alpha=self.lr * (beta * (1 - self.c) - 1))
        z.sub_(grad, alpha=self.lr)


class SGDScheduleFree(AdamWScheduleFree):
    usual: ClassVar = {
        "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0, "k": 0,
        "train_mode": True, "weight_sum": 0.0, "lr_max": -1.0,
    }
