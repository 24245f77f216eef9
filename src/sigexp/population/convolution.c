/* Convolutions of a population in float32, stride 1, forward and backward: direct, without copies of the windows.

   A few channels times a few vectors of neighbouring pixels (or, for the gradient of the weights, a few channels times
   a few taps) are summed in registers. Images are put into zero borders one example at a time, so that what is in use
   stays in the cache; where there is no border and rows are whole vectors, they are read where they lie.

   Axes: Q = P, or 1 where the members share x; P members, C input channels, D output channels, B examples.
   x [Q, C, B, H, W], weight [P, D, C, h, w], bias [P, D], out [P, D, B, H', W']. `convolution_learn` is another pass,
   for models of one layer. */

#include "vectors.h"

#define SUMS (LANES == 16 ? 24 : 12) /* vectors that are summed at a time */
#define CHANNELS 4 /* at a time */
#define VECTORS 96 /* at a time at least, if there are so many examples */
#define ROWS 2     /* that `folded` takes together */
#define HIGH 5     /* rows of a kernel, from which that pays */
#define BESIDE(channels) ((channels) == 1 ? SUMS * 2 / 3 : SUMS / (channels)) /* vectors or taps at a time */
#define UNROLL _Pragma("GCC unroll 24")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

typedef struct {
    size members, shared, examples, inputs, outputs, height, width, out_height, out_width;
    size kernel_height, kernel_width, pad_rows, pad_columns, step_rows, step_columns;
} Shape;

