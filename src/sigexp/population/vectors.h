/* What the kernels share: how many floats a register of this processor holds, and how they are transposed. To be
   included first. */

#pragma once

#define _POSIX_C_SOURCE 200112L /* posix_memalign */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define inline_ static inline __attribute__((always_inline))

typedef int64_t size;
typedef float vec4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#if defined(__clang__)
#define SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, (int4){__VA_ARGS__})
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

inline_ void transpose4(const float *from, size row, float *to, size column) {
    vec4 a = *(const vec4 *)from, b = *(const vec4 *)(from + row);
    vec4 c = *(const vec4 *)(from + 2 * row), d = *(const vec4 *)(from + 3 * row);
    vec4 ab = SHUFFLE4(a, b, 0, 4, 1, 5), cd = SHUFFLE4(c, d, 0, 4, 1, 5);
    vec4 AB = SHUFFLE4(a, b, 2, 6, 3, 7), CD = SHUFFLE4(c, d, 2, 6, 3, 7);
    *(vec4 *)to = SHUFFLE4(ab, cd, 0, 1, 4, 5);
    *(vec4 *)(to + column) = SHUFFLE4(ab, cd, 2, 3, 6, 7);
    *(vec4 *)(to + 2 * column) = SHUFFLE4(AB, CD, 0, 1, 4, 5);
    *(vec4 *)(to + 3 * column) = SHUFFLE4(AB, CD, 2, 3, 6, 7);
}

/* to[c * to_c + b] = from[b * row + c] */
static void transpose(const float *from, size row, float *to, size column, size rows, size columns) {
    size r = 0;
    for (; r + 4 <= rows; r += 4) {
        size c = 0;
        for (; c + 4 <= columns; c += 4)
            transpose4(from + r * row + c, row, to + c * column + r, column);
        for (; c < columns; c++)
            for (size i = 0; i < 4; i++) to[c * column + r + i] = from[(r + i) * row + c];
    }
    for (; r < rows; r++)
        for (size c = 0; c < columns; c++) to[c * column + r] = from[r * row + c];
}
