/* What the kernels share: how many floats a register of this processor holds. To be included first. */

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
