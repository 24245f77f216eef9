/* Convolutions whose vectors are one pixel of several examples: across.c. */

#pragma once

#include "products.h"

/* Whether they suit a convolution better than vectors of neighbouring pixels do. */
int across_takes(const Shape *s);
int across_forward(Shape s, size first, size last, float *x, float *weight, float *bias, float *out);
int across_backward(Shape s, size first, size last, float *x, float *weight, float *out, float *grad, float *x_grad,
                    float *weight_grad, float *bias_grad);
