"""Layers against the slow obvious code they stand for."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import skimage.color
import torch
from torch import nn

from sigexp.layers.activations import ACTIVATIONS, pointwise
from sigexp.layers.bayer import ColourPreservingConv, covariance, demosaicing_layer, demosaicing_planes
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.layers.lstm import LSTM2, SequenceLSTM
from sigexp.layers.padding import GlobalMax, SymmetricPad, crop_to, pad_to_multiple
from sigexp.layers.rank import RankFilter, sorting_network
from sigexp.layers.recurrence import LinearRecurrence
from sigexp.layers.spectrum import SlidingPower, WindowedFFT


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def set_parameter(parameter: nn.Parameter, value) -> None:
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (0, 3), (5, 4), (13, 11)])
def test_symmetric_pad_repeats_the_border_sample_at_any_amount(before, after):
    x = rand(2, 3, 5, 4)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (before, after), (before, after)], mode="symmetric")
    np.testing.assert_array_equal(SymmetricPad(before, after)(x), expected)
    sequence = np.pad(x[0].numpy(), [(0, 0), (0, 0), (before, after)], mode="symmetric")
    np.testing.assert_array_equal(SymmetricPad(before, after)(x[0]), sequence)


def test_padding_to_a_multiple_and_cropping_undo_each_other():
    x = rand(1, 2, 7, 9)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 2, 8, 12)
    assert padded[..., 7:, :].abs().max() == 0
    assert padded[..., 9:].abs().max() == 0
    assert torch.equal(crop_to(padded, (7, 9)), x)
    assert pad_to_multiple(x[..., :4, :8], 4).shape == (1, 2, 4, 8)


def test_global_max_is_over_all_positions():
    x = rand(2, 3, 4, 5)
    assert torch.equal(GlobalMax()(x), x.amax((2, 3)))
    assert torch.equal(GlobalMax()(x[..., 0]), x[..., 0].amax(2))


def test_linearized_srgb_is_what_scikit_image_transforms():
    rgb = np.concatenate([np.linspace(0, 1, 300), [0.04045, 0.0404, 0.0405]]).reshape(1, 101, 3)
    linear = LinearizeSRGB()(torch.from_numpy(rgb))
    primaries = skimage.color.rgb2xyz(np.eye(3)[None])[0]  # the curve leaves 0 and 1 alone
    xyz = linear.numpy() @ primaries
    np.testing.assert_allclose(xyz, skimage.color.rgb2xyz(rgb), atol=1e-14)


def test_linearized_srgb_has_a_finite_gradient_below_zero():
    x = torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)
    LinearizeSRGB()(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_centred_sigmoid_is_odd_and_an_unknown_name_is_refused():
    x = rand(9) - 0.5
    centred = pointwise("centred_sigmoid")
    torch.testing.assert_close(centred(x), -centred(-x))
    torch.testing.assert_close(pointwise("square")(x), x * x)
    with pytest.raises(ValueError, match="'gelu': expected one of identity, sigmoid, centred_sigmoid"):
        pointwise("gelu")
    assert {type(pointwise(name)) for name in ACTIVATIONS} == set(ACTIVATIONS.values())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_sorting_network_sorts_every_sequence_of_zeros_and_ones(n):
    """Knuth's 0-1 principle: it then sorts everything."""
    for bits in itertools.product((0, 1), repeat=n):
        values = list(bits)
        for low, high in sorting_network(n):
            values[low], values[high] = min(values[low], values[high]), max(values[low], values[high])
        assert values == sorted(bits)


@pytest.mark.parametrize("n", [16, 25, 36])
def test_sorting_network_sorts_large_windows(n):
    values = list(rand(2000, n).unbind(1))
    for low, high in sorting_network(n):
        assert low < high
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
    assert torch.equal(torch.stack(values, 1), torch.stack(values, 1).sort(1).values)


