/* One pass over the tensors of an optimizer: what `Sweep` computes with a dozen torch kernels a tensor, in one loop.
 *
 * Optional: built when foreshock is installed where there is a C compiler, used on CPU for models of one
 * precision; everything else, and every machine without it, takes the torch path, which gives the same numbers.
 * Sums are kept in double. Plain C and pointers: called through ctypes, so that it depends on no Python or torch ABI.
 */
#ifndef REAL /* the whole file once for each type of the model's numbers */

#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#ifdef FORESHOCK_CLONES
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

enum { LANES = 16, BLOCK = 4096 }; /* elements at a time: what one stage has fetched is near when the next wants it */

enum { GRAD_SQUARES, GRAD_PRODUCTS, V_SQUARES, V, RATIO, RATIO_MOST, PARAM_SQUARES, UPDATE_SQUARES };

enum { MEASURE_COSINE = 1, KEEP_GRADIENT = 2, MEASURE_V = 4, MEASURE_RATIO = 8, MEASURE_PARAMS = 16, MEASURE_UPDATE = 32 };

int32_t foreshock_sweep_version(void) { return 2; }

#define REAL float
#define NAMED(name) name##_float32
#include "sweep.c"
#undef REAL
#undef NAMED
#define REAL double
#define NAMED(name) name##_float64
#include "sweep.c"

#else

WIDE static double NAMED(squares)(const REAL *restrict x, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

/* Squares of g and its products with the last gradient, which it then replaces. */
WIDE static void NAMED(gradients)(const REAL *restrict g, REAL *restrict last, ptrdiff_t n, double *sums) {
    double own = 0.0, product = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double x = g[i];
        own += x * x;
        product += x * last[i];
        last[i] = g[i];
    }
    sums[GRAD_SQUARES] += own;
    sums[GRAD_PRODUCTS] += product;
}

/* Squares of p and of its distance from the copy from before the step, which it then replaces. */
WIDE static void NAMED(update)(const REAL *restrict p, REAL *restrict before, ptrdiff_t n, double *sums) {
    double own = 0.0, moved = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double x = p[i], d = x - before[i];
        own += x * x;
        moved += d * d;
        before[i] = p[i];
    }
    sums[PARAM_SQUARES] += own;
    sums[UPDATE_SQUARES] += moved;
}

WIDE static void NAMED(moments)(const REAL *restrict v, ptrdiff_t n, double *sums) {
    double own = 0.0, sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double x = v[i];
        own += x * x;
        sum += x;
    }
    sums[V_SQUARES] += own;
    sums[V] += sum;
}

/* Sum and maximum of s / max(v - admit s, floor), s the square of what v saw: g, or sign g + decay theta. */
WIDE static void NAMED(ratio)(const REAL *restrict g, const REAL *restrict theta, const REAL *restrict v, ptrdiff_t n,
                       const REAL *constants, double *sums, REAL *most) {
    REAL r[BLOCK], top[LANES], sign = constants[0], decay = constants[1], admit = constants[2], least = constants[3];
    double sum = 0.0;
    if (theta)
        for (ptrdiff_t i = 0; i < n; i++) {
            REAL seen = sign * g[i] + decay * theta[i], s = seen * seen, old = v[i] - admit * s;
            r[i] = s / (old > least ? old : least);
        }
    else
        for (ptrdiff_t i = 0; i < n; i++) {
            REAL s = g[i] * g[i], old = v[i] - admit * s;
            r[i] = s / (old > least ? old : least);
        }
    for (ptrdiff_t i = 0; i < n; i++) sum += r[i];
    for (ptrdiff_t i = n; i % LANES; i++) r[i] = 0; /* BLOCK is a multiple of LANES */
    for (int j = 0; j < LANES; j++) top[j] = *most;
    for (ptrdiff_t i = 0; i < n; i += LANES) /* lane by lane: a compiler must not reorder a maximum by itself */
        for (int j = 0; j < LANES; j++) top[j] = r[i + j] > top[j] ? r[i + j] : top[j];
    for (int j = 0; j < LANES; j++) *most = top[j] > *most ? top[j] : *most;
    if (sum != sum) *most = NAN; /* a comparison drops NaN, the sum does not */
    sums[RATIO] += sum;
}

/* Asks for what the later stages of a block will read while the first is at work. */
static inline void NAMED(fetch)(const REAL *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 64 / sizeof(REAL)) __builtin_prefetch(x + i, 0, 2);
}

/* For each of `count` tensors: elements n, gradient g (NULL: none), its last gradient, second moment v (NULL: none),
 * parameter p, its copy from before the step; constants of v as (count, 4): sign, decay, admit, least.
 * out is (8, stride): the quantities of the first enum, those asked for by `what`. */
void NAMED(foreshock_sweep)(int64_t count, const int64_t *n, const REAL *const *g, REAL *const *last, const REAL *const *v,
                     const REAL *const *p, REAL *const *before, const REAL *constants, double *out, int64_t stride,
                     int32_t what) {
    for (int64_t t = 0; t < count; t++) {
        double sums[8] = {0};
        REAL most = -INFINITY;
        const REAL *c = constants + 4 * t;
        for (int64_t at = 0; at < n[t]; at += BLOCK) {
            ptrdiff_t m = n[t] - at < BLOCK ? (ptrdiff_t)(n[t] - at) : BLOCK;
            if (v[t]) NAMED(fetch)(v[t] + at, m);
            NAMED(fetch)(p[t] + at, m);
            if (what & MEASURE_UPDATE) NAMED(fetch)(before[t] + at, m);
            if (g[t] && what & MEASURE_COSINE) NAMED(gradients)(g[t] + at, last[t] + at, m, sums);
            else if (g[t]) sums[GRAD_SQUARES] += NAMED(squares)(g[t] + at, m);
            if (what & KEEP_GRADIENT && !(g[t] && what & MEASURE_COSINE)) {
                if (g[t]) memcpy(last[t] + at, g[t] + at, m * sizeof(REAL));
                else memset(last[t] + at, 0, m * sizeof(REAL));
            }
            if (what & MEASURE_V && v[t]) NAMED(moments)(v[t] + at, m, sums);
            if (what & MEASURE_RATIO && v[t] && g[t]) {
                const REAL *theta = c[1] != 0 ? (what & MEASURE_UPDATE ? before[t] : p[t]) + at : NULL;
                NAMED(ratio)(g[t] + at, theta, v[t] + at, m, c, sums, &most);
            }
            if (what & MEASURE_UPDATE) NAMED(update)(p[t] + at, before[t] + at, m, sums);
            else if (what & MEASURE_PARAMS) sums[PARAM_SQUARES] += NAMED(squares)(p[t] + at, m);
        }
        sums[RATIO_MOST] = most > -INFINITY || most != most ? most : 0.0;
        for (int q = 0; q < 8; q++) out[q * stride + t] = sums[q];
    }
}

#endif
