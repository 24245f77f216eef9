/* Second-order statistics of the windows of a convolution in float32, example by example; moments.py has the equations.

   R[(c, i, a), (k, j, b)] sums x[c] x[k] over two windows, and for i + 1 and j + 1 it sums the same products but for
   those of the rows at both ends; a and b likewise, by columns. So only i = 0 with a = 0 or b = 0 are long sums.

   Axes: N examples, C channels, h w taps, H W positions, D outputs; x is padded, [N, C, H + d (h - 1), W + e (w - 1)]
   with steps d and e between taps, y [N, D, H, W], centre [D, K] with K = C h w, and 1 more for the bias. A row of the
   table has R's upper triangle [K (K + 1) / 2], q [D, K] and s, divided by D H W.

   A row of pixels is kept as e lines, each of every e-th pixel, in which taps are neighbours; behind it are zeros, so
   that vectors may reach beyond. */

#include "floats.h"

#define TOGETHER 8 /* sums that stay in registers */

typedef struct {
    size channels, height, width, kernel_height, kernel_width, step_rows, step_columns, outputs, bias;
} Windows;

typedef struct {
    float *data;
    size line, row, plane; /* from each to the next */
} Lines;

/* An example, and what is needed of it beside its pixels. */
typedef struct {
    Windows shape;
    size rows, columns;                 /* H, W */
    size shortest, longer;              /* windows of a line at least, and how many lines have one more */
    Lines x, error;                     /* [C], and y - C phi of one output */
    char *empty;                        /* whether a row of x is zeros: [C, height] */
    size vectors, *from, *to, *lanes;   /* of the error: where it has x and itself, and how many pixels are in it */
    size stride;                        /* of the rows of a block */
    float *block, *change, *of, scale;  /* [w, w] twice, [w] */
    double *sums;                       /* of W pixels, from each column of taps on, [height, w] */
} Example;

/* Pixels of a line at which windows begin. */
inline_ size windows(const Example *e, size line) { return e->shortest + (line < e->longer); }

inline_ vec first(vec x, size lanes) {
    ivec place;
    UNROLL for (int i = 0; i < LANES; i++) place[i] = i;
    return (vec)((ivec)x & (place < (int32_t)lanes));
}

inline_ void sums_of_products(const Example *e, const float *a, const Lines *as, const float *b, const Lines *bs,
                              const int n, float *out) {
    vec sums[TOGETHER] = {{0}};
    for (size r = 0; r < e->rows; r++, a += as->row, b += bs->row)
        for (size line = 0; line < e->shape.step_columns; line++) {
            const float *one = a + line * as->line, *other = b + line * bs->line;
            size left = windows(e, line);
            for (; left > 0; left -= LANES, one += LANES, other += LANES) {
                vec here = left < LANES ? first(load(one), left) : load(one);
                UNROLL for (int k = 0; k < n; k++) sums[k] += here * load(other + k);
            }
        }
    UNROLL for (int k = 0; k < n; k++) out[k] = sum(sums[k]);
}

/* out[k]: the sum over H W of a and b, b from its k-th column of taps on. */
static void correlate(const Example *e, const float *a, const Lines *as, const float *b, const Lines *bs, float *out) {
    for (size count = e->shape.kernel_width; count > 0; count -= TOGETHER, b += TOGETHER, out += TOGETHER) {
#define CASE(n) \
    case n: sums_of_products(e, a, as, b, bs, n, out); break;
        switch (count < TOGETHER ? count : TOGETHER) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
    }
}

/* sums[k] += sign * the products of a[k] with the vector at b, over `count` pairs that are `step` apart */
inline_ void outer_products(vec sums[TOGETHER], const float *a, const float *b, size count, size step, float sign) {
    for (size n = 0; n < count; n++, a += step, b += step) {
        vec other = sign * load(b);
        UNROLL for (int k = 0; k < TOGETHER; k++) sums[k] += a[k] * other;
    }
}

/* change [w - 1, w - 1]: products of the columns that one window has more than the one before, less those that it has
   not any more, over H rows from a and from b on. */
