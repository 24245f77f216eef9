/* The update of update.c, for those who make many in a row. */

#pragma once

#include "vectors.h"

typedef struct {
    size kind, members, numbers;
    double beta2, epsilon;
} Optimizer;

void update_members(Optimizer o, float *param, float *first, float *second, const float *grad, const int64_t *owner,
                    const float *lr, const float *momentum, const float *decay, const uint8_t *turn, float *step,
                    uint8_t *alive, float *losses);
