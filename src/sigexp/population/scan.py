"""LSTMs by the compiled functions of lstm.c and readout.c."""

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigexp.population import native
from sigexp.population.compiling import LSTM, Readout, Shape, Strides, kernel


class NativeScan(torch.autograd.Function):
    """x [P, T, B, I], weights [P, D, H, I + 1 + H, 4] -> h [P, T, B, D H], last c [P, D, B, H]; float32 on the CPU.

    The columns of the weights belong to [x; 1; h[t-1]], their last axis to the gates i, f, g, o. Errors below 1e-6.
    """

    @staticmethod
    def forward(ctx, library: ctypes.CDLL, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        P, T, B, I = x.shape  # noqa: E741
        D, H = weights.shape[1:3]
        ctx.set_materialize_grads(False)
        ctx.library, ctx.shape, weights = library, Shape(P, D, T, B, I, H), weights.contiguous()
        block = library.lstm_block()
        blocks = -(-B // block)
        out, h = x.new_empty(P, T, B, D * H), x.new_empty(P, blocks, T, D, H, block)
        c = x.new_empty(P, blocks, D, T, H, block)
        pointers = (tensor.data_ptr() for tensor in (weights, out, h, c))
        native.call(partial(library.lstm_forward, ctx.shape, x.data_ptr(), Strides(*x.stride()), *pointers))
        ctx.save_for_backward(x, weights, h, c)
        last = c[:, :, :, -1].permute(0, 2, 1, 4, 3).reshape(P, D, blocks * block, H)
        return out, last[:, :, :B]

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None):
        grad, grad_cell = gradients
        x, weights, h, c = ctx.saved_tensors
        P, T, B, I = x.shape  # noqa: E741
        D, H = weights.shape[1:3]
        blocks, block = h.shape[1], h.shape[-1]
        if grad is None:
            grad = x.new_zeros(()).expand(P, T, B, D * H)
        if grad_cell is not None:
            padded = torch.nn.functional.pad(grad_cell, (0, 0, 0, blocks * block - B))
            grad_cell = padded.unflatten(2, (blocks, block)).permute(0, 2, 1, 4, 3).contiguous()
        dx = x.new_empty(P, T, B, I) if ctx.needs_input_grad[1] else None
        dw = torch.empty_like(weights)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in (grad_cell, dx, dw))
        native.call(partial(
            ctx.library.lstm_backward, ctx.shape, x.data_ptr(), Strides(*x.stride()), weights.data_ptr(),
            h.data_ptr(), c.data_ptr(), grad.data_ptr(), Strides(*grad.stride()), *pointers,
        ))  # fmt: skip
        return None, dx, dw


def learn_readout(
    x: Tensor, target: Tensor, weights: Tensor, readout: Tensor, examples: Tensor, *, squashed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors [P, B] of LSTMs that are read out at every time, and the gradients of their sum, weighted by
    `examples` [P, B], by both weights.

    x [Q, B, I, T] and target [Q, B, O, T], Q = 1 or P; weights as of `NativeScan`; readout [P, O, D H + 1], the bias
    last; squashed: by a sigmoid before they are read.
    """
    library = kernel(LSTM)
    assert library is not None
    members, directions, hidden, columns, _ = weights.shape
    fits = x.shape[2] + 1 + hidden == columns and readout.shape[2] == directions * hidden + 1
    if not fits or target.shape != (*x.shape[:2], readout.shape[1], x.shape[3]) or examples.shape[1] != x.shape[1]:
        raise ValueError(f"inputs {list(x.shape)} and targets {list(target.shape)} do not fit the model")
    shape = Shape(members, directions, x.shape[3], x.shape[1], x.shape[2], hidden)
    weights, readout, examples = (tensor.contiguous() for tensor in (weights, readout, examples))
    threads = torch.get_num_threads()
    parts = 1 if members % threads == 0 else threads  # of a member's examples, so that all threads have as much to do
    losses = torch.empty_like(examples)
    slopes = [tensor.new_empty(members, parts, *tensor.shape[1:]) for tensor in (weights, readout)]
    pointers = [tensor.data_ptr() for tensor in (weights, readout, examples, losses, *slopes)]
    given: list[Any] = []
    for tensor in (x, target):
        member, example, channel, time = tensor.stride()
        given += [tensor.data_ptr(), Strides(member if len(tensor) > 1 else 0, time, example, channel)]
    settings = Readout(readout.shape[1], squashed)
    native.in_threads(
        lambda first, last: library.readout_learn(shape, settings, parts, first, last, *given, *pointers),
        members * parts,
    )
    return losses, *(slope.sum(1) if parts > 1 else slope[:, 0] for slope in slopes)  # type: ignore[return-value]
