"""Members that learn from second-order statistics, many minibatches in one compiled call (descent.c).

Which examples a pass has is known before it, so the statistics of several passes are summed first, side by side; what
is left of a step is too small to be divided.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sigexp.population import compiling, native
from sigexp.population.lines import Flat
from sigexp.population.optimizers import BETA2, EPSILON, SLOTS
from sigexp.population.steps import LEARNING, AllAtOnce
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.population import Population

SUMMED = 2**18  # numbers of passes that are summed at a time: 1 MB, which stays in a cache
BEYOND = 16  # floats that a vector may reach beyond the last sum


class Descent(AllAtOnce):
    """`AllAtOnce` of a population whose plan is 'moments', for indices of examples."""

    @classmethod
    def takes(cls, population: "Population", flat: Flat | None) -> bool:
        """Whether there are compiled functions for all that the population needs."""
        return flat is not None and population.clip_norm is None and compiling.takes(*population.params.values())

    def advance(self, batch: Batch) -> list[Tensor]:
        population, flat, index = self.population, self.flat, batch.inputs.contiguous()
        moments, table = population.moments, population.table
        assert flat is not None
        assert moments is not None
        assert table is not None
        library = compiling.kernel()
        assert library is not None
        begin, turn, rates = self._passes(len(index))
        passes, members = turn.shape
        params = list(population.params.values())
        grad = torch.cat([part.reshape(-1) for part in self.gradients or map(torch.zeros_like, params)])
        loss, losses = self.losses.to(torch.float32, copy=True), torch.empty(passes, members)
        lr, momentum, decay = (population.hparams[name].float() for name in LEARNING)
        bias = moments.layer.bias is not None
        linear = compiling.Linear(members, moments.outputs, moments.features, bias, moments.values)
        optimizer = compiling.Optimizer([*SLOTS].index(population.optimizer), members, len(grad), BETA2, EPSILON)
        slots = [flat.tensors[slot] for slot in SLOTS[population.optimizer]]
        fixed = moments.centre, self.weights.float(), torch.empty(8 * (moments.features + BEYOND))
        state = flat.tensors["params"], *slots, *[None] * (2 - len(slots)), grad, flat.owner
        alive = population.store["step"], population.store["alive"], loss
        most = max(torch.get_num_threads(), SUMMED // moments.values)
        for first in range(0, passes, most):
            here = slice(first, min(first + most, passes))
            sums = summed(table, index, begin[first : here.stop + 1])
            given = sums, *fixed, *state, lr * rates[here], momentum, decay, turn[here], *alive, losses[here]
            pointers = [None if tensor is None else tensor.data_ptr() for tensor in given]
            library.moments_descend(linear, optimizer, len(sums), *pointers)
        parts = grad.split([param.numel() for param in params])
        some = self.filled.any()
        self.gradients = [part.view_as(param) for part, param in zip(parts, params, strict=True)] if some else None
        self.losses = loss
        return [losses[turn[:, p], p] for p in range(members)]

    def _passes(self, examples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where each pass over so many examples begins, and the end of the last, [passes + 1]; whose minibatch is full
        after it, and the schedule's factors for those, [passes, P]."""
        begin, turns, scales = [0], list[np.ndarray](), list[Tensor]()
        while begin[-1] < examples:
            count = min(self._room(), examples - begin[-1])
            begin.append(begin[-1] + count)
            turns.append(self._fill(count))
            scales.append(torch.as_tensor(self.scale() if turns[-1].any() else 1.0))
        rates = torch.stack([scale.float().expand(len(self.sizes)) for scale in scales])
        return torch.tensor(begin), torch.from_numpy(np.stack(turns)), rates


def summed(table: Tensor, index: Tensor, begin: Tensor) -> Tensor:
    """Sums of rows of the table [N, values]: in row i those of index from begin[i] to begin[i + 1]."""
    library = compiling.kernel()
    assert library is not None
    passes, values = len(begin) - 1, table.shape[1]
    room = table.new_empty(passes * values + BEYOND)
    room[-BEYOND:] = 0
    pointers = [tensor.data_ptr() for tensor in (begin, index, table, room)]
    native.in_threads(lambda first, last: library.moments_sums(values, first, last, *pointers), passes)
    return room[:-BEYOND].view(passes, values)
