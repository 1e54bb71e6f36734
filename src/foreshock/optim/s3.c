/* One step of S3 over many tensors in one pass: what `update` computes with some twenty torch operations.
 *
 * Optional: built when foreshock is installed where there is a C compiler, used on CPU for dense real tensors;
 * everything else, and every machine without it, takes the torch operations, which give the same numbers to rounding.
 * Each element is worked on alone, so how tensors are shared out among threads changes no bit. Plain C and pointers:
 * called through ctypes, so that it depends on no Python or torch ABI.
 */
#ifndef REAL /* the whole file once for each type worked in */

#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#ifdef FORESHOCK_CLONES
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

enum {
    BLOCK = 1024, /* elements converted at a time: four arrays of them stay in the nearest cache */
    GROUP = 128,  /* elements in one turn of the loop */
    AHEAD = 1024, /* elements between those worked on and those asked for */
};

/* What numbers are stored as, and how the power and the root are taken. */
enum { FLOAT32, FLOAT64, BFLOAT16 };
enum { ONE, ONE_AND_HALF, TWO, THREE, FOUR, SIX, ANY };

/* As the caller fills it in. `rest` and `now` are the gradient's weights in the average and in the numerator, `fresh`
 * and `fresh_below` those of |g|^p in the root and in the denominator; `past` is 0 where the root has no history. */
typedef struct {
    double lr, decay, eps, sign, rest, now, fresh, fresh_below, past, p;
} Settings;

/* Runs a function on so many threads at once, the caller's among them: GOMP_parallel of torch's OpenMP. */
typedef void Team(void (*run)(void *), void *work, unsigned threads, unsigned flags);

int32_t foreshock_s3_version(void) { return 3; }

INLINE float of_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

