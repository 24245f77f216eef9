"""Tiles against the whole: equal, whatever the net's reach, strides and padding are."""

import numpy as np
import pytest
import torch
from torch import nn

from sigexp import tiling
from sigexp.models import demosaic, filters, nonlinear, recurrent, shapes, spectral, unet
from sigexp.tiling import Sight, sight, tiles

RGB, GREY, LINE = (3, 32, 32), (1, 32, 32), (1, 64)
NETS = {
    "linear": (lambda: filters.linear(GREY, GREY, kernel_size=17), GREY, (8, 8), 1),  # by FFT
    "separable": (lambda: filters.separable(GREY, GREY, kernel_size=5), GREY, (2, 2), 1),
    "deep": (lambda: filters.deep(RGB, RGB, channels=8, kernel_size=5), RGB, (4, 4), 1),
    "dilated": (lambda: filters.dilated(GREY, GREY, channels=6), GREY, (14, 14), 1),
    "conv_bn": (lambda: filters.conv_bn(GREY, GREY), GREY, (3, 3), 1),
    "nin": (lambda: filters.nin(RGB, RGB), RGB, (0, 0), 1),
    "rank": (lambda: nonlinear.rank(GREY, GREY, window=4), GREY, (2, 2), 1),
    "mlp": (lambda: nonlinear.mlp(GREY, GREY, window=4), GREY, (2, 2), 1),
    "polyphase": (lambda: demosaic.polyphase(RGB, RGB, channels=8), RGB, (10, 10), 2),
    "unet": (lambda: unet.unet(GREY, GREY, levels=2, channels=4), GREY, (24, 24), 4),
    "conv1d": (lambda: spectral.conv1d(LINE, LINE, filters=4, kernel_size=9), LINE, (4,), 1),
    "sliding": (lambda: spectral.fft(LINE, (5, 64), kernel_size=9, bins=9), LINE, (4,), 1),
}


def made(name):
    torch.manual_seed(0)
    net = NETS[name][0]()
    for parameter in net.parameters():  # zeros of a fresh net would hide what it sees
        if parameter.ndim > 1:
            parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5)
    return net.eval(), NETS[name][1]


@pytest.fixture(scope="module")
def sights():
    return {name: sight(made(name)[0], NETS[name][1][0], len(NETS[name][1]) - 1) for name in NETS}


@pytest.mark.parametrize("name", NETS)
def test_what_a_net_sees_is_found(name, sights):
    assert sights[name] == Sight(*NETS[name][2:])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("extent", [(151, 98), (64, 131)])
def test_tiles_equal_the_whole(name, extent, sights):
    net, shape = made(name)
    x = torch.rand(1, shape[0], *extent[: len(shape) - 1])
    pieces = tiles(x.shape[2:], sights[name], 24)
    assert len(pieces) >= 3
    with torch.no_grad():
        whole = net(x)
        found = torch.full_like(whole, torch.nan)
        for tile in pieces:
            found[(..., *tile.kept)] = tile.crop(net(x[(..., *tile.seen)]))
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dilated", "polyphase", "unet"])
def test_a_margin_too_small_shows(name, sights):
    net, shape = made(name)
    found = sights[name]
    short = Sight(tuple(m - found.period for m in found.margin), found.period)
    x = torch.rand(1, shape[0], 96, 96, dtype=torch.float64)
    (first, *_) = tiles(x.shape[2:], short, 48)
    net = net.double()
    with torch.no_grad():
        change = first.crop(net(x[(..., *first.seen)])) - net(x)[(..., *first.kept)]
    assert change.abs().max() > 1e-9


@pytest.mark.parametrize(
    ("net", "channels", "axes"),
    [
        (recurrent.lstm2(GREY, GREY, hidden=2), 1, 2),
        (recurrent.linear_recurrence(LINE, LINE), 1, 1),
        (filters.fc((1, 8, 8), (1, 8, 8)), 1, 2),
        (shapes.fcn(GREY, (2,)), 1, 2),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Softmax(3)), 1, 2),
        (nn.Conv2d(1, 1, 3), 1, 2),
    ],
    ids=["lstm2", "recurrence", "fc", "class", "softmax over rows", "smaller outputs"],
)
def test_nets_that_cannot_be_cut(net, channels, axes):
    assert sight(net.eval(), channels, axes) is None


class Vignette(nn.Module):
    """Depends on the place in the frame, though every output on one pixel only."""

    def forward(self, x):
        return x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)


def test_a_net_that_knows_its_place_cannot_be_cut():
    assert sight(Vignette(), 1, 2) is None


def test_a_dead_unit_is_seen():
    """Its gradient is 0 here, and not everywhere."""
    net = nn.Sequential(nn.Conv2d(1, 1, 7, padding=3), nn.ReLU(), nn.Conv2d(1, 1, 1))
    nn.init.constant_(net[0].bias, -100.0)
    assert sight(net, 1, 2) == Sight((3, 3), 1)


def test_tiles_cover_everything_once_and_start_at_whole_periods():
    count = np.zeros((203, 77), int)
    for tile in tiles((203, 77), Sight((12, 12), 4), 30):
        count[tile.kept] += 1
        assert all(s.start % 4 == 0 and (s.stop % 4 == 0 or s.stop == n) for s, n in zip(tile.seen, (203, 77)))  # noqa: B905
    assert (count == 1).all()


def test_a_wider_sight_keeps_both_periods():
    assert Sight((4, 9), 1).widened(least=6, further=5, period=2) == Sight((12, 14), 2)


def test_memory_is_bounded_by_the_largest_layer():
    net = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 1, 3, padding=1))
    found = tiling.working_bytes(net, (1, 16, 16))
    assert found == 2 * 4 * 65
    side = tiling.side(found, Sight((2, 2), 1))
    assert side**2 * found <= tiling.WORKING_BYTES
    assert tiling.side(found, Sight((400, 400), 1)) >= 800
