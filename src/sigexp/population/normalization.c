/* Batch normalization in float32, the maxima of squares of 2 x 2 pixels, and both with a ReLU behind them.
   x [R, N]: a row holds all values of one channel of one member.

   Memory is what takes the time, so every function reads each value as seldom as it can. Sums are of vectors within
   blocks that stay in the cache, and of blocks in float64. Of equal maxima the first in reading order counts, and NaN
   before all, as in torch. */

#include "vectors.h"

#define BLOCK 2048
#define SUMS 4 /* at a time: an addition takes as long as so many can begin in */
#define WIDE (SUMS * LANES)

#define BELOW 4 /* the place of a maximum that the ReLU has set to 0 */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t places __attribute__((vector_size(4 * LANES)));
typedef uint64_t pairs __attribute__((vector_size(8 * LANES), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));

#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
static inline vec load(const float *from) { return *(const vec *)from; }

static double sum(vec x) {
    double total = 0;
    for (size i = 0; i < LANES; i++) total += x[i];
    return total;
}

static double sum_all(const vec *x) { return sum((x[0] + x[1]) + (x[2] + x[3])); }

/* Mean and variance of the rows from `first` to `last`; blocks by Chan, Golub and LeVeque (1983). */
void normalization_statistics(size first, size last, size count, const float *x, float *mean, float *variance) {
    for (size r = first; r < last; r++) {
        const float *row = x + r * count;
        double average = 0, squares = 0;
        for (size begin = 0; begin < count; begin += BLOCK) {
            size n = count - begin < BLOCK ? count - begin : BLOCK, whole = n / WIDE * WIDE;
            const float *block = row + begin;
            vec total[SUMS] = {0}, deviations[SUMS] = {0};
            for (size i = 0; i < whole; i += WIDE)
                for (size k = 0; k < SUMS; k++) total[k] += load(block + i + k * LANES);
            double here = sum_all(total), more = 0;
            for (size i = whole; i < n; i++) here += block[i];
            float center = here /= n;
            for (size i = 0; i < whole; i += WIDE)
                for (size k = 0; k < SUMS; k++) {
                    vec off = load(block + i + k * LANES) - center;
                    deviations[k] += off * off;
                }
            for (size i = whole; i < n; i++) more += (block[i] - center) * (block[i] - center);
            double difference = here - average;
            squares += sum_all(deviations) + more + difference * difference * ((double)begin * n / (begin + n));
            average += difference * n / (begin + n);
        }
        mean[r] = average, variance[r] = squares / count;
    }
}

static inline float normalized(float x, float mean, float factor, float shift) { return (x - mean) * factor + shift; }

/* out = (x - mean) factor + shift, not below 0 where `relu` says so */
void normalization_forward(size first, size last, size count, int relu, const float *restrict x, const float *mean,
                           const float *factor, const float *shift, float *restrict out) {
    for (size r = first; r < last; r++)
        if (relu)
            for (size i = r * count; i < (r + 1) * count; i++) {
                float value = normalized(x[i], mean[r], factor[r], shift[r]);
                out[i] = value <= 0 ? 0 : value;
            }
        else
            for (size i = r * count; i < (r + 1) * count; i++) out[i] = normalized(x[i], mean[r], factor[r], shift[r]);
}

/* Adds the sums of g and of g (x - center), of a block at most. */
static void gradient_sums(size count, const float *x, const float *g, float center, double *total, double *product) {
    vec sums = {0}, products = {0};
    size i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec here = load(g + i);
        sums += here, products += here * (load(x + i) - center);
    }
    *total += sum(sums), *product += sum(products);
    for (; i < count; i++) *total += g[i], *product += g[i] * (x[i] - center);
}

/* Gradients of x [R, N], and of weight and bias [R]. factor is weight times `inverse`, that of the deviation. With
   `relu`, `grad` is that of its output. */
