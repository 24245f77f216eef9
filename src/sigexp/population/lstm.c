/* One layer of LSTMs for a population, forward and backward. Axes as in lstm.h; h [P, blocks, T, D, H, BLOCK] and
   c [P, blocks, D, T, H, BLOCK]. */

#include "lstm.h"

size lstm_block(void) { return BLOCK; }

/* x by strides; weights; -> out [P, T, B, D H], and h and c for the backward pass. Returns 0, or -1 without memory. */
int lstm_forward(Shape n, const float *x, Strides sx, const float *w, float *out, float *h, float *c) {
    size H = n.hidden, D = n.directions, K = n.inputs + 1 + H, blocks = (n.examples + BLOCK - 1) / BLOCK;
    size line = n.time * D * H * BLOCK;
    float *u = allocate((n.time * (n.inputs + 1) * BLOCK + H * BLOCK + D * H * K * 4) * sizeof(float));
    if (!u) return -1;
    float *zero = u + n.time * (n.inputs + 1) * BLOCK, *scaled = zero + H * BLOCK;
    memset(zero, 0, H * BLOCK * sizeof(float));
    for (size p = 0; p < n.members; p++) {
        scale(D * H * K * 4, w + p * D * H * K * 4, scaled);
        for (size k = 0; k < blocks; k++, h += line, c += line) {
            size start = k * BLOCK, count = n.examples - start < BLOCK ? n.examples - start : BLOCK;
            pack_inputs(x + p * sx.member, sx, n, start, count, u);
            for (size d = 0; d < D; d++)
                scan(n, d == 1, u, scaled + d * H * K * 4, zero, h + d * H * BLOCK, c + d * n.time * H * BLOCK);
            for (size t = 0; t < n.time; t++)
                transpose(h + t * D * H * BLOCK, BLOCK, out + ((p * n.time + t) * n.examples + start) * D * H, D * H,
                          D * H, count);
        }
    }
    free(u);
    return 0;
}

static void block_back(Shape n, size start, const float *x, Strides sx, const float *w, const float *h, const float *c,
                       const float *grad, Strides sg, const float *grad_cell, float *dx, Scratch m) {
    size H = n.hidden, D = n.directions, K = n.inputs + 1 + H, cells = H * BLOCK;
    size count = n.examples - start < BLOCK ? n.examples - start : BLOCK;
    for (size d = 0; d < D; d++)
        for (size s = n.time - 1; s >= n.time - AHEAD; s--) fetch(n, d == 1, h + d * cells, c + d * n.time * cells, s);
    pack_inputs(x, sx, n, start, count, m.u);
    pack_times(grad + start * sg.example, sg, n.time, count, D * H, m.upstream, D * cells);
    for (size d = 0; d < D; d++) {
        if (grad_cell)
            memcpy(m.dc, grad_cell + d * cells, cells * sizeof(float));
        else
            memset(m.dc, 0, cells * sizeof(float));
        Scratch own = m;
        own.sums += d * H * K * 4, own.scaled += d * H * K * 4;
        scan_back(n, d == 1, w + d * H * K * 4, h + d * cells, c + d * n.time * cells, own, dx != 0);
    }
    if (dx)
        for (size t = 0; t < n.time; t++)
            transpose(m.du + t * n.inputs * BLOCK, BLOCK, dx + (t * n.examples + start) * n.inputs, n.inputs,
                      n.inputs, count);
}

/* Inputs of `lstm_forward`, its h and c, the gradients of out by strides and of the last c [P, blocks, D, H, BLOCK]
   or none -> dx [P, T, B, I] unless it is none, and the weights' gradients. Returns 0, or -1 without memory. */
int lstm_backward(Shape n, const float *x, Strides sx, const float *w, const float *h, const float *c,
                  const float *grad, Strides sg, const float *grad_cell, float *dx, float *dw) {
    size H = n.hidden, D = n.directions, I = n.inputs, cells = H * BLOCK, line = n.time * D * cells;
    size weights = D * H * (I + 1 + H) * 4, blocks = (n.examples + BLOCK - 1) / BLOCK;
    size floats = n.time * (2 * I + 1) * BLOCK + line + (4 * STEPS + 3) * cells;
    float *memory = allocate(floats * sizeof(float) + weights * (sizeof(vec) + sizeof(double) + sizeof(float)));
    if (!memory) return -1;
    Scratch m = {.u = memory};
    m.upstream = m.u + n.time * (I + 1) * BLOCK, m.du = m.upstream + line, m.d = m.du + n.time * I * BLOCK;
    m.dh = m.d + 4 * STEPS * cells, m.dc = m.dh + cells, m.zero = m.dc + cells;
    memset(m.zero, 0, cells * sizeof(float));
    m.sums = (vec *)(m.zero + cells), m.totals = (double *)(m.sums + weights);
    m.scaled = (float *)(m.totals + weights);
    for (size p = 0; p < n.members; p++, w += weights, dw += weights) {
        memset(m.sums, 0, weights * (sizeof(vec) + sizeof(double)));
        scale(weights, w, m.scaled);
        for (size k = 0; k < blocks; k++, h += line, c += line) {
            const float *last = grad_cell ? grad_cell + (p * blocks + k) * D * cells : 0;
            block_back(n, k * BLOCK, x + p * sx.member, sx, w, h, c, grad + p * sg.member, sg, last,
                       dx ? dx + p * n.time * n.examples * I : 0, m);
            if (k % FLUSH == FLUSH - 1 || k == blocks - 1) flush(weights, m.sums, m.totals);
        }
        for (size i = 0; i < weights; i++) dw[i] = m.totals[i];
    }
    free(memory);
    return 0;
}
