"""What is claimed of Adam's spikes: intervals for the numbers that the trainings give, judged seed by seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from foreshock.papers.adam_study import Found
from foreshock.papers.claims import Claim

__all__ = ["SOURCE", "STATEMENTS", "Statement", "judge"]

SOURCE = "Bai et al. 2025, Adaptive Preconditioners Trigger Loss Spikes in Adam, arXiv 2506.04805"
INF = math.inf


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim before it is measured.

    Attributes:
        training: whose number it is about.
        number: its name in `Found.numbers`.
        text: what is claimed.
        low, high: the interval.
        seeds: those that it is about; empty for all. Steps of a chaotic training belong to one start.
    """

    training: str
    number: str
    text: str
    low: float
    high: float
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Returns training and number, for JSON."""
        return f"{self.training}: {self.number}"


def judge(
    statements: Sequence[Statement], found: Mapping[int, Mapping[str, Found]], complete: Collection[str]
) -> list[Claim]:
    """Returns the claims that the trainings at hand can decide.

    Args:
        statements: what is claimed.
        found: seed -> training -> what it found.
        complete: trainings that ran their own number of steps.
    """
    claims = []
    for each in statements:
        measured = {
            seed: runs[each.training].numbers.get(each.number, math.nan)
            for seed, runs in found.items()
            if each.training in runs and (not each.seeds or seed in each.seeds)
        }
        if measured and each.training in complete:
            claims.append(Claim(each.name, each.text, each.low, each.high, measured, SOURCE))
    return claims


def _exactly(training: str, number: str, text: str, value: float) -> Statement:
    return Statement(training, number, text, value, value)


# Steps are counted from 1. Intervals of the parabola are closed forms or exact; of the others they were
# measured with the same set-up and widened; relations have the margins that perturbed copies of a training need.
_PARABOLA = (
    _exactly("parabola", "up at 0.99", "Parabola, beta2 .99: chi passes 1 at step", 888),
    _exactly("parabola", "down at 0.99", "... and falls below it, as |theta| peaks, at step", 949),
    *(
        _exactly("parabola", f"torch {kind} {way}", f"The same with torch.optim.Adam in {kind}: {way} at step", step)
        for kind in ("float32", "float64") for way, step in (("up", 888), ("down", 949))
    ),
    Statement("parabola", "lr / sqrt(v) at the crossing", "lr / sqrt(vhat) at the crossing", 38.0, 38.3),
    _exactly("parabola", "closed form misses by", "Closed form of the crossing, three beta2: steps it misses by", 0),
    Statement("parabola", "crossings at eps 0.00263", "eps .00263, below lr/38 = .0026316: crossings", 0.5, INF),
    _exactly("parabola", "crossings at eps 0.00264", "eps .00264, above it: crossings", 0),
    Statement("parabola", "eps that never does", "The bound, by bisection", 2.630e-3, 2.640e-3),
    Statement("parabola", "max chi at 0.9", "Parabola, beta2 .9: chi stays below the edge; largest", 0.98, 0.99999),
    _exactly("parabola", "rises of gradient descent", "Gradient descent at that rate: steps that raise the loss", 0),
    _exactly("parabola", "plain crossing", "Without momentum and corrections: sqrt(v) < lr/2 from step (from 0)", 63),
    _exactly("parabola", "plain minimum", "... where |theta| is lowest", 63),
    _exactly("parabola", "plain peak", "... and peaks at step", 98),
    Statement("parabola", "plain height", "... above its start, at", 2.18, 2.20),
    Statement("parabola", "preconditioner share", "Share of the preconditioner in chi's growth", 1 - 1e-9, 1 + 1e-9),
)  # fmt: skip
_WIDE = (
    Statement("wide", "chi up", "Wide network: chi passes 1 at step", 243, 247, (0,)),
    Statement("wide", "P up", "... the curvature along the gradient at step", 246, 250, (0,)),
    Statement("wide", "S up", "... its symmetric form at step", 249, 255, (0,)),
    Statement("wide", "minimum", "... the loss is lowest at step", 246, 250, (0,)),
    Statement("wide", "peak", "... and peaks at step", 278, 284, (0,)),
    Statement("wide", "raw", "Raw curvature along the gradient, in units of 2/lr, from onset to peak", 5.6, 5.8, (0,)),
    Statement("wide", "eps 0.1: later loss", "eps raised to .1 at that alarm: largest later loss", -INF, 1e-7, (0,)),
    Statement("wide", "peak loss", "Wide network: the loss rises to", 1.0, INF),
    Statement("wide", "raw changes by", "... while the raw curvature changes by at most", -INF, 0.05),
    Statement("wide", "v ratio", "v decays freely at beta2 at the crossing: |v_t| / |v_t-1|", 0.99899, 0.99901),
    Statement("wide", "lag of the minimum", "The loss is lowest after the crossing by steps", 0, 20),
    Statement("wide", "lag of P", "The curvature along the gradient passes 1 then, give or take steps", -3, 3),
    Statement("wide", "lag of the peak", "The loss peaks as chi falls below 1, steps later", -1, 3),
    Statement("wide", "alignment", "The preconditioned gradient lies in the top direction by then: |cos|", 0.9, 1.0),
    Statement("wide", "preconditioner share", "Share of the preconditioner in chi's growth before it", 0.8, 1.3),
    Statement("wide", "gradient descent share", "... and under plain gradient descent", -1e-9, 1e-9),
    _exactly("wide", "order", "All five stages in their order", 1),
    Statement("wide", "eps 0.1: later rise", "eps .1 at the alarm: largest later loss over that then", -INF, 1.5),
    Statement("wide", "eps 0.001: later rise", "eps .001 then is too little: the loss still rises by", 100, INF),
    *(
        Statement("wide", f"{which}: highest after the lowest", f"{which}: no spike, largest later loss", -INF, 1e-3)
        for which in ("200 units", "100 units", "lr 0.005")
    ),
)  # fmt: skip
_SINES = (
    Statement("sines", "spikes", "Two sines, 8,000 steps: spikes of 1.5 times or more", 18, 42),
    _exactly("sines", "chi recall", "chi above 1 for three steps announces of them the share", 1),
    Statement("sines", "chi precision", "... and of its announcements come true", 0.8, 1),
    Statement("sines", "chi_gradient recall", "Curvature along the gradient (P): share announced", 0.95, 1),
    Statement("sines", "chi_gradient precision", "... and of its announcements come true", 0.8, 1),
    Statement("sines", "chi lead", "chi leads the loss's rise to 1.5 times by steps, median", 20, 100),
    Statement("sines", "chi_gradient lead", "P leads it by steps, median", 5, 30),
    Statement("sines", "lead ratio", "Lead of chi over that of P", 1.5, INF),
    Statement("sines", "hessian_top recall", "Raw lambda_max(H) > 2/lr is useless: share announced", 0, 0.2),
    Statement("sines", "gradient_top score", "Raw curvature along the gradient is useless: F score", 0, 0.5),
    *(
        Statement("sines", f"order {which}", f"Order of stages: {text}; share", 0.9, 1)
        for which, text in (
            ("a", "chi up before P"), ("b", "P up by the lowest loss + 20"), ("c", "lowest loss before lowest v"),
            ("d", "chi down by the peak"),
        )
    ),
    Statement("sines", "sign of the sum", "Sign of g'd + d'Hd/2 is that of the loss change, share of steps", 0.995, 1),
    Statement("sines", "sum over ratio", "... as a ratio d'Hd / -2g'd > 1 it agrees less often, by", 0.001, 0.1),
    Statement("sines", "dense", "chi against the top eigenvalue of the unsymmetric W H: relative difference", 0, 1e-8),
    Statement("sines", "S above chi", "The symmetric form is never above chi: largest excess", -INF, 1e-10),
    Statement("sines", "preconditioner share", "Preconditioner's share of chi's growth, median spike", 0.5, 1.05),
    Statement("sines", "blamed on the preconditioner", "Verdict of the library: preconditioner, share", 0.7, 1),
    Statement("sines", "rescued by eps 0.1", "eps .1 when P raises the alarm: share of spikes prevented", 0.95, 1),
    Statement("sines", "rescued by lr 10 % lower", "lr 10 % lower at the same alarm: share prevented", 0.95, 1),
    Statement("sines", "rescued by beta2 0.9", "beta2 .9 at the same alarm comes too late: share prevented", 0, 0.5),
    Statement("sines", "rescued by beta2 0.99", "beta2 .99 at the same alarm: share prevented", 0, 0.5),
)  # fmt: skip
_CURES = (
    _exactly("sines-cures", "eps 0.1: spikes", "eps .1 from the start: spikes left", 0),
    Statement("sines-cures", "eps 0.1: cost", "... and a final loss larger by", 2, INF),
    Statement("sines-cures", "eps 0.01: spikes left", "eps .01: share of spikes left", 0.05, 0.8),
    Statement("sines-cures", "eps critical", "eps beyond which the bound allows none, between the two", 0.01, 0.1),
    Statement("sines-cures", "beta2 0.9: spikes left", "beta2 .9: share of spikes left", 0, 0.25),
    Statement("sines-cures", "beta2: height falls by", "Spikes are lower at .99, and at .97: least ratio", 1, INF),
    Statement("sines-cures", "beta2 0.99: more spikes by", "Hardly fewer, though: .99 over .999, number", 0.7, INF),
    Statement("sines-cures", "beta2 0.9: rising", "beta2 .9: share of steps that raise the loss", 0.35, 0.6),
    Statement("sines-cures", "beta2 0.99: recall", "beta2 .99: share of spikes that chi announces", 0.9, 1),
    Statement("sines-cures", "lr 0.005: spikes left", "lr .005: share of spikes left", 0, 0.6),
)  # fmt: skip
_BATCHES = (
    Statement("sines-batches", "recall in 200", "200 points, full batch: share of spikes that chi announces", 0.9, 1),
    Statement("sines-batches", "bumps in 100", "Batches of 100 of them: bumps of twofold or more", 0.5, INF),
    _exactly("sines-batches", "alarms in 100", "... not of this kind: alarms of chi", 0),
    _exactly("sines-batches", "unexplained in 100", "... verdict of the library: unexplained, share", 1),
    Statement("sines-batches", "max chi in 100", "... since noise keeps v large: largest chi", 0, 0.9),
)

_TRANSFORMER = (
    Statement("transformer", "spikes at 0.999", "Transformer, beta2 .999, 800 steps: spikes out of calm", 2, 12),
    Statement("transformer", "chi recall at 0.999", "chi above 1 announces of them the share", 0.75, 1),
    Statement("transformer", "chi precision at 0.999", "... and of its announcements come true", 0.6, 1),
    Statement("transformer", "chi_gradient recall at 0.999", "Curvature along the gradient: share announced", 0.75, 1),
    Statement("transformer", "chi_gradient precision at 0.999", "... and of its announcements come true", 0.75, 1),
    Statement("transformer", "chi lead at 0.999", "chi leads the loss's rise to 1.5 times by steps, median", 5, 80),
    Statement("transformer", "raw at 0.999", "Raw lambda_max(H) once learned, in units of 2/lr, at most", 0, 0.1),
    Statement("transformer", "preconditioner share at 0.999", "Preconditioner's share in growth, median", 0.25, 1.1),
    Statement("transformer", "spikes at 0.95", "beta2 .95: fewer spikes out of calm", 0, 1),
    Statement("transformer", "rising at 0.95", "... as there is no calm: share of steps that raise it", 0.4, 0.6),
    Statement("transformer", "median chi at 0.95", "... and chi stays at its edge: median", 0.85, 1.15),
    Statement("transformer", "largest at 0.999", "beta2 .999: largest loss over the median one", 2, 100),
    Statement("transformer", "largest at 0.95", "beta2 .95 has rare escapes instead, higher ones", 100, INF),
)

STATEMENTS = (*_PARABOLA, *_WIDE, *_SINES, *_CURES, *_BATCHES, *_TRANSFORMER)
