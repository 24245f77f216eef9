/* One minibatch's update of all numbers of all members in float32; optimizers.py says the same in torch's operations.

   Axes: P members, N numbers, of which each belongs to a member: its owner. Numbers of a member lie in runs. */

#include "update.h"

#include <math.h>

enum { SGD, NESTEROV, ADAM, ADAMW };

/* first, second: the optimizer's state; sgd has no second. grad [N]. lr, momentum, decay [P]. Of the members [P] whose
   turn it is: step counts up; a loss of one that is not alive becomes NaN; who has a loss that is not finite is not
   alive any longer. */
void update_members(Optimizer o, float *param, float *first, float *second, const float *grad, const int64_t *owner,
                    const float *lr, const float *momentum, const float *decay, const uint8_t *turn, float *step,
                    uint8_t *alive, float *losses) {
    for (size p = 0; p < o.members; p++)
        if (turn[p]) {
            step[p] += 1;
            if (!alive[p]) losses[p] = NAN;
            alive[p] = alive[p] && isfinite(losses[p]);
        }
    for (size i = 0, end; i < o.numbers; i = end) {
        size p = owner[i];
        for (end = i + 1; end < o.numbers && owner[end] == p;) end++;
        if (!turn[p]) continue;
        float rate = lr[p], m = momentum[p], d = decay[p], rest = 1 - m;
        if (o.kind == SGD || o.kind == NESTEROV) {
            int ahead = o.kind == NESTEROV;
            for (size k = i; k < end; k++) {
                float g = grad[k] + d * param[k];
                first[k] = m * first[k] + g;
                param[k] -= rate * (ahead ? g + m * first[k] : first[k]);
            }
            continue;
        }
        float large = o.beta2, small = 1 - o.beta2, epsilon = o.epsilon, keep = o.kind == ADAMW ? 1 - rate * d : 1;
        float to_gradient = o.kind == ADAM ? d : 0;
        float pace = rate / (1 - pow(m, step[p])), spread = 1 / sqrt(1 - pow(o.beta2, step[p]));
        for (size k = i; k < end; k++) {
            float g = grad[k] + to_gradient * param[k];
            first[k] += rest * (g - first[k]);
            second[k] = large * second[k] + small * g * g;
            param[k] = keep * param[k] - pace * first[k] / (sqrtf(second[k]) * spread + epsilon);
        }
    }
}
