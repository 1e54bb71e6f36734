/* One pass over the tensors of an optimizer: what `Sweep` computes with a dozen torch kernels a tensor, in one loop.
 *
 * Optional: built when foreshock is installed where there is a C compiler, used on CPU for models in float32 or
 * narrower; everything else, and every machine without it, takes the torch path, which gives the same numbers.
 * Sums are kept in double. Plain C and pointers: called through ctypes, so that it depends on no Python or torch ABI.
 */
#include <math.h>
#include <stdint.h>
#include <stddef.h>

#ifdef FORESHOCK_CLONES
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

enum { LANES = 16, BLOCK = 1024 }; /* elements at a time: five arrays of them stay in the first-level cache */

enum { GRAD_SQUARES, GRAD_PRODUCTS, V_SQUARES, V, RATIO, RATIO_MOST, PARAM_SQUARES, UPDATE_SQUARES };

enum { MEASURE_COSINE = 1, KEEP_GRADIENT = 2, MEASURE_V = 4, MEASURE_RATIO = 8, MEASURE_PARAMS = 16, MEASURE_UPDATE = 32 };

int32_t foreshock_sweep_version(void) { return 1; }

WIDE static double squares(const float *x, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

WIDE static double products(const float *x, const float *y, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

WIDE static double total(const float *x, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

WIDE static double difference(const float *x, const float *y, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double d = (double)x[i] - y[i];
        sum += d * d;
    }
    return sum;
}

WIDE static void copy(float *to, const float *from, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) to[i] = from[i];
}

/* Sum and maximum of s / max(v - admit s, floor), s the square of what v saw: g, or sign g + decay theta. */
WIDE static double ratio(const float *g, const float *theta, const float *v, ptrdiff_t n, float sign, float decay,
                         float admit, float least, float *most) {
    double sum = 0.0;
    float r[BLOCK], top[LANES];
    if (theta)
        for (ptrdiff_t i = 0; i < n; i++) {
            float seen = sign * g[i] + decay * theta[i], s = seen * seen, old = v[i] - admit * s;
            r[i] = s / (old > least ? old : least);
        }
    else
        for (ptrdiff_t i = 0; i < n; i++) {
            float s = g[i] * g[i], old = v[i] - admit * s;
            r[i] = s / (old > least ? old : least);
        }
    for (ptrdiff_t i = 0; i < n; i++) sum += r[i];
    for (ptrdiff_t i = n; i % LANES; i++) r[i] = 0.0f; /* BLOCK is a multiple of LANES */
    for (int j = 0; j < LANES; j++) top[j] = *most;
    for (ptrdiff_t i = 0; i < n; i += LANES) /* lane by lane: a compiler must not reorder a maximum by itself */
        for (int j = 0; j < LANES; j++) top[j] = r[i + j] > top[j] ? r[i + j] : top[j];
    for (int j = 0; j < LANES; j++) *most = top[j] > *most ? top[j] : *most;
    if (sum != sum) *most = NAN; /* a comparison drops NaN, the sum does not */
    return sum;
}

/* For each of `count` tensors: elements n, gradient g (NULL: none), its last gradient, second moment v (NULL: none),
 * parameter p, its copy from before the step; constants of v as (count, 4): sign, decay, admit, least.
 * out is (8, stride): the quantities of the first enum, those asked for by `what`. */
void foreshock_sweep(int64_t count, const int64_t *n, const float *const *g, float *const *last, const float *const *v,
                     const float *const *p, float *const *before, const float *constants, double *out, int64_t stride,
                     int32_t what) {
    for (int64_t t = 0; t < count; t++) {
        double sums[8] = {0};
        float most = -INFINITY;
        const float *c = constants + 4 * t;
        for (int64_t at = 0; at < n[t]; at += BLOCK) {
            ptrdiff_t m = n[t] - at < BLOCK ? (ptrdiff_t)(n[t] - at) : BLOCK;
            if (g[t]) sums[GRAD_SQUARES] += squares(g[t] + at, m);
            if (what & MEASURE_COSINE && g[t]) sums[GRAD_PRODUCTS] += products(g[t] + at, last[t] + at, m);
            if (what & KEEP_GRADIENT) {
                if (g[t]) copy(last[t] + at, g[t] + at, m);
                else for (ptrdiff_t i = 0; i < m; i++) last[t][at + i] = 0.0f;
            }
            if (what & MEASURE_V && v[t]) {
                sums[V_SQUARES] += squares(v[t] + at, m);
                sums[V] += total(v[t] + at, m);
            }
            if (what & MEASURE_RATIO && v[t] && g[t]) {
                const float *theta = c[1] != 0.0f ? (what & MEASURE_UPDATE ? before[t] : p[t]) + at : NULL;
                sums[RATIO] += ratio(g[t] + at, theta, v[t] + at, m, c[0], c[1], c[2], c[3], &most);
            }
            if (what & MEASURE_PARAMS) sums[PARAM_SQUARES] += squares(p[t] + at, m);
            if (what & MEASURE_UPDATE) {
                sums[UPDATE_SQUARES] += difference(p[t] + at, before[t] + at, m);
                copy(before[t] + at, p[t] + at, m);
            }
        }
        sums[RATIO_MOST] = most > -INFINITY || most != most ? most : 0.0;
        for (int q = 0; q < 8; q++) out[q * stride + t] = sums[q];
    }
}
