"""A live guard keeps a preconditioner spike from coming, in few interventions, and without a price in the loss."""

from __future__ import annotations

import math

import torch
from torch.nn import Parameter

from foreshock.guard.guard import Guard
from foreshock.guard.snapshots import Snapshots
from foreshock.monitor import Monitor
from foreshock.probes import Curvature

torch.set_num_threads(1)

STEPS, QUIET = 960, 860  # the loss of the parabola turns at step 888, and peaks at 949 (Bai et al. 2025)


def parabola(guarded):
    """Returns |theta| at each step of Adam on theta^2/2 with beta2 = .99, the last ones under a guard, and its acts."""
    theta = Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([theta], lr=0.1, betas=(0.9, 0.99))
    sizes = []

    def loss():
        optimizer.zero_grad()
        sizes.append(abs(theta.item()))
        return 0.5 * theta.square().sum()

    for _ in range(QUIET if guarded else STEPS):
        loss().backward()
        optimizer.step()
    if not guarded:
        return sizes, ()
    with Monitor(None, optimizer, probes=[Curvature(every=10)], max_overhead=math.inf) as monitor:
        guard = Guard(monitor, snapshots=Snapshots(every=10 * STEPS))
        for _ in range(STEPS - QUIET):
            live = loss()
            monitor.observe(live)
            live.backward()
            guard.step()
    return sizes, guard.actions


def test_the_spike_of_the_parabola_does_not_come():
    unguarded, _ = parabola(guarded=False)
    guarded, actions = parabola(guarded=True)
    assert guarded[:QUIET] == unguarded[:QUIET]
    assert max(unguarded[QUIET:]) > 1e-2
    assert max(guarded[QUIET:]) < 1e-9
    assert {action.kind for action in actions} == {"refill"}
    assert 1 <= len(actions) <= 10
