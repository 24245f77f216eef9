"""The single pass of models of one convolution, in float32, against autograd on the module itself in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.population import compiling
from sigexp.population.convolution import Kernels
from sigexp.population.single import SingleConvolution
from sigexp.population.together import Together
from sigexp.problem import Batch
from sigexp.signal.quality import cross_entropy, mse

# A kernel of 5 rows or more on one output channel over an even number of rows is computed two rows at a time.
MODELS = {
    "colour": (nn.Conv2d(3, 3, 1), (3, 6, 5)),
    "colour, whole vectors": (nn.Conv2d(3, 3, 1), (3, 8, 16)),
    **{f"{c} to {d} by pixels": (nn.Conv2d(c, d, 1), (c, 8, 10)) for c in (1, 2, 3, 4, 5) for d in (1, 2, 3, 4, 5)},
    "sequence by pixels": (nn.Conv1d(2, 3, 1, bias=False), (2, 48)),
    "bayer": (nn.Conv2d(3, 3, 5, padding=2), (3, 8, 7)),
    "five channels": (nn.Conv2d(2, 5, 3, padding=1), (2, 16, 16)),
    "two rows at a time": (nn.Conv2d(1, 1, 7, padding=3), (1, 20, 33)),
    "odd number of rows": (nn.Conv2d(1, 1, 7, padding=3), (1, 21, 19)),
    "fft": (FFTConv2d(1, 1, 15, padding=7), (1, 64, 64)),
    "sequence": (nn.Conv1d(2, 3, 4, padding=3, dilation=2), (2, 17)),
    "degamma": (nn.Sequential(LinearizeSRGB(), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))), (3, 5, 6)),
    "in place": (nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(2, 1, 3)), (2, 9)),
    "no bias": (nn.Conv2d(2, 3, (3, 2), bias=False), (2, 5, 6)),
    "flattened": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 6, 6)),
    "reflect": (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 6)),
    "kernel above image": (nn.Conv2d(1, 2, 7, padding=3, dilation=(1, 2)), (1, 3, 9)),
}
OTHERS = {
    "two layers": nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)),
    "stride": nn.Conv2d(1, 1, 3, stride=2),
    "padding beyond the kernel": nn.Conv2d(1, 1, 3, padding=3),
    "nonlinearity behind": nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()),
    "linear layer": nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
}


@pytest.mark.skipif(compiling.kernel() is None, reason="no C compiler here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_equals_autograd(name, threads):
    model, shape = MODELS[name]
    rng = torch.Generator().manual_seed(0)
    members, examples = 3, 7
    inputs = torch.randn(examples, *shape, generator=rng)
    kept = inputs.clone()
    with torch.no_grad():
        targets = torch.randn(model(inputs.clone()).shape, generator=rng)
    params = {n: torch.randn(members, *p.shape, generator=rng) for n, p in model.named_parameters()}
    weights = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = Together(model, mse, Kernels())
        assert together.single
        assert together.single.takes(params, Batch(inputs, targets))
        losses, gradients = together.losses_and_gradients(params, {}, Batch(inputs, targets), weights)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(inputs, kept)
    exact = copy.deepcopy(model).double()
    for p in range(members):
        own = {n: t[p].double().requires_grad_() for n, t in params.items()}
        expected = mse(functional_call(exact, own, (inputs.double().clone(),)), targets.double())
        slopes = torch.autograd.grad(expected.sum() * weights[p], list(own.values()))
        torch.testing.assert_close(losses[p].double(), expected.detach(), rtol=1e-5, atol=1e-6)
        for slope, gradient in zip(slopes, gradients, strict=True):
            assert (gradient[p] - slope).abs().max() <= 2e-6 * slope.abs().max()


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_go_through_their_layers(name):
    assert SingleConvolution.of(OTHERS[name], mse) is None


def test_other_losses_and_types_go_through_the_layers():
    model = nn.Conv2d(1, 1, 3)
    assert SingleConvolution.of(model, cross_entropy) is None
    single = SingleConvolution.of(model, mse)
    assert single
    params = {name: p.detach()[None].double() for name, p in model.named_parameters()}
    assert not single.takes(params, Batch(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)))
