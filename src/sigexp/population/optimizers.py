"""One update of one member by the functional optimizers of torch, on tensors that the population owns."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

SLOTS: Mapping[str, tuple[str, ...]] = {  # state tensors, shaped like the parameter, of each optimizer
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


def update(
    name: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Mapping[str, Sequence[Tensor]],
    step: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Update `params` and `slots` in place, as `torch.optim.SGD`, `Adam` or `AdamW` would.

    `momentum` is Adam's beta1; its beta2 is 0.999 and epsilon 1e-8. `step` counts the updates, shape [].
    """
    if name == "sgd":
        buffers: list[Tensor | None] = list(slots["momentum_buffer"])
        sgd(
            list(params), list(grads), buffers, weight_decay=weight_decay, momentum=momentum, lr=lr,
            dampening=0.0, nesterov=False, maximize=False, foreach=False,
        )  # fmt: skip
        step += 1
        return
    function = adam if name == "adam" else adamw
    steps = [step.clone() for _ in params]  # each parameter's own, because the function counts it up
    function(
        list(params), list(grads), list(slots["exp_avg"]), list(slots["exp_avg_sq"]), [], steps,
        amsgrad=False, beta1=momentum, beta2=0.999, lr=lr, weight_decay=weight_decay, eps=1e-8,
        maximize=False, foreach=False,
    )  # fmt: skip
    step += 1


def clip_(grads: Sequence[Tensor], max_norm: float) -> None:
    """Scale the gradients of one member in place so that their joint norm is at most `max_norm`."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
