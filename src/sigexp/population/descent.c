/* Many steps of linear models from second-order statistics of minibatches in float32; moments.py has the equations.

   Axes: P members, D outputs, K features, and 1 of them for the bias. A row of statistics has R's upper triangle
   [K (K + 1) / 2], q [D, K] and s. Members' numbers lie as weight [P, D, taps], then bias [P, D]. Vectors reach beyond
   the last row of sums, where has to be room. */

#include "floats.h"
#include "update.h"

#define TOGETHER 4 /* outputs of members that share what is loaded of R */

typedef struct {
    size members, outputs, features, bias, values;
} Linear;

/* sums [passes, values] of the rows of the table [N, values] that are in every pass: those of index from begin[i] to
   begin[i + 1]. Of the passes from `from` to `to`. */
void moments_sums(size values, size from, size to, const size *begin, const int64_t *index, const float *table,
                  float *sums) {
    for (size pass = from; pass < to; pass++) {
        float *sum = sums + pass * values;
        size n = begin[pass];
        memcpy(sum, table + index[n++] * values, values * sizeof(float));
        for (; n + 1 < begin[pass + 1]; n += 2) {
            const float *one = table + index[n] * values, *other = table + index[n + 1] * values;
            for (size i = 0; i < values; i++) sum[i] += one[i] + other[i];
        }
        for (; n < begin[pass + 1]; n++) {
            const float *one = table + index[n] * values;
            for (size i = 0; i < values; i++) sum[i] += one[i];
        }
    }
}

/* g [n, stride] = v [n, stride] R, v with zeros behind its K numbers; what comes behind g's means nothing. */
inline_ void times_triangle(const float *triangle, size features, size stride, const int n, const float *v, float *g) {
    memset(g, 0, n * stride * sizeof(float));
    for (size j = 0; j < features; j++) {
        const float *row = triangle + j * features - j * (j + 1) / 2; /* where its first column would be */
        ivec place;
        UNROLL for (int i = 0; i < LANES; i++) place[i] = i;
        vec sums[TOGETHER] = {{0}};
        size at = j / LANES * LANES;
        /* The diagonal is in both products, of rows and of columns. */
        vec x = (vec)((ivec)load(row + at) & (place > (int32_t)(j - at)));
        for (;;) {
            UNROLL for (int m = 0; m < n; m++) {
                *(vec *)(g + m * stride + at) += v[m * stride + j] * x;
                sums[m] += load(v + m * stride + at) * x;
            }
            at += LANES;
            if (at >= features) break;
            x = load(row + at);
        }
        UNROLL for (int m = 0; m < n; m++) g[m * stride + j] += sum(sums[m]) + v[m * stride + j] * row[j];
    }
}

/* Add to losses [P] and gradients what a pass with these sums has, times the members' weights [P]. room [2, n, stride]
   for n outputs of members from `at` on. */
inline_ void learn(const Linear *l, const float *sums, const float *centre, const float *weights, const float *param,
                   size at, const int n, float *room, float *grad, float *losses) {
    const size K = l->features, D = l->outputs, taps = K - l->bias, stride = rounded(K);
    const float *q = sums + K * (K + 1) / 2, s = q[D * K];
    float *v = room, *g = room + n * stride;
    for (int m = 0; m < n; m++) {
        const float *from = param + (at + m) * taps, *about = centre + (at + m) % D * K;
        for (size k = 0; k < taps; k++) v[m * stride + k] = from[k] - about[k];
        if (l->bias) v[m * stride + taps] = param[l->members * D * taps + at + m] - about[taps];
        for (size k = K; k < stride; k++) v[m * stride + k] = 0;
    }
    times_triangle(sums, K, stride, n, v, g);
    for (int m = 0; m < n; m++) {
        const size p = (at + m) / D, d = (at + m) % D;
        const float *mine = v + m * stride, *right = q + d * K;
        float *slope = g + m * stride, *to = grad + (at + m) * taps;
        vec loss = {0};
        for (size k = 0; k < K; k += LANES) {
            vec here = load(slope + k) - load(right + k);
            *(vec *)(slope + k) = here;
            loss += load(mine + k) * (here - load(right + k));
        }
        losses[p] += weights[p] * (sum(loss) + (d ? 0 : s));
        for (size k = 0; k < taps; k++) to[k] += 2 * weights[p] * slope[k];
        if (l->bias) grad[l->members * D * taps + at + m] += 2 * weights[p] * slope[taps];
    }
}

/* Passes one after the other, behind each of them the update of the members whose turn it is [passes, P], with their
   learning rates [passes, P]. loss [P] and grad [P numbers] are those of minibatches that are not full, before and after;
   losses [passes, P] has those of the full ones. The others are as of `update_members`, room as of `learn`. */
void moments_descend(Linear l, Optimizer o, size passes, const float *sums, const float *centre, const float *weights,
                     float *room, float *param, float *first, float *second, float *grad, const int64_t *owner,
                     const float *lr, const float *momentum, const float *decay, const uint8_t *turn, float *step,
                     uint8_t *alive, float *loss, float *losses) {
    const size P = l.members, rows = P * l.outputs;
    for (size pass = 0; pass < passes; pass++, sums += l.values, lr += P, turn += P, losses += P) {
        size at = 0, due = 0;
        for (; at + TOGETHER <= rows; at += TOGETHER)
            learn(&l, sums, centre, weights, param, at, TOGETHER, room, grad, loss);
        for (; at < rows; at++) learn(&l, sums, centre, weights, param, at, 1, room, grad, loss);
        for (size p = 0; p < P; p++) due += turn[p];
        if (!due) continue;
        memcpy(losses, loss, P * sizeof(float));
        update_members(o, param, first, second, grad, owner, lr, momentum, decay, turn, step, alive, losses);
        for (size i = 0; i < o.numbers; i++)
            if (turn[owner[i]]) grad[i] = 0;
        for (size p = 0; p < P; p++)
            if (turn[p]) loss[p] = 0;
    }
}
