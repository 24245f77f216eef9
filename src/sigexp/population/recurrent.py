"""LSTM layers of a population, as one scan over time for all members and both directions.

Hochreiter and Schmidhuber 1997; gates in torch's order i, f, g, o:

    i, f, o = sigmoid(.), g = tanh(.) of  W_ih x[t] + b + W_hh h[t-1],   c[t] = f c[t-1] + i g,   h[t] = o tanh(c[t]).

One product per step computes all gates, as [W_ih | b | W_hh] @ [x[t]; 1; h[t-1]]. tanh(a) = 2 sigmoid(2 a) - 1,
because tanh takes three to seven times as long as sigmoid on a CPU: the rows of g are doubled, and the layer works
with h / 2, which the columns of W_hh make up for.

This is the version in torch, for any device and precision. On the CPU in float32 a compiled one takes its place where
it can (scan.py), 1.5 to 2.4 times as fast and within 1e-6 of the same results; models that are one such layer and a
read-out do not come here to learn, but go through single.py.

Axes: T samples, Q sequences of members (members x directions), I inputs, H hidden, B examples, innermost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigexp.population import compiling, scan

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


def lstm_layers(
    x: Tensor, weights: Sequence[Tensor], layers: int, directions: int, has_bias: bool, compiled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x [Q, T, B, I] with Q = 1 or P; weights [P, ...] in torch's order; initial states zero.

    compiled: by lstm.c, where `compiling.takes` them.

    Returns outputs [P, T, B, D H], last h and last c [P, layers D, B, H], as `torch.nn.LSTM` for every member.
    """
    per_direction = 4 if has_bias else 2
    x = x.expand(len(weights[0]), -1, -1, -1)
    hidden, cells = [], []
    for layer in range(layers):
        first = layer * directions * per_direction
        own = [weights[first + d * per_direction : first + (d + 1) * per_direction] for d in range(directions)]
        native = compiled and compiling.takes(x, *(t for own in weights for t in own), part=compiling.LSTM)
        advance = _native_layer if native else _layer
        x, c = advance(x, own, has_bias)
        last = x.unflatten(3, (directions, -1))
        hidden += [last[:, -1, :, 0], last[:, 0, :, -1]][:directions]
        cells.append(c)
    return x, torch.stack(hidden, 1), torch.cat(cells, 1)


def _joined(own: Sequence[Tensor], has_bias: bool) -> Tensor:
    """[W_ih | b | W_hh]: [P, 4 H, I + 1 + H]."""
    bias = own[2] + own[3] if has_bias else own[0].new_zeros(own[0].shape[:2])
    return torch.cat([own[0], bias[..., None], own[1]], 2)


def joined(weights: Sequence[Sequence[Tensor]], has_bias: bool) -> Tensor:
    """Weights of every direction as `scan.NativeScan` takes them: [P, D, H, I + 1 + H, 4]."""
    rows = torch.stack([_joined(own, has_bias) for own in weights], 1)  # [P, D, 4 H, K]
    return rows.unflatten(2, (4, -1)).permute(0, 1, 3, 4, 2)


def _native_layer(x: Tensor, weights: Sequence[Sequence[Tensor]], has_bias: bool) -> tuple[Tensor, Tensor]:
    return scan.NativeScan.apply(compiling.kernel(compiling.LSTM), x, joined(weights, has_bias))


