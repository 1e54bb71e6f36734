"""The table of signals: every number foreshock measures, defined once.

A signal is measured once per optimizer step, or less often. A run-wide signal is stored under its own name; a
per-tensor one under `name/parameter.name` (or `name/module.name` where large models are grouped by module).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Reduction = Literal["mean", "sum", "max", "min", "l2", "same", "any"]
"""How one value is made of the ranks' (and, inside a module group, of the tensors') values.

`l2` is the root of the sum of squares; `same` says that every rank holds the same value, so none is reduced.
"""


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table.

    Attributes:
        name: as stored; the part before the slash for per-tensor values.
        unit: "loss", "1" for ratios and counts, "parameter" for parameter units, "gradient" for loss/parameter,
            "nat" for logits and differences of them, "s" for seconds.
        meaning: one sentence, with the formula where there is one.
        reduction: how ranks and grouped tensors combine.
        reference: where the definition comes from; empty where it is common knowledge.
        per_tensor: whether `name/parameter.name` exists as well as (or instead of) the run-wide value.
    """

    name: str
    unit: str
    meaning: str
    reduction: Reduction
    reference: str = ""
    per_tensor: bool = False


_ADAM_SPIKES = "Bai et al. 2025, arXiv 2506.04805, section on decoupled decay"
_ALONG = "Bai et al. 2025, arXiv 2506.04805"
_SPLIT = "first-order perturbation of chi; Bai et al. 2025, arXiv 2506.04805"
_EDGE = "Cohen et al. 2022, arXiv 2207.14484"
_ABSORPTION = "Liu et al. 2026, arXiv 2605.06152"
_NOISE = "McCandlish et al. 2018, arXiv 1812.06162, appendix A.1"
_COLLAPSE = "Prieto et al. 2025, arXiv 2501.04697"

EDGES = frozenset({"chi", "chi_gradient", "chi_gradient_sym", "chi_step", "chi_secant"})
"""Signals whose edge of stability is at 1, where figures draw a line."""

