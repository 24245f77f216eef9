"""Gradients by given ones of the outputs, as `torch.autograd.grad` has them.

Given some, that function imports torch's symbolic shapes, to compare two that are plain numbers: a quarter of a second
in every process that trains. So what it calls next is called here, where a release has it as it is called here.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


def gradients(outputs: Tensor, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor | None]:
    """Of a tensor by others, given its own gradient, of its shape; None for what it does not depend on."""
    if outputs.shape != upstream.shape:
        raise RuntimeError(f"a gradient {list(upstream.shape)} is given of outputs {list(outputs.shape)}")
    if (run := _run_backward()) is None:
        return list(torch.autograd.grad(outputs, inputs, upstream, allow_unused=True))
    return list(_called(run, outputs, inputs, upstream))


def _called(run: Callable, outputs: Tensor, inputs: Sequence[Tensor], upstream: Tensor) -> Sequence[Tensor | None]:
    """keep_graph, create_graph: no; allow_unreachable: yes; accumulate_grad: no."""
    found: Sequence[Tensor | None] = run((outputs,), (upstream,), False, False, tuple(inputs), True, False)
    return found


@cache
def _run_backward() -> Callable[..., Any] | None:
    """torch's engine, or None where it is another one."""
    try:
        run: Callable[..., Any] = torch.autograd.Variable._execution_engine.run_backward
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            x, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
            found, none = _called(run, x * 3, (x, unused), torch.tensor([1.0, 2.0]))
        return run if found is not None and found.tolist() == [3.0, 6.0] and none is None else None
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return None
