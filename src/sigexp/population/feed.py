"""Minibatches: which examples a population sees, as a pure function of the position in the training data."""

import numpy as np
import torch

from sigexp.population.sending import sent
from sigexp.problem import Batch, Problem


class Feed:
    """Training examples in the order they are learned from.

    A fixed set is drawn once, kept on the device, and shuffled anew every epoch by a generator of (seed, epoch). A
    stream has no epochs: position is index. With `shuffle=False` a chunk is a contiguous slice from a random start,
    as in the lecture.
    """

    def __init__(self, problem: Problem, *, seed: int, device: torch.device, shuffle: bool = True) -> None:
        self.problem, self.seed, self.device, self.shuffle = problem, seed, device, shuffle
        self.size = problem.sizes["train"]
        self._data: Batch | None = None
        self._valid: Batch | None = None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def data(self) -> Batch:
        """The whole of a fixed training set, on the device; drawn at the first call."""
        if self._data is None:
            inputs, targets = self.problem.examples("train")
            self._data = Batch(inputs.to(self.device), targets.to(self.device))
        return self._data

    def validation(self, count: int) -> Batch:
        """The first validation examples, on the device; the same tensors at every call."""
        if self._valid is None or len(self._valid.inputs) != count:
            inputs, targets = self.problem.examples("valid", 0, count)
            self._valid = Batch(inputs.to(self.device), targets.to(self.device))
        return self._valid

    def take(self, position: int, count: int) -> Batch:
        """The `count` examples that follow `position` samples of training: inputs and targets on the device."""
        index = self.indices(position, count)
        if self.size is None:
            inputs, targets = self.problem.sample("train", index)
            return Batch(sent(inputs, self.device), sent(targets, self.device))
        index = sent(index, self.device)
        return Batch(*(part.index_select(0, index) for part in self.data()))

    def indices(self, position: int, count: int) -> torch.Tensor:
        """Which examples those are: [count] int64; of a fixed set without shuffling at most its size."""
        if self.size is None:
            return torch.arange(position, position + count)
        if not self.shuffle:
            count = min(count, self.size)
            start = int(np.random.default_rng([self.seed, 3, position]).integers(self.size - count + 1))
            return torch.arange(start, start + count)
        parts = []
        while count > 0:
            epoch, offset = divmod(position, self.size)
            if epoch != self._epoch:
                order = np.random.default_rng([self.seed, 2, epoch]).permutation(self.size)
                self._epoch, self._order = epoch, torch.from_numpy(order)
            parts.append(self._order[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)
