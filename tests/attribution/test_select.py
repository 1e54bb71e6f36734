"""The two selectors equal those of the interaction matrix written out, and their scores are Shapley values."""

from __future__ import annotations

import itertools
import math
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foreshock.attribution.mask import Budget, apply_mask, kind_of, layer_of, top_entries
from foreshock.attribution.select import select
from foreshock.attribution.targets import adam_curvature, combined, prior_direction, validation_direction
from foreshock.curvature.harmless import random_state, same_random_state
from foreshock.errors import ForeshockWarning, UsageError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        layers = [nn.ModuleDict({"q_proj": nn.Linear(6, 6), "up_proj": nn.Linear(6, 6)}) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 9, bias=False)

    def forward(self, t):
        x = self.embed(t)
        for layer in self.layers:
            x = x + torch.tanh(layer["up_proj"](torch.relu(layer["q_proj"](x))))
        return self.head(self.norm(x))


@pytest.fixture
def problem():
    torch.manual_seed(3)
    net = Net().double()
    pool = [torch.randint(0, 9, (n, 5)) for n in (4, 4, 3)]

    def losses(t):
        return F.cross_entropy(net(t[:, :-1]).transpose(1, 2), t[:, 1:], reduction="none").mean(1)

    return net, losses, pool


def matrix(losses, pool, params):
    """Every example's gradient, flat: shape (N, parameters)."""
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])
        for batch in pool
        for loss in losses(batch)
    ]
    return torch.stack(rows)


def close(found, wanted):  # torch.testing.assert_close loads torch.distributed.tensor, 2 to 7 s
    assert found.shape == wanted.shape
    assert float((found.double() - wanted.double()).abs().max()) <= 1e-6 * float(wanted.abs().max())


def flat(tensors):
    return torch.cat([each.flatten() for each in tensors])


