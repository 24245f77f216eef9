/* LSTMs of a population in float32 over blocks of examples: the scan and its gradients; recurrent.py has the equations.

   A member's examples go through the whole scan in blocks of BLOCK, so that what is in use stays in the cache. The
   backward pass computes the gates again, out of the inputs, h and c, because that is cheaper than storing them.

   Axes: P members, D directions, T samples, B examples, I inputs, H hidden, K = I + 1 + H rows of [x; 1; h], G = 4
   gates i, f, g, o. Weights and their gradients [P, D, H, K, G]; of a block h [T, D, H, BLOCK], and c [D, T, H, BLOCK]
   in the order of the scan. To be included first. */

#pragma once

#include "vectors.h"

#define BLOCK (2 * LANES)
#define STEPS 8   /* of time, between two updates of the weights' gradients */
#define AHEAD 4   /* steps from asking the memory for h and c to their use in the backward pass */
#define FLUSH 8   /* blocks that are summed in float32, before they enter a sum in float64 */

typedef float vec __attribute__((vector_size(4 * LANES)));

#include "exponential.h"

typedef struct {
    size members, directions, time, examples, inputs, hidden;
} Shape;

typedef struct {
    size member, time, example, channel;
} Strides;

static void *allocate(size bytes) {
    void *memory;
    return posix_memalign(&memory, 64, bytes) ? 0 : memory;
}

/* Load once; compilers else repeat the load for every product. */
inline_ vec load(const float *from) {
    vec x = *(const vec *)from;
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#endif
    return x;
}

/* One time of a block of examples -> to [channels, BLOCK]; the missing examples of the last block are 0. */
static void pack(const float *from, Strides s, size count, size channels, float *to) {
    if (count < BLOCK) memset(to, 0, channels * BLOCK * sizeof(float));
    if (s.channel == 1)
        transpose(from, s.example, to, BLOCK, count, channels);
    else if (s.example == 1)
        for (size c = 0; c < channels; c++) memcpy(to + c * BLOCK, from + c * s.channel, count * sizeof(float));
    else
        for (size c = 0; c < channels; c++)
            for (size b = 0; b < count; b++) to[c * BLOCK + b] = from[b * s.example + c * s.channel];
}

/* All times of a block of examples -> to [T, line], of which each has [channels, BLOCK]. */
static void pack_times(const float *from, Strides s, size time, size count, size channels, float *to, size line) {
    if (s.time != 1) {
        for (size t = 0; t < time; t++) pack(from + t * s.time, s, count, channels, to + t * line);
        return;
    }
    for (size t = 0; t < time && count < BLOCK; t++) memset(to + t * line, 0, channels * BLOCK * sizeof(float));
    for (size c = 0; c < channels; c++) transpose(from + c * s.channel, s.example, to + c * BLOCK, line, count, time);
}

/* [x; 1] of a block of examples at all times: to [T, I + 1, BLOCK]. */
static void pack_inputs(const float *x, Strides s, Shape n, size start, size count, float *to) {
    size line = (n.inputs + 1) * BLOCK;
    pack_times(x + start * s.example, s, n.time, count, n.inputs, to, line);
    for (size t = 0; t < n.time; t++)
        for (size b = 0; b < BLOCK; b++) to[t * line + n.inputs * BLOCK + b] = 1;
}

/* Weights for `product`: their rows times -log2(e), those of g twice that. */
static void scale(size count, const float *w, float *to) {
    for (size i = 0; i < count; i++) to[i] = w[i] * (i % 4 == 2 ? -2 * LOG2E : -LOG2E);
}

/* 1 + e^-a of i, f, o and 1 + e^-2a of g, for one hidden unit; a = w [x; 1; h], w scaled, [rows + hidden, G]. */
inline_ void product(vec s[4][2], const float *w, const float *x, size rows, const float *h, size hidden) {
    for (int g = 0; g < 4; g++) s[g][0] = s[g][1] = (vec){0};
    for (size k = 0; k < rows; k++, x += BLOCK, w += 4) {
        vec u = load(x), v = load(x + LANES);
        for (int g = 0; g < 4; g++) s[g][0] += w[g] * u, s[g][1] += w[g] * v;
    }
    for (size k = 0; k < hidden; k++, h += BLOCK, w += 4) {
        vec u = load(h), v = load(h + LANES);
        for (int g = 0; g < 4; g++) s[g][0] += w[g] * u, s[g][1] += w[g] * v;
    }
    for (int g = 0; g < 4; g++)
        for (int v = 0; v < 2; v++) s[g][v] = 1.0f + power2(s[g][v]);
}

