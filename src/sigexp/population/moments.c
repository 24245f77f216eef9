/* Second-order statistics of the windows of a convolution in float32, example by example; moments.py has the equations.

   R[(c, i, a), (k, j, b)] sums x[c] x[k] over two windows, and for i + 1 and j + 1 it sums the same products but for
   those of the rows at both ends; a and b likewise, by columns. So only i = 0 with a = 0 or b = 0 are long sums.

   Axes: N examples, C channels, h w taps, H W positions, D outputs; x is padded, [N, C, H + d (h - 1), W + e (w - 1)]
   with steps d and e between taps, y [N, D, H, W], centre [D, K] with K = C h w, and 1 more for the bias. A row of the
   table has R's upper triangle [K (K + 1) / 2], q [D, K] and s, divided by D H W. */

#include "vectors.h"

#define TOGETHER 8 /* sums, and vectors of a row, that stay in registers */
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    size channels, height, width, kernel_height, kernel_width, step_rows, step_columns, outputs, bias;
} Windows;

/* An example, and what is needed of it beside its pixels. */
typedef struct {
    Windows shape;
    size rows, columns, edge;   /* H, W, and e (w - 1): the columns at either end */
    const float *x;             /* [C, height, width] */
    float *left, *right;        /* those columns as rows, [C, edge, height] */
    float *error;               /* y - C phi [D, H, W] */
    float *sums;                /* of W pixels, from each column of taps on, [height, w] */
    float *block, *change, *of; /* [w, w] each */
    float *ones;                /* [W] */
} Example;

inline_ vec load(const float *from) { return *(const vec *)from; }

inline_ float sum(vec x) {
    float total = 0;
    UNROLL for (size i = 0; i < LANES; i++) total += x[i];
    return total;
}

inline_ void sums_of_products(const float *a, size a_row, const float *b, size b_row, size rows, size width, size step,
                              const int n, float *out) {
    vec sums[TOGETHER] = {{0}};
    float rest[TOGETHER] = {0};
    for (size r = 0; r < rows; r++, a += a_row, b += b_row) {
        size q = 0;
        for (; q + LANES <= width; q += LANES) {
            vec one = load(a + q);
            UNROLL for (int k = 0; k < n; k++) sums[k] += one * load(b + q + k * step);
        }
        for (; q < width; q++)
            UNROLL for (int k = 0; k < n; k++) rest[k] += a[q] * b[q + k * step];
    }
    UNROLL for (int k = 0; k < n; k++) out[k] = sum(sums[k]) + rest[k];
}

/* out[k]: of a and b + k step, over rows that are a_row and b_row apart. */
static void correlate(const float *a, size a_row, const float *b, size b_row, size rows, size width, size step,
                      size count, float *out) {
    for (; count > 0; count -= TOGETHER, b += TOGETHER * step, out += TOGETHER) {
#define CASE(n) \
    case n: sums_of_products(a, a_row, b, b_row, rows, width, step, n, out); break;
        switch (count < TOGETHER ? count : TOGETHER) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
    }
}

/* out [w, w]: products of the channels c and k over `rows` rows from r and s on, of all pairs of columns of taps. */
static void block_of(const Example *e, size c, size k, size r, size s, size rows, float *out) {
    const size w = e->shape.kernel_width, step = e->shape.step_columns, width = e->shape.width;
    const size height = e->shape.height, plane = height * width;
    const float *one = e->x + c * plane + r * width, *other = e->x + k * plane + s * width;
    correlate(other, width, one, width, rows, e->columns, step, w, e->of);
    for (size a = 0; a < w; a++) out[a * w] = e->of[a];
    correlate(one, width, other, width, rows, e->columns, step, w, out);
    for (size a = 0; a + 1 < w; a++) {
        float *next = out + (a + 1) * w + 1;
        for (size b = 0; b + 1 < w; b++) next[b] = out[a * w + b];
        for (size t = 0; t < step; t++) {
            const size at = a * step + t;
            if (rows == 1) {
                const float gone = one[at], come = one[e->columns + at];
                const float *from = other + t, *to = other + e->columns + t;
                for (size b = 0; b + 1 < w; b++) next[b] += come * to[b * step] - gone * from[b * step];
                continue;
            }
            const size mine = (c * e->edge + at) * height + r, theirs = (k * e->edge + t) * height + s;
            correlate(e->right + mine, 0, e->right + theirs, 0, 1, rows, step * height, w - 1, e->of);
            for (size b = 0; b + 1 < w; b++) next[b] += e->of[b];
            correlate(e->left + mine, 0, e->left + theirs, 0, 1, rows, step * height, w - 1, e->of);
            for (size b = 0; b + 1 < w; b++) next[b] -= e->of[b];
        }
    }
}

