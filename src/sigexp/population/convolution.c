/* Convolutions of a population in float32, stride 1, forward and backward: direct, without copies of the windows.

   Vectors are neighbouring pixels of a row. Images are put into zero borders one example at a time, so that what is in
   use stays in the cache; where there is no border and rows are whole vectors, they are read where they lie. Images
   that would leave vectors half empty are better taken across the examples (across.c). `convolution_learn` is another pass, for
   models of one layer. */

#include "pointwise.h"

typedef struct {
    size member, example, row, pixel;
} Pixels;

#define ABREAST 16 /* pixels of a row */
#define VECTORS 96 /* at a time at least, if there are so many examples */

#define SOME_TAPS 9     /* of a kernel; with fewer, transposing takes too long */
#define MANY_TAPS 25    /* with which it pays even if no more lanes are filled than else */
#define FEW_PIXELS 2048 /* of an image; with more, a block of channels is too large for the cache */

/* Whether across.c, which is in a library of its own because many models do not need it, suits a convolution better. */
int across_takes(const Shape *s) {
    size taps = s->kernel_height * s->kernel_width;
    size pixels = (s->height + 2 * s->pad_rows) * (s->width + 2 * s->pad_columns);
    size lanes = rounded(s->examples) * s->out_width, of_rows = s->examples * rounded(s->out_width); /* used, empty too */
    if (pixels > FEW_PIXELS || taps < SOME_TAPS) return 0;
    if (s->from_across || s->nonlinearity) return s->examples % LANES == 0; /* half of the transposing is not needed */
    return lanes < of_rows || (lanes == of_rows && taps >= MANY_TAPS);
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
    return (Images){allocate(channels * plane, sizeof(float)), plane, example, rounded(end), 1, top, begin};
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
                if (whole && j < width) *(vec *)(to + width - LANES) = load(from + width - LANES), j = width;
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

/* The members from `first` to `last`; not 0 where there is no memory. */
int convolution_forward(Shape s, size first, size last, float *x, float *weight, float *bias, float *out) {
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size count = s.inputs * f.kernel_height * f.kernel_width, reach = (s.kernel_width - 1) * s.step_columns;
    Images lying = {x, s.examples * pixels, pixels, s.width, 1, 0, 0}, room = lying;
    Images to = {out, s.examples * out_pixels, out_pixels, s.out_width, 1, 0, 0};
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
                correlate(seen, &here, taps, 0, count, count, f.outputs, packed + (p - first) * f.outputs * count,
                          fold_rows ? same : bias + p * s.outputs,
                          out + (p * s.outputs * s.examples + b) * out_pixels, fold_rows ? to.row : to.plane, 0);
            }
        }
    failed = 0;
end:
    if (!direct) free(room.data);
    free(taps), free(packed), free(higher), free(v.from);
    return failed;
}

/* x_grad may be 0; weight_grad and bias_grad begin as zeros. */
int convolution_backward(Shape s, size first, size last, float *x, float *weight, float *out, float *grad,
                         float *x_grad, float *weight_grad, float *bias_grad) {
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    int plain = s.out_width == rounded(s.out_width) && (!x_grad || (s.kernel_height * s.kernel_width == 1 && direct));
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size taps_per_channel = s.kernel_height * s.kernel_width, weights = s.outputs * s.inputs * taps_per_channel;
    size reach_rows = (s.kernel_height - 1) * s.step_rows, reach = (s.kernel_width - 1) * s.step_columns;
    size count = s.inputs * f.kernel_height * f.kernel_width;
    Images lying = {x, s.examples * pixels, pixels, s.width, 1, 0, 0}, room = lying, to = lying;
    Images error = {grad, s.examples * out_pixels, out_pixels, s.out_width, 1, 0, 0}, wide = error;
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
                    tally(seen, &learned, taps, count, count, f.outputs, begin, g.row, higher, of_rows);
                    fold(weight_grad + p * weights, higher, &s, 1);
                    for (size d = 0; d < ROWS; d++) bias_grad[p] += of_rows[d];
                } else
                    tally(seen, &learned, taps, count, count, s.outputs, begin, g.plane, weight_grad + p * weights,
                          bias_grad + p * s.outputs);
                if (x_grad)
                    correlate(begin - g.top * g.row - (reach - s.pad_columns), &returned, turned, 0,
                              s.outputs * taps_per_channel, s.outputs * taps_per_channel, s.inputs, packed, 0,
                              x_grad + (p * s.inputs * s.examples + b) * pixels, to.plane, 0);
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
    if (pointwise_takes(&s)) {
        pointwise_learn(s, first, last, x, weight, bias, target, losses, weight_grad, bias_grad);
        return 0;
    }
    Shape f = folded(s);
    int direct = !s.pad_rows && !s.pad_columns && lines_up(&s), fold_rows = f.outputs != s.outputs, failed = 1;
    size pixels = s.height * s.width, out_pixels = s.out_height * s.out_width, group = group_of(&s);
    size count = s.inputs * f.kernel_height * f.kernel_width, reach = (s.kernel_width - 1) * s.step_columns;
    size weights = s.outputs * s.inputs * s.kernel_height * s.kernel_width;
    Images lying = {x, pixels, s.inputs * pixels, s.width, 1, 0, 0}, room = lying;
    Images wanted = {target, out_pixels, s.outputs * out_pixels, s.out_width, 1, 0, 0};
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
            correlate(seen, &here, taps, 0, count, count, f.outputs, packed + (p - first) * f.outputs * count,
                      fold_rows ? same : bias + p * s.outputs, error.data, step, 0);
            compare(error, wanted, s.outputs, n, s.out_height, s.out_width, losses + p * s.examples + b);
            if (fold_rows) memset(higher, 0, f.outputs * count * sizeof(float));
            tally(seen, &here, taps, count, count, f.outputs, error.data, step, fold_rows ? higher : weight_grad + p * weights,
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

/* Between planes [P, C, B, H, W] and the same with a pixel's channels side by side, by strides: `back` says which way. */
void planes_of_pixels(size first, size last, size channels, size examples, size height, size width, Pixels s, int back,
                      float *pixels, float *planes) {
    size plane = examples * height * width;
    for (size p = first; p < last; p++)
        for (size h = 0; h < height; h++)
            for (size w = 0; w < width; w += ABREAST) /* few, because the next example may lie beside each */
                for (size b = 0; b < examples; b++) {
                    size count = width - w < ABREAST ? width - w : ABREAST;
                    float *lines = pixels + p * s.member + b * s.example + h * s.row + w * s.pixel;
                    float *line = planes + p * channels * plane + (b * height + h) * width + w;
                    if (back)
                        transpose(line, plane, lines, s.pixel, channels, count);
                    else
                        transpose(lines, s.pixel, line, plane, count, channels);
                }
}