/* zero [H, BLOCK]: the initial state. */
static void scan(Shape n, int reverse, const float *x, const float *w, const float *zero, float *h, float *c) {
    size rows = n.inputs + 1, H = n.hidden, K = rows + H, wide = n.directions * H * BLOCK;
    for (size s = 0; s < n.time; s++, c += H * BLOCK) {
        size t = reverse ? n.time - 1 - s : s;
        const float *before = s ? h + (reverse ? t + 1 : t - 1) * wide : zero, *old = s ? c - H * BLOCK : zero;
        float *now = h + t * wide;
        for (size j = 0; j < H; j++) {
            vec a[4][2];
            product(a, w + j * K * 4, x + t * rows * BLOCK, rows, before, H);
            for (int v = 0; v < 2; v++) {
                size at = j * BLOCK + v * LANES;
                vec i = a[0][v], f = a[1][v], g = a[2][v];
                vec ig = (2.0f - g) / (i * g); /* sigmoid(a) tanh(b) = 1 / (1 + e^-a) (2 / (1 + e^-2b) - 1) */
                *(vec *)(c + at) = *(vec *)(old + at) / f + ig;
                *(vec *)(now + at) = a[3][v];
            }
        }
        for (size at = 0; at < H * BLOCK; at += LANES) { /* apart, because many at once hide the latency */
            vec l = 1.0f + power2(-2 * LOG2E * *(vec *)(c + at)), *o = (vec *)(now + at);
            *o = (2.0f - l) / (*o * l);
        }
    }
}

/* Gradients of one step before the sigmoids, after computing the gates again: d [H, G, BLOCK]. dh and dc [H, BLOCK]
   come from the later step, and dc leaves for the earlier one. */
static void step(Shape n, const float *x, const float *w, const float *before, const float *h, const float *old,
                 const float *upstream, const float *dh, float *dc, float *d) {
    size rows = n.inputs + 1, H = n.hidden, K = rows + H;
    for (size j = 0; j < H; j++) {
        vec a[4][2];
        product(a, w + j * K * 4, x, rows, before, H);
        for (int g = 0; g < 4; g++)
            for (int v = 0; v < 2; v++) *(vec *)(d + j * 4 * BLOCK + g * BLOCK + v * LANES) = a[g][v];
    }
    for (size at = 0; at < H * BLOCK; at += LANES) {
        vec *e = (vec *)(d + at / BLOCK * 4 * BLOCK + at % BLOCK), *own = (vec *)(dc + at);
        vec one = 1.0f / (e[0] * e[2]), two = 1.0f / (e[4] * e[6]), l = *(vec *)(h + at) * e[6]; /* tanh(c) = h / o */
        vec i = one * e[2], f = one * e[0], g = 2.0f * (two * e[6]) - 1.0f, o = two * e[4];
        vec out = *(vec *)(upstream + at) + *(vec *)(dh + at);
        vec cell = *own + out * o * (1.0f - l * l);
        e[0] = cell * g * (i * (1.0f - i));
        e[2] = cell * *(vec *)(old + at) * (f * (1.0f - f));
        e[4] = cell * i * (1.0f - g * g);
        e[6] = out * l * (o * (1.0f - o));
        *own = cell * f;
    }
}

/* to [count, BLOCK] = or += w' d for `count` rows of [x; 1; h]; w points to the first of them. */
inline_ void back_rows(int count, float *to, int add, const float *w, const float *d, size H, size K) {
    vec s[4][2];
    for (int r = 0; r < count; r++)
        for (int v = 0; v < 2; v++) s[r][v] = add ? *(vec *)(to + r * BLOCK + v * LANES) : (vec){0};
    for (size j = 0; j < H; j++, w += K * 4)
        for (int g = 0; g < 4; g++, d += BLOCK) {
            vec u = load(d), v = load(d + LANES);
            for (int r = 0; r < count; r++) s[r][0] += w[r * 4 + g] * u, s[r][1] += w[r * 4 + g] * v;
        }
    for (int r = 0; r < count; r++)
        for (int v = 0; v < 2; v++) *(vec *)(to + r * BLOCK + v * LANES) = s[r][v];
}

