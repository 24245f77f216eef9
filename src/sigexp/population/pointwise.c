/* Training of a single layer whose kernel is one pixel, of a few channels: outputs, errors, losses and the sums of the
   gradients never leave the registers, and every example is read from the cache by one member after the other. */

#include "pointwise.h"

int pointwise_takes(const Shape *s) {
    int one = s->kernel_height == 1 && s->kernel_width == 1 && !s->pad_rows && !s->pad_columns;
    return one && s->inputs <= CHANNELS && s->outputs <= CHANNELS && s->height * s->width % LANES == 0;
}

/* One member on one example x [C, pixels], target [D, pixels]. */
inline_ void learn(const size inputs, const size outputs, size pixels, const float *x, const float *target,
                   const float *weight, const float *bias, float *loss, float *weight_grad, float *bias_grad) {
    vec w[CHANNELS][CHANNELS], shift[CHANNELS], products[CHANNELS][CHANNELS], errors[CHANNELS], squares = filled(0);
    UNROLL for (size d = 0; d < outputs; d++) {
        shift[d] = filled(bias[d]), errors[d] = filled(0);
        UNROLL for (size c = 0; c < inputs; c++)
            w[d][c] = filled(weight[d * inputs + c]), products[d][c] = filled(0);
    }
    for (size j = 0; j < pixels; j += LANES) {
        vec here[CHANNELS];
        UNROLL for (size c = 0; c < inputs; c++) here[c] = in_register(load(x + c * pixels + j));
        UNROLL for (size d = 0; d < outputs; d++) {
            vec error = shift[d] - load(target + d * pixels + j);
            UNROLL for (size c = 0; c < inputs; c++) error += w[d][c] * here[c];
            squares += error * error, errors[d] += error;
            UNROLL for (size c = 0; c < inputs; c++) products[d][c] += error * here[c];
        }
    }
    *loss += sum(squares);
    UNROLL for (size d = 0; d < outputs; d++) {
        bias_grad[d] += sum(errors[d]);
        UNROLL for (size c = 0; c < inputs; c++) weight_grad[d * inputs + c] += sum(products[d][c]);
    }
}

/* As `convolution_learn`. */
void pointwise_learn(Shape s, size first, size last, const float *x, const float *weight, const float *bias,
                     const float *target, float *losses, float *weight_grad, float *bias_grad) {
    size pixels = s.height * s.width, C = s.inputs, D = s.outputs;
    for (size b = 0; b < s.examples; b++)
        for (size p = first; p < last; p++) {
#define LEARN(C, D)                                                                                                    \
    learn(C, D, pixels, x + b * C * pixels, target + b * D * pixels, weight + p * C * D, bias + p * D,                 \
          losses + p * s.examples + b, weight_grad + p * C * D, bias_grad + p * D)
#define OF_1(D) LEARN(1, D)
#define OF_2(D) LEARN(2, D)
#define OF_3(D) LEARN(3, D)
#define OF_4(D) LEARN(4, D)
            switch (C) {
            case 1: ANY_CHANNELS(D, OF_1) break;
            case 2: ANY_CHANNELS(D, OF_2) break;
            case 3: ANY_CHANNELS(D, OF_3) break;
            default: ANY_CHANNELS(D, OF_4)
            }
        }
}
