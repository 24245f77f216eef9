/* Maxima of squares of 2 x 2 pixels side by side, in float32; of equal ones the first in reading order counts, and NaN
   before all, as in torch. x [N, H, W], out and which [N, H / 2, W / 2], rounded down. */

#include <stdint.h>
#include <string.h>

typedef int64_t size;

void pooling_forward(size count, size height, size width, const float *restrict x, float *restrict out,
                     uint8_t *restrict which) {
    size rows = height / 2, columns = width / 2;
    for (size n = 0; n < count; n++, x += height * width)
        for (size i = 0; i < rows; i++, out += columns, which += columns) {
            const float *upper = x + 2 * i * width, *lower = upper + width;
            for (size j = 0; j < columns; j++) {
                float most = upper[2 * j], next;
                int32_t place = 0, other;
#define COMPARE(value, number)                             \
    next = (value), other = (next > most) | (next != next); \
    most = other ? next : most, place = other ? number : place;
                COMPARE(upper[2 * j + 1], 1)
                COMPARE(lower[2 * j], 2)
                COMPARE(lower[2 * j + 1], 3)
#undef COMPARE
                out[j] = most, which[j] = place;
            }
        }
}

void pooling_backward(size count, size height, size width, const float *restrict grad, const uint8_t *restrict which,
                      float *restrict x_grad) {
    size rows = height / 2, columns = width / 2;
    for (size n = 0; n < count; n++, x_grad += height * width) {
        for (size i = 0; i < rows; i++, grad += columns, which += columns) {
            float *restrict upper = x_grad + 2 * i * width, *restrict lower = upper + width;
            for (size j = 0; j < columns; j++) {
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