void normalization_backward(size first, size last, size count, int relu, const float *restrict x,
                            const float *restrict grad, const float *mean, const float *inverse,
                            const float *factor, const float *shift, float *restrict x_grad, float *weight_grad,
                            float *bias_grad) {
    for (size r = first; r < last; r++) {
        const float *row = x + r * count, *g = grad + r * count;
        float center = mean[r], passed[BLOCK];
        double total = 0, product = 0;
        for (size begin = 0; begin < count; begin += BLOCK) {
            size n = count - begin < BLOCK ? count - begin : BLOCK;
            if (relu)
                for (size i = 0; i < n; i++)
                    passed[i] = normalized(row[begin + i], center, factor[r], shift[r]) <= 0 ? 0 : g[begin + i];
            gradient_sums(n, row + begin, relu ? passed : g + begin, center, &total, &product);
        }
        weight_grad[r] = product * inverse[r], bias_grad[r] = total;
        float level = total / count, slope = product * inverse[r] * inverse[r] / count, scale = factor[r];
        float *restrict to = x_grad + r * count;
        if (relu)
            for (size i = 0; i < count; i++) {
                float here = normalized(row[i], center, scale, shift[r]) <= 0 ? 0 : g[i];
                to[i] = (here - level - (row[i] - center) * slope) * scale;
            }
        else
            for (size i = 0; i < count; i++) to[i] = (g[i] - level - (row[i] - center) * slope) * scale;
    }
}

typedef struct {
    vec value, from; /* the largest normalized value, and what it was before */
    ivec place;
} Largest;