static void back(size rows, float *to, int add, const float *w, const float *d, size H, size K) {
    for (; rows >= 4; rows -= 4, to += 4 * BLOCK, w += 16) back_rows(4, to, add, w, d, H, K);
    if (rows == 3) back_rows(3, to, add, w, d, H, K);
    if (rows == 2) back_rows(2, to, add, w, d, H, K);
    if (rows == 1) back_rows(1, to, add, w, d, H, K);
}

/* sums [count, G] += d [steps, G, BLOCK] u [steps, count, BLOCK]', still a sum per lane. */
inline_ void outer_rows(int count, vec *sums, const float *d, size d_step, const float *u, size u_step, size steps) {
    vec s[3][4];
    for (int r = 0; r < count; r++)
        for (int g = 0; g < 4; g++) s[r][g] = sums[r * 4 + g];
    for (size t = 0; t < steps; t++, d += d_step, u += u_step)
        for (int v = 0; v < 2; v++)
            for (int g = 0; g < 4; g++) {
                vec one = load(d + g * BLOCK + v * LANES);
                for (int r = 0; r < count; r++) s[r][g] += one * *(const vec *)(u + r * BLOCK + v * LANES);
            }
    for (int r = 0; r < count; r++)
        for (int g = 0; g < 4; g++) sums[r * 4 + g] = s[r][g];
}

static void outer(size rows, vec *sums, const float *d, size d_step, const float *u, size u_step, size steps) {
    for (; rows >= 3; rows -= 3, sums += 12, u += 3 * BLOCK) outer_rows(3, sums, d, d_step, u, u_step, steps);
    if (rows == 2) outer_rows(2, sums, d, d_step, u, u_step, steps);
    if (rows == 1) outer_rows(1, sums, d, d_step, u, u_step, steps);
}

typedef struct {
    float *u, *upstream, *du, *d, *dh, *dc, *zero, *scaled;
    vec *sums;
    double *totals;
} Scratch;

/* Ask the memory for h and c of the scan's step s: the processor does not foresee these jumps by itself. */
inline_ void fetch(Shape n, int reverse, const float *h, const float *c, size s) {
    size cells = n.hidden * BLOCK, t = reverse ? n.time - 1 - s : s;
    if (s < 0) return;
    for (size at = 0; at < cells; at += 16) {
        __builtin_prefetch(h + t * n.directions * cells + at);
        __builtin_prefetch(c + s * cells + at);
    }
}

static void scan_back(Shape n, int reverse, const float *w, const float *h, const float *c, Scratch m, int need_input) {
    size rows = n.inputs + 1, H = n.hidden, K = rows + H, wide = n.directions * H * BLOCK, cells = H * BLOCK;
    size forth = reverse ? -1 : 1, d_step = 4 * cells, end = n.time;
    memset(m.dh, 0, cells * sizeof(float));
    while (end > 0) {
        size begin = end > STEPS ? end - STEPS : 0;
        for (size s = end - 1; s >= begin; s--) {
            size t = reverse ? n.time - 1 - s : s;
            const float *before = s ? h + (t - forth) * wide : m.zero, *old = s ? c + (s - 1) * cells : m.zero;
            float *d = m.d + (s - begin) * d_step;
            fetch(n, reverse, h, c, s - AHEAD);
            step(n, m.u + t * rows * BLOCK, m.scaled, before, h + t * wide, old,
                 m.upstream + t * wide + reverse * cells, m.dh, m.dc, d);
            if (s) back(H, m.dh, 0, w + rows * 4, d, H, K);
            if (need_input) back(n.inputs, m.du + t * n.inputs * BLOCK, reverse, w, d, H, K);
        }
        size first = reverse ? n.time - 1 - begin : begin, skip = begin == 0;
        const float *earlier = h + (first + (skip ? 0 : -forth)) * wide;
        for (size j = 0; j < H; j++) {
            vec *sums = m.sums + j * K * 4;
            const float *d = m.d + j * 4 * BLOCK;
            outer(rows, sums, d, d_step, m.u + first * rows * BLOCK, forth * rows * BLOCK, end - begin);
            outer(H, sums + rows * 4, d + skip * d_step, d_step, earlier, forth * wide, end - begin - skip);
        }
        end = begin;
    }
}

static void flush(size count, vec *sums, double *totals) {
    for (size i = 0; i < count; i++) {
        double s = 0;
        for (int lane = 0; lane < LANES; lane++) s += sums[i][lane];
        totals[i] += s;
        sums[i] = (vec){0};
    }
}