static void change_by_columns(const Example *e, const float *a, const float *b) {
    const size more = e->shape.kernel_width - 1, step = e->shape.step_columns;
    for (size right = 0; right < more; right += LANES)
        for (size left = 0; left < more; left += TOGETHER) {
            vec sums[TOGETHER] = {{0}};
            for (size t = 0; t < step; t++) {
                const size come = (e->columns + t) % step * e->x.line + (e->columns + t) / step, gone = t * e->x.line;
                outer_products(sums, a + come + left, b + come + right, e->rows, e->x.row, 1);
                outer_products(sums, a + gone + left, b + gone + right, e->rows, e->x.row, -1);
            }
            UNROLL for (int k = 0; k < TOGETHER; k++) *(vec *)(e->change + (left + k) * e->stride + right) = sums[k];
        }
}

/* block [w, w]: products over H rows from a and from b on, of all pairs of columns of taps. */
static void block_of(const Example *e, const float *a, const float *b) {
    const size w = e->shape.kernel_width, stride = e->stride;
    correlate(e, b, &e->x, a, &e->x, e->of);
    correlate(e, a, &e->x, b, &e->x, e->block);
    change_by_columns(e, a, b);
    for (size i = 1; i < w; i++) {
        float *next = e->block + i * stride, *last = next - stride, *change = e->change + (i - 1) * stride;
        next[0] = e->of[i];
        for (size j = 1; j < w; j++) next[j] = last[j - 1] + change[j - 1];
    }
}

/* block += sign * the products of row r of channel c and row s of channel k; borders are often zeros. */
static void add_rows(const Example *e, size c, size k, size r, size s, float sign) {
    if (e->empty[c * e->shape.height + r] || e->empty[k * e->shape.height + s]) return;
    const float *a = e->x.data + c * e->x.plane + r * e->x.row, *b = e->x.data + k * e->x.plane + s * e->x.row;
    for (size right = 0; right < e->shape.kernel_width; right += LANES)
        for (size left = 0; left < e->shape.kernel_width; left += TOGETHER) {
            vec sums[TOGETHER] = {{0}};
            for (size line = 0; line < e->shape.step_columns; line++) {
                const size at = line * e->x.line;
                outer_products(sums, a + at + left, b + at + right, windows(e, line), 1, sign);
            }
            UNROLL for (int n = 0; n < TOGETHER; n++) *(vec *)(e->block + (left + n) * e->stride + right) += sums[n];
        }
}

/* Where a row of the triangle would have its first column; it begins at the diagonal. */
inline_ float *row_of(float *table, size features, size row) { return table + row * features - row * (row + 1) / 2; }

/* Put the block of row i of channel c and row j of channel k into the triangle. */
static void put_block(const Example *e, size c, size i, size k, size j, size features, float *table) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, row = (c * h + i) * w, column = (k * h + j) * w;
    for (size a = 0; a < w; a++) {
        const float *from = e->block + a * e->stride;
        if (c > k) {
            for (size b = 0; b < w; b++) row_of(table, features, column + b)[row + a] = e->scale * from[b];
            continue;
        }
        float *to = row_of(table, features, row + a) + column;
        size b = row == column ? a : 0;
        /* What is written behind the block is written anew, because the blocks of lower rows of k come later. */
        for (; b < w && j * w + b + LANES <= h * w; b += LANES) *(vec *)(to + b) = e->scale * load(from + b);
        for (; b < w; b++) to[b] = e->scale * from[b];
    }
}

static void squares(const Example *e, size features, float *table) {
    const size h = e->shape.kernel_height, d = e->shape.step_rows;
    for (size c = 0; c < e->shape.channels; c++)
        for (size k = 0; k < e->shape.channels; k++)
            for (size lag = c > k; lag < h; lag++) {
                block_of(e, e->x.data + c * e->x.plane, e->x.data + k * e->x.plane + lag * d * e->x.row);
                for (size i = 0; i + lag < h; i++) {
                    for (size t = (i - 1) * d; i > 0 && t < i * d; t++) {
                        add_rows(e, c, k, e->rows + t, e->rows + t + lag * d, 1);
                        add_rows(e, c, k, t, t + lag * d, -1);
                    }
                    put_block(e, c, i, k, i + lag, features, table);
                }
            }
}

