/* A register of floats that may lie anywhere in memory, and its sum. */

#pragma once

#include "vectors.h"

#define UNROLL _Pragma("GCC unroll 24")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float vec8 __attribute__((vector_size(32)));

inline_ vec load(const float *from) { return *(const vec *)from; }

/* For what is used several times, because GCC prefers to load it again at every use. */
inline_ vec in_register(vec x) {
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#endif
    return x;
}

inline_ vec filled(float value) { return value - (vec){0}; } /* + 0 would change -0, so it would be computed */

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
