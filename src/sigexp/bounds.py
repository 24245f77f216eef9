"""Bounds that a problem and a model's form have in closed form."""

import logging

import torch
from torch import Tensor, nn

from sigexp.population.feed import Feed
from sigexp.problem import Problem, Reference
from sigexp.signal import least_squares
from sigexp.signal.quality import mse

log = logging.getLogger("sigexp")


def linear_bounds(model: nn.Module, problem: Problem, feed: Feed, footprint: int) -> dict[str, Reference]:
    """The best linear filter of the experiment's footprint, fitted in closed form to the same training data.

    A model that is one convolution is measured at its own kernel size. Only where outputs are as large as inputs,
    under squared error, and where the fit takes seconds.
    """
    shape, target = problem.shapes()
    if problem.loss is not mse or feed.size is None or shape[1:] != target[1:]:
        return {}
    flat = len(shape) == 2
    sides = model.kernel_size if isinstance(model, (nn.Conv1d, nn.Conv2d)) else (footprint,)
    kernel = (1 if flat else sides[0], sides[-1])
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        return {}
    extent = (feed.size, shape[0], *((1, shape[1]) if flat else shape[1:]))
    if least_squares.flops(extent, kernel) > least_squares.MOST_FLOPS:
        log.info("no least-squares bound: %d x %d on %s is too large", *kernel, list(shape))
        return {}
    inputs, targets = (part.cpu() for part in feed.data())
    if flat:
        inputs, targets = inputs[:, :, None], targets[:, :, None]
    weight, bias = (part.float() for part in least_squares.fit_convolution(inputs, targets, kernel))

    def predict(x: Tensor) -> Tensor:
        x = x[:, :, None] if flat else x
        y = torch.nn.functional.conv2d(x, weight.to(x), bias.to(x), padding=(kernel[0] // 2, kernel[1] // 2))
        return y[:, :, 0] if flat else y

    return {"least_squares_train": Reference(predict=predict)}
