"""Convolutions with the nonlinearity behind them against torch's, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.activations import CentredSigmoid
from sigexp.population import blocks, compiling, native
from sigexp.population.convolution import Kernels, convolve
from sigexp.population.geometry import Geometry
from sigexp.population.nonlinearity import of_layer

LAYERS = [nn.Sigmoid(), CentredSigmoid(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh()]
OUTPUTS = (3, 19, 11, 2)  # channels: more than are taken at a time, and no multiple of it
SINGLE = (1, 9, 1, 1)  # of which two rows are taken at a time
FIRST = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
LAST = Geometry((5, 3), (1, 1), (2, 1), (1, 1), 1)


def drawn(
    examples: int, size: tuple[int, int], shared: bool, second: Geometry, channels: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """x, and the weights and biases of three convolutions of two members."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).requires_grad_()

    x = random(*(() if shared else (2,)), examples, channels[0], *size)
    weights = []
    for before, after, geometry in zip(channels[:-1], channels[1:], (FIRST, second, LAST), strict=True):
        weights += [random(2, after, before, *geometry.kernel, scale=0.2), random(2, after)]
    return x.detach() if shared else x, weights


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("channels", [OUTPUTS, SINGLE], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("examples", "size", "second"),
    [
        (16, (20, 20), Geometry((5, 5), (1, 1), (2, 2), (1, 1), 1)),
        (32, (16, 16), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)),
        (16, (10, 33), Geometry((3, 3), (1, 1), (2, 2), (2, 2), 1)),
        (48, (12, 13), Geometry((5, 4), (1, 1), (0, 1), (1, 1), 1)),
        (7, (12, 12), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    ],
    ids=str,
)
def test_a_chain_of_convolutions_and_nonlinearities(layer, channels, shared, examples, size, second, monkeypatch):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 + shared)
    check_chain(layer, channels, shared, examples, size, second, across=examples % 16 == 0)


def test_a_chain_where_one_of_the_libraries_cannot_be_had(monkeypatch):
    """Its layers' values go through another one."""
    if (layers := compiling.kernel()) is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(native, "kernel", lambda part=compiling.LAYERS: layers if part == compiling.LAYERS else None)
    check_chain(nn.Tanh(), OUTPUTS, True, 16, (20, 20), FIRST, across=False)


