/* Models of one layer of LSTMs that is read out at every time: losses and gradients in one pass, out of which nothing
   as long as the sequences leaves the cache. Axes as in lstm.h; C = D H channels that are read, O outputs. */

#include "lstm.h"

/* y [O] = W [a; 1] at every time, W [O, C + 1], a = h, or sigmoid(h) where `squashed`. */
typedef struct {
    size outputs, squashed;
} Readout;

/* h of a block -> its gradient in `upstream` [T, C, BLOCK], squared errors added to `loss`, sums [O, C + 1] per lane
   to `sums`. target [T, O, BLOCK]; slope [BLOCK] is what an error counts of an example; a [C, BLOCK] is scratch. */
static void read_out(size time, size channels, Readout r, const float *h, const float *w, const float *target,
                     const float *slope, vec *a, vec *loss, float *upstream, vec *sums) {
    for (size t = 0; t < time; t++, h += channels * BLOCK, upstream += channels * BLOCK) {
        for (size i = 0; i < 2 * channels; i++) {
            a[i] = ((const vec *)h)[i];
            if (r.squashed) a[i] = 1.0f / (1.0f + power2(-LOG2E * a[i]));
        }
        vec *to = (vec *)upstream;
        memset(to, 0, channels * BLOCK * sizeof(float));
        for (size o = 0; o < r.outputs; o++, target += BLOCK) {
            const float *row = w + o * (channels + 1);
            vec *sum = sums + o * (channels + 1), y[2] = {row[channels] + (vec){0}, row[channels] + (vec){0}}, e[2];
            for (size c = 0; c < channels; c++) y[0] += row[c] * a[2 * c], y[1] += row[c] * a[2 * c + 1];
            for (int v = 0; v < 2; v++) {
                e[v] = y[v] - *(const vec *)(target + v * LANES);
                loss[v] += e[v] * e[v];
                e[v] *= *(const vec *)(slope + v * LANES);
            }
            for (size c = 0; c < channels; c++) {
                sum[c] += e[0] * a[2 * c] + e[1] * a[2 * c + 1];
                to[2 * c] += row[c] * e[0], to[2 * c + 1] += row[c] * e[1];
            }
            sum[channels] += e[0] + e[1];
        }
        for (size i = 0; i < 2 * channels && r.squashed; i++) to[i] *= a[i] * (1.0f - a[i]);
    }
}

/* x and target by strides; weights of the LSTMs, of the readout [P, O, C + 1], and of examples [P, B] -> mean squared
   errors [P, B], 0 in a block of which no example counts, and the gradients of their weighted sum, which is in parts:
   [P, parts, ...]. Of all P * parts those of first..last. Returns 0, or -1 without memory. */
int readout_learn(Shape n, Readout r, size parts, size first, size last, const float *x, Strides sx,
                  const float *target, Strides st, const float *w, const float *readout, const float *examples,
                  float *losses, float *dw, float *dreadout) {
    size H = n.hidden, D = n.directions, I = n.inputs, C = D * H, cells = H * BLOCK, line = n.time * D * cells;
    size weights = D * H * (I + 1 + H) * 4, reads = r.outputs * (C + 1), all = weights + reads;
    size floats = n.time * (I + 1 + r.outputs) * BLOCK + 3 * line + (4 * STEPS + 3) * cells + (C + 1) * BLOCK;
    float *memory = allocate(floats * sizeof(float) + all * (sizeof(vec) + sizeof(double)) + weights * sizeof(float));
    if (!memory) return -1;
    Scratch m = {.u = memory};
    float *h = m.u + n.time * (I + 1) * BLOCK, *c = h + line, *aims = c + line;
    m.upstream = aims + n.time * r.outputs * BLOCK, m.d = m.upstream + line, m.dh = m.d + 4 * STEPS * cells;
    m.dc = m.dh + cells, m.zero = m.dc + cells;
    float *a = m.zero + cells, *slope = a + C * BLOCK;
    memset(m.zero, 0, cells * sizeof(float));
    m.sums = (vec *)(slope + BLOCK), m.totals = (double *)(m.sums + all);
    m.scaled = (float *)(m.totals + all);
    const float share = 1.0f / (n.time * r.outputs);
    const size blocks = (n.examples + BLOCK - 1) / BLOCK;
    for (size part = first; part < last; part++) {
        size p = part / parts, begin = blocks * (part % parts) / parts, end = blocks * (part % parts + 1) / parts;
        const float *own = w + p * weights;
        memset(m.sums, 0, all * (sizeof(vec) + sizeof(double)));
        scale(weights, own, m.scaled);
        for (size k = begin, start = k * BLOCK; k < end; k++, start += BLOCK) {
            size count = n.examples - start < BLOCK ? n.examples - start : BLOCK;
            vec loss[2] = {{0}, {0}};
            int counts = 0;
            for (size b = 0; b < BLOCK; b++) {
                slope[b] = b < count ? 2 * share * examples[p * n.examples + start + b] : 0;
                counts |= slope[b] != 0;
            }
            if (!counts) { /* where a member's minibatch is shorter than another's */
                memset(losses + p * n.examples + start, 0, count * sizeof(float));
                continue;
            }
            pack_inputs(x + p * sx.member, sx, n, start, count, m.u);
            pack_times(target + p * st.member + start * st.example, st, n.time, count, r.outputs, aims,
                       r.outputs * BLOCK);
            for (size d = 0; d < D; d++)
                scan(n, d == 1, m.u, m.scaled + d * weights / D, m.zero, h + d * cells, c + d * n.time * cells);
            read_out(n.time, C, r, h, readout + p * reads, aims, slope, (vec *)a, loss, m.upstream, m.sums + weights);
            for (size b = 0; b < count; b++) losses[p * n.examples + start + b] = share * loss[b / LANES][b % LANES];
            for (size d = 0; d < D; d++) {
                Scratch at = m;
                memset(m.dc, 0, cells * sizeof(float));
                at.sums += d * weights / D, at.scaled += d * weights / D;
                scan_back(n, d == 1, own + d * weights / D, h + d * cells, c + d * n.time * cells, at, 0);
            }
            if (k % FLUSH == FLUSH - 1) flush(all, m.sums, m.totals);
        }
        flush(all, m.sums, m.totals);
        for (size i = 0; i < weights; i++) dw[part * weights + i] = m.totals[i];
        for (size i = 0; i < reads; i++) dreadout[part * reads + i] = m.totals[weights + i];
    }
    free(memory);
    return 0;
}