def _layer(x: Tensor, weights: Sequence[Sequence[Tensor]], has_bias: bool) -> tuple[Tensor, Tensor]:
    """x [P, T, B, I] -> h [P, T, B, D H], last c [P, D, B, H]."""
    members, gates, inputs = weights[0][0].shape
    scale = x.new_ones(gates, inputs + 1 + gates // 4)
    scale[gates // 2 : 3 * gates // 4] = 2
    scale[:, inputs + 1 :] *= 2
    product = torch.cat([_joined(own, has_bias) * scale for own in weights])
    x = x.permute(1, 0, 3, 2)  # [T, P, I, B]
    if len(weights) == 2:
        x = torch.cat([x, x.flip(0)], 1)
    half, cells = Scan.apply(x, product)
    h = (2 * half).unflatten(1, (len(weights), members))  # [T, D, P, H, B]
    out = torch.cat([h[:, 0], h[:, 1].flip(0)], 2) if len(weights) == 2 else h[:, 0]
    return out.permute(1, 0, 3, 2), cells.unflatten(0, (len(weights), members)).permute(1, 0, 3, 2)


class Scan(torch.autograd.Function):
    """X [T, Q, I, B], V [Q, 4 H, I + 1 + H] as in the module's docstring -> h / 2 [T, Q, H, B], last c [Q, H, B]."""

    @staticmethod
    def forward(ctx, X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        T, Q, I, B = X.shape  # noqa: E741
        G, J = V.shape[1], I + 1
        H = G // 4
        U = X.new_empty(T + 1, Q, J + H, B)  # [x; 1; h / 2] at every time
        U[:T, :, :I], U[:, :, I], U[0, :, J:] = X, 1, 0
        S, C = X.new_empty(T, Q, G, B), X.new_empty(T + 1, Q, H, B)  # gates after the sigmoid; cells
        C[0] = 0
        N, K, L = (X.new_empty(T, Q, H, B) for _ in range(3))  # 2 g; sigmoid(2 c); tanh(c) / 2; C holds 2 c
        minus_two, minus_half = X.new_full((), -2.0), X.new_full((), -0.5)
        i, f, g, o = (gate.unbind() for gate in S.split(H, 2))
        s, u, c, n, k, half, h = (a.unbind() for a in (S, U, C, N, K, L, U[1:, :, J:]))
        for t in range(T):
            torch.bmm(V, u[t], out=s[t]).sigmoid_()
            torch.add(minus_two, g[t], alpha=4, out=n[t])
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], n[t])
            torch.sigmoid(c[t + 1], out=k[t])
            torch.add(k[t], minus_half, out=half[t])
            torch.mul(o[t], half[t], out=h[t])
        ctx.save_for_backward(U, S, C, N, K, L, V)
        return U[1:, :, J:], C[T] / 2

    @staticmethod
    def backward(ctx, grad: Tensor, grad_cell: Tensor):
        U, S, C, N, K, L, V = ctx.saved_tensors
        T, Q, G, B = S.shape
        H, J, need_input = G // 4, U.shape[2] - G // 4, ctx.needs_input_grad[0]
        D = torch.empty_like(S)  # gradients before the sigmoid
        scale = V.new_ones(G, 1)
        scale[2 * H : 3 * H] = 4
        W = (V * scale).transpose(1, 2).contiguous()
        R = W[:, J:].contiguous()
        i, f, _, o = (gate.unbind() for gate in S.split(H, 2))
        di, df, dg, do = (gate.unbind() for gate in D.split(H, 2))
        s, c, n, k, half, d, upstream = (a.unbind() for a in (S, C, N, K, L, D, grad))
        dc, dh, scratch = grad_cell / 2, upstream[T - 1], torch.empty_like(N[0])
        DU = U.new_empty(T, Q, J + H, B) if need_input else None
        for t in range(T - 1, -1, -1):
            torch.mul(dh, o[t], out=scratch)
            _sigmoid_backward(scratch, k[t], grad_input=scratch)
            dc = dc + scratch if t == T - 1 else dc.add_(scratch)
            torch.mul(dc, n[t], out=di[t])
            torch.mul(dc, c[t], out=df[t])
            torch.mul(dc, i[t], out=dg[t])
            torch.mul(dh, half[t], out=do[t])
            _sigmoid_backward(d[t], s[t], grad_input=d[t])
            dc.mul_(f[t])
            if DU is not None:
                torch.bmm(W, d[t], out=DU[t])
                dh = DU[t, :, J:] + upstream[t - 1] if t else dh
            elif t:
                dh = torch.baddbmm(upstream[t - 1], R, d[t])
        DV = torch.zeros_like(V)
        for t in range(T):
            DV.baddbmm_(d[t], U[t].transpose(1, 2))
        return (None if DU is None else DU[:, :, : J - 1]), DV.mul_(scale)
