/* Single layers whose kernel is one pixel: pointwise.c. */

#pragma once

#include "products.h"

int pointwise_takes(const Shape *s);
void pointwise_learn(Shape s, size first, size last, const float *x, const float *weight, const float *bias,
                     const float *target, float *losses, float *weight_grad, float *bias_grad);
