/* Convolutions whose vectors are one pixel of LANES examples.

   No vector is half empty at the end of a row, and all lie in memory as the processor likes it best; but images must be
   transposed, unless they lie across already, as [C, H, W, B], because another such convolution has made them. All is
   done for a few channels at a time, so that what is in use stays in the cache. */

#include "products.h"

#include "exponential.h"

#define BLOCK 8 /* channels at a time; of images with more than FEW_PIXELS (convolution.c) they do not fit the cache */

#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif

static size least(size a, size b) { return a < b ? a : b; }

/* As population/nonlinearity.py counts them. */
enum { NONE, SIGMOID, CENTRED_SIGMOID, RELU, LEAKY_RELU, TANH };

inline_ vec select(ivec where, vec one, vec other) { return (vec)(((ivec)one & where) | ((ivec)other & ~where)); }

/* A quotient of powers would lose the digits of a small x. */
inline_ vec hyperbolic_tangent(vec x) {
    vec square = x * x, small = x + x * square * (-1 / 3.0f + square * (2 / 15.0f - square * (17 / 315.0f)));
    return select(square < filled(0.04f), small, 2 / (1 + power2(-2 * LOG2E * x)) - 1);
}

/* NaN stays NaN. */
inline_ vec value_of(size nonlinearity, float slope, vec x) {
    switch (nonlinearity) {
    case SIGMOID: return 1 / (1 + power2(-LOG2E * x));
    case CENTRED_SIGMOID: return 1 / (1 + power2(-LOG2E * x)) - 0.5f;
    case RELU: return select(x < filled(0), filled(0), x);
    case LEAKY_RELU: return select(x < filled(0), slope * x, x);
    default: return hyperbolic_tangent(x);
    }
}

/* grad times the derivative, where the value is y. */
inline_ vec towards_x(size nonlinearity, float slope, vec grad, vec y) {
    switch (nonlinearity) {
    case SIGMOID: return grad * (y * (1 - y));
    case CENTRED_SIGMOID: return grad * (0.25f - y * y);
    case RELU: return select(y <= filled(0), filled(0), grad);
    case LEAKY_RELU: return select(y > filled(0), grad, slope * grad);
    default: return grad * (1 - y * y);
    }
}

/* to[c * column + r] = from[r * row + c] of LANES rows and columns: rows that are half of them apart are interleaved, as
   often as LANES can be halved. */
static void turn(const float *from, size row, float *to, size column) {
    vec rows[LANES], next[LANES];
    UNROLL for (size i = 0; i < LANES; i++) rows[i] = load(from + i * row);
    UNROLL for (size times = 1; times < LANES; times *= 2) {
        UNROLL for (size i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(rows[i], rows[i + LANES / 2], LOWER);
            next[2 * i + 1] = SHUFFLE(rows[i], rows[i + LANES / 2], UPPER);
        }
        UNROLL for (size i = 0; i < LANES; i++) rows[i] = next[i];
    }
    UNROLL for (size i = 0; i < LANES; i++) *(vec *)(to + i * column) = rows[i];
}

/* Zeros for a few channels, and borders of them. */
static Images room_of(size channels, size rows, size top, size left, size columns) {
    size row = columns * LANES, plane = (rows + 2 * top) * row;
    return (Images){allocate(channels * plane, sizeof(float)), plane, 1, row, LANES, top, left};
}

/* The first pixel within the borders. */
static float *inner(Images room) { return room.data + room.top * room.row + room.left * room.column; }

/* A line of pixels of some examples, side by side. The last square overlaps the one before it. */
static void gather_line(const float *from, size example, float *to, size examples, size width) {
    if (examples < LANES || width < LANES)
        transpose(from, example, to, LANES, examples, width);
    else
        for (size j = 0; j < width; j += LANES) {
            size at = least(j, width - LANES);
            turn(from + at, example, to + at * LANES, LANES);
        }
}

/* The way back. */
static void spread_line(const float *from, float *to, size example, size examples, size width) {
    if (examples < LANES || width < LANES)
        transpose(from, LANES, to, example, width, examples);
    else
        for (size j = 0; j < width; j += LANES) {
            size at = least(j, width - LANES);
            turn(from + at * LANES, LANES, to + at, example);
        }
}

/* Images of each example by itself, side by side; of fewer examples than LANES, the others are 0. */
static void gather(Images room, const float *from, size plane, size example, size channels, size examples, size height,
                   size width) {
    if (examples < LANES) memset(room.data, 0, channels * room.plane * sizeof(float));
    for (size c = 0; c < channels; c++)
        for (size i = 0; i < height; i++)
            gather_line(from + c * plane + i * width, example, inner(room) + c * room.plane + i * room.row, examples,
                        width);
}

/* The way back, of images without borders. */
static void spread(Images made, float *to, size plane, size example, size channels, size examples, size pixels) {
    for (size c = 0; c < channels; c++)
        spread_line(made.data + c * made.plane, to + c * plane, example, examples, pixels);
}