/* With the bias's feature, which is 1 everywhere. */
static void with_ones(const Example *e, size features, float *table) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, d = e->shape.step_rows, last = features - 1;
    for (size c = 0; c < e->shape.channels; c++) {
        for (size r = 0; r < e->shape.height; r++) {
            const float *row = e->x.data + c * e->x.plane + r * e->x.row;
            double total = 0;
            for (size line = 0; line < e->shape.step_columns; line++)
                for (size q = 0; q < windows(e, line); q++) total += row[line * e->x.line + q];
            for (size a = 0; a < w; a++) {
                e->sums[r * w + a] = total;
                for (size line = 0; line < e->shape.step_columns; line++) {
                    const float *gone = row + line * e->x.line + a;
                    total += (double)gone[windows(e, line)] - *gone;
                }
            }
        }
        for (size a = 0; a < w; a++) {
            const double *of = e->sums + a;
            double total = 0;
            for (size r = 0; r < e->rows; r++) total += of[r * w];
            for (size i = 0; i < h; i++) {
                row_of(table, features, (c * h + i) * w + a)[last] = e->scale * total;
                for (size t = i * d; i + 1 < h && t < (i + 1) * d; t++) total += of[(e->rows + t) * w] - of[t * w];
            }
        }
    }
    row_of(table, features, last)[last] = e->scale * (e->rows * e->columns);
}

/* The error of one output, from y [H, W]. */
static void subtract(const Example *e, const float *centre, const float *y, float bias) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, step = e->shape.step_columns;
    for (size r = 0; r < e->rows; r++, y += e->columns)
        for (size line = 0; line < step; line++) {
            float *to = e->error.data + r * e->error.row + line * e->error.line;
            for (size q = line; q < e->columns; q += step) *to++ = y[q] - bias;
        }
    for (size n = 0; n < e->vectors; n += TOGETHER) {
        size at[TOGETHER];
        vec kept[TOGETHER];
        UNROLL for (int v = 0; v < TOGETHER; v++) at[v] = n + v < e->vectors ? n + v : e->vectors - 1;
        UNROLL for (int v = 0; v < TOGETHER; v++) kept[v] = load(e->error.data + e->to[at[v]]);
        const float *tap = centre;
        for (size c = 0; c < e->shape.channels; c++)
            for (size i = 0; i < h; i++) {
                const float *x = e->x.data + c * e->x.plane + i * e->shape.step_rows * e->x.row, *begin[TOGETHER];
                UNROLL for (int v = 0; v < TOGETHER; v++) begin[v] = x + e->from[at[v]];
                for (size a = 0; a < w; a++, tap++)
                    UNROLL for (int v = 0; v < TOGETHER; v++) kept[v] -= *tap * load(begin[v] + a);
            }
        UNROLL for (int v = 0; v < TOGETHER; v++)
            *(vec *)(e->error.data + e->to[at[v]]) = first(kept[v], e->lanes[at[v]]);
    }
}

/* q [D, K] and s behind it. */
static void with_errors(const Example *e, size features, const float *y, const float *centre, float *q) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, taps = e->shape.channels * h * w;
    double squared = 0;
    for (size o = 0; o < e->shape.outputs; o++, centre += features, q += features, y += e->rows * e->columns) {
        subtract(e, centre, y, e->shape.bias ? centre[taps] : 0);
        for (size c = 0; c < e->shape.channels; c++)
            for (size i = 0; i < h; i++) {
                const float *x = e->x.data + c * e->x.plane + i * e->shape.step_rows * e->x.row;
                correlate(e, e->error.data, &e->error, x, &e->x, e->of);
                for (size a = 0; a < w; a++) q[(c * h + i) * w + a] = e->scale * e->of[a];
            }
        double total = 0;
        for (size r = 0; r < e->rows; r++) {
            vec plain = {0}, square = {0};
            for (size at = r * e->error.row; at < (r + 1) * e->error.row; at += LANES) {
                vec here = load(e->error.data + at);
                plain += here, square += here * here;
            }
            total += sum(plain), squared += sum(square);
        }
        if (e->shape.bias) q[taps] = e->scale * total;
    }
    *q = e->scale * squared;
}