def check_chain(layer, channels, shared, examples, size, second, *, across: bool) -> None:
    x, weights = drawn(examples, size, shared, second, channels)
    kernels, after = Kernels(), of_layer(layer)
    hidden = convolve(kernels, FIRST, x, *weights[:2], shared=shared, after=after)
    seen = [hidden, convolve(kernels, second, hidden, *weights[2:4], shared=False, after=after)]
    out = convolve(kernels, LAST, seen[1], *weights[4:], shared=False)
    assert all(native.lies_across(one.transpose(1, 2)) == across for one in seen)
    assert out.transpose(1, 2).is_contiguous()

    members = []
    for p in range(2):
        y = (x if shared else x[p]).double()
        for n, geometry in enumerate((FIRST, second, LAST)):
            weight, bias = (weights[2 * n + i][p].double() for i in (0, 1))
            y = F.conv2d(y, weight, bias, padding=geometry.padding, dilation=geometry.dilation)
            y = layer(y) if n < 2 else y
        members.append(y)
    expected = torch.stack(members)
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    learned = weights if shared else [x, *weights]
    ours = torch.autograd.grad((out * factor).sum(), learned)
    theirs = torch.autograd.grad((expected * factor.double()).sum(), learned)
    for found, wanted in zip((out, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_far_values_and_nan_are_what_torch_makes_of_them(layer):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    values = torch.tensor([0.0, -1e-3, 1e-3, -30.0, 30.0, -1e4, 1e4, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    x = torch.zeros(16, 1, 12, 12)
    x[3, 0, 0] = values
    weight = torch.zeros(1, 16, 1, 3, 3)
    weight[:, :, :, 1, 1] = 1
    x[3, 0, 2:] = 0.5  # not beside infinite values, whose product with 0 is NaN
    found = convolve(Kernels(), FIRST, x, weight, None, shared=True, after=of_layer(layer))[0, 3, 5, 0]
    alone = torch.isfinite(values) & (torch.arange(12) < 8)
    torch.testing.assert_close(found[alone], layer(values)[alone], rtol=2e-6, atol=6e-8 * (type(layer) is not nn.Tanh))
    assert found[-1].isnan()


def test_what_lies_across_but_cannot_be_read_so_is_turned():
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 38, 40, generator=generator)
    first, second = (torch.randn(2, 3, c, k, k, generator=generator) for c, k in ((2, 3), (3, 11)))
    large = Geometry((11, 11), (1, 1), (5, 5), (1, 1), 1)  # whose borders make images too large for across.c
    leaves = [first.requires_grad_(), second.requires_grad_()]
    hidden = convolve(Kernels(), FIRST, x, first, None, shared=True, after=of_layer(nn.Tanh()))
    assert native.lies_across(hidden.transpose(1, 2))
    out = convolve(Kernels(), large, hidden, second, None, shared=False)
    ours = torch.autograd.grad(out.square().sum(), leaves)
    values = [F.conv2d(F.conv2d(x, first[p], padding=1).tanh().double(), second[p].double(), padding=5) for p in (0, 1)]
    theirs = torch.autograd.grad(torch.stack(values).square().sum(), leaves)
    for found, wanted in zip((out, *ours), (torch.stack(values), *theirs), strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=2e-5 * wanted.abs().max().item())


def test_only_the_weights_that_learn_get_gradients():
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    x, weights = drawn(16, (12, 12), True, FIRST, OUTPUTS)
    frozen = [weight.detach() for weight in weights[:2]]
    hidden = convolve(Kernels(), FIRST, x, *frozen, shared=True, after=of_layer(nn.ReLU()))
    out = convolve(Kernels(), FIRST, hidden, *weights[2:4], shared=False)
    (found,) = torch.autograd.grad(out.sum(), weights[2:3])
    y = [F.conv2d(F.conv2d(x, frozen[0][p], frozen[1][p], padding=1).relu(), weights[2][p], padding=1) for p in (0, 1)]
    (wanted,) = torch.autograd.grad(torch.stack(y).sum(), weights[2:3])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_what_is_joined():
    class Other(nn.ReLU):
        pass

    def steps(*layers: nn.Module) -> int:
        return len(blocks._steps(layers))

    conv, large, pointwise = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 1)
    mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    assert steps(conv, nn.Sigmoid(), large) == 2
    assert steps(conv, nn.LeakyReLU(0.1), conv, nn.Tanh(), large, nn.Sigmoid()) == 4
    assert steps(conv, nn.Sigmoid(), pointwise) == 3  # which across.c does not take
    assert steps(conv, nn.GELU(), conv) == steps(conv, Other(), conv) == steps(mirrored, nn.ReLU(), conv) == 3
    assert steps(conv, nn.LeakyReLU(-1.0), conv) == 3  # the sign of y is not that of x
    assert steps(conv, nn.ReLU()) == 2
    assert (
        steps(conv, nn.ReLU(), nn.Conv2d(3, 3, 3, stride=2))
        == steps(conv, nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3))
        == 3
    )
    watched = nn.ReLU()
    watched.register_forward_hook(lambda *_: None)
    assert steps(conv, watched, conv) == steps(nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), nn.ReLU(), conv) == 3
    assert steps(nn.BatchNorm2d(3), watched) == 2


def test_libraries_that_a_model_cannot_need_are_not_waited_for():
    conv, another = (nn.Conv2d(1, 1, 15, padding=7) for _ in range(2))
    layers, across, lstm = compiling.LAYERS, compiling.ACROSS, compiling.LSTM
    assert compiling.parts_of(conv, 64 * 64) == compiling.parts_of(nn.Linear(784, 784), 784) == [layers]
    assert compiling.parts_of(conv, 28 * 28) == [layers, across]
    assert compiling.parts_of(nn.Sequential(nn.AvgPool2d(2), conv), 64 * 64) == [layers, across]
    assert compiling.parts_of(nn.Sequential(conv, nn.ReLU(), another), 64 * 64) == [layers, across]
    assert compiling.parts_of(nn.LSTM(3, 4), 90) == [layers, lstm]


def test_which_convolutions_can_go_across_is_as_it_is_in_c():
    if (library := compiling.kernel()) is None:
        pytest.skip("there is no C compiler")

    def across(taps: int, pixels: int) -> bool:
        size = (1, pixels)
        layer = native._convolution(True, 16, torch.empty(2, 1, 1, 1, taps), size, size, (0, 0), (1, 1))
        layer.nonlinearity = 1
        return bool(library.across_takes(layer))

    assert across(compiling.SOME_TAPS, compiling.FEW_PIXELS)
    assert not across(compiling.SOME_TAPS - 1, compiling.FEW_PIXELS)
    assert not across(compiling.SOME_TAPS, compiling.FEW_PIXELS + 1)
