"""The single pass of models of one layer, in float32, against autograd on the module itself in float64."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.layers.lstm import SequenceLSTM
from sigexp.population import compiling
from sigexp.population.convolution import Kernels
from sigexp.population.single import ReadOutLSTM, SingleConvolution, single_pass
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
LSTMS = {
    "read out": (nn.Sequential(SequenceLSTM(1, 4, bidirectional=False), nn.Conv1d(4, 1, 1)), (1, 30)),
    "squashed, both directions": (nn.Sequential(SequenceLSTM(1, 4), nn.Sigmoid(), nn.Conv1d(8, 1, 1)), (1, 21)),
    "several channels": (nn.Sequential(nn.Sequential(SequenceLSTM(3, 5), nn.Sigmoid()), nn.Conv1d(10, 4, 1)), (3, 9)),
    "no bias of the read-out": (nn.Sequential(SequenceLSTM(2, 3), nn.Conv1d(6, 2, 1, bias=False)), (2, 17)),
    "one sample": (nn.Sequential(SequenceLSTM(2, 1), nn.Conv1d(2, 1, 1)), (2, 1)),
}
OTHERS = {
    "two layers": nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)),
    "stride": nn.Conv2d(1, 1, 3, stride=2),
    "padding beyond the kernel": nn.Conv2d(1, 1, 3, padding=3),
    "nonlinearity behind": nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()),
    "linear layer": nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
    "two layers of LSTMs": nn.Sequential(SequenceLSTM(1, 2, layers=2), nn.Conv1d(4, 1, 1)),
    "read out over several samples": nn.Sequential(SequenceLSTM(1, 2), nn.Conv1d(4, 1, 3, padding=1)),
    "other nonlinearity": nn.Sequential(SequenceLSTM(1, 2), nn.Tanh(), nn.Conv1d(4, 1, 1)),
    "read out with padding": nn.Sequential(SequenceLSTM(1, 2), nn.Conv1d(4, 1, 1, padding=1)),
    "read out twice": nn.Sequential(SequenceLSTM(1, 2), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 1, 1)),
}


@contextmanager
def using(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


needs_compiler = pytest.mark.skipif(compiling.kernel() is None, reason="no C compiler here")


@needs_compiler
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
    together = Together(model, mse, Kernels())
    assert together.single
    assert together.single.takes(params, Batch(inputs, targets), weights)
    with using(threads):
        losses, gradients = together.losses_and_gradients(params, {}, Batch(inputs, targets), weights)
    assert torch.equal(inputs, kept)
    exact = copy.deepcopy(model).double()
    for p in range(members):
        own = {n: t[p].double().requires_grad_() for n, t in params.items()}
        expected = mse(functional_call(exact, own, (inputs.double().clone(),)), targets.double())
        slopes = torch.autograd.grad(expected.sum() * weights[p], list(own.values()))
        torch.testing.assert_close(losses[p].double(), expected.detach(), rtol=1e-5, atol=1e-6)
        for slope, gradient in zip(slopes, gradients, strict=True):
            assert (gradient[p] - slope).abs().max() <= 2e-6 * slope.abs().max()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("examples", [1, 40, 300])
@pytest.mark.parametrize("name", LSTMS)
def test_lstm_equals_autograd(name, examples, own, threads):
    """own: every member has examples of its own, of which some do not count, as where batch sizes differ."""
    model, shape = LSTMS[name]
    rng = torch.Generator().manual_seed(0)
    members = 3
    inputs = torch.randn(*[members] * own, examples, *shape, generator=rng)
    outputs = model[-1].out_channels
    targets = torch.randn(*[members] * own, examples, outputs, shape[-1], generator=rng)
    params = {n: torch.randn(members, *p.shape, generator=rng) / 2 for n, p in model.named_parameters()}
    weights = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    if own:
        weights = weights[:, None] * (torch.arange(examples) < torch.tensor([[1], [examples // 2], [examples]]))
    together, batch = Together(model, mse, Kernels()), Batch(inputs, targets)
    assert isinstance(together.single, ReadOutLSTM)
    assert together.single.takes(params, batch, weights)
    with using(threads):
        losses, gradients = together.losses_and_gradients(params, {}, batch, weights)
    exact = copy.deepcopy(model).double()
    for p in range(members):
        x, y = ((part[p] if own else part).double() for part in batch)
        leaves = {n: t[p].double().requires_grad_() for n, t in params.items()}
        expected = mse(functional_call(exact, leaves, (x,)), y)
        slopes = torch.autograd.grad((expected * weights[p]).sum(), list(leaves.values()))
        counts = weights[p] != 0 if own else slice(None)
        torch.testing.assert_close(losses[p].double()[counts], expected.detach()[counts], rtol=1e-5, atol=1e-6)
        for slope, gradient in zip(slopes, gradients, strict=True):
            assert gradient[p].shape == slope.shape
            assert (gradient[p] - slope).abs().max() <= 1e-5 * max(slope.abs().max(), 1e-3)


@needs_compiler
def test_lstm_of_a_diverged_member_leaves_the_others_alone():
    model, shape = LSTMS["squashed, both directions"]
    rng = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(50, *shape, generator=rng), torch.randn(50, 1, shape[-1], generator=rng))
    params = {n: torch.randn(3, *p.shape, generator=rng) for n, p in model.named_parameters()}
    together, weights = Together(model, mse, Kernels()), torch.ones(3)
    losses, gradients = together.losses_and_gradients(params, {}, batch, weights)
    params["0.lstm.weight_hh_l0"][1] = torch.nan
    again, others = together.losses_and_gradients(params, {}, batch, weights)
    assert not again[1].isfinite().any()
    for before, after in zip([losses, *gradients], [again, *others], strict=True):
        assert torch.equal(before[::2], after[::2])


@needs_compiler
@pytest.mark.parametrize(
    ("model", "inputs", "targets"),
    [
        (LSTMS["read out"][0], (5, 1, 30), (5, 1, 31)),
        (LSTMS["read out"][0], (5, 1, 30), (5, 2, 30)),
        (LSTMS["read out"][0], (5, 2, 30), (5, 1, 30)),
        (LSTMS["read out"][0], (5, 1, 30), (4, 1, 30)),
        (nn.Conv2d(1, 1, 3), (5, 1, 6, 6), (5, 1, 5, 4)),
        (nn.Conv2d(1, 1, 3), (5, 2, 6, 6), (5, 1, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit(model, inputs, targets):
    params = {name: parameter.detach()[None] for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="do not fit the model"):
        Together(model, mse, Kernels()).losses_and_gradients(
            params, {}, Batch(torch.zeros(inputs), torch.zeros(targets)), torch.ones(1)
        )


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_go_through_their_layers(name):
    assert single_pass(OTHERS[name], mse) is None


def test_other_losses_and_types_go_through_the_layers():
    model = nn.Conv2d(1, 1, 3)
    assert SingleConvolution.of(model, cross_entropy) is None
    assert single_pass(LSTMS["read out"][0], cross_entropy) is None
    single = SingleConvolution.of(model, mse)
    assert single
    params = {name: p.detach()[None].double() for name, p in model.named_parameters()}
    assert not single.takes(params, Batch(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)), torch.ones(1))