/* Images [C, H, W, B] of `examples`. */
static Images lying_across(float *data, size examples, size height, size width) {
    return (Images){data, height * width * examples, 1, width * examples, examples, 0, 0};
}

/* Images that lie across to `room`; as gradients of what gave y, if there is one. */
static void put(Images room, Images from, const float *y, const Shape *s, size channels, size height, size width) {
    for (size c = 0; c < channels; c++)
        for (size i = 0; i < height; i++) {
            size line = c * from.plane + i * from.row;
            float *to = inner(room) + c * room.plane + i * room.row;
            for (size j = 0; j < width; j++) {
                vec here = load(from.data + line + j * from.column);
                if (y) here = towards_x(s->nonlinearity, s->slope, here, load(y + line + j * from.column));
                *(vec *)(to + j * LANES) = here;
            }
        }
}

static void apply(Images made, const Shape *s, size channels) {
    for (size c = 0; c < channels; c++)
        for (size i = 0; i < s->out_height * s->out_width; i++) {
            vec *here = (vec *)(made.data + c * made.plane + i * made.column);
            *here = value_of(s->nonlinearity, s->slope, *here);
        }
}

static int vectors_of(Vectors *v, size height, size step, size width, Images from, Images to) {
    size count = height / step * width, *at = allocate(3 * count, sizeof(size)), n = 0;
    *v = (Vectors){count, at, at + count, at + 2 * count};
    if (!at) return 1;
    for (size i = 0; i < height; i += step)
        for (size j = 0; j < width; j++, n++)
            v->from[n] = i * from.row + j * LANES, v->to[n] = i * to.row + j * to.column, v->lanes[n] = LANES;
    return 0;
}

int across_forward(Shape s, size first, size last, float *x, float *weight, float *bias, float *out) {
    Shape f = folded(s);
    int fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width;
    size taps_per_channel = f.kernel_height * f.kernel_width, count = s.inputs * taps_per_channel;
    size reach = (s.kernel_width - 1) * s.step_columns, plane = s.examples * pixels, out_plane = s.examples * out_pixels;
    Images room = room_of(least(s.inputs, BLOCK), s.height, s.pad_rows, s.pad_columns,
                          larger(s.pad_columns + s.width, s.out_width + reach));
    Images made = lying_across(out, s.examples, s.out_height, s.out_width);
    if (!s.nonlinearity) made = room_of(least(s.outputs, BLOCK), s.out_height, 0, 0, s.out_width);
    Vectors v = {0};
    size *taps = taps_of(&f, least(s.inputs, BLOCK), room);
    float *packed = allocate(f.outputs * count * (last - first), sizeof(float));
    float *higher = allocate(f.outputs * count, sizeof(float));
    if (!room.data || !made.data || !taps || !packed || !higher ||
        vectors_of(&v, s.out_height, fold_rows ? ROWS : 1, s.out_width, room, made))
        goto end;
    pack_members(packed, weight, first, last, &s, &f, higher);
    for (size b = 0; b < s.examples; b += LANES)
        for (size p = first; p < last; p++) {
            size n = least(s.examples - b, LANES);
            float *own = x + (s.shared ? 0 : p) * s.inputs * plane + (s.from_across ? b : b * pixels);
            float *weights = packed + (p - first) * f.outputs * count, same[ROWS] = {bias[p], bias[p]};
            for (size d = 0; d < s.outputs; d += BLOCK) {
                size made_channels = least(s.outputs - d, BLOCK);
                if (s.nonlinearity) made.data = out + (p * s.outputs + d) * out_plane + b;
                for (size c = 0; c < s.inputs; c += BLOCK) {
                    size channels = least(s.inputs - c, BLOCK);
                    if (s.inputs > BLOCK || (d == 0 && (p == first || !s.shared))) {
                        if (s.from_across)
                            put(room, lying_across(own + c * plane, s.examples, s.height, s.width), 0, &s, channels,
                                s.height, s.width);
                        else
                            gather(room, own + c * plane, plane, pixels, channels, n, s.height, s.width);
                    }
                    correlate(room.data, &v, taps, c * taps_per_channel, channels * taps_per_channel, count,
                              fold_rows ? ROWS : made_channels, weights + d * count,
                              fold_rows ? same : bias + p * s.outputs + d, made.data,
                              fold_rows ? made.row : made.plane, c > 0);
                }
                if (s.nonlinearity)
                    apply(made, &s, made_channels);
                else
                    spread(made, out + (p * s.outputs + d) * out_plane + b * out_pixels, out_plane, out_pixels,
                           made_channels, n, out_pixels);
            }
        }
    failed = 0;
end:
    if (!s.nonlinearity) free(made.data);
    free(room.data), free(taps), free(packed), free(higher), free(v.from);
    return failed;
}