static int is_zero(const float *x, size count) {
    for (size i = 0; i < count; i++)
        if (x[i] != 0) return 0;
    return 1;
}

/* change += sign * the products of the rows r of c and s of k; borders are often zeros. */
static void add_rows(const Example *e, size c, size k, size r, size s, float sign) {
    const size width = e->shape.width, plane = e->shape.height * width, count = e->shape.kernel_width;
    if (is_zero(e->x + c * plane + r * width, width) || is_zero(e->x + k * plane + s * width, width)) return;
    block_of(e, c, k, r, s, 1, e->change);
    for (size i = 0; i < count * count; i++) e->block[i] += sign * e->change[i];
}

static void squares(const Example *e, size features, float *table) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, d = e->shape.step_rows;
    for (size c = 0; c < e->shape.channels; c++)
        for (size k = 0; k < e->shape.channels; k++)
            for (size lag = c > k; lag < h; lag++) {
                block_of(e, c, k, 0, lag * d, e->rows, e->block);
                for (size i = 0; i + lag < h; i++) {
                    for (size t = (i - 1) * d; i > 0 && t < i * d; t++) {
                        add_rows(e, c, k, e->rows + t, e->rows + t + lag * d, 1);
                        add_rows(e, c, k, t, t + lag * d, -1);
                    }
                    for (size a = 0; a < w; a++)
                        for (size b = 0; b < w; b++) {
                            size f = (c * h + i) * w + a, g = (k * h + i + lag) * w + b;
                            if (c == k && g < f) continue;
                            if (g < f) {
                                size other = f;
                                f = g, g = other;
                            }
                            table[f * features - f * (f - 1) / 2 + g - f] = e->block[a * w + b];
                        }
                }
            }
}

/* With the bias's feature, which is 1 everywhere. */
static void with_ones(const Example *e, size features, float *table) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, height = e->shape.height, width = e->shape.width;
    const size last = features - 1;
    for (size c = 0; c < e->shape.channels; c++) {
        for (size r = 0; r < height; r++)
            correlate(e->ones, 0, e->x + (c * height + r) * width, 0, 1, e->columns, e->shape.step_columns, w,
                      e->sums + r * w);
        for (size i = 0; i < h; i++)
            for (size a = 0; a < w; a++) {
                const size f = (c * h + i) * w + a;
                double total = 0;
                for (size r = i * e->shape.step_rows, end = r + e->rows; r < end; r++) total += e->sums[r * w + a];
                table[f * features - f * (f - 1) / 2 + last - f] = total;
            }
    }
    table[last * features - last * (last - 1) / 2] = e->rows * e->columns;
}

/* row[q] -= the filter of one output at the pixels of row r, in blocks of n vectors, or of single pixels for n = 0. */
inline_ size subtract(const Example *e, const float *centre, size r, size q, const int n, float *row) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, width = e->shape.width;
    const size lanes = n ? n * LANES : 1;
    for (; q + lanes <= e->columns; q += lanes) {
        const float *tap = centre;
        vec kept[TOGETHER];
        float alone = row[q];
        UNROLL for (int v = 0; v < n; v++) kept[v] = load(row + q + v * LANES);
        for (size c = 0; c < e->shape.channels; c++)
            for (size i = 0; i < h; i++) {
                const float *x = e->x + (c * e->shape.height + r + i * e->shape.step_rows) * width + q;
                for (size a = 0; a < w; a++, tap++, x += e->shape.step_columns) {
                    UNROLL for (int v = 0; v < n; v++) kept[v] -= *tap * load(x + v * LANES);
                    if (!n) alone -= *tap * *x;
                }
            }
        UNROLL for (int v = 0; v < n; v++) memcpy(row + q + v * LANES, kept + v, sizeof(vec));
        if (!n) row[q] = alone;
    }
    return q;
}