/* The pixels of an example [C, height, width] as lines. */
static void take(const Example *e, const float *x) {
    const size step = e->shape.step_columns;
    for (size c = 0; c < e->shape.channels; c++)
        for (size r = 0; r < e->shape.height; r++, x += e->shape.width) {
            float *row = e->x.data + c * e->x.plane + r * e->x.row;
            char some = 0;
            for (size q = 0; q < e->shape.width; q++) some |= x[q] != 0;
            for (size line = 0; line < step; line++) {
                float *to = row + line * e->x.line;
                for (size q = line; q < e->shape.width; q += step) *to++ = x[q];
            }
            e->empty[c * e->shape.height + r] = !some;
        }
}

/* Zeros of so many bytes, from `*memory` on. */
static void *part(char **memory, size bytes) {
    void *found = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return found;
}

/* Rows of the table for `count` examples; not 0 where there is no memory. */
int moments_rows(Windows shape, size count, const float *x, const float *y, const float *centre, float *table) {
    const size h = shape.kernel_height, w = shape.kernel_width, step = shape.step_columns, C = shape.channels;
    const size rows = shape.height - (h - 1) * shape.step_rows, columns = shape.width - (w - 1) * step;
    const size features = C * h * w + shape.bias, triangle = features * (features + 1) / 2;
    const size values = triangle + shape.outputs * features + 1;
    const size longest = rounded((columns + step - 1) / step), line = longest + rounded(w) + TOGETHER;
    Example e = {.shape = shape, .rows = rows, .columns = columns, .stride = rounded(w)};
    e.shortest = columns / step, e.longer = columns % step;
    e.x = (Lines){0, line, step * line, shape.height * step * line};
    e.error = (Lines){0, longest, step * longest, 0};
    e.scale = 1.0 / (shape.outputs * rows * columns);
    const size most = rows * step * longest / LANES, squares_of = (w + TOGETHER) * e.stride;
    const size floats = C * e.x.plane + LANES + rows * e.error.row + 2 * squares_of + rounded(w);
    const size all = 4 * floats + C * shape.height + 8 * (shape.height * w + 3 * most) + 16 * 64;
    char *memory, *left;
    if (posix_memalign((void **)&memory, 64, all)) return 1;
    memset(left = memory, 0, all);
    e.x.data = part(&left, 4 * (C * e.x.plane + LANES)), e.error.data = part(&left, 4 * rows * e.error.row);
    e.block = part(&left, 4 * squares_of), e.change = part(&left, 4 * squares_of), e.of = part(&left, 4 * rounded(w));
    e.empty = part(&left, C * shape.height), e.sums = part(&left, 8 * shape.height * w);
    e.from = part(&left, 8 * most), e.to = part(&left, 8 * most), e.lanes = part(&left, 8 * most);
    for (size r = 0; r < rows; r++)
        for (size n = 0; n < step; n++)
            for (size q = 0; q < windows(&e, n); q += LANES, e.vectors++) {
                e.from[e.vectors] = r * e.x.row + n * line + q, e.to[e.vectors] = r * e.error.row + n * longest + q;
                e.lanes[e.vectors] = windows(&e, n) - q;
            }
    for (size n = 0; n < count; n++, table += values) {
        take(&e, x + n * C * shape.height * shape.width);
        squares(&e, features, table);
        if (shape.bias) with_ones(&e, features, table);
        with_errors(&e, features, y + n * shape.outputs * rows * columns, centre, table + triangle);
    }
    free(memory);
    return 0;
}
