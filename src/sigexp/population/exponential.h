/* Powers of a register of floats. To be included where `vec` is known. */

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* x between -57 and 57, so that a product of two powers of 2 stays finite; NaN gives NaN. */
inline_ vec clamp(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps(_mm512_set1_ps(57), _mm512_max_ps(_mm512_set1_ps(-57), (__m512)x));
#elif defined(__AVX__)
    return (vec)_mm256_min_ps(_mm256_set1_ps(57), _mm256_max_ps(_mm256_set1_ps(-57), (__m256)x));
#else
    for (int lane = 0; lane < LANES; lane++) {
        x[lane] = x[lane] < -57.0f ? -57.0f : x[lane];
        x[lane] = x[lane] > 57.0f ? 57.0f : x[lane];
    }
    return x;
#endif
}

/* 2^x with a relative error of 2e-7: 2^n by the exponent, and a minimax polynomial for the rest in [-1/2, 1/2]. */
inline_ vec power2(vec x) {
    x = clamp(x);
    const float round = 12582912.0f + 127.0f; /* 1.5 * 2^23: the sum ends in the bits of n + 127 */
    vec shifted = x + round, r = x - (shifted - round);
    vec p = 1.326472731e-3f * r + 9.671512991e-3f;
    p = p * r + 5.550733581e-2f;
    p = p * r + 2.402224243e-1f;
    p = p * r + 6.931470037e-1f;
    return (p * r + 1.0f) * (vec)((ivec)shifted << 23);
}

#define LOG2E 1.44269504f