/* q [D, K] and s behind it. */
static void with_errors(const Example *e, size features, const float *y, const float *centre, float *q) {
    const size h = e->shape.kernel_height, w = e->shape.kernel_width, width = e->shape.width;
    const size plane = e->rows * e->columns, taps = e->shape.channels * h * w;
    double squared = 0;
    for (size o = 0; o < e->shape.outputs; o++, centre += features, q += features) {
        float *error = e->error;
        const float bias = e->shape.bias ? centre[taps] : 0;
        for (size i = 0; i < plane; i++) error[i] = y[o * plane + i] - bias;
        for (size r = 0; r < e->rows; r++) {
            float *row = error + r * e->columns;
            size at = subtract(e, centre, r, 0, TOGETHER, row);
            at = subtract(e, centre, r, at, 1, row);
            subtract(e, centre, r, at, 0, row);
        }
        for (size c = 0; c < e->shape.channels; c++)
            for (size i = 0; i < h; i++)
                correlate(error, e->columns, e->x + (c * e->shape.height + i * e->shape.step_rows) * width, width,
                          e->rows, e->columns, e->shape.step_columns, w, q + (c * h + i) * w);
        double total = 0;
        for (size i = 0; i < plane; i++) total += error[i], squared += (double)error[i] * error[i];
        if (e->shape.bias) q[taps] = total;
    }
    *q = squared;
}

/* The columns at both ends as rows. */
static void turn_edges(Example *e) {
    const size height = e->shape.height, width = e->shape.width;
    for (size c = 0; c < e->shape.channels; c++)
        for (size q = 0; q < e->edge; q++)
            for (size r = 0; r < height; r++) {
                const float *row = e->x + (c * height + r) * width;
                e->left[(c * e->edge + q) * height + r] = row[q];
                e->right[(c * e->edge + q) * height + r] = row[e->columns + q];
            }
}

/* Rows of the table for `count` examples; not 0 where there is no memory. */
int moments_rows(Windows shape, size count, const float *x, const float *y, const float *centre, float *table) {
    const size h = shape.kernel_height, w = shape.kernel_width, image = shape.channels * shape.height * shape.width;
    const size edge = (w - 1) * shape.step_columns, columns = shape.width - edge;
    const size rows = shape.height - (h - 1) * shape.step_rows, plane = rows * columns;
    const size features = shape.channels * h * w + shape.bias, triangle = features * (features + 1) / 2;
    const size values = triangle + shape.outputs * features + 1, edges = shape.channels * edge * shape.height;
    void *memory;
    const size all = 2 * edges + plane + shape.height * w + 3 * w * w + columns;
    if (posix_memalign(&memory, 64, 4 * all)) return 1;
    float *left = memory, *right = left + edges, *error = right + edges, *sums = error + plane;
    float *block = sums + shape.height * w, *change = block + w * w, *of = change + w * w, *ones = of + w * w;
    for (size i = 0; i < columns; i++) ones[i] = 1;
    const float scale = 1.0 / (shape.outputs * plane);
    for (size n = 0; n < count; n++, table += values) {
        Example e = {shape, rows, columns, edge, x + n * image, left, right, error, sums, block, change, of, ones};
        turn_edges(&e);
        squares(&e, features, table);
        if (shape.bias) with_ones(&e, features, table);
        with_errors(&e, features, y + n * shape.outputs * plane, centre, table + triangle);
        for (size i = 0; i < values; i++) table[i] *= scale;
    }
    free(memory);
    return 0;
}