INLINE uint16_t to_bfloat16(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x == x ? (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (uint16_t)0x7fc0;
}

INLINE float power_float32(float x, float p);

INLINE float power_bfloat16(float x, float p) { return power_float32(x, p); }

INLINE double power_float64(double x, double p) { return pow(x, p); }

#define REAL float
#define BITS int32_t
#define INFINITE 0x7f800000 /* the bits of infinity: those of an exponent */
#define STORED float
#define READ(x) (x)
#define WRITTEN(x) (x)
#define OWN FLOAT32
#define NAMED(name) name##_float32
#include "s3.c"
#undef STORED
#undef READ
#undef WRITTEN
#undef OWN
#undef NAMED
#define STORED uint16_t
#define READ(x) of_bfloat16(x)
#define WRITTEN(x) to_bfloat16(x)
#define OWN BFLOAT16
#define NAMED(name) name##_bfloat16
#include "s3.c"
#undef REAL
#undef BITS
#undef INFINITE
#undef STORED
#undef READ
#undef WRITTEN
#undef OWN
#undef NAMED
#define REAL double
#define BITS int64_t
#define INFINITE 0x7ff0000000000000
#define STORED double
#define READ(x) (x)
#define WRITTEN(x) (x)
#define OWN FLOAT64
#define NAMED(name) name##_float64
#include "s3.c"

/* x^p for 0 <= x <= 1: 2^(p log2 x). What is less than 2^-126 is 0 beside terms of about 1. */
INLINE float power_float32(float x, float p) {
    x += 0x1p-126f;
    int32_t e = (bits_of_float32(x) - 0x3f3504f3) >> 23; /* x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2) */
    float f = of_bits_float32(bits_of_float32(x) - (e << 23)) - 1;
    float f2 = f * f, f4 = f2 * f2; /* log2(1 + f) = f P(f), P fitted on that range to 2.6e-8 */
    float log2 = (1.442695022f - 0.72134733f * f) + (0.48091063f - 0.36070368f * f) * f2
        + ((0.28791624f - 0.23894483f * f) + (0.21571562f - 0.20726968f * f + 0.12583689f * f2) * f2) * f4;
    log2 = p * ((float)e + f * log2);
    int32_t n = (int32_t)(log2 - 0.5f); /* the nearest integer, of what is not positive */
    float h = log2 - (float)n, h2 = h * h; /* 2^h on |h| <= 1/2, fitted to 1.9e-9 */
    float exp2 = (1 + 0.693147182f * h) + (0.240226462f + 0.0555032864f * h) * h2
        + (0.00961848907f + 0.00133999309f * h + 0.000153458098f * h2) * (h2 * h2);
    exp2 *= of_bits_float32((n + 127) << 23);
    return of_bits_float32(bits_of_float32(exp2) & -(log2 > -126)); /* a branch would keep it from vectors */
}

#else

INLINE BITS NAMED(bits_of)(REAL x) {
    BITS i;
    memcpy(&i, &x, sizeof i);
    return i;
}

INLINE REAL NAMED(of_bits)(BITS i) {
    REAL x;
    memcpy(&x, &i, sizeof x);
    return x;
}

INLINE REAL NAMED(whole_power)(int k, REAL x) {
    REAL square = x * x;
    return k == 1 ? x : k == 2 ? square : k == 3 ? square * x : k == 4 ? square * square
        : k == 5 ? square * square * x : square * square * square;
}

/* s^(1/k), k = 2, 3, 4 or 6, for normal s or 0: a line through the logarithm gives y = s^(-1/k) to 3.5 % at worst, and
 * s^(1/k) = c (1 - e)^(1/k - 1) with c = s y^(k-1), e = 1 - c y, by a series. Faster than the processor's square root,
 * and to one unit in the last place. float64 brings y to 1e-17 by Newton and Householder first. */
INLINE REAL NAMED(whole_root)(int k, REAL s) {
    const int32_t line = k == 2 ? 0x5f374000 : k == 3 ? 0x54a1eaaa : k == 4 ? 0x4f582000 : 0x4a0db555;
    float low = (float)s, rough;
    int32_t bits;
    memcpy(&bits, &low, sizeof bits);
    bits = line - (int32_t)((float)bits * (1.0f / k));
    memcpy(&rough, &bits, sizeof rough);
    REAL y = rough, c, e;
    if (sizeof(REAL) == sizeof(double)) {
        const REAL one = (REAL)1 / k, two = one * (1 + k) / (2 * k), three = two * (1 + 2 * k) / (3 * k);
        for (int step = 0; step < 2; step++) {
            e = 1 - s * NAMED(whole_power)(k, y);
            y += y * (e * (one + e * (two + e * three)));
        }
    }
    c = s * NAMED(whole_power)(k - 1, y);
    e = 1 - c * y;
    if (sizeof(REAL) == sizeof(double)) return c + c * (e * (REAL)(k - 1) / k);
    REAL t; /* fitted to 2.3e-8, 1.8e-8, 3.7e-9 and 6.3e-9 on the e that there are */
    if (k == 2) t = 0.499998331f + e * (0.374997675f + e * (0.313942432f + e * 0.274956465f));
    else if (k == 3) t = 0.666666687f + e * (0.555536211f + e * (0.493800461f + e * (0.458591521f + e * 0.428787231f)));
    else if (k == 4) t = 0.750000179f + e * (0.656250298f + e * (0.601456702f + e * (0.563845158f + e * (0.549403429f
                         + e * 0.527435958f))));
    else t = 0.833333313f + e * (0.763892889f + e * (0.721455872f + e * (0.690641165f + e * (0.667519212f
             + e * (0.689615786f + e * 0.675055206f)))));
    return c + c * (e * t);
}

/* q^p and s^(1/p); `how` is known when this is compiled. */
INLINE REAL NAMED(raise)(int how, REAL q) {
    switch (how) {
    case ONE: return q;
    case ONE_AND_HALF: return q * NAMED(whole_root)(2, q);
    case TWO: return NAMED(whole_power)(2, q);
    case THREE: return NAMED(whole_power)(3, q);
    case FOUR: return NAMED(whole_power)(4, q);
    default: return NAMED(whole_power)(6, q);
    }
}

INLINE REAL NAMED(lower)(int how, REAL s, REAL inverse) {
    switch (how) {
    case ONE: return s;
    case ONE_AND_HALF: return NAMED(whole_power)(2, NAMED(whole_root)(3, s));
    case TWO: return NAMED(whole_root)(2, s);
    case THREE: return NAMED(whole_root)(3, s);
    case FOUR: return NAMED(whole_root)(4, s);
    case SIX: return NAMED(whole_root)(6, s);
    default: return NAMED(power)(s, inverse);
    }
}

/* r'^p = beta2 r^p + (1 - beta2) |g|^p, and the same once more with the weights below, in units of the larger of r and
 * |g|: of its power of two, so that no power leaves the range; or, for any p, of itself. NaN has the largest bits. */
INLINE void NAMED(elements)(int how, STORED *restrict theta, const STORED *restrict grad, STORED *restrict m,
                            STORED *restrict r, ptrdiff_t n, const Settings *settings) {
    const REAL lr = settings->lr, decay = settings->decay, eps = settings->eps, sign = settings->sign;
    const REAL rest = settings->rest, now = settings->now, past = settings->past;
    const REAL fresh = settings->fresh, below = settings->fresh_below, p = settings->p, inverse = 1 / settings->p;
    const BITS least = INFINITE & -INFINITE; /* those of the smallest normal number */
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL g = sign * READ(grad[i]), a = g < 0 ? -g : g, was = READ(m[i]), old = past * READ(r[i]), unit, x, y;
        REAL average = was + rest * (g - was), numerator = average + now * (g - average);
        BITS of_a = NAMED(bits_of)(a), of_old = NAMED(bits_of)(old), top = of_a > of_old ? of_a : of_old;
        if (how == ANY) {
            BITS other = of_a > of_old ? of_old : of_a;
            unit = NAMED(of_bits)(top);
            REAL z = NAMED(power)(NAMED(of_bits)(other) / NAMED(of_bits)(top > 1 ? top : 1), p);
            x = of_a > of_old ? z : 1;
            y = of_a > of_old ? 1 : z;
        } else {
            top = (top > least ? top : least) & INFINITE;
            REAL scale = NAMED(of_bits)(INFINITE - top);
            unit = (REAL)0.5 * NAMED(of_bits)(top);
            x = NAMED(raise)(how, scale * old); /* the larger of them from [2, 4) */
            y = NAMED(raise)(how, scale * a);
        }
        m[i] = WRITTEN(average);
        r[i] = WRITTEN(unit * NAMED(lower)(how, x + fresh * (y - x), inverse));
        REAL b = unit * NAMED(lower)(how, x + below * (y - x), inverse);
        theta[i] = WRITTEN(decay * READ(theta[i]) - lr * (numerator / (b + eps)));
    }
}

