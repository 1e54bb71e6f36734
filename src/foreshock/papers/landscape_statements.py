"""The claims on landscape spikes: what is measured, and the interval it must lie in.

L1 to L8 are known values of the reference run, seed 0 (`numpy.random.default_rng(0)`), with the room that rounding
needs: beyond the first crossing the run is chaotic. The others are relations, for every seed.
"""

from __future__ import annotations

from foreshock.papers.studies import Statement

__all__ = ["SOURCE", "STATEMENTS"]

SOURCE = "Li, Xu, Zhang 2023, Loss Spike in Training Neural Networks, arXiv 2305.12133"
_PAPER = SOURCE
_OURS = "not in the paper; measured here, seeds 0 to 5"
_EARLIER = "reference run, measured before this reproduction was written"


REFERENCE = (
    Statement("L1-crossing", "L1 lambda_max passes 2/lr after update", 4523, 4527, _EARLIER),
    Statement("L2-minimum", "L2 the loss is lowest at update", 5115, 5145, _EARLIER),
    Statement("L2-confirmed", "L2 chi_grad passes 1 at the lowest loss; updates apart", 0, 2, _EARLIER),
    Statement("L2-peak", "L2 the loss peaks at update", 5165, 5195, _EARLIER),
    Statement("L2-height", "L2 first spike: peak / minimum of the loss", 5, source=_EARLIER),
    Statement("L2-flattening", "L2 lambda_max is below 2/lr before the peak, by updates", 0, source=_EARLIER),
    Statement(
        "L3-llas", "L3 (claim 1) on the way down lower is sharper: corr(ln L, lambda_max)", high=-0.9, source=_PAPER
    ),
    Statement("L4-u1-least", "L4 (claim 4) share of one wave in J u1, least over the spike", 0.80, 0.87, _EARLIER),
    Statement("L4-u5-most", "L4 the same in J u5, most", high=0.07, source=_EARLIER),
    Statement("L4-ascent", "L4 the same in the real change, ascent", 0.8, source=_EARLIER),
    Statement("L4-descent", "L4 the same in the real change, descent", 0.8, source=_EARLIER),
    Statement("L4-calm", "L4 the same in the real change, ordinary descent", high=0.01, source=_EARLIER),
    Statement(
        "L5-floor", "L5 (check 1) the valley's floor falls along the drift: greatest step", high=0.0, source=_PAPER
    ),
    Statement("L5-curvature", "L5 (check 1) while curvature along u1 rises: least step", 0.0, source=_PAPER),
    Statement("L5-crossing", "L5 and passes 2/lr at a distance along the drift of", -0.45, -0.27, _EARLIER),
    Statement(
        "L6-growth", "L6 the excess grows as 2 ln|1 - lr lambda_max|: ratio of slopes", 0.9, 1.1, "linear stability"
    ),
    Statement("L7-landscape", "L7 share of the landscape in the growth of ln chi", 1 - 1e-6, 1 + 1e-6, "W is constant"),
    Statement("L7-preconditioner", "L7 share of the preconditioner in it", -1e-6, 1e-6, "W is constant"),
    Statement(
        "L8-condensation", "L8 mean |cos| of input weights changes across the spike by", high=0.01, source=_EARLIER
    ),
)

ANATOMY = (
    Statement("order", "share of spikes whose events come in order", 1.0, 1.0, _PAPER),
    Statement("sharp-at-minimum", "(claim 1) chi at the lowest loss, least over spikes", 1.0, source=_PAPER),
    Statement("flat-at-peak", "(claim 2) chi at the peak, most over spikes", high=1.0, source=_PAPER),
    Statement("first-lead", "lambda_max warns of the first spike, updates before the lowest loss", 100, source=_OURS),
    Statement("leads-shrink", "later spikes are warned of later: greatest ratio of neighbours", high=1.0, source=_OURS),
    Statement("heights-shrink", "later spikes are lower: greatest ratio of neighbours", high=1.0, source=_OURS),
    Statement("chi-grad-recall", "chi_grad > 1 confirms: share of rising steps it tells", 0.9, source=_OURS),
    Statement("chi-grad-precision", "share of its steps that rise", 0.9, source=_OURS),
    Statement("chi-recall", "chi > 1 warns early: share of rising steps it covers", 0.9, source=_OURS),
    Statement("chi-precision", "share of its steps that rise", high=0.5, source=_OURS),
    Statement("low-u1", "(claim 4) share of one wave in J u1, least over the spike", 0.5, source=_PAPER),
    Statement("low-u5", "the same in J u5, most", high=0.2, source=_PAPER),
    Statement("low-ascent", "the same in the real change, ascent", 0.5, source=_PAPER),
    Statement("low-calm", "the same in the real change, ordinary descent", high=0.01, source=_PAPER),
    Statement("slow-chi", "lr 0.02: the edge is never reached; greatest chi", high=0.95, source=_PAPER),
    Statement("slow-rise", "lr 0.02: and there is no spike; greatest rise of the loss", high=1.05, source=_PAPER),
    Statement("fast-first", "lr 0.1: a spike comes early, lowest loss before it at update", high=3000, source=_PAPER),
)

