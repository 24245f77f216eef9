"""A net that starts as the best linear filter computes it, in the interior exactly but for the nonlinearity's bend."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigexp import starts
from sigexp.models.filters import deep
from sigexp.problem import Batch


@pytest.mark.parametrize("activation", ["centred_sigmoid", "sigmoid", "tanh"])
@pytest.mark.parametrize(("shape", "kernels"), [((2, 24, 20), (5, 5)), ((1, 24, 24), (3, 7)), ((1, 60), (7, 5))])
def test_begins_as_the_filter(shape, kernels, activation):
    torch.manual_seed(0)
    first, second = kernels
    target = (2, *shape[1:])
    model = deep(shape, target, channels=32, kernel_size=first, output_kernel_size=second, activation=activation)
    inputs = torch.rand(8, *shape)
    h = 1 if len(shape) == 2 else first + second - 1
    kernel, bias = torch.randn(2, shape[0], h, first + second - 1).double(), torch.randn(2).double()
    starts.begin(model, kernel, bias, inputs)
    images = inputs[:, :, None] if len(shape) == 2 else inputs
    expected = F.conv2d(images, kernel.float(), bias.float())
    reach = (first + second) // 2 - 1
    got = model(inputs)
    got = got[:, :, None, reach:-reach] if len(shape) == 2 else got[:, :, reach:-reach, reach:-reach]
    assert got.shape == expected.shape
    bend = 0.2 if activation == "tanh" else 0.05  # tanh bends at half the input of a sigmoid
    assert (got - expected).std() < bend * expected.std()


def test_members_differ_and_the_other_filters_do_not_reach_the_output_yet():
    shape = (1, 16, 16)
    models = [deep(shape, shape, channels=12, kernel_size=3, activation="tanh") for _ in range(2)]
    kernel, inputs = torch.randn(1, 1, 5, 5).double(), torch.rand(4, *shape)
    for model in models:
        starts.begin(model, kernel, torch.zeros(1).double(), inputs)
    one, other = (model[0].weight for model in models)
    assert not torch.allclose(one, other)
    assert (models[0][2].weight[:, 6:] == 0).all()
    assert one[6:, :, ::2, ::2].mean((1, 2, 3)).abs().max() < 1e-5


def test_the_filter_is_the_best_one_of_the_window():
    shape = (1, 16, 16)
    model = deep(shape, shape, channels=8, kernel_size=3, activation="tanh")
    true = torch.randn(1, 1, 5, 5)
    inputs = torch.randn(64, *shape)
    kernel, bias = starts.least_squares_filter(model, Batch(inputs, F.conv2d(inputs, true, padding=2) + 0.5))
    torch.testing.assert_close(kernel.float(), true, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.float(), torch.full((1,), 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), "two convolutions"),
        (deep((1, 9, 9), (1, 9, 9), kernel_size=3, activation="relu"), "smooth"),
        (deep((1, 9, 9), (1, 9, 9), kernel_size=3, activation="square"), "smooth"),
        (deep((1, 9, 9), (1, 9, 9), kernel_size=3, channels=5, activation="tanh"), "channels of 6"),
    ],
)
def test_other_models_are_refused_with_the_reason(model, reason):
    with pytest.raises(ValueError, match=reason):
        starts.two_layers(model)