inline_ vec either(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

inline_ Largest larger(Largest most, vec value, vec from, int place) {
    ivec other = (value > most.value) | (value != value);
    return (Largest){either(other, value, most.value), either(other, from, most.from),
                     (other & place) | (~other & most.place)};
}

/* LANES squares of two rows. */
inline_ Largest largest(const float *upper, const float *lower, vec center, vec scale, vec level) {
    vec a = load(upper), b = load(upper + LANES), c = load(lower), d = load(lower + LANES);
    vec x[4] = {SHUFFLE(a, b, EVEN), SHUFFLE(a, b, ODD), SHUFFLE(c, d, EVEN), SHUFFLE(c, d, ODD)};
    Largest most = {(x[0] - center) * scale + level, x[0], {0}};
    for (int k = 1; k < 4; k++) most = larger(most, (x[k] - center) * scale + level, x[k], k);
    return most;
}

inline_ vec filled(float value) { return value - (vec){0}; }

/* x [N, H, W] -> out, chosen and which [N, H / 2, W / 2], rounded down; as `maxima_forward`, of one channel. */
inline_ void squares(size count, size height, size width, int relu, const float *x, float center, float scale,
                     float level, float *out, float *chosen, uint8_t *which) {
    size rows = height / 2, columns = width / 2;
    for (size n = 0; n < count; n++, x += height * width)
        for (size i = 0; i < rows; i++, out += columns, chosen += columns, which += columns)
            for (size j = 0; j < columns; j += LANES) {
                const float *upper = x + 2 * i * width + 2 * j, *lower = upper + width;
                size lanes = columns - j < LANES ? columns - j : LANES;
                float rest[2][2 * LANES];
                if (lanes < LANES) {
                    memcpy(rest[0], upper, 2 * lanes * sizeof(float)), upper = rest[0];
                    memcpy(rest[1], lower, 2 * lanes * sizeof(float)), lower = rest[1];
                }
                Largest most = largest(upper, lower, filled(center), filled(scale), filled(level));
                ivec below = most.value <= 0 & (relu ? -1 : 0);
                vec value = (vec)(~below & (ivec)most.value);
                bytes place = __builtin_convertvector((below & BELOW) | (~below & most.place), bytes);
                if (lanes == LANES)
                    *(vec *)(out + j) = value, *(vec *)(chosen + j) = most.from, *(bytes *)(which + j) = place;
                else {
                    memcpy(out + j, &value, lanes * sizeof(float));
                    memcpy(chosen + j, &most.from, lanes * sizeof(float));
                    memcpy(which + j, &place, lanes);
                }
            }
}

/* x [N, H, W] -> out and which [N, H / 2, W / 2], rounded down. */
void pooling_forward(size count, size height, size width, const float *x, float *out, uint8_t *which) {
    squares(count, height, width, 0, x, 0, 1, 0, out, out, which);
}

/* Two neighbours of one row as one number of 64 bits, as they lie in memory on all processors that this is built for. */
static inline pairs beside(places left, places right) {
    return __builtin_convertvector(left, pairs) | __builtin_convertvector(right, pairs) << 32;
}

/* Two rows of 2 LANES pixels, of which each square of four has one of LANES gradients. */
static inline void spread(const float *grad, const uint8_t *which, float *upper, float *lower) {
    places g = (places)load(grad), place = __builtin_convertvector(*(const bytes *)which, places);
    *(pairs *)upper = beside(g & (places)(place == 0), g & (places)(place == 1));
    *(pairs *)lower = beside(g & (places)(place == 2), g & (places)(place == 3));
}

void pooling_backward(size count, size height, size width, const float *restrict grad, const uint8_t *restrict which,
                      float *restrict x_grad) {
    size rows = height / 2, columns = width / 2;
    for (size n = 0; n < count; n++, x_grad += height * width) {
        for (size i = 0; i < rows; i++, grad += columns, which += columns) {
            float *restrict upper = x_grad + 2 * i * width, *restrict lower = upper + width;
            size j = 0;
            for (; j + LANES <= columns; j += LANES) spread(grad + j, which + j, upper + 2 * j, lower + 2 * j);
            for (; j < columns; j++) {
                float g = grad[j];
                int32_t place = which[j];
                upper[2 * j] = place == 0 ? g : 0, upper[2 * j + 1] = place == 1 ? g : 0;
                lower[2 * j] = place == 2 ? g : 0, lower[2 * j + 1] = place == 3 ? g : 0;
            }
            if (width % 2) upper[width - 1] = lower[width - 1] = 0;
        }
        if (height % 2) memset(x_grad + (height - 1) * width, 0, width * sizeof(float));
    }
}

/* Maxima of the normalized x [R, B, H, W], not below 0 where `relu` says so: out [R, B, H / 2, W / 2]. chosen: the
   values of x that they come from. which: their places. */
void maxima_forward(size first, size last, size examples, size height, size width, int relu, const float *restrict x,
                    const float *mean, const float *factor, const float *shift, float *restrict out,
                    float *restrict chosen, uint8_t *restrict which) {
    size pixels = examples * height * width, maxima = examples * (height / 2) * (width / 2);
    for (size r = first; r < last; r++)
        squares(examples, height, width, relu, x + r * pixels, mean[r], factor[r], shift[r], out + r * maxima,
                chosen + r * maxima, which + r * maxima);
}

/* `normalization_backward` of the maxima, whose gradient is grad [R, B, H / 2, W / 2]. */
void maxima_backward(size first, size last, size examples, size height, size width, const float *restrict x,
                     const float *grad, const float *chosen, const uint8_t *which, const float *mean,
                     const float *inverse, const float *factor, float *restrict x_grad, float *weight_grad, float *bias_grad) {
    size rows = height / 2, columns = width / 2, squares = examples * rows * columns, count = examples * height * width;
    for (size r = first; r < last; r++) {
        const float *picked = chosen + r * squares, *row = x + r * count, *g = grad + r * squares;
        const uint8_t *place = which + r * squares;
        float *to = x_grad + r * count, center = mean[r], passed[BLOCK];
        double total = 0, product = 0;
        for (size begin = 0; begin < squares; begin += BLOCK) {
            size n = squares - begin < BLOCK ? squares - begin : BLOCK;
            for (size i = 0; i < n; i++) passed[i] = place[begin + i] == BELOW ? 0 : g[begin + i];
            gradient_sums(n, picked + begin, passed, center, &total, &product);
        }
        weight_grad[r] = product * inverse[r], bias_grad[r] = total;
        float level = total / count, slope = product * inverse[r] * inverse[r] / count, scale = factor[r];
        for (size n = 0; n < examples; n++, row += height * width, to += height * width) {
            size i = 0;
            for (; i < rows; i++, g += columns, place += columns) {
                pooling_backward(1, 2, width, g, place, to + 2 * i * width);
                const float *restrict from = row + 2 * i * width;
                float *restrict into = to + 2 * i * width;
                for (size j = 0; j < 2 * width; j++) into[j] = (into[j] - level - (from[j] - center) * slope) * scale;
            }
            for (size j = 2 * i * width; j < height * width; j++) to[j] = (-level - (row[j] - center) * slope) * scale;
        }
    }
}
