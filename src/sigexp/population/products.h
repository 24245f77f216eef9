/* What convolutions are made of: a few channels times a few vectors of pixels (or, for the gradient of the weights, a few
   channels times a few taps) are summed in registers.

   Axes: Q = P, or 1 where the members share x; P members, C input channels, D output channels, B examples.
   x [Q, C, B, H, W], weight [P, D, C, h, w], bias [P, D], out [P, D, B, H', W']. */

#pragma once

#include "floats.h"

#define SUMS (LANES == 16 ? 24 : 12) /* vectors that are summed at a time */
#define CHANNELS 4 /* at a time */
#define ROWS 2     /* that `folded` takes together */
#define HIGH 5     /* rows of a kernel, from which that pays */
#define BESIDE(channels) ((channels) == 1 ? SUMS * 2 / 3 : SUMS / (channels)) /* vectors or taps at a time */

typedef struct {
    size members, shared, examples, inputs, outputs, height, width, out_height, out_width;
    size kernel_height, kernel_width, pad_rows, pad_columns, step_rows, step_columns;
    size from_across, nonlinearity; /* whether x lies [Q, C, H, W, B]; of out, which then lies so too, else 0 */
    double slope;                   /* of a leaky ReLU below zero */
} Shape;

/* Distances of channels, examples, rows and columns, and in a copy the zeros at the top and the left of each example. */
typedef struct {
    float *data;
    size plane, example, row, column, top, left;
} Images;

/* Where the vectors of some pictures' rows begin in two `Images`, and how many of their lanes are in the picture. */
typedef struct {
    size count, *from, *to, *lanes;
} Vectors;

static void *allocate(size count, size bytes) { /* zeros, and room for reading beyond */
    void *memory;
    bytes = (count + 4 * LANES) * bytes;
    return posix_memalign(&memory, 64, bytes) ? 0 : memset(memory, 0, bytes);
}

static size larger(size a, size b) { return a > b ? a : b; }

/* A single output channel uses what is loaded only once. Neighbouring rows of it, taken as channels, use it once each:
   their kernels are the same one, each a row lower than the last, and with zeros elsewhere. */
static Shape folded(Shape s) {
    if (s.outputs == 1 && s.kernel_height >= HIGH && s.step_rows == 1 && s.out_height % ROWS == 0)
        s.outputs = ROWS, s.kernel_height += ROWS - 1;
    return s;
}

/* weight [C, h, w] <-> folded [ROWS, C, h + ROWS - 1, w]; towards the folded ones it is copied, towards weight summed. */
static void fold(float *weight, float *folded, const Shape *s, int sum) {
    size columns = s->kernel_width, plane = s->kernel_height * columns, higher = plane + (ROWS - 1) * columns;
    for (size d = 0; d < ROWS; d++)
        for (size c = 0; c < s->inputs; c++)
            for (size t = 0; t < plane; t++) {
                float *here = weight + c * plane + t, *there = folded + (d * s->inputs + c) * higher + d * columns + t;
                if (sum)
                    *here += *there;
                else
                    *there = *here;
            }
}

static size *taps_of(const Shape *s, size channels, Images images) {
    size *taps = allocate(channels * s->kernel_height * s->kernel_width, sizeof(size)), n = 0;
    for (size c = 0; taps && c < channels; c++)
        for (size i = 0; i < s->kernel_height; i++)
            for (size j = 0; j < s->kernel_width; j++)
                taps[n++] = c * images.plane + i * s->step_rows * images.row + j * s->step_columns * images.column;
    return taps;
}

/* out[d, v] = sum over taps of weight[tap, d] * x[v + tap], and what `out` had where there is `more`, else bias[d] */
inline_ void correlate_block(const size channels, const size beside, const float *x, const Vectors *v, size first,
                             const size *taps, size count, const float *weight, const float *bias, float *out,
                             size plane, int more) {
    vec sums[CHANNELS][SUMS];
    const float *begin[SUMS];
    UNROLL for (size k = 0; k < beside; k++) begin[k] = x + v->from[first + k < v->count ? first + k : v->count - 1];
    UNROLL for (size d = 0; d < channels; d++)
        UNROLL for (size k = 0; k < beside; k++)
            sums[d][k] = more ? load(out + v->to[first + k < v->count ? first + k : v->count - 1] + d * plane)
                              : filled(bias ? bias[d] : 0);
    for (size t = 0; t < count; t++, weight += channels) {
        size tap = taps[t];
        vec held[CHANNELS]; /* the fewer of pixels and weights, so that 16 registers do */
        if (channels < beside) {
            UNROLL for (size d = 0; d < channels; d++) held[d] = in_register(filled(weight[d]));
            UNROLL for (size k = 0; k < beside; k++) {
                vec here = load(begin[k] + tap);
                if (channels > 1) here = in_register(here);
                UNROLL for (size d = 0; d < channels; d++) sums[d][k] += here * held[d];
            }
        } else {
            UNROLL for (size k = 0; k < beside; k++) held[k] = in_register(load(begin[k] + tap));
            UNROLL for (size d = 0; d < channels; d++) {
                vec here = in_register(filled(weight[d]));
                UNROLL for (size k = 0; k < beside; k++) sums[d][k] += here * held[k];
            }
        }
    }
    UNROLL for (size k = 0; k < beside; k++) {
        if (first + k >= v->count) break;
        float *to = out + v->to[first + k];
        size lanes = v->lanes[first + k];
        UNROLL for (size d = 0; d < channels; d++) {
            if (lanes == LANES)
                *(vec *)(to + d * plane) = sums[d][k];
            else
                memcpy(to + d * plane, &sums[d][k], lanes * sizeof(float));
        }
    }
}

