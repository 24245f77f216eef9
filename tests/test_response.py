"""What a net looks at, on nets of which it is known."""

import numpy as np
import pytest
import torch
from torch import nn

from sigexp.datasets.sequences import spikes
from sigexp.datasets.shapes import square_rectangle
from sigexp.models.demosaic import polyphase
from sigexp.models.filters import dilated, fc, linear
from sigexp.models.shapes import fcn
from sigexp.report.response import measured, picture
from sigexp.signal import response
from sigexp.signal.bayer import mosaic
from sigexp.signal.response import measure


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seeded(make, *args, **fields) -> nn.Module:
    torch.manual_seed(0)
    return make(*args, **fields).double()


def test_a_convolution_is_seen_for_what_it_is():
    net = seeded(linear, (2, 20, 24), (3, 20, 24), kernel_size=5)
    found = measure(net, images(4, 2, 20, 24))
    assert found.shift_error < 1e-12
    assert found.superposition_error < 1e-12
    assert found.field == (5, 5)
    kernel = net.weight.detach()
    rows, columns = (n // 2 for n in found.sensitivity.shape)
    inner = (slice(rows - 2, rows + 3), slice(columns - 2, columns + 3))
    torch.testing.assert_close(found.sensitivity[inner], kernel.square().sum((0, 1)).sqrt(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.impulse[..., inner[0], inner[1]], kernel.flip(2, 3), rtol=0, atol=1e-10)
    numbers = found.numbers()
    np.testing.assert_allclose(numbers["dc_gain"], kernel.sum((2, 3)).numpy(), atol=1e-9)
    assert numbers["receptive_field"] == [5, 5]


def test_the_middle_of_one_channel_is_seen_exactly():
    net = seeded(linear, (1, 17, 21), (1, 17, 21), kernel_size=7)
    found = measure(net, images(3, 1, 17, 21))
    rows, columns = (n // 2 for n in found.sensitivity.shape)
    seen = found.sensitivity[rows - 3 : rows + 4, columns - 3 : columns + 4]
    torch.testing.assert_close(seen, net.weight[0, 0].detach().abs(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dilations", "side"), [((1, 1), 5), ((1, 2), 7), ((2, 4, 1), 15), ((1, 2, 4, 4, 2, 1), 29)]
)  # fmt: skip
def test_the_receptive_field_of_a_stack_is_one_plus_twice_its_dilations(dilations, side):
    net = seeded(dilated, (1, 28, 28), (1, 28, 28), channels=4, dilations=dilations)
    nn.init.normal_(net.body[-1].weight)
    found = measure(net, images(4, 1, 28, 28))
    assert found.field == (side, side)
    assert found.shift_error < 1e-12
    assert found.superposition_error > 1e-3


def test_the_effective_radius_is_that_of_a_disc_as_large():
    box = nn.Conv2d(1, 1, 5, padding=2).double()
    nn.init.constant_(box.weight, 0.04)
    assert measure(box, images(2, 1, 20, 20)).effective_radius == pytest.approx((25 / np.pi) ** 0.5)
    segment = nn.Conv1d(1, 1, 7, padding=3).double()
    nn.init.constant_(segment.weight, -1.0)
    found = measure(segment, images(2, 1, 40))
    assert found.effective_radius == 3.5
    assert found.field == (7,)


def test_faint_weights_widen_the_field_but_not_the_effective_radius():
    net = nn.Conv1d(1, 1, 11, padding=5, bias=False).double()
    nn.init.constant_(net.weight, 1e-3)
    net.weight.data[..., 4:7] = 1.0
    found = measure(net, images(2, 1, 64))
    assert (found.field, found.effective_radius) == ((11,), 1.5)


def test_a_full_matrix_is_linear_but_not_the_same_everywhere():
    found = measure(seeded(fc, (1, 12, 12), (1, 12, 12)), images(6, 1, 12, 12))
    assert found.superposition_error < 1e-12
    assert found.shift_error > 0.5
    assert found.field is None
    assert found.impulse is not None


def test_a_net_on_phase_planes_repeats_every_second_pixel():
    net, inputs = seeded(polyphase, (3, 32, 32), (3, 32, 32)), mosaic(images(2, 3, 32, 32))
    assert measure(net, inputs).shift_error > 0.1
    by_two = lambda x: net(x.roll(1, 2)).roll(-1, 2) - net(x.roll(-1, 2)).roll(1, 2)  # noqa: E731
    assert by_two(inputs).detach()[..., 12:-12, 12:-12].abs().max() < 1e-12


def test_superposition_tells_a_bend_from_a_line():
    inputs = images(8, 1, 16, 16) - 0.5
    assert response.superposition_error(lambda x: 3 * x + 1, inputs) < 1e-12
    assert 0.1 < response.superposition_error(torch.relu, inputs) < 1
    assert response.superposition_error(lambda x: x + 1e-3 * x**2, inputs) < 1e-3
    assert response.superposition_error(torch.zeros_like, inputs) == 0
    assert measure(torch.relu, inputs).impulse is None


def test_gains_are_those_of_the_filter():
    average = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    average.weight.data[:] = torch.tensor([0.25, 0.5, 0.25])
    found = measure(average, images(2, 1, 64))
    gains = found.gains()[0, 0]
    frequency = (torch.arange(len(gains)) - len(gains) // 2) / len(gains)
    expected = 0.5 + 0.5 * torch.cos(2 * np.pi * frequency.double())
    torch.testing.assert_close(gains, expected, rtol=0, atol=1e-9)
    assert found.numbers()["largest_gain_frequency"] == [0.0]
    average.weight.data[:] = torch.tensor([-0.25, 0.5, -0.25])
    assert measure(average, images(2, 1, 64)).numbers()["largest_gain_frequency"] == [0.5]


def test_what_gives_no_signal_of_its_inputs_extent_is_not_measured():
    assert measured(fcn((1, 128, 128), (2,)), square_rectangle(size=10, test_size=10)) is None
    with pytest.raises(ValueError, match="two or more"):
        measure(torch.relu, images(1, 1, 8, 8))


@pytest.mark.parametrize("activation", [nn.Identity, nn.Sigmoid])
def test_a_model_is_measured_as_it_is_and_shown(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 1, 9, padding=4), activation())
    problem = spikes(size=20, test_size=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = measured(net, problem)
    assert found.field == (9,)
    assert picture(found).startswith(b"\x89PNG")
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert next(net.parameters()).requires_grad
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 3), (1, 16)])
def test_pictures_of_images_of_any_channels(inputs, outputs):
    net = seeded(linear, (inputs, 12, 14), (outputs, 12, 14), kernel_size=3)
    assert picture(measure(net, images(2, inputs, 12, 14))).startswith(b"\x89PNG")