@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_rank_filter_with_all_weight_on_one_rank_is_scipys(window):
    layer, x = RankFilter(window).double(), rand(2, 3, 11, 13)
    for rank in (0, window**2 // 2, window**2 - 1):
        set_parameter(layer.logits, 1e3 * nn.functional.one_hot(torch.tensor(rank), window**2))
        expected = scipy.ndimage.rank_filter(x.numpy(), rank, size=(1, 1, window, window))
        np.testing.assert_array_equal(layer(x).detach(), expected)


def test_rank_filter_is_scipys_median_and_starts_as_its_mean():
    layer, x = RankFilter(4).double(), rand(1, 1, 32, 32)
    mean = scipy.ndimage.uniform_filter(x[0, 0].numpy(), 4)
    np.testing.assert_allclose(layer(x)[0, 0].detach(), mean, atol=1e-14)
    set_parameter(layer.logits, 1e3 * nn.functional.one_hot(torch.tensor(8), 16))
    median = scipy.ndimage.median_filter(x[0, 0].numpy(), 4)
    np.testing.assert_array_equal(layer(x)[0, 0].detach(), median)


def test_rank_filter_commutes_with_increasing_maps_at_one_rank():
    layer, x = RankFilter(3).double(), rand(1, 1, 9, 9)
    set_parameter(layer.logits, 1e3 * nn.functional.one_hot(torch.tensor(5), 9))
    torch.testing.assert_close(layer(x.exp()), layer(x).exp())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sequence_lstm_is_torchs_with_channels_first(bidirectional):
    layer, x = SequenceLSTM(2, 4, bidirectional=bidirectional).double(), rand(3, 2, 20)
    expected = layer.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape[1] == layer.out_channels


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm2_runs_every_row_then_every_column_by_itself(bidirectional):
    layer, x = LSTM2(2, 3, bidirectional=bidirectional).double(), rand(2, 2, 5, 7)
    between = torch.empty(2, layer.out_channels, 5, 7, dtype=torch.float64)
    expected = torch.empty_like(between)
    for image in range(2):
        for row in range(5):
            between[image, :, row] = layer.rows(x[image, :, row].T[:, None])[0][:, 0].T
        for column in range(7):
            expected[image, :, :, column] = layer.columns(between[image, :, :, column].T[:, None])[0][:, 0].T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_lstm2_ends_in_a_convolution_of_any_width(width, kernel_size, bidirectional):
    layer = LSTM2(1, 4, width, kernel_size=kernel_size, bidirectional=bidirectional)
    y = layer(torch.rand(2, 1, 6, 9))
    assert y.shape == (2, width, 6, 9)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_lstm2_in_both_directions_lets_every_output_see_every_input():
    layer, x = LSTM2(1, 2).double(), rand(1, 1, 4, 5).requires_grad_()
    for row, column in ((0, 0), (3, 4), (1, 2)):
        (gradient,) = torch.autograd.grad(layer(x)[0, :, row, column].sum(), x)
        assert (gradient != 0).all()


def recurrence(**fields) -> LinearRecurrence:
    return LinearRecurrence(1, 1, **fields).double()


def test_linear_recurrence_is_the_first_order_filter():
    layer, x = recurrence(), rand(3, 1, 100)
    set_parameter(layer.radius, np.arctanh([[0.7]]))
    set_parameter(layer.drive, np.full((1, 1, 1, 1), 0.3))
    set_parameter(layer.start, np.ones((1, 1, 1, 1, 1)))
    y = np.empty((3, 100))
    y[:, 0] = x[:, 0, 0]
    for t in range(1, 100):
        y[:, t] = 0.7 * y[:, t - 1] + 0.3 * x[:, 0, t - 1].numpy()
    np.testing.assert_allclose(layer(x)[:, 0].detach(), y, atol=1e-14)
    np.testing.assert_allclose(layer.float()(x.float())[:, 0].detach(), y, atol=1e-6)


def test_linear_recurrence_is_lfilter_with_real_and_complex_poles():
    layer, x = recurrence(poles=1, pole_pairs=1), rand(3, 1, 64)
    pole, radius = torch.tanh(layer.radius).detach()[0].numpy()
    angle = layer.angle.item()
    gain, a, b = layer.drive.detach()[0, :, 0, 0].numpy()
    set_parameter(layer.feedthrough, [[0.25]])
    numerator = [0, a, radius * (b * np.sin(angle) - a * np.cos(angle))]
    denominator = [1, -2 * radius * np.cos(angle), radius**2]
    expected = 0.25 * x.numpy() + scipy.signal.lfilter([0, gain], [1, -pole], x)
    expected += scipy.signal.lfilter(numerator, denominator, x)
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-14)


def test_linear_recurrence_takes_negative_poles():
    layer, x = recurrence(), rand(2, 1, 30)
    set_parameter(layer.radius, np.arctanh([[-0.8]]))
    expected = scipy.signal.lfilter([0, layer.drive.item()], [1, 0.8], x)
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-14)


def test_linear_recurrence_backward_is_forward_on_the_reversed_sequence():
    layer, x = recurrence(poles=1, pole_pairs=2, bidirectional=True, start_samples=3), rand(2, 1, 40)
    nn.init.normal_(layer.start)
    backward = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for name in ("radius", "angle", "drive", "start"):
        backward[name] = backward[name].flip(0)
    flipped = torch.func.functional_call(layer, backward, (x.flip(-1),)).flip(-1)
    torch.testing.assert_close(layer(x), flipped)


