/* Batch normalization in float32. x [R, N]: a row holds all values of one channel of one member.

   Memory is what takes the time, so every function reads each value as seldom as it can. Sums are of vectors within
   blocks that stay in the cache, and of blocks in float64. */

#include <stdint.h>
#include <string.h>

#define LANES 16 /* a multiple of any processor's */
#define BLOCK 2048

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int64_t size;

static inline vec load(const float *from) { return *(const vec *)from; }

static double sum(vec x) {
    double total = 0;
    for (size i = 0; i < LANES; i++) total += x[i];
    return total;
}

/* Mean and variance of the rows from `first` to `last`; blocks by Chan, Golub and LeVeque (1983). */
void normalization_statistics(size first, size last, size count, const float *x, float *mean, float *variance) {
    for (size r = first; r < last; r++) {
        const float *row = x + r * count;
        double average = 0, squares = 0;
        for (size begin = 0; begin < count; begin += BLOCK) {
            size n = count - begin < BLOCK ? count - begin : BLOCK, whole = n / LANES * LANES;
            const float *block = row + begin;
            vec total = {0}, deviations = {0};
            for (size i = 0; i < whole; i += LANES) total += load(block + i);
            double here = sum(total), more = 0;
            for (size i = whole; i < n; i++) here += block[i];
            float center = here /= n;
            for (size i = 0; i < whole; i += LANES) {
                vec off = load(block + i) - center;
                deviations += off * off;
            }
            for (size i = whole; i < n; i++) more += (block[i] - center) * (block[i] - center);
            double difference = here - average;
            squares += sum(deviations) + more + difference * difference * ((double)begin * n / (begin + n));
            average += difference * n / (begin + n);
        }
        mean[r] = average, variance[r] = squares / count;
    }
}

/* out = (x - mean) factor + shift */
void normalization_forward(size first, size last, size count, const float *restrict x, const float *mean,
                           const float *factor, const float *shift, float *restrict out) {
    for (size r = first; r < last; r++)
        for (size i = r * count; i < (r + 1) * count; i++) out[i] = (x[i] - mean[r]) * factor[r] + shift[r];
}

/* Gradients of x [R, N], and of weight and bias [R]. factor is weight times `inverse`, that of the deviation. */
void normalization_backward(size first, size last, size count, const float *restrict x, const float *restrict grad,
                            const float *mean, const float *inverse, const float *factor, float *restrict x_grad,
                            float *weight_grad, float *bias_grad) {
    for (size r = first; r < last; r++) {
        const float *row = x + r * count, *g = grad + r * count;
        float center = mean[r];
        double total = 0, product = 0;
        for (size begin = 0; begin < count; begin += BLOCK) {
            size end = begin + BLOCK < count ? begin + BLOCK : count, i = begin;
            vec sums = {0}, products = {0};
            for (; i + LANES <= end; i += LANES) {
                vec here = load(g + i);
                sums += here, products += here * (load(row + i) - center);
            }
            total += sum(sums), product += sum(products);
            for (; i < end; i++) total += g[i], product += g[i] * (row[i] - center);
        }
        weight_grad[r] = product * inverse[r], bias_grad[r] = total;
        float level = total / count, slope = product * inverse[r] * inverse[r] / count, scale = factor[r];
        float *restrict to = x_grad + r * count;
        for (size i = 0; i < count; i++) to[i] = (g[i] - level - (row[i] - center) * slope) * scale;
    }
}