@pytest.mark.parametrize("order", [1, 2])
def test_scores_are_the_sums_of_the_matrix_written_out(problem, order):
    net, losses, pool = problem
    params = list(net.parameters())
    v, c = [torch.randn_like(p) for p in params], [torch.rand_like(p) for p in params]
    g = matrix(losses, pool, params)
    u = flat(v) - (0.01 / 2) * flat(c) * g.sum(0) if order == 2 else flat(v)
    M = u * g
    second = {"lr": 0.01, "curvature": c} if order == 2 else {}
    found = select(losses, pool, v, model=net, order=order, budget=Budget(0.3, 0.2, layers=0, kinds=0), **second)
    close(found.psi, M.sum(1))
    sums = torch.stack([part.sum() for part in M.sum(0).split([p.numel() for p in params])])
    close(torch.tensor([found.phi[name] for name, _ in net.named_parameters()]), sums)
    assert found.examples.tolist() == M.sum(1).argsort(descending=True)[:3].tolist()
    best = torch.zeros_like(u, dtype=torch.bool)
    best[M.sum(0).abs().topk(round(0.2 * u.numel())).indices] = True
    assert torch.equal(flat(found.mask.values()), best)
    assert found.coverage == 1.0
    size = (0.01 / 2) * (flat(c) * g.sum(0)).norm() / flat(v).norm()
    assert found.second_order == pytest.approx(float(size) if order == 2 else 0.0, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_three_sums_are_one_number(problem, dtype):
    """Also for a target of float16 entries of 1e-4, which eta of 2e-5 would flush to zero."""
    net, losses, pool = problem
    net.float()
    v = [(1e-4 * torch.randn(p.shape)).to(dtype) for p in net.parameters()]
    found = select(losses, pool, v, model=net)
    scale = float(found.psi.abs().sum())
    assert found.psi.dtype == torch.float32
    assert abs(found.sum_psi - found.sum_phi) <= 1e-5 * scale
    assert abs(found.along - found.sum_phi) <= 1e-5 * scale
    assert bool((found.psi != 0).all())


def test_psi_are_the_shapley_values_of_the_quadratic_game():
    """Each example's mean gain over all orders of joining; a factor of 1 instead of 1/2 is not."""
    torch.manual_seed(0)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(4, 3).double(), torch.randn(4).double()
    v, c, eta = torch.randn(3).double(), torch.rand(3).double(), 0.3
    g = -(y[:, None] * x)  # of (x w - y)^2 / 2 at w = 0

    def gain(members):
        total = g[list(members)].sum(0)
        return float(eta * v @ total - eta**2 / 2 * (c * total.square()).sum())

    shapley = torch.zeros(4).double()
    for order in itertools.permutations(range(4)):
        for i, one in enumerate(order):
            shapley[one] += (gain(order[: i + 1]) - gain(order[:i])) / math.factorial(4)

    def losses(batch):
        return (batch[0] @ w - batch[1]).square() / 2

    found = select(losses, [(x[:2], y[:2]), (x[2:], y[2:])], [v], params=[w], order=2, lr=eta, curvature=[c])
    close(eta * found.psi, shapley)
    marginal = select(losses, [(x, y)], [v], params=[w], order=2, lr=2 * eta, curvature=[c])
    assert (eta * marginal.psi - shapley).abs().max() > 0.01


def test_adam_s_second_moment_alone_is_noticed_to_change_nothing(problem):
    net, losses, pool = problem
    net.float()
    params = list(net.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    for batch in pool:
        optimizer.zero_grad()
        losses(batch).mean().backward()
        optimizer.step()
    v = [torch.randn_like(p) for p in params]
    raw = [optimizer.state[p]["exp_avg_sq"] for p in params]
    with pytest.warns(ForeshockWarning, match="adam_curvature"):
        select(losses, pool, v, model=net, order=2, lr=2e-5, curvature=raw)
    with pytest.raises(UsageError, match="adam_curvature"):
        select(losses, pool, v, model=net, order=2, lr=2e-5, curvature=optimizer)
    select(losses, pool, v, model=net, order=2, lr=1.0, curvature=adam_curvature(optimizer, params, examples=4))


def test_adam_s_moments_tell_the_fisher_diagonal():
    """Gradients of batches of B examples with mean 0.5 and variance 4: E g_n^2 = 4.25, whatever B."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    for examples in (1, 16):
        w = torch.zeros(2000, requires_grad=True)
        optimizer = torch.optim.Adam([w], lr=0.0, betas=(0.99, 0.99))
        for _ in range(200):
            w.grad = 0.5 + 2 * torch.randn(2000, generator=generator) / examples**0.5
            optimizer.step()
        (found,) = adam_curvature(optimizer, [w], examples=examples)
        assert float(found.mean()) == pytest.approx(4.25, rel=0.03)
    with pytest.raises(UsageError, match="exp_avg_sq"):
        adam_curvature(torch.optim.SGD([w], lr=1.0), [w], examples=1)


def test_scoring_again_changes_nothing_where_rows_are_exact(problem):
    net, losses, pool = problem
    v = [torch.randn_like(p) for p in net.parameters()]
    once = select(losses, pool, v, model=net)
    again = select(losses, pool, v, model=net, budget=Budget(rescored=5))
    close(once.psi, again.psi)
    assert once.examples.tolist() == again.examples.tolist()


def test_a_shuffled_loader_is_gone_through_in_one_order_and_nothing_moves(problem):
    net, losses, _ = problem
    net.train()
    data = torch.randint(0, 9, (10, 5))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    v = [torch.randn_like(p) for p in net.parameters()]
    before, state = [p.detach().clone() for p in net.parameters()], random_state()
    order = torch.cat(list(loader))
    state = random_state()
    found = select(losses, loader, v, model=net, budget=Budget(rescored=10))
    assert same_random_state(state, random_state())
    assert all(map(torch.equal, before, net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    order = torch.cat(list(loader))  # the same random numbers, the same order
    close(found.psi, select(losses, [order], v, model=net).psi)


def test_quotas_reach_layers_and_kinds_that_the_top_would_leave_out():
    names = ["layers.0.q_proj.weight", "layers.0.up_proj.weight", "layers.1.q_proj.weight", "embed.weight"]
    scores = {name: torch.full((100,), 10.0**-i) * torch.linspace(1, 2, 100) for i, name in enumerate(names)}
    scores[names[3]] *= -1

    def counts(budget):
        return [int(m.sum()) for m in top_entries({n: s.clone() for n, s in scores.items()}, budget).values()]

    assert counts(Budget(parameters=0.25, layers=0, kinds=0)) == [100, 0, 0, 0]
    assert counts(Budget(parameters=0.25, layers=0.2, kinds=0)) == [90, 0, 10, 0]
    # kinds: 6 each of q, up, other; the q's are in layer 0
    assert counts(Budget(parameters=0.25, layers=0, kinds=0.2)) == [88, 6, 0, 6]
    assert counts(Budget(parameters=1.0)) == [100, 100, 100, 100]
    assert counts(Budget(parameters=0.75, layers=0, kinds=0, absolute=False)) == [100, 100, 100, 0]


def test_layers_and_kinds_are_read_from_names():
    layers = {"0.weight": "0", "h.12.attn.weight": "h.12", "blocks.1.experts.3.w1": "blocks.1", "wte.weight": None}
    assert {name: layer_of(name) for name in layers} == layers
    kinds = {"attn.k_proj.weight": "k", "attn.out_proj.bias": "o", "mlp.gate_proj.weight": "gate", "w": "other"}
    assert {name: kind_of(name) for name in kinds} == kinds


def test_a_mask_lets_only_its_entries_move(problem):
    net, losses, pool = problem
    v = [torch.randn_like(p) for p in net.parameters()]
    mask = select(losses, pool, v, model=net, budget=Budget(parameters=0.1)).mask
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.0)
    with apply_mask(net, mask, optimizer=optimizer):
        losses(pool[0]).mean().backward()
        optimizer.step()
    for name, param in net.named_parameters():
        assert not bool(((param != before[name]) & ~mask[name]).any())
        assert not param._backward_hooks
    assert any(bool((param != before[name]).any()) for name, param in net.named_parameters())
    with pytest.warns(ForeshockWarning, match="momentum"), apply_mask(net, mask, optimizer=optimizer):
        pass
    decaying = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.warns(ForeshockWarning, match="weight decay"), apply_mask(net, mask, optimizer=decaying):
        pass
    with pytest.raises(UsageError, match="no parameter 'what'"), apply_mask(net, {"what": mask["norm.weight"]}):
        pass


def test_hooks_go_when_a_masked_training_raises(problem):
    net, _, _ = problem
    masking = apply_mask(net, {})
    with pytest.raises(ZeroDivisionError), masking:
        _ = len(net.norm.weight._backward_hooks) / 0
    assert not any(p._backward_hooks for p in net.parameters())


def test_a_validation_direction_is_the_mean_gradient_over_all_examples(problem):
    net, losses, pool = problem
    params = list(net.parameters())
    v = validation_direction(losses, pool, params, model=net)
    close(flat(v), matrix(losses, pool, params).mean(0))


@pytest.mark.parametrize("trust", ["confidence", "entropy", "uniform"])
def test_a_prior_direction_is_the_gradient_of_the_weighted_divergence(problem, trust):
    net, _, pool = problem
    base = Net().double()
    params = list(net.parameters())
    v = prior_direction(net, base, pool, params, tau=2.0, trust=trust)
    total, weights = 0.0, 0.0
    for t in torch.cat(pool)[:, None]:
        p, q = base(t).detach(), net(t)
        kl = (torch.softmax(p / 2, -1) * (torch.log_softmax(p / 2, -1) - torch.log_softmax(q / 2, -1))).sum(-1).mean()
        probabilities = torch.softmax(p, -1)
        entropy = -(probabilities * probabilities.log()).sum(-1).mean()
        weight = {"confidence": probabilities.amax(-1).mean(), "entropy": 1 / (1 + entropy), "uniform": 1.0}[trust]
        total, weights = total + weight * 4 * kl, weights + weight
    close(flat(v), flat(torch.autograd.grad(total / weights, params)))
    same = prior_direction(net, net, pool, params)
    assert float(flat(same).abs().max()) < 1e-12


def test_an_example_without_a_finite_score_comes_last_and_is_named():
    w = torch.zeros(2, requires_grad=True)
    x = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [2.0, 0.0], [-1.0, 0.0]])
    found = select(lambda b: b @ w, [x[:2], x[2:]], [torch.ones(2)], params=[w], budget=Budget(data=1.0))
    assert found.examples.tolist() == [2, 0, 3, 1]
    assert "1 of 4 examples have no finite score (1)" in found.notes[0]


def test_targets_are_combined_by_their_weights():
    new, prior = [torch.tensor([1.0, 2.0])], [torch.tensor([10.0, 0.0], dtype=torch.float16)]
    (found,) = combined((1.0, new), (0.2, prior))
    assert found.dtype == torch.float32
    assert found.tolist() == [3.0, 2.0]


def test_a_selection_is_plain_json(problem):
    import json

    net, losses, pool = problem
    found = select(losses, pool, [torch.randn_like(p) for p in net.parameters()], model=net)
    read = json.loads(json.dumps(found.to_dict()))
    assert read["examples"] == found.examples.tolist()
    total = sum(p.numel() for p in net.parameters())
    assert sum(read["selected"][n] * p.numel() for n, p in net.named_parameters()) == pytest.approx(round(0.1 * total))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 3}, "order"),
        ({"order": 2}, "lr"),
        ({"order": 2, "lr": -1.0, "curvature": []}, "lr"),
        ({"lr": 0.1}, "order 2"),
        ({"target": []}, "target"),
        ({"batches": iter(())}, "only once"),
        ({"batches": []}, "none"),
        ({"model": None}, "params, model"),
    ],
)
def test_what_cannot_be_selected_is_refused(problem, change, message):
    net, losses, pool = problem
    arguments = {"batches": pool, "target": [torch.ones_like(p) for p in net.parameters()], "model": net, **change}
    batches, target = arguments.pop("batches"), arguments.pop("target")
    with pytest.raises(UsageError, match=message):
        select(losses, batches, target, **arguments)


@pytest.mark.parametrize("shares", [{"data": 0.0}, {"parameters": 2}, {"layers": 0.9, "kinds": 0.9}, {"rescored": -1}])
def test_a_budget_holds_shares(shares):
    with pytest.raises(UsageError, match="|".join(shares)):
        Budget(**shares)


def test_layouts_proven_on_one_batch_serve_the_next_unless_data_sends_activations_about():
    """Experts get other tokens in every batch, so nothing that one of them proves holds for the next."""
    torch.manual_seed(0)
    gate, experts = nn.Linear(4, 2).double(), nn.ModuleList(nn.Linear(4, 4) for _ in range(2)).double()
    params = [*gate.parameters(), *experts.parameters()]
    first = torch.randn(2, 2, 4).double()

    def losses(x):
        flat = x.flatten(0, 1)
        shares = gate(flat).softmax(-1)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(experts):
            mine = (shares.argmax(-1) == k).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(flat[mine]) * shares[mine, k, None])
        return out.view_as(x).square().sum((1, 2))

    pool = [first, *(torch.randn(2, 2, 4).double() for _ in range(12))]
    v = [torch.randn_like(p) for p in params]
    rows = [
        sum((g * u).sum() for g, u in zip(torch.autograd.grad(loss, params, allow_unused=True), v, strict=True)
            if g is not None)
        for x in pool for loss in (losses(x)[0], losses(x)[1])
    ]  # fmt: skip
    close(select(losses, pool, v, params=params).psi, torch.stack(rows).detach())


def test_the_page_on_selection_runs_from_top_to_bottom(capsys):
    page = (Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, "selection.md", "exec"), names)
    assert "torch.Size([96]) ghost 1.0" in capsys.readouterr().out
    assert len(names["found"].examples) == 24
    assert 1e-6 < names["second"].second_order < 10