def test_linear_recurrence_can_start_as_if_the_border_reflected():
    """The state that a one-pole filter has gathered from x[n-1], ..., x[0] | x[0], ..."""
    layer, x = recurrence(start_samples=60), rand(2, 1, 60)
    pole = torch.tanh(layer.radius).item()
    set_parameter(layer.start, (layer.drive.item() * pole ** np.arange(60)).reshape(1, 1, 1, 1, 60))
    reflected = np.concatenate([x.flip(-1), x], -1)
    expected = scipy.signal.lfilter([0, layer.drive.item()], [1, -pole], reflected)[..., 60:]
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-14)


def test_linear_recurrence_mixes_channels_and_stays_stable():
    layer = LinearRecurrence(2, 3, poles=2, pole_pairs=1, bidirectional=True).double()
    x, y = rand(4, 2, 50), rand(4, 2, 50)
    assert layer(x).shape == (4, 3, 50)
    torch.testing.assert_close(layer(x + 2 * y), layer(x) + 2 * layer(y))
    set_parameter(layer.radius, torch.full_like(layer.radius, 5.0))
    assert layer(rand(1, 2, 5000)).abs().max() < 1e5


def test_windowed_fft_is_numpys():
    layer, x = WindowedFFT(32).double(), rand(2, 3, 32)
    set_parameter(layer.window, np.hanning(32))
    expected = np.fft.rfft(x.numpy() * np.hanning(32), norm="ortho")
    np.testing.assert_allclose(layer(x).detach(), np.concatenate([expected.real, expected.imag], 1), atol=1e-14)


def test_sliding_power_is_the_power_of_each_window():
    layer, x = SlidingPower(5, 9).double(), rand(2, 2, 12)
    set_parameter(layer.window, np.hanning(5))
    padded, expected = np.pad(x.numpy(), [(0, 0), (0, 0), (2, 2)]), np.empty((2, 2, 9, 12))
    for t in range(12):
        expected[..., t] = np.abs(np.fft.rfft(padded[..., t : t + 5] * np.hanning(5), 16)) ** 2 / 5
    np.testing.assert_allclose(layer(x).detach(), expected.reshape(2, 18, 12), atol=1e-14)


def test_demosaicing_planes_leave_an_error_that_no_measured_pixel_explains():
    """The orthogonality principle, with the 36 pixels found through pixel_unshuffle rather than by index."""
    weight = demosaicing_planes("BGGR").double()
    places = torch.stack(torch.meshgrid(torch.arange(-2.0, 4), torch.arange(-2.0, 4), indexing="ij"))
    letters = torch.tensor([[2.0, 1], [1, 0]]).repeat(3, 3)  # of BGGR, as indices into RGB
    planes = nn.functional.pixel_unshuffle(torch.stack([*places, letters])[:, None], 2)  # [3, 4, 3, 3]
    measured = planes.flatten(1).T.numpy().astype(float)
    known = covariance(measured, measured) + 1e-4 * np.eye(36)
    for c, i, j in itertools.product(range(3), range(2), range(2)):
        estimate = weight[4 * c + 2 * i + j].flatten().numpy()
        explained = covariance(measured, np.array([[i, j, c]], float))[:, 0] - known @ estimate
        np.testing.assert_allclose(explained, 0, atol=1e-6)


@pytest.mark.parametrize("pattern", ["BGGR", "RGGB", "GRBG", "GBRG"])
def test_colour_preserving_convolution_passes_constant_colours_or_stops_them(pattern):
    colour = rand(3)
    planes = colour[["RGB".index(letter) for letter in pattern]][None, :, None, None].expand(1, 4, 5, 6)
    body, skip = ColourPreservingConv(pattern, 7).double(), demosaicing_layer(pattern).double()
    nn.init.normal_(skip.weight)
    torch.testing.assert_close(body(planes), torch.zeros(1, 7, 3, 4, dtype=torch.float64))
    full = nn.functional.pixel_shuffle(skip(planes), 2)
    torch.testing.assert_close(full, colour[None, :, None, None].expand(1, 3, 6, 8))


@pytest.mark.parametrize(
    ("channels", "kernel", "padding", "extent"),
    [((1, 1), 15, 7, (20, 33)), ((2, 3), 5, 0, (9, 8)), ((3, 2), 7, 3, (7, 7))],
)
def test_convolution_by_fft_equals_the_direct_one(channels, kernel, padding, extent):
    torch.manual_seed(0)
    direct = nn.Conv2d(*channels, kernel, padding=padding).double()
    fast = FFTConv2d(*channels, kernel, padding=padding).double()
    fast.load_state_dict(direct.state_dict())
    x = torch.randn(2, channels[0], *extent, dtype=torch.float64)
    gradients = []
    for layer in (direct, fast):
        own = x.clone().requires_grad_()
        y = layer(own)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), [own, layer.weight, layer.bias])])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