/* The same, group by group, each asking for what a later one will read: arithmetic and memory then overlap, which the
 * processor does not see to by itself over so long a chain of operations (10 to 15 % of a step on large tensors). */
INLINE void NAMED(groups)(int how, STORED *restrict theta, const STORED *restrict g, STORED *restrict m,
                          STORED *restrict r, ptrdiff_t n, const Settings *settings) {
    ptrdiff_t i = 0;
    for (; i + GROUP <= n; i += GROUP) {
        for (ptrdiff_t j = i + AHEAD; j < i + AHEAD + GROUP; j += 64 / (ptrdiff_t)sizeof(STORED)) {
            __builtin_prefetch(theta + j, 0, 2);
            __builtin_prefetch(g + j, 0, 2);
            __builtin_prefetch(m + j, 0, 2);
            __builtin_prefetch(r + j, 0, 2);
        }
        NAMED(elements)(how, theta + i, g + i, m + i, r + i, GROUP, settings);
    }
    NAMED(elements)(how, theta + i, g + i, m + i, r + i, n - i, settings);
}

#define KIND(name, how)                                                                                             \
    WIDE static void NAMED(step_##name)(STORED *restrict theta, const STORED *restrict g, STORED *restrict m,      \
                                        STORED *restrict r, ptrdiff_t n, const Settings *settings) {               \
        NAMED(groups)(how, theta, g, m, r, n, settings);                                                            \
    }