CHECKS = (
    Statement(
        "flatter-rise", "(claim 3) edge crossed where lower is flatter: the loss rises at most by",
        high=1.05, source=_PAPER,
    ),
    Statement("flatter-end", "and chi comes down by itself, at most to", high=1.02, source=_PAPER),
    Statement("sharper-rise", "edge crossed where lower is sharper: the loss rises by, median", 1.1, source=_PAPER),
    Statement(
        "order-usual", "check 2: frequency of J u_j rises with j, rank correlation after training", 0.5, source=_PAPER
    ),
    Statement("order-start", "check 2: not so at the start, where nothing is learnt", high=0.5, source=_OURS),
    Statement(
        "direction-usual", "check 2: share of the constant and one wave in J u1, least over networks",
        0.5, source=_PAPER,
    ),
    Statement("direction-fast", "check 2: the same, target of nothing but eight waves", 0.5, source=_PAPER),
    Statement("direction-large", "check 2: the same, input weights begun five times as large", 0.5, source=_PAPER),
    Statement("target-u1", "check 2: share of the target's own frequency in J u1 there", high=0.05, source=_OURS),
    Statement(
        "differ-error", "claim 5: test error of the bad solution over that of the good",
        1.5, source="makes claim 5 a question",
    ),
    Statement(
        "differ-train", "claim 5: share of their difference along J u1 and J u2, training points",
        high=0.2, source=_PAPER,
    ),
    Statement("differ-test", "claim 5: the same, test points", high=0.2, source=_PAPER),
    Statement(
        "tl-spike-condenses", "check 3 (claim 6): mean |cos| after the spike less that without one, equal loss",
        0.01, source=_PAPER,
    ),
    Statement("tl-spike-helps", "check 3: test error after the spike over that without one", high=0.99, source=_PAPER),
    Statement(
        "tl-merging-lasts", "check 3: mean |cos| after neurons were merged less that without", 0.01, source=_PAPER
    ),
    Statement(
        "tl-merging-helps", "check 3: test error after neurons were merged over that without", high=0.99, source=_PAPER
    ),
)

CNN = (
    Statement("cnn-height", "CNN: a spike comes at lr 0.1, peak / minimum", 1.5, source=_PAPER),
    Statement(
        "cnn-slow-height", "CNN, lr 0.05: and none by the time it has come at 0.2; greatest rise",
        high=1.5, source=_PAPER,
    ),
    Statement("cnn-llas", "CNN, on the way to the edge: corr(ln L, lambda_max)", high=-0.9, source=_PAPER),
    Statement("cnn-sharp-at-minimum", "CNN (claim 1): chi at the lowest loss", 1.0, source=_PAPER),
    Statement("cnn-along-ascent", "CNN: chi_grad in the ascent, median", 1.0, source=_PAPER),
    Statement("cnn-flat-at-peak", "CNN (claim 2): higher is flatter; chi at the peak", high=1.0, source=_PAPER),
    Statement(
        "cnn-flat-after", "CNN: chi falls below the edge by the time the spike is over, least", high=1.0, source=_PAPER
    ),
    Statement("cnn-low-u1", "CNN (claim 4): share of low frequencies in J u1", 0.8, source=_PAPER),
    Statement("cnn-low-chance", "CNN: the same along a random direction", high=0.8, source=_OURS),
    Statement("cnn-low-ascent", "CNN: the same in the real change, ascent", 0.8, source=_PAPER),
    Statement("cnn-low-descent", "CNN: the same, descent", 0.8, source=_PAPER),
    Statement("cnn-low-calm", "CNN: the same over 20 ordinary updates, median", high=0.6, source=_PAPER),
    Statement(
        "cnn-random-labels-u1", "CNN, check 2: share of low frequencies in J u1, random labels", 0.8, source=_PAPER
    ),
    Statement(
        "cnn-noisy-error", "CNN, claim 5: test error with wrong labels over that without",
        1.1, source="makes claim 5 a question",
    ),
    Statement(
        "cnn-differ-train", "CNN, claim 5: share of their difference along J u1 and J u2, training images",
        high=0.2, source=_PAPER,
    ),
    Statement("cnn-differ-test", "CNN, claim 5: the same, test images", high=0.2, source=_PAPER),
    Statement(
        "cnn-spike-condenses", "CNN, check 3 (claim 6): mean |cos| of filters after the spike less without",
        0.01, source=_PAPER,
    ),
    Statement(
        "cnn-spike-helps", "CNN, check 3: test error after the spike over that without one", high=0.99, source=_PAPER
    ),
    Statement(
        "cnn-merging-lasts", "CNN, check 3: mean |cos| after filters were merged less without", 0.01, source=_PAPER
    ),
    Statement(
        "cnn-merging-helps", "CNN, check 3: test error after filters were merged over that without",
        high=0.99, source=_PAPER,
    ),
)

STATEMENTS = (*REFERENCE, *ANATOMY, *CHECKS, *CNN)
