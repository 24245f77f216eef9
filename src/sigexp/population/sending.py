"""Small numbers from the host to where a population lives, without waiting for what is computed there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """A tensor, or the tensor of a list, on the device.

    A copy to a card waits for all kernels before it, unless it comes from pages that the system does not move.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if tensor.device.type == "cpu" and device.type not in ("cpu", "mps"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait(device: torch.device) -> None:
    """Until all that was begun on a card is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