_TABLE = (
    Signal("loss", "loss", "training loss as observed, mean over the micro-batches of the step", "mean"),
    Signal(
        "grad_norm", "gradient", "Euclidean norm of the gradient as the optimizer consumed it", "l2", per_tensor=True
    ),
    Signal("param_norm", "parameter", "Euclidean norm of the parameters after the step", "l2", per_tensor=True),
    Signal(
        "update_norm", "parameter", "Euclidean norm of the step taken, |theta_{t+1} - theta_t|", "l2", per_tensor=True
    ),
    Signal(
        "update_rms", "parameter", "root mean square of the step taken, |theta_{t+1} - theta_t| / sqrt(n)", "l2",
        per_tensor=True,
    ),
    Signal(
        "outside_norm", "parameter", "Euclidean norm of what was written to the parameters between the step before and "
        "this one, by no update: re-initialised rows, a loaded state, a fault of memory; absent where nothing was",
        "l2", per_tensor=True,
    ),
    Signal(
        "outside_count", "1", "elements of the parameters that were changed so; 1 where a single bit flipped", "sum",
        per_tensor=True,
    ),
    Signal("lr", "1", "learning rate; `lr/group0`, `lr/group1`, ... where parameter groups differ", "same"),
    Signal(
        "v_ratio", "1", "growth of the second moment in norm, |v_t| / |v_{t-1}|; it decays freely at beta2", "mean",
        _ADAM_SPIKES, per_tensor=True,
    ),
    Signal(
        "v_free", "1", "share of the parameters in tensors whose second moment decays freely: ln `v_ratio` is below "
        "0.9 ln beta2, so that squared gradients are less than a tenth of it", "mean", _ADAM_SPIKES,
    ),
    Signal(
        "grad_sq_over_v_mean", "1",
        "mean over coordinates of g_t^2 / v_{t-1}, with v_{t-1} recovered from v_t and g_t (bias-corrected v)", "mean",
        _ADAM_SPIKES, per_tensor=True,
    ),
    Signal(
        "grad_sq_over_v_max", "1",
        "largest coordinate of g_t^2 / v_{t-1} (bias-corrected v): a burst that v has not seen", "max",
        _ADAM_SPIKES, per_tensor=True,
    ),
    Signal(
        "effective_step", "parameter",
        "lr / (sqrt(vhat) + eps) at the tensor's root-mean-square second moment: how far a unit gradient moves a "
        "typical coordinate", "max", "Kingma and Ba 2015, arXiv 1412.6980, algorithm 1", per_tensor=True,
    ),
    Signal(
        "grad_cosine", "1",
        "cosine of successive gradients, g_t.g_{t-1} / (|g_t| |g_{t-1}|); near -1 at the edge of stability", "mean",
        "Cohen et al. 2022, arXiv 2207.14484", per_tensor=True,
    ),
    Signal(
        "chi", "1", "top eigenvalue of W^(1/2) (H + l2) W^(1/2), W = lr q / ((2 - lr wd) P) being the weights of the "
        "step about to be taken: the edge of stability is 1, whatever the optimizer", "max", _EDGE,
    ),
    Signal(
        "chi_min", "1", "lowest eigenvalue of the same matrix that the products of the reading saw: negative curvature "
        "in the optimizer's coordinates, unstable at any learning rate where decay does not make up for it", "min",
    ),
    Signal("sharpness", "1", "preconditioned sharpness, the top eigenvalue of P^(-1) (H + l2)", "max", _EDGE),
    Signal("threshold", "1", "`sharpness` at which the optimizer goes unstable; chi is their ratio", "min", _EDGE),
    Signal(
        "max_stable_lr", "1", "learning rate of the first group at which chi would be 1, all else as it is; absent "
        "where no curvature is positive", "min", _EDGE,
    ),
    Signal("chi_residual", "1", "residual of the top eigenpair: an eigenvalue lies within it of chi", "max"),
    Signal("chi_converged", "1", "1 where chi is within its tolerance by its own estimate, else 0", "min"),
    Signal("chi_matvecs", "1", "products with the Hessian that the reading took", "max"),
    Signal("curvature_seconds", "s", "wall time that the reading took", "max"),
    Signal(
        "probe_batch", "1", "what the reading was taken on: 0 the batch at hand, on its live graph; 1 a batch that is "
        "held, the same each time; 2 the batch at hand, computed again by the closure", "same",
    ),
    Signal(
        "probe_gradient_ratio", "1", "norm of the gradient that the optimizer consumed over that of the one that chi "
        "was computed with; below 1 where the loop clips", "mean",
    ),
    Signal(
        "chi_formal", "1", "1 where steps are bounded whatever the gradient (sign and spectral methods): chi is then "
        "no alarm", "same",
    ),
    Signal(
        "chi_floored", "1", "share of the top eigenvector on coordinates whose denominator is within twice its least, "
        "that of eps alone: dead coordinates", "max",
    ),
    Signal("chi_share", "1", "share of the top eigenvector's square on a tensor, 1 in all", "mean", per_tensor=True),
    Signal("chi_gradient", "1", "curvature along the gradient, g'W H g / g'g, edge 1; in alarm only", "max", _ALONG),
    Signal(
        "chi_gradient_sym", "1", "Rayleigh quotient at W^(1/2) g, never above chi: (Wg)'H(Wg) / g'Wg, edge 1; in alarm "
        "only", "max", _ALONG,
    ),
    Signal(
        "chi_step", "1", "curvature along the step, delta'H delta / (-2 g'delta): the loss rises over it above 1; of "
        "the planned step in alarm, from the loss after the step in watch; absent where the step goes uphill", "max",
        _ALONG,
    ),
    Signal(
        "chi_change", "loss", "change of the loss over the step to second order, g'delta + delta'H delta / 2; in alarm "
        "only", "mean", _ALONG,
    ),
    Signal("chi_alignment", "1", "|cosine| of W^(1/2) g with the top eigenvector; in alarm only", "max", _ALONG),
    Signal(
        "chi_mode_loss", "loss", "(u . W^(1/2) g)^2 / (2 chi), u the top eigenvector: the part of the loss that is "
        "motion along the unstable mode, to second order; absent where chi is not above 0", "mean", _SPLIT,
    ),
    Signal(
        "chi_overlap", "1", "|cosine| of the top direction, in parameters, with that of the last reading: about 1 on a "
        "held batch, small where batches change or the top eigenvector has swapped", "min",
    ),
    Signal(
        "chi_growth", "1", "ln chi less ln chi at the last reading; absent where there was none, one of them is not "
        "above 0, or `chi_overlap` is below 0.5", "mean", _SPLIT,
    ),
    Signal(
        "chi_growth_preconditioner", "1", "part of `chi_growth` that is the optimizer's doing, sum u_i^2 d ln W_i: "
        "learning rate, momentum and denominators", "mean", _SPLIT,
    ),
    Signal(
        "chi_growth_landscape", "1", "part of `chi_growth` that remains, the landscape's: y' dH y / chi to first order",
        "mean", _SPLIT,
    ),
    Signal(
        "chi_growth_lr", "1", "part of `chi_growth` of the learning rate, with decoupled decay and clipping", "mean",
        _SPLIT,
    ),
    Signal(
        "chi_growth_momentum", "1", "part of `chi_growth` of the momentum: its gain and its bias correction", "mean",
        _SPLIT,
    ),
    Signal(
        "chi_growth_denominator", "1", "part of `chi_growth` of the denominators, -sum u_i^2 d ln sqrt(vhat_i)", "mean",
        _SPLIT, per_tensor=True,
    ),
    Signal(
        "chi_denominator", "1", "exp(sum u_i^2 ln P_i), geometric mean of the denominators in the unstable direction: "
        "falls while v decays, rises in the refill", "mean", _ADAM_SPIKES,
    ),
    Signal(
        "chi_crossing", "1", "steps until chi would be 1 if v decayed freely at beta2 and H stood still; 0 above 1; "
        "absent where nothing decays or eps forbids it", "min", _ADAM_SPIKES,
    ),
    Signal(
        "stable_eps", "1", "eps with which chi would be 0.9, all else equal, by the rank-one bound; only above 0.9, "
        "absent for optimizers without such an eps", "max", _SPLIT,
    ),
    Signal(
        "stable_floor", "1", "floor on the denominator P with which chi would be 0.9, likewise", "max", _SPLIT,
    ),
    Signal(
        "hessian_top", "1", "lambda_max(H), not preconditioned; in alarm only, when it begins and every 50 readings",
        "max", _ADAM_SPIKES,
    ),
    Signal(
        "chi_secant", "1", "curvature along the last step from two gradients, s'dg / s'W^(-1)s, edge 1; 0 where the "
        "two are hardly alike; at every 16th step, for SGD, Adam, AdamW and RMSprop", "max", _ALONG,
    ),
    Signal(
        "expected_rise", "1", "largest loss ahead over the loss now, as the reading foretells it: 1 where unstable "
        "motion dies out unseen; absent where nothing bounds it, or the loss is not positive", "max",
        "this library's `stability.foresight`",
    ),
    Signal(
        "expected_rise_in", "1", "steps until the loss is 1.5 times what it is now, as the reading foretells it; "
        "absent where it is not expected to be", "min", "this library's `stability.foresight`",
    ),
    Signal(
        "curvature_cadence", "1", "state of the schedule, at steps that it wanted a reading: 0 calm, 1 watch, 2 alarm",
        "max",
    ),
    Signal(
        "curvature_withheld", "1", "readings that the schedule wanted since the last one and `max_overhead` refused",
        "max",
    ),
    Signal(
        "softmax_absorbed", "1", "share of the rows whose right class gets a gradient of exactly 0 although the wrong "
        "classes have mass (w > 0 in float64): softmax collapse; absent without one right class a row", "mean",
        _COLLAPSE,
    ),
    Signal(
        "softmax_residual", "1", "class sum that rounding has left, sum_i |sum_k g_ik| / sum_ik |g_ik|, of the "
        "gradient g that backward has computed: 1e-7 to 1e-4 in health, 1 in collapse", "mean", _ABSORPTION,
    ),
    Signal(
        "softmax_wrong", "1", "mean over the rows of the wrong mass w, the probability of all classes but the right "
        "one, in float64", "mean", _ABSORPTION,
    ),
    Signal(
        "softmax_margin_min", "nat", "least margin z_r - max_(k != r) z_k of a row, its right class being r; negative "
        "where the row is misclassified", "min", _ABSORPTION,
    ),
    Signal("softmax_margin_median", "nat", "median over the rows of the same margin", "mean", _ABSORPTION),
    Signal(
        "softmax_error", "1", "relative l2 difference of the right classes' gradients from those recomputed in "
        "float64 from the same logits; above 0.1 the cause is numerical", "max", _ABSORPTION,
    ),
    Signal(
        "softmax_head_mean", "parameter", "|W_G|, norm of the mean over the classes of the head's weight, which in "
        "exact arithmetic gets no gradient", "same", _ABSORPTION,
    ),
    Signal(
        "softmax_head_centred", "parameter", "|W*|, Frobenius norm of the head's weight less W_G: flat while "
        "`softmax_head_mean` grows in numerical inflation", "same", _ABSORPTION,
    ),
    Signal(
        "softmax_feature_mean", "1", "|mu_G|, norm of the mean over the rows of the head's input", "mean", _ABSORPTION,
    ),
    Signal("softmax_cosine", "1", "cosine of W_G and mu_G; goes to -1 in numerical inflation", "mean", _ABSORPTION),
    Signal(
        "softmax_logit", "nat", "mean of all logits; goes to minus infinity in numerical inflation", "mean",
        _ABSORPTION,
    ),
    Signal(
        "softmax_sensitivity", "nat", "most that the step has moved a class's logit at the mean feature, "
        "max_k |dW_head[k] . mu_G|", "max", _ABSORPTION,
    ),
    Signal(
        "softmax_new", "1", "share of the rows whose right class was first seen less than 8 readings ago, this one "
        "included; from the 9th reading on", "mean",
    ),
    Signal(
        "noise_trace", "1", "unbiased estimate of tr Sigma, the trace of the covariance of one example's gradient, of "
        "this step, from squared norms of gradients at two batch sizes", "mean", _NOISE,
    ),
    Signal(
        "noise_square", "1", "unbiased estimate of |G|^2 of this step, G the gradient without noise; often below 0",
        "mean", _NOISE,
    ),
    Signal(
        "noise_scale", "1", "gradient noise scale in examples, the mean of `noise_trace` over that of `noise_square`; "
        "absent while the latter is not distinguishable from 0, or gated", "mean", _NOISE,
    ),
    Signal("noise_low", "1", "lower end of the band of `noise_scale` (95 %)", "min", _NOISE),
    Signal("noise_high", "1", "upper end of the band of `noise_scale`", "max", _NOISE),
    Signal(
        "noise_factor", "1", "noise scale of all layers over that of the norm layers; `noise_scale` is multiplied with "
        "it where it is measured on these alone", "mean", "Gray et al. 2024, arXiv 2411.00999",
    ),
    Signal(
        "noise_gated", "1", "1 where the noise scale would have been measured but means nothing: absorption in the "
        "softmax, or a spike just heard of; else 0", "max", _NOISE,
    ),
    Signal("nonfinite", "1", "number of tensors whose gradient or parameter has a norm that is NaN or infinite", "sum"),
    Signal(
        "nonfinite_first", "1", "index of the first of them in model order, -1 where all are finite; the metadata's "
        "`tensors` holds the names", "min",
    ),
    Signal(
        "loss_scale", "1", "factor between the observed loss and what `backward` differentiates, summed over the "
        "micro-batches: 1 for a plain mean, the scale of a GradScaler where one is in use", "same",
    ),
    Signal("skipped", "1", "1 where a gradient scaler skipped the step because it found an overflow", "max"),
    Signal("micro_batches", "1", "losses observed in this optimizer step (gradient accumulation)", "same"),
    Signal(
        "batch_size", "1", "examples in the step: leading dimension of the first tensor in each batch given to "
        "`observe`, summed over the micro-batches; absent where one came without", "sum",
    ),
    Signal(
        "batch_switched", "1", "B_new / B_old at the first step after a declared switch of the batch size or strategy; "
        "absent at all others", "same", "this library's `batch_size.switch`",
    ),
    Signal("step_seconds", "s", "wall time from one optimizer step to the next", "max"),
    Signal("monitor_seconds", "s", "part of it spent inside foreshock on the host", "max"),
)

SIGNALS: Mapping[str, Signal] = MappingProxyType({signal.name: signal for signal in _TABLE})


def lookup(column: str) -> Signal | None:
    """Returns the table row of a column such as "grad_norm/fc.weight", or None where the user named it.

    >>> lookup("grad_norm/fc.weight").unit
    'gradient'
    """
    return SIGNALS.get(column.partition("/")[0])


def markdown_table() -> str:
    """Returns the table as the documentation page shows it (`docs/signals.md` is generated from here)."""
    lines = ["| signal | unit | per tensor | over ranks | meaning | reference |", "|---|---|---|---|---|---|"]
    for signal in _TABLE:
        per_tensor = "yes" if signal.per_tensor else "-"
        meaning = signal.meaning.replace("|", "\\|")
        lines.append(
            f"| `{signal.name}` | {signal.unit} | {per_tensor} | {signal.reduction} | {meaning} "
            f"| {signal.reference or '-'} |"
        )
    return "\n".join(lines) + "\n"
