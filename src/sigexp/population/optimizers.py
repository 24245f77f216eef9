"""Updates of many members at once, each with its own hyperparameters, equal to torch.optim's SGD, Adam and AdamW.

Every parameter, gradient and optimizer state is stacked, [P, ...], and every hyperparameter [P].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from sigexp.population import native
from sigexp.population.sending import sent

SLOTS: Mapping[str, tuple[str, ...]] = {  # state tensors, shaped like the parameter, of each optimizer
    "sgd": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}
BETA2, EPSILON = 0.999, 1e-8
LARGE = 100_000  # numbers in one member's tensor, from which a kernel of torch per member beats a few passes over all


@dataclass(frozen=True)
class Schedule:
    """What multiplies learning rates in the course of a round: a function of the examples alone, so that a member has
    the same alone and beside others.

    name: constant or cosine (from 1 to 0 over the budget). first: share of the budget, 0..1, at the round's beginning.
    slope: of that share, for every example.
    """

    name: str = "constant"
    first: float = 0.0
    slope: float = 0.0

    def at(self, examples: int) -> float:
        """The factor for a minibatch that begins after so many examples of the round."""
        share = min(self.first + self.slope * examples, 1.0)
        return 0.5 * (1 + math.cos(math.pi * share)) if self.name == "cosine" else 1.0


def update(
    name: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Mapping[str, Sequence[Tensor]],
    step: Tensor,
    hparams: Mapping[str, Tensor],
) -> None:
    """Update `params` and `slots` in place with the gradients of one minibatch each.

    hparams: lr, weight_decay and momentum, which is Adam's beta1; on the CPU, or of small models with the parameters.
    step: updates so far, [P], counted up here.
    """
    if max(param[0].numel() for param in params) >= LARGE:
        for p in range(len(step)):
            of_member = {slot: [t[p] for t in tensors] for slot, tensors in slots.items()}
            values = {key: float(value[p]) for key, value in hparams.items()}
            update_one(name, [t[p] for t in params], [t[p] for t in grads], of_member, step[p], **values)
        return
    step += 1
    there = [sent(hparams[key], step.device) for key in ("lr", "momentum", "weight_decay")]
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        column = (-1, *[1] * (param.ndim - 1))
        lr, momentum, decay = (value.to(param).view(column) for value in there)
        own = {slot: tensors[i] for slot, tensors in slots.items()}
        if name in ("sgd", "nesterov"):
            grad = torch.addcmul(grad, param, decay)
            buffer = own["momentum_buffer"].mul_(momentum).add_(grad)
            param.addcmul_(torch.addcmul(grad, buffer, momentum) if name == "nesterov" else buffer, lr, value=-1)
            continue
        count = step.to(param).view(column)
        if name == "adam":
            grad = torch.addcmul(grad, param, decay)
        else:
            param.mul_(1 - lr * decay)
        mean = own["exp_avg"].lerp_(grad, 1 - momentum)
        square = own["exp_avg_sq"].mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        spread = (square.sqrt() / (1 - BETA2**count).sqrt()).add_(EPSILON)
        param.addcdiv_(mean * (-lr / (1 - momentum**count)), spread)


def compiled_update(
    name: str,
    lines: Sequence[Tensor],
    grad: Tensor,
    owner: Tensor,
    hparams: Mapping[str, Tensor],
    turn: Tensor,
    step: Tensor,
    alive: Tensor,
    losses: Tensor,
) -> None:
    """`update` in one compiled call, of the members whose `turn` it is; float32 on the CPU.

    lines: parameters and each slot, all numbers of all members in a line, [N]; owner [N] int64: whose each is.
    hparams: lr, momentum, weight_decay [P] float32. alive [P] bool: who has had no loss that is not finite; losses [P],
    of the others becomes NaN. Both and `step` are changed in place.
    """
    values = [hparams[key] for key in ("lr", "momentum", "weight_decay")]
    states = [*lines, None] if len(lines) == 2 else lines
    native.update([*SLOTS].index(name), BETA2, EPSILON, *states, grad, owner, *values, turn, step, alive, losses)


def update_one(
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
    """`update` of a single member by torch's own functions, one pass over its tensors where the device has a kernel."""
    fused = params[0].device.type in ("cpu", "cuda") and params[0].is_floating_point()
    # The fused kernels walk over memory, and take it for granted that a gradient lies there as its parameter does.
    grads = [
        grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)
        for param, grad in zip(params, grads, strict=True)
    ]
    if name in ("sgd", "nesterov"):
        buffers: list[Tensor | None] = list(slots["momentum_buffer"])
        sgd(
            list(params), grads, buffers, weight_decay=weight_decay, momentum=momentum, lr=lr,
            dampening=0.0, nesterov=name == "nesterov", maximize=False, foreach=False, fused=fused,
        )  # fmt: skip
        step += 1
        return
    steps = [step.clone() for _ in params]  # each parameter's own, because the function counts it up
    (adam if name == "adam" else adamw)(
        list(params), grads, list(slots["exp_avg"]), list(slots["exp_avg_sq"]), [], steps,
        amsgrad=False, beta1=momentum, beta2=BETA2, lr=lr, weight_decay=weight_decay, eps=EPSILON,
        maximize=False, foreach=False, fused=fused,
    )  # fmt: skip
    step += 1


def clipped(grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """The gradients [P, ...] scaled so that the joint norm of each member's is at most `max_norm`.

    Copies, because two parameters may share one gradient, as the two biases of an LSTM do.
    """
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads], 1)
    scale = (max_norm / (torch.linalg.vector_norm(norms, dim=1) + 1e-6)).clamp(max=1.0)
    return [grad * scale.to(grad).view(-1, *[1] * (grad.ndim - 1)) for grad in grads]