/* Distances of channels, examples and rows, and in a copy the zeros at the top and the left of each example. */
typedef struct {
    float *data;
    size plane, example, row, top, left;
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

inline_ vec load(const float *from) { return *(const vec *)from; }

/* For what is used several times, because GCC prefers to load it again at every use. */
inline_ vec in_register(vec x) {
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#endif
    return x;
}

inline_ vec filled(float value) { return value - (vec){0}; } /* + 0 would change -0, so it would be computed */
static size larger(size a, size b) { return a > b ? a : b; }
static size rounded(size width) { return (width + LANES - 1) / LANES * LANES; }

/* Halves are added as halves: lanes one by one, which GCC makes of a loop over them, take a third of `tally`'s time. */
inline_ float sum(vec x) {
#if LANES == 16
    union { vec whole; vec8 half[2]; } all = {x};
    union { vec8 whole; vec4 half[2]; } eight = {all.half[0] + all.half[1]};
    vec4 four = eight.half[0] + eight.half[1];
#elif LANES == 8
    union { vec whole; vec4 half[2]; } eight = {x};
    vec4 four = eight.half[0] + eight.half[1];
#else
    vec4 four = x;
#endif
    return (four[0] + four[2]) + (four[1] + four[3]);
}

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

/* Whether vectors cover the rows of images without zeros around them exactly. */
static int lines_up(const Shape *s) {
    return rounded(s->out_width) + (s->kernel_width - 1) * s->step_columns == s->width;
}

/* Examples at a time: as many as give enough vectors to hide what a block of channels costs besides. */
static size group_of(const Shape *s) {
    size vectors = s->out_height * rounded(s->out_width) / LANES, wanted = (VECTORS + vectors - 1) / vectors;
    return wanted < s->examples ? wanted : s->examples;
}

/* Zeros, with room for aligned vectors from `left` on, and for `reach` columns beyond the vectors of `reader`, which
   begins `left` columns before them. */
static Images bordered(size channels, size examples, size rows, size top, size columns, size left, size reader,
                       size reach) {
    size begin = rounded(left), end = larger(begin + rounded(columns), begin - left + rounded(reader) + reach);
    size example = (rows + 2 * top) * rounded(end), plane = examples * example;
    return (Images){allocate(channels * plane, sizeof(float)), plane, example, rounded(end), top, begin};
}

static void put(Images room, Images images, size channels, size examples, size height, size width) {
    size whole = width / LANES * LANES;
    for (size c = 0; c < channels; c++)
        for (size b = 0; b < examples; b++)
            for (size i = 0; i < height; i++) {
                float *to = room.data + c * room.plane + b * room.example + (room.top + i) * room.row + room.left;
                const float *from = images.data + c * images.plane + b * images.example + i * images.row;
                size j = 0;
                for (; j < whole; j += LANES) *(vec *)(to + j) = load(from + j); /* memcpy takes long to begin */
                for (; j < width; j++) to[j] = from[j];
            }
}

static int vectors_of(Vectors *v, size examples, size height, size step, size width, Images from, Images to) {
    size count = examples * (height / step) * (rounded(width) / LANES), *at = allocate(3 * count, sizeof(size)), n = 0;
    *v = (Vectors){count, at, at + count, at + 2 * count};
    if (!at) return 1;
    for (size b = 0; b < examples; b++)
        for (size i = 0; i < height; i += step)
            for (size j = 0; j < width; j += LANES, n++) {
                v->from[n] = b * from.example + i * from.row + j, v->to[n] = b * to.example + i * to.row + j;
                v->lanes[n] = width - j < LANES ? width - j : LANES;
            }
    return 0;
}

static Vectors part(Vectors v, size examples, size of) {
    v.count = v.count / of * examples;
    return v;
}

static size *taps_of(const Shape *s, size channels, Images images) {
    size *taps = allocate(channels * s->kernel_height * s->kernel_width, sizeof(size)), n = 0;
    for (size c = 0; taps && c < channels; c++)
        for (size i = 0; i < s->kernel_height; i++)
            for (size j = 0; j < s->kernel_width; j++)
                taps[n++] = c * images.plane + i * s->step_rows * images.row + j * s->step_columns;
    return taps;
}

/* out[d, v] = bias[d] + sum over taps of weight[tap, d] * x[v + tap] */
inline_ void correlate_block(const size channels, const size beside, const float *x, const Vectors *v, size first,
                             const size *taps, size count, const float *weight, const float *bias, float *out,
                             size plane) {
    vec sums[CHANNELS][SUMS];
    const float *begin[SUMS];
    UNROLL for (size k = 0; k < beside; k++) begin[k] = x + v->from[first + k < v->count ? first + k : v->count - 1];
    UNROLL for (size d = 0; d < channels; d++)
        UNROLL for (size k = 0; k < beside; k++) sums[d][k] = filled(bias ? bias[d] : 0);
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

/* All channels of one example. packed: weights as [D / 4, taps, 4]. */
static void correlate(const float *x, const Vectors *v, const size *taps, size count, size channels,
                      const float *packed, const float *bias, float *out, size plane) {
    for (size d = 0; d < channels; d += CHANNELS) {
        size n = channels - d < CHANNELS ? channels - d : CHANNELS;
#define CALL(n)                                                                                              \
    for (size first = 0; first < v->count; first += BESIDE(n))                                               \
    correlate_block(n, BESIDE(n), x, v, first, taps, count, packed + d * count, bias ? bias + d : 0, out + d * plane, plane)
        ANY_CHANNELS(n, CALL)
#undef CALL
    }
}

/* weight_grad[d, tap] += sum over v of grad[d, v] * x[v + tap] */
inline_ void tally_block(const size channels, const size beside, const float *x, const float *grad, size plane,
                         const Vectors *v, const size *taps, size n, float *weight_grad, size count) {
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
        UNROLL for (size k = 0; k < beside; k++) if (k < n) weight_grad[d * count + k] += sum(sums[d][k]);
}

static void tally(const float *x, const Vectors *v, const size *taps, size count, size channels, const float *grad,
                  size plane, float *weight_grad, float *bias_grad) {
    for (size d = 0; d < channels; d += CHANNELS) {
        size n = channels - d < CHANNELS ? channels - d : CHANNELS;
#define CALL(n)                                                                                             \
    for (size t = 0; t < count; t += BESIDE(n))                                                             \
    tally_block(n, BESIDE(n), x, grad + d * plane, plane, v, taps + t, count - t, weight_grad + d * count + t, count)
        ANY_CHANNELS(n, CALL)
#undef CALL
    }
    for (size d = 0; d < channels; d++) {
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

/* The members from `first` to `last`; not 0 where there is no memory. */
int convolution_forward(Shape s, size first, size last, float *x, float *weight, float *bias, float *out) {
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size count = s.inputs * f.kernel_height * f.kernel_width, reach = (s.kernel_width - 1) * s.step_columns;
    Images lying = {x, s.examples * pixels, pixels, s.width, 0, 0}, room = lying;
    Images to = {out, s.examples * out_pixels, out_pixels, s.out_width, 0, 0};
    if (!direct)
        room = bordered(s.inputs, group, s.height, s.pad_rows, s.width, s.pad_columns, s.out_width, reach);
    Vectors v = {0};
    size *taps = taps_of(&f, s.inputs, room);
    float *packed = allocate(f.outputs * count * (last - first), sizeof(float));
    float *higher = allocate(f.outputs * count, sizeof(float));
    if (!room.data || !taps || !packed || !higher ||
        vectors_of(&v, group, s.out_height, fold_rows ? ROWS : 1, s.out_width, room, to))
        goto end;
    pack_members(packed, weight, first, last, &s, &f, higher);
    for (size q = s.shared ? last - 1 : first; q < last; q++)
        for (size b = 0; b < s.examples; b += group) {
            size n = s.examples - b < group ? s.examples - b : group;
            Vectors here = part(v, n, group);
            lying.data = x + ((s.shared ? 0 : q) * s.inputs * s.examples + b) * pixels;
            if (!direct) put(room, lying, s.inputs, n, s.height, s.width);
            float *seen = direct ? lying.data : room.data + room.left - s.pad_columns;
            for (size p = s.shared ? first : q; p <= q; p++) {
                float same[ROWS] = {bias[p], bias[p]};
                correlate(seen, &here, taps, count, f.outputs,
                          packed + (p - first) * f.outputs * count, fold_rows ? same : bias + p * s.outputs,
                          out + (p * s.outputs * s.examples + b) * out_pixels, fold_rows ? to.row : to.plane);
            }
        }
    failed = 0;
end:
    if (!direct) free(room.data);
    free(taps), free(packed), free(higher), free(v.from);
    return failed;
}

/* x_grad may be 0; weight_grad and bias_grad begin as zeros. */
int convolution_backward(Shape s, size first, size last, float *x, float *weight, float *grad, float *x_grad,
                         float *weight_grad, float *bias_grad) {
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    int plain = s.out_width == rounded(s.out_width) && (!x_grad || (s.kernel_height * s.kernel_width == 1 && direct));
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size taps_per_channel = s.kernel_height * s.kernel_width, weights = s.outputs * s.inputs * taps_per_channel;
    size reach_rows = (s.kernel_height - 1) * s.step_rows, reach = (s.kernel_width - 1) * s.step_columns;
    size count = s.inputs * f.kernel_height * f.kernel_width;
    Images lying = {x, s.examples * pixels, pixels, s.width, 0, 0}, room = lying, to = lying;
    Images error = {grad, s.examples * out_pixels, out_pixels, s.out_width, 0, 0}, wide = error;
    Vectors learning = {0}, returning = {0};
    if (!direct)
        room = bordered(s.inputs, group, s.height, s.pad_rows, s.width, s.pad_columns, s.out_width, reach);
    if (!plain)
        wide = bordered(s.outputs, group, s.out_height, reach_rows - s.pad_rows, s.out_width, reach - s.pad_columns,
                        s.width, reach);
    size *taps = taps_of(&f, s.inputs, room), *turned = taps_of(&s, s.outputs, wide);
    float *packed = allocate(weights, sizeof(float)), *higher = allocate(f.outputs * count, sizeof(float));
    if (!room.data || !wide.data || !taps || !turned || !packed || !higher ||
        vectors_of(&learning, group, s.out_height, fold_rows ? ROWS : 1, s.out_width, room, wide) ||
        vectors_of(&returning, group, s.height, 1, s.width, wide, to))
        goto end;
    for (size q = s.shared ? last - 1 : first; q < last; q++) {
        if (x_grad) pack(packed, weight + q * weights, s.outputs, s.inputs, taps_per_channel, 1);
        for (size b = 0; b < s.examples; b += group) {
            size n = s.examples - b < group ? s.examples - b : group;
            Vectors learned = part(learning, n, group), returned = part(returning, n, group);
            lying.data = x + ((s.shared ? 0 : q) * s.inputs * s.examples + b) * pixels;
            if (!direct) put(room, lying, s.inputs, n, s.height, s.width);
            float *seen = direct ? lying.data : room.data + room.left - s.pad_columns;
            for (size p = s.shared ? first : q; p <= q; p++) {
                error.data = grad + (p * s.outputs * s.examples + b) * out_pixels;
                if (!plain) put(wide, error, s.outputs, n, s.out_height, s.out_width);
                Images g = plain ? error : wide;
                float *begin = g.data + g.top * g.row + g.left;
                if (fold_rows) {
                    float of_rows[ROWS] = {0};
                    memset(higher, 0, f.outputs * count * sizeof(float));
                    tally(seen, &learned, taps, count, f.outputs, begin, g.row, higher, of_rows);
                    fold(weight_grad + p * weights, higher, &s, 1);
                    for (size d = 0; d < ROWS; d++) bias_grad[p] += of_rows[d];
                } else
                    tally(seen, &learned, taps, count, s.outputs, begin, g.plane, weight_grad + p * weights,
                          bias_grad + p * s.outputs);
                if (x_grad)
                    correlate(begin - g.top * g.row - (reach - s.pad_columns), &returned, turned, s.outputs * taps_per_channel, s.inputs, packed, 0,
                              x_grad + (p * s.inputs * s.examples + b) * pixels, to.plane);
            }
        }
    }
    failed = 0;
end:
    if (!direct) free(room.data);
    if (!plain) free(wide.data);
    free(taps), free(turned), free(packed), free(higher), free(learning.from), free(returning.from);
    return failed;
}

/* error -= target, for some examples; their sums of squares are added to `losses`. */
static void compare(Images error, Images target, size channels, size examples, size height, size width, float *losses) {
    size whole = width / LANES * LANES;
    for (size b = 0; b < examples; b++) {
        vec squares = filled(0);
        float rest = 0;
        for (size d = 0; d < channels; d++)
            for (size i = 0; i < height; i++) {
                float *e = error.data + d * error.plane + b * error.example + i * error.row;
                const float *t = target.data + d * target.plane + b * target.example + i * target.row;
                for (size j = 0; j < whole; j += LANES) {
                    vec here = load(e + j) - load(t + j);
                    *(vec *)(e + j) = here, squares += here * here;
                }
                for (size j = whole; j < width; j++) e[j] -= t[j], rest += e[j] * e[j];
            }
        losses[b] += sum(squares) + rest;
    }
}

/* Sums of squared errors, losses [P, B], of a single layer whose members share x [B, C, H, W], against target
   [B, D, H', W'], and half their gradients, in one pass: what a few examples give never leaves the cache. All three
   begin as zeros. */
int convolution_learn(Shape s, size first, size last, float *x, float *weight, float *bias, float *target,
                      float *losses, float *weight_grad, float *bias_grad) {
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size count = s.inputs * f.kernel_height * f.kernel_width, reach = (s.kernel_width - 1) * s.step_columns;
    size weights = s.outputs * s.inputs * s.kernel_height * s.kernel_width;
    Images lying = {x, pixels, s.inputs * pixels, s.width, 0, 0}, room = lying;
    Images wanted = {target, out_pixels, s.outputs * out_pixels, s.out_width, 0, 0};
    Images error = bordered(s.outputs, group, s.out_height, 0, s.out_width, 0, s.out_width, 0);
    if (!direct)
        room = bordered(s.inputs, group, s.height, s.pad_rows, s.width, s.pad_columns, s.out_width, reach);
    Vectors v = {0};
    size *taps = taps_of(&f, s.inputs, room), step = fold_rows ? error.row : error.plane;
    float *packed = allocate(f.outputs * count * (last - first), sizeof(float));
    float *higher = allocate(f.outputs * count, sizeof(float));
    if (!room.data || !error.data || !taps || !packed || !higher ||
        vectors_of(&v, group, s.out_height, fold_rows ? ROWS : 1, s.out_width, room, error))
        goto end;
    pack_members(packed, weight, first, last, &s, &f, higher);
    for (size b = 0; b < s.examples; b += group) {
        size n = s.examples - b < group ? s.examples - b : group;
        Vectors here = part(v, n, group);
        lying.data = x + b * lying.example, wanted.data = target + b * wanted.example;
        if (!direct) put(room, lying, s.inputs, n, s.height, s.width);
        float *seen = direct ? lying.data : room.data + room.left - s.pad_columns;
        for (size p = first; p < last; p++) {
            float same[ROWS] = {bias[p], bias[p]}, of_rows[ROWS] = {0};
            correlate(seen, &here, taps, count, f.outputs, packed + (p - first) * f.outputs * count,
                      fold_rows ? same : bias + p * s.outputs, error.data, step);
            compare(error, wanted, s.outputs, n, s.out_height, s.out_width, losses + p * s.examples + b);
            if (fold_rows) memset(higher, 0, f.outputs * count * sizeof(float));
            tally(seen, &here, taps, count, f.outputs, error.data, step, fold_rows ? higher : weight_grad + p * weights,
                  fold_rows ? of_rows : bias_grad + p * s.outputs);
            if (fold_rows) {
                fold(weight_grad + p * weights, higher, &s, 1);
                for (size d = 0; d < ROWS; d++) bias_grad[p] += of_rows[d];
            }
        }
    }
    failed = 0;
end:
    if (!direct) free(room.data);
    free(error.data), free(taps), free(packed), free(higher), free(v.from);
    return failed;
}