/* x_grad may be 0; weight_grad and bias_grad begin as zeros. out is looked at where there is a nonlinearity. */
int across_backward(Shape s, size first, size last, float *x, float *weight, float *out, float *grad, float *x_grad,
                    float *weight_grad, float *bias_grad) {
    Shape f = folded(s);
    int fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width;
    size plane = s.examples * pixels, out_plane = s.examples * out_pixels;
    size reach_rows = (s.kernel_height - 1) * s.step_rows, reach = (s.kernel_width - 1) * s.step_columns;
    size taps_per_channel = f.kernel_height * f.kernel_width, own_taps = s.kernel_height * s.kernel_width;
    size count = s.inputs * taps_per_channel, weights = s.outputs * s.inputs * own_taps;
    size top = x_grad ? reach_rows - s.pad_rows : 0, left = x_grad ? reach - s.pad_columns : 0;
    Images room = room_of(least(s.inputs, BLOCK), s.height, s.pad_rows, s.pad_columns,
                          larger(s.pad_columns + s.width, s.out_width + reach));
    Images wide = room_of(least(s.outputs, BLOCK), s.out_height, top, left,
                          x_grad ? larger(left + s.out_width, s.width + reach) : s.out_width);
    Images made = lying_across(x_grad, s.examples, s.height, s.width);
    if (!s.from_across) made = room_of(least(s.inputs, BLOCK), s.height, 0, 0, s.width);
    Vectors learned = {0}, returned = {0};
    size *taps = taps_of(&f, least(s.inputs, BLOCK), room), *turned = taps_of(&s, least(s.outputs, BLOCK), wide);
    float *packed = allocate(weights, sizeof(float)), *higher = allocate(f.outputs * count, sizeof(float));
    if (!room.data || !wide.data || (!made.data && !s.from_across) || !taps || !turned || !packed || !higher ||
        vectors_of(&learned, s.out_height, fold_rows ? ROWS : 1, s.out_width, room, wide) ||
        vectors_of(&returned, s.height, 1, s.width, wide, made))
        goto end;
    for (size q = s.shared ? last - 1 : first; q < last; q++) {
        if (x_grad) pack(packed, weight + q * weights, s.outputs, s.inputs, own_taps, 1);
        for (size b = 0; b < s.examples; b += LANES)
            for (size p = s.shared ? first : q; p <= q; p++) {
                size n = least(s.examples - b, LANES);
                float *own = x + (s.shared ? 0 : p) * s.inputs * plane + (s.from_across ? b : b * pixels);
                float of_rows[ROWS] = {0};
                if (fold_rows) memset(higher, 0, f.outputs * count * sizeof(float));
                for (size c = 0; c < s.inputs; c += BLOCK) {
                    size channels = least(s.inputs - c, BLOCK);
                    if (x_grad && s.from_across) made.data = x_grad + (p * s.inputs + c) * plane + b;
                    if (s.inputs > BLOCK || p == (s.shared ? first : q)) {
                        if (s.from_across)
                            put(room, lying_across(own + c * plane, s.examples, s.height, s.width), 0, &s, channels,
                                s.height, s.width);
                        else
                            gather(room, own + c * plane, plane, pixels, channels, n, s.height, s.width);
                    }
                    for (size d = 0; d < s.outputs; d += BLOCK) {
                        size errors = least(s.outputs - d, BLOCK);
                        size error = (p * s.outputs + d) * out_plane + (s.nonlinearity ? b : b * out_pixels);
                        if (s.outputs > BLOCK || c == 0) {
                            if (s.nonlinearity)
                                put(wide, lying_across(grad + error, s.examples, s.out_height, s.out_width),
                                    out + error, &s, errors, s.out_height, s.out_width);
                            else
                                gather(wide, grad + error, out_plane, out_pixels, errors, n, s.out_height, s.out_width);
                        }
                        if (fold_rows)
                            tally(room.data, &learned, taps, channels * taps_per_channel, count, ROWS, inner(wide),
                                  wide.row, higher + c * taps_per_channel, c ? 0 : of_rows);
                        else
                            tally(room.data, &learned, taps, channels * taps_per_channel, count, errors, inner(wide),
                                  wide.plane, weight_grad + p * weights + d * count + c * taps_per_channel,
                                  c ? 0 : bias_grad + p * s.outputs + d);
                        if (x_grad)
                            correlate(wide.data, &returned, turned, d * own_taps, errors * own_taps,
                                      s.outputs * own_taps, channels, packed + c * s.outputs * own_taps, 0, made.data,
                                      made.plane, d > 0);
                    }
                    if (x_grad && !s.from_across)
                        spread(made, x_grad + (p * s.inputs + c) * plane + b * pixels, plane, pixels, channels, n,
                               pixels);
                }
                if (fold_rows) {
                    fold(weight_grad + p * weights, higher, &s, 1);
                    for (size d = 0; d < ROWS; d++) bias_grad[p] += of_rows[d];
                }
            }
    }
    failed = 0;
end:
    if (!s.from_across) free(made.data);
    free(room.data), free(wide.data), free(taps), free(turned), free(packed), free(higher);
    free(learned.from), free(returned.from);
    return failed;
}