#define ANY_CHANNELS(n, call)       \
    switch (n) {                    \
    case 1: call(1); break;         \
    case 2: call(2); break;         \
    case 3: call(3); break;         \
    default: call(4);               \
    }

/* All channels of one example. packed: weights as [D / 4, row, 4], of whose rows `count` from `begin` on are meant. */
static void correlate(const float *x, const Vectors *v, const size *taps, size begin, size count, size row,
                      size channels, const float *packed, const float *bias, float *out, size plane, int more) {
    for (size d = 0; d < channels; d += CHANNELS) {
        size n = channels - d < CHANNELS ? channels - d : CHANNELS;
#define CALL(n)                                                                                                  \
    for (size first = 0; first < v->count; first += BESIDE(n))                                                   \
    correlate_block(n, BESIDE(n), x, v, first, taps, count, packed + d * row + begin * n, bias ? bias + d : 0,   \
                    out + d * plane, plane, more)
        ANY_CHANNELS(n, CALL)
#undef CALL
    }
}

/* weight_grad[d, tap] += sum over v of grad[d, v] * x[v + tap] */
inline_ void tally_block(const size channels, const size beside, const float *x, const float *grad, size plane,
                         const Vectors *v, const size *taps, size n, float *weight_grad, size row) {
    vec sums[CHANNELS][SUMS];
    const float *begin[SUMS];
    UNROLL for (size k = 0; k < beside; k++) begin[k] = x + taps[k < n ? k : n - 1];
    UNROLL for (size d = 0; d < channels; d++) UNROLL for (size k = 0; k < beside; k++) sums[d][k] = filled(0);
    for (size i = 0; i < v->count; i++) {
        const float *g = grad + v->to[i];
        size from = v->from[i];
        vec held[CHANNELS];
        if (channels < beside) {
            UNROLL for (size d = 0; d < channels; d++) held[d] = in_register(load(g + d * plane));
            UNROLL for (size k = 0; k < beside; k++) {
                vec here = load(begin[k] + from);
                if (channels > 1) here = in_register(here);
                UNROLL for (size d = 0; d < channels; d++) sums[d][k] += here * held[d];
            }
        } else {
            UNROLL for (size k = 0; k < beside; k++) held[k] = in_register(load(begin[k] + from));
            UNROLL for (size d = 0; d < channels; d++) {
                vec here = in_register(load(g + d * plane));
                UNROLL for (size k = 0; k < beside; k++) sums[d][k] += here * held[k];
            }
        }
    }
    UNROLL for (size d = 0; d < channels; d++)
        UNROLL for (size k = 0; k < beside; k++) if (k < n) weight_grad[d * row + k] += sum(sums[d][k]);
}

/* weight_grad [D, row], of which `count` columns are meant; bias_grad may be 0. */
static void tally(const float *x, const Vectors *v, const size *taps, size count, size row, size channels,
                  const float *grad, size plane, float *weight_grad, float *bias_grad) {
    for (size d = 0; d < channels; d += CHANNELS) {
        size n = channels - d < CHANNELS ? channels - d : CHANNELS;
#define CALL(n)                                                                                             \
    for (size t = 0; t < count; t += BESIDE(n))                                                             \
    tally_block(n, BESIDE(n), x, grad + d * plane, plane, v, taps + t, count - t, weight_grad + d * row + t, row)
        ANY_CHANNELS(n, CALL)
#undef CALL
    }
    for (size d = 0; bias_grad && d < channels; d++) {
        vec total = filled(0);
        for (size i = 0; i < v->count; i++) total += load(grad + d * plane + v->to[i]);
        bias_grad[d] += sum(total);
    }
}

/* weight [D, C, taps] -> [D / 4, C taps, 4], or for the gradient of x [C / 4, D taps, 4] with the kernels turned. */
static void pack(float *packed, const float *weight, size outputs, size inputs, size taps, int turned) {
    size channels = turned ? inputs : outputs, others = turned ? outputs : inputs;
    for (size d = 0; d < channels; d += CHANNELS) {
        size n = channels - d < CHANNELS ? channels - d : CHANNELS;
        for (size c = 0; c < others; c++)
            for (size t = 0; t < taps; t++)
                for (size k = 0; k < n; k++)
                    *packed++ = turned ? weight[(c * inputs + d + k) * taps + taps - 1 - t]
                                       : weight[((d + k) * inputs + c) * taps + t];
    }
}

/* The weights of the members from `first` to `last`, folded where f says so; higher: room for a folded kernel. */
static void pack_members(float *packed, float *weight, size first, size last, const Shape *s, const Shape *f,
                         float *higher) {
    size taps = f->kernel_height * f->kernel_width, weights = s->outputs * s->inputs * s->kernel_height * s->kernel_width;
    for (size p = first; p < last; p++, packed += f->outputs * s->inputs * taps) {
        float *own = weight + p * weights;
        if (f->outputs != s->outputs) fold(own, higher, s, 0), own = higher;
        pack(packed, own, f->outputs, s->inputs, taps, 0);
    }
}
