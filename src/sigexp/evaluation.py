"""Judging a predictor: every metric of a problem on whole splits, in chunks so that memory stays bounded."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from sigexp.metrics import POOLED_OVER_PIXELS
from sigexp.problem import Batch, Problem, Split

Predict = Callable[[Tensor], Tensor]  # inputs -> outputs
Watch = Callable[[Tensor, Batch, Tensor], None]  # (index, examples, outputs) of a chunk
TRAIN_EXAMPLES = 1000  # that the best member is judged on beside the test data, to tell over-fitting from inability
CHUNK_VALUES = 8_000_000  # input values evaluated at once: 32 MB, small enough for any activation that follows
PASS_VALUES = 131_072  # input values that pass a model at once on a CPU: what it makes of them stays in the caches


def passes(inputs: Tensor) -> Sequence[Tensor]:
    """Inputs in the parts that a model takes best one after the other, where they are on a CPU."""
    if inputs.device.type != "cpu":
        return [inputs]
    return inputs.split(max(1, PASS_VALUES // max(1, inputs[:1].numel())))


class InPasses:
    """A model in evaluation, on a CPU in passes and with the channels of images innermost, two to four times as quick
    as whole chunks are; where the model does not take that layout, it is left."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.takes = model, True

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat([self._one(part) for part in passes(inputs)]).contiguous()

    def _one(self, inputs: Tensor) -> Tensor:
        if self.takes and inputs.device.type == "cpu" and inputs.ndim == 4:
            try:
                return self.innermost(inputs.contiguous(memory_format=torch.channels_last))
            except RuntimeError:  # a model may look at its values by `view`
                self.takes = False
        return self.model(inputs)

    @cached_property
    def innermost(self) -> nn.Module:
        """A copy of the model, whose kernels lie as the images do."""
        found = copy.deepcopy(self.model)
        for tensor in [*found.parameters(), *found.buffers()]:
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return found


def chunks(problem: Problem, split: Split, most: int | None = None) -> list[Tensor]:
    """Index chunks that cover a split: one example a chunk where sizes differ, else bounded by memory."""
    bounds = [n for n in (problem.sizes[split], most) if n is not None]
    assert bounds, f"split {split!r} is a stream: say how many of it"
    size = min(bounds)
    if split in problem.ragged:
        return list(torch.arange(size).split(1))
    values = problem.sample(split, torch.tensor([0])).inputs.numel()
    return list(torch.arange(size).split(max(1, min(250, CHUNK_VALUES // values))))


def evaluate(
    predictors: Mapping[str, Predict],
    problem: Problem,
    split: Split,
    device: str | torch.device = "cpu",
    most: int | None = None,
    watch: Mapping[str, Watch] | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of several predictors (inputs -> outputs, both on `device`) on one split: predictor -> metric -> value.

    Of a large split the first `most` examples are taken. watch: predictor -> what is shown every chunk that it did.

    Squared errors and pixel errors are weighted by the pixels of an example's frame, so that a large photograph weighs
    more; the other metrics are means over examples.
    """
    sums = {name: dict.fromkeys(problem.metrics, 0.0) for name in predictors}
    called = {name: InPasses(one) if isinstance(one, nn.Module) else one for name, one in predictors.items()}
    pixels = examples = 0
    for index in chunks(problem, split, most):
        inputs, targets = (part.to(device) for part in problem.sample(split, index))
        weight = targets[0].numel()
        pixels, examples = pixels + weight * len(index), examples + len(index)
        for name, predict in called.items():
            with torch.no_grad():
                outputs = predict(inputs)
                if watch and name in watch:
                    watch[name](index, Batch(inputs, targets), outputs)
                for metric, function in problem.metrics.items():
                    total = float(function(outputs, targets).cpu().double().sum())
                    sums[name][metric] += total * (weight if metric in POOLED_OVER_PIXELS else 1)
    return {
        name: {metric: total / (pixels if metric in POOLED_OVER_PIXELS else examples) for metric, total in by.items()}
        for name, by in sums.items()
    }


def evaluate_all(
    predictors: Mapping[str, Predict],
    problem: Problem,
    device: str | torch.device = "cpu",
    watch: Mapping[str, Watch] | None = None,
) -> dict[str, dict[str, float]]:
    """`evaluate` on every test set; metrics of sets beside 'test' are named `set/metric`. `watch` sees 'test' alone."""
    results: dict[str, dict[str, float]] = {name: {} for name in predictors}
    for split in problem.test_splits:
        for name, metrics in evaluate(
            predictors, problem, split, device, watch=watch if split == "test" else None
        ).items():
            prefix = "" if split == "test" else f"{split}/"
            results[name].update({prefix + metric: value for metric, value in metrics.items()})
    return results


def references(problem: Problem, split: Split, most: int | None = None) -> dict[str, dict[str, float]]:
    """The metrics of every reference of a problem on one split; known numbers stand for any split."""
    predictors = {name: r.predict for name, r in problem.references.items() if r.predict is not None}
    results = evaluate(predictors, problem, split, most=most) if predictors else {}
    return {name: {**results.get(name, {}), **r.values} for name, r in problem.references.items()}