KIND(one, ONE)
KIND(one_and_half, ONE_AND_HALF)
KIND(two, TWO)
KIND(three, THREE)
KIND(four, FOUR)
KIND(six, SIX)
KIND(any, ANY)
#undef KIND

WIDE static void NAMED(widen)(const uint16_t *restrict from, STORED *restrict to, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) to[i] = WRITTEN(of_bfloat16(from[i]));
}

WIDE static void NAMED(narrow)(const STORED *restrict from, uint16_t *restrict to, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) to[i] = to_bfloat16((float)READ(from[i]));
}

/* What is to be done: `count` tensors, laid end to end, of n (count) elements each; `places` (4, count): parameters,
 * gradients, averages, roots; `types` says what each of the four is stored as. Shares lie between two of the edges. */
typedef struct {
    int64_t count;
    const int64_t *n;
    void *const *places;
    const int32_t *types;
    const Settings *settings;
    const int64_t *edges;
    int32_t how, shares, next;
} NAMED(Work);

static void NAMED(share)(const NAMED(Work) *work, int64_t first, int64_t stop) {
    static void (*const HOW[])(STORED *restrict, const STORED *restrict, STORED *restrict, STORED *restrict, ptrdiff_t,
                               const Settings *) = {
        NAMED(step_one), NAMED(step_one_and_half), NAMED(step_two), NAMED(step_three),
        NAMED(step_four), NAMED(step_six), NAMED(step_any),
    };
    const int32_t *types = work->types;
    int direct = types[0] == OWN && types[1] == OWN && types[2] == OWN && types[3] == OWN;
    int64_t before = 0;
    for (int64_t t = 0; t < work->count && before < stop; before += work->n[t++]) {
        int64_t from = first > before ? first - before : 0, n = work->n[t], to = stop - before < n ? stop - before : n;
        while (from < to) {
            ptrdiff_t size = direct || to - from < BLOCK ? to - from : BLOCK;
            STORED wide[4][BLOCK], *at[4];
            for (int j = 0; j < 4; j++) {
                void *place = work->places[j * work->count + t];
                at[j] = types[j] == OWN ? (STORED *)place + from : wide[j];
                if (types[j] != OWN) NAMED(widen)((const uint16_t *)place + from, wide[j], size);
            }
            HOW[work->how](at[0], at[1], at[2], at[3], size, work->settings);
            for (int j = 0; j < 4; j++)
                if (types[j] != OWN && j != 1)
                    NAMED(narrow)(wide[j], (uint16_t *)work->places[j * work->count + t] + from, size);
            from += size;
        }
    }
}

/* One thread's part: the next share that nobody has taken, until there is none. */
static void NAMED(shares)(void *data) {
    NAMED(Work) *work = data;
    int32_t mine;
    while ((mine = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->shares)
        NAMED(share)(work, work->edges[mine], work->edges[mine + 1]);
}

void NAMED(foreshock_s3)(int64_t count, const int64_t *n, void *const *places, const int32_t *types, int32_t how,
                         const Settings *settings, const int64_t *edges, int32_t shares, int32_t threads, Team *team) {
    NAMED(Work) work = {count, n, places, types, settings, edges, how, shares, 0};
    if (team && threads > 1) team(NAMED(shares), &work, (unsigned)threads, 0);
    else NAMED(shares)(&work);
}

#endif
