"""Every model: shapes, gradients, precision, state; the lecture's nets; the mathematics each is built on."""

import copy
from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import skimage.data
import torch
import torch.nn.functional as F
from hydra.utils import get_method
from omegaconf import OmegaConf
from torch import Tensor, nn

from sigexp import fitting
from sigexp.datasets.shapes import square_rectangle
from sigexp.models.demosaic import polyphase
from sigexp.models.filters import (
    conv1x1,
    conv1x1_degamma,
    conv_bn,
    deep,
    dilated,
    fc,
    linear,
    nin,
    separable,
    separable_sigmoid,
)
from sigexp.models.nonlinear import mlp, rank
from sigexp.models.recurrent import linear_recurrence, lstm, lstm2, seqlstm
from sigexp.models.shapes import fcn, projection, vgg
from sigexp.models.spectral import conv1d, fft
from sigexp.models.unet import unet

CONF = Path(__file__).parents[1] / "conf" / "model"
GREY, COLOUR, CLASSES, SEQUENCE = (
    ((1, 16, 20), (1, 16, 20)),
    ((3, 12, 8), (3, 12, 8)),
    ((1, 24, 32), (3,)),
    ((1, 40), (1, 40)),
)
BOTH = {"poles": 1, "pole_pairs": 1, "bidirectional": True, "start_samples": 4}
CASES = [
    (linear, {"kernel_size": 5}, *COLOUR),
    (linear, {"kernel_size": 5}, *SEQUENCE),
    (separable, {"kernel_size": 5}, *GREY),
    (separable, {"kernel_size": 3}, *COLOUR),
    (fc, {}, *GREY),
    (fc, {}, *CLASSES),
    (fc, {}, (1, 32), (2, 17)),
    (conv1x1, {}, *COLOUR),
    (conv1x1, {}, (2, 40), (1, 40)),
    (conv1x1_degamma, {}, *COLOUR),
    (conv1x1_degamma, {}, *GREY),
    (nin, {}, *COLOUR),
    (nin, {"activation": "relu", "output_activation": "identity"}, *SEQUENCE),
    (deep, {"channels": 8}, *COLOUR),
    (deep, {"channels": 8, "output_kernel_size": 3, "activation": "centred_sigmoid"}, *SEQUENCE),
    (dilated, {"channels": 6}, *GREY),
    (dilated, {"channels": 6, "dilations": [1, 2]}, (1, 40), (2, 40)),
    (conv_bn, {}, *GREY),
    (conv_bn, {}, *SEQUENCE),
    (separable_sigmoid, {}, *GREY),
    (separable_sigmoid, {"channels": [4, 8], "kernel_size": 3}, *COLOUR),
    (vgg, {}, *CLASSES),
    (vgg, {"head": "max"}, (3, 17, 8), (2,)),
    (fcn, {}, *CLASSES),
    (fcn, {"channels": [4, 8], "dilations": [1, 3], "poolings": 0}, (3, 8, 8), (2,)),
    (projection, {}, *CLASSES),
    (projection, {"channels": [4], "dilations": [2], "kernel_size": 3}, (3, 8, 8), (2,)),
    (polyphase, {"channels": 6}, *COLOUR),
    (polyphase, {"channels": 6, "layers": 2, "pattern": "GRBG"}, (1, 9, 7), (3, 9, 7)),
    (unet, {"levels": 2}, *GREY),
    (unet, {"levels": 3, "output_activation": "identity"}, (3, 9, 13), (2, 9, 13)),
    (seqlstm, {}, *SEQUENCE),
    (seqlstm, {"hidden": 3, "layers": 2, "bidirectional": False}, (2, 15), (3, 15)),
    (lstm, {}, *SEQUENCE),
    (lstm, {"hidden": 3, "bidirectional": True}, (2, 15), (3, 15)),
    (lstm2, {"hidden": 3}, *GREY),
    (lstm2, {"hidden": 3, "bidirectional": False}, (3, 9, 6), (2, 9, 6)),
    (lstm2, {"hidden": 3}, *CLASSES),
    (linear_recurrence, {}, *SEQUENCE),
    (linear_recurrence, BOTH, (2, 15), (3, 15)),
    (conv1d, {"filters": 4, "kernel_size": 7}, *SEQUENCE),
    (conv1d, {"filters": 4, "kernel_size": 7, "activation": "square"}, (1, 32), (2, 17)),
    (conv1d, {"filters": 4, "kernel_size": 7}, (1, 32), (3,)),
    (fft, {}, (1, 32), (2, 17)),
    (fft, {"kernel_size": 7, "bins": 17}, (2, 32), (5, 32)),
    (fft, {}, (1, 32), (3,)),
    (rank, {}, *GREY),
    (rank, {"window": 3}, *COLOUR),
    (mlp, {"hidden": [8, 8]}, *GREY),
    (mlp, {"window": 4, "hidden": [8]}, (3, 5, 6), (1, 5, 6)),
]
ANY_SIZE = [c for c in CASES if c[0] not in (fc, vgg) and not (c[0] in (conv1d, fft) and c[2][1:] != c[3][1:])]
RECURRENT = (seqlstm, lstm, lstm2)  # torch has no batching rule for an LSTM


def name(case) -> str:
    return f"{case[0].__name__}-{case[2]}-{case[3]}"


def build(factory: Callable[..., nn.Module], fields: dict, inputs: tuple, targets: tuple, *, stir: bool = False):
    """A model; `stir` moves every parameter, for those that start at zero."""
    torch.manual_seed(0)
    model = factory(inputs, targets, **fields)
    if stir:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", CASES, ids=name)
def test_model_has_the_shape_and_every_parameter_a_gradient(case):
    # In evaluation: where BatchNorm takes its mean from the batch, the gradient of a bias before it is rounding alone.
    model, (_, _, inputs, targets) = build(*case, stir=True).eval(), case
    y = model(torch.rand(3, *inputs))
    assert y.shape == (3, *targets)
    (y * torch.randn_like(y)).sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("case", CASES, ids=name)
def test_model_runs_in_double_precision_and_from_its_own_state(case):
    model, inputs = build(*case, stir=True).eval(), case[2]
    x = torch.rand(2, *inputs)
    double = copy.deepcopy(model).double()
    assert double(x.double()).dtype == torch.float64
    torch.testing.assert_close(double(x.double()).float(), model(x), atol=1e-4, rtol=1e-4)
    torch.manual_seed(1)
    other = case[0](case[2], case[3], **case[1]).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_model_is_the_same_for_the_same_seed_and_leaves_its_input_alone(case):
    first, second = build(*case), build(*case)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    x = torch.rand(2, *case[2])
    before = x.clone()
    assert torch.equal(first(x), second(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("case", ANY_SIZE, ids=name)
def test_model_takes_other_sizes_than_it_was_made_for(case):
    model, (_, _, inputs, targets) = build(*case).eval(), case
    extents = [(33, 21), (10, 10)] if len(inputs) == 3 else [(51,), (20,)]
    for extent in extents:
        expected = targets if len(targets) == 1 else (targets[0], *extent)
        assert model(torch.rand(1, inputs[0], *extent)).shape == (1, *expected)


@pytest.mark.parametrize("case", [c for c in CASES if c[0] not in RECURRENT], ids=name)
def test_members_under_vmap_equal_members_one_by_one(case):
    members = [build(*case, stir=True).double().eval() for _ in range(3)]
    for i, member in enumerate(members):
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.mul_(1 + 0.1 * i)
    state, buffers = torch.func.stack_module_state(members)
    x = torch.rand(2, *case[2], dtype=torch.float64)

    def forward(parameters, others):
        return torch.func.functional_call(members[0], (parameters, others), (x,))

    together = torch.func.vmap(forward)(state, buffers)
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]))


def test_every_model_of_the_conf_is_tested_here():
    configured = {OmegaConf.load(path)["_target_"] for path in CONF.glob("*.yaml")}
    tested = {f"{case[0].__module__}.{case[0].__name__}" for case in CASES}
    assert configured >= tested
    missing = {target for target in configured if target.startswith("sigexp.")} - tested
    assert not missing
    assert all(sum(case[0] is factory for case in CASES) >= 2 for factory in {case[0] for case in CASES})


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_conf_lists_all_fields_with_their_defaults(path):
    text, config = path.read_text(), OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert text.startswith("# ")
    factory = get_method(config.pop("_target_"))
    assert factory.__name__ == path.stem
    fields = {n: p.default for n, p in signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert config.keys() == fields.keys()
    for field, value in config.items():
        if value != "${footprint}":
            assert value == (list(fields[field]) if isinstance(fields[field], tuple) else fields[field])


def same_function(model: nn.Module, written_out: nn.Module, shape: tuple[int, ...]) -> None:
    """`model` takes the weights of `written_out` in order, and then does the same, in training mode too."""
    ours, theirs = list(model.state_dict().items()), list(written_out.state_dict().items())
    assert [v.shape for _, v in ours] == [v.shape for _, v in theirs]
    model.load_state_dict({k: v for (k, _), (_, v) in zip(ours, theirs, strict=True)})
    x = torch.rand(4, *shape)
    torch.testing.assert_close(model(x), written_out(x))  # FFT and direct sums round differently
    torch.testing.assert_close(model.eval()(x), written_out.eval()(x))


def lecture_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise((1, 8, 16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2, 2)]
    head = [nn.Linear(32 * 16 * 16, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class LectureLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(input_size=1, hidden_size=4, num_layers=1, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(2, len(x), 4)
        return self.lstm(x.permute(2, 0, 1).contiguous(), (start, start))[0].permute(1, 2, 0).contiguous()


LECTURE = {
    "gaussian": (linear, {"kernel_size": 15}, lambda: nn.Conv2d(1, 1, 15, padding=7), (1, 64, 64), None),
    "separable": (
        separable,
        {"kernel_size": 15},
        lambda: nn.Sequential(nn.Conv2d(1, 1, (15, 1), padding=(7, 0)), nn.Conv2d(1, 1, (1, 15), padding=(0, 7))),
        (1, 64, 64),
        None,
    ),
    "color": (conv1x1, {}, lambda: nn.Conv2d(3, 3, 1, padding=0), (3, 32, 32), None),
    "bayer": (
        deep,
        {"kernel_size": 5},
        lambda: nn.Sequential(nn.Conv2d(3, 64, 5, padding=2), nn.Sigmoid(), nn.Conv2d(64, 3, 5, padding=2)),
        (3, 32, 32),
        None,
    ),
    "deblur": (
        deep,
        {"kernel_size": 11},
        lambda: nn.Sequential(nn.Conv2d(1, 64, 11, padding=5), nn.Sigmoid(), nn.Conv2d(64, 1, 11, padding=5)),
        (1, 28, 28),
        None,
    ),
    "circle_square": (vgg, {"outputs": 10}, lecture_vgg, (1, 128, 128), (2,)),
    "boundary": (
        conv_bn,
        {"kernel_size": 7},
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 7, padding=3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        ),
        (1, 64, 64),
        None,
    ),
    "median": (
        separable_sigmoid,
        {"kernel_size": 15},
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, (15, 1), padding=(7, 0)),
            nn.Conv2d(16, 32, (1, 15), padding=(0, 7)),
            nn.Sigmoid(),
            nn.Conv2d(32, 1, 1),
            nn.Sigmoid(),
        ),
        (1, 32, 32),
        None,
    ),
    "spikes": (seqlstm, {}, lambda: nn.Sequential(LectureLSTM(), nn.Sigmoid(), nn.Conv1d(8, 1, 1)), (1, 200), None),
}


@pytest.mark.parametrize("experiment", LECTURE)
def test_model_is_the_lectures_net(experiment):
    factory, fields, written_out, shape, targets = LECTURE[experiment]
    torch.manual_seed(0)
    same_function(factory(shape, targets or shape, **fields), written_out(), shape)


def test_fc_is_the_lectures_matrix():
    model, x = fc((1, 8, 8), (1, 8, 8)), torch.rand(2, 1, 8, 8)
    weight, bias = model.parameters()
    torch.testing.assert_close(model(x).flatten(1), x.flatten(1) @ weight.T + bias)


@pytest.mark.parametrize(
    ("factory", "fields", "inputs", "targets", "message"),
    [
        (vgg, {}, (3, 32, 32), (3, 32, 32), r"model=vgg gives classes; .* targets are images \[3, 32, 32\]"),
        (fcn, {}, (1, 40), (2,), r"model=fcn takes images .* inputs are sequences \[1, 40\]"),
        (projection, {}, (1, 8, 8), (1, 8, 8), "model=projection gives classes"),
        (linear, {}, (1, 128, 128), (2,), "model=linear gives signals of its inputs' extent; .* 2 classes"),
        (linear, {}, (1, 128), (2, 65), r"targets are sequences \[2, 65\]"),
        (linear, {"kernel_size": 4}, *GREY, "model.kernel_size=4: expected an odd number"),
        (deep, {"output_kernel_size": 0}, *GREY, "model.output_kernel_size=0: expected an odd number"),
        (deep, {"activation": "swish"}, *GREY, "'swish': expected one of"),
        (dilated, {"dilations": [3]}, *GREY, r"model.dilations=\[3\]: expected at least two"),
        (separable, {}, *SEQUENCE, "model=separable takes images"),
        (separable_sigmoid, {"channels": [1, 2, 3]}, *GREY, r"model.channels=\[1, 2, 3\]: expected two numbers"),
        (vgg, {}, (1, 7, 128), (2,), r"halves images 3 times; \[1, 7, 128\] is too small"),
        (vgg, {"outputs": 2}, *CLASSES, "model.outputs=2: expected at least the number of classes, 3"),
        (vgg, {"head": "mean"}, *CLASSES, "model.head='mean': expected 'flatten' or 'max'"),
        (vgg, {"channels": []}, *CLASSES, r"model.channels=\[\]: expected whole numbers of at least 1"),
        (fcn, {"dilations": [1]}, *CLASSES, r"model.dilations=\[1\]: expected one for each of model.channels"),
        (polyphase, {}, *GREY, "model=polyphase turns mosaics"),
        (polyphase, {"pattern": "RGBG"[:3]}, *COLOUR, "model.pattern='RGB': expected the letters"),
        (unet, {"levels": 0}, *GREY, "model.levels=0: expected whole numbers of at least 1"),
        (unet, {}, *CLASSES, "model=unet gives signals of its inputs' extent"),
        (seqlstm, {}, *GREY, "model=seqlstm takes sequences"),
        (lstm, {}, (1, 40), (1, 21), "model=lstm gives signals of its inputs' extent"),
        (linear_recurrence, {"poles": 0}, *SEQUENCE, "model.poles .* model.pole_pairs=0: expected"),
        (conv1d, {}, *GREY, "model=conv1d takes sequences"),
        (fft, {"bins": 8}, *SEQUENCE, "model.bins=8: expected more than half of model.kernel_size=31"),
        (rank, {}, (3, 8, 8), (1, 8, 8), "model=rank filters every channel by itself"),
        (mlp, {"hidden": [8, 0]}, *GREY, r"model.hidden=\[8, 0\]: expected whole numbers"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(factory, fields, inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        factory(inputs, targets, **fields)


AFFINE = [
    (linear, {"kernel_size": 5}, *COLOUR),
    (separable, {"kernel_size": 5}, *GREY),
    (fc, {}, *GREY),
    (conv1x1, {}, *COLOUR),
    (linear_recurrence, BOTH, *SEQUENCE),
    (conv1d, {"filters": 4, "kernel_size": 7}, *SEQUENCE),
    (conv1d, {"filters": 4, "kernel_size": 7}, (1, 32), (2, 17)),
    (fft, {}, (1, 32), (2, 17)),
    (polyphase, {"channels": 6}, *COLOUR),
    (dilated, {"channels": 6}, *GREY),
]


@pytest.mark.parametrize("case", AFFINE, ids=name)
def test_linear_models_superpose(case):
    """f(a x + b y) - f(0) = a (f(x) - f(0)) + b (f(y) - f(0)); polyphase and dilated at their start."""
    model = build(*case).double()
    x, y = (torch.rand(2, *case[2], dtype=torch.float64) for _ in range(2))
    rest = model(torch.zeros_like(x))
    combined = model(2 * x - 3 * y) - rest
    torch.testing.assert_close(combined, 2 * (model(x) - rest) - 3 * (model(y) - rest))


@pytest.mark.parametrize(
    ("factory", "fields", "channels", "border", "step"),
    [
        (linear, {"kernel_size": 5}, 1, 2, 1),
        (separable, {"kernel_size": 5}, 1, 2, 1),
        (nin, {}, 3, 0, 1),
        (deep, {"kernel_size": 5, "channels": 4}, 1, 4, 1),
        (dilated, {"channels": 4, "dilations": [1, 2, 1]}, 1, 4, 1),
        (conv_bn, {}, 1, 3, 1),
        (separable_sigmoid, {"kernel_size": 5}, 1, 2, 1),
        (rank, {}, 1, 2, 1),
        (mlp, {"hidden": [4]}, 1, 2, 1),
        (polyphase, {"channels": 4, "layers": 3}, 3, 6, 2),
        (unet, {"levels": 1, "channels": 4}, 1, 12, 2),
    ],
)
def test_filters_commute_with_shifts_away_from_the_border(factory, fields, channels, border, step):
    """By one pixel; by two, the mosaic's period, for polyphase, and the coarsest level's pixel for unet."""
    shape = (channels, 32, 36)
    model = build(factory, fields, shape, shape, stir=True).double().eval()
    x = torch.rand(1, *shape, dtype=torch.float64)
    shifted = model(x.roll((step, step), (2, 3)))
    inner = slice(border + step, -border - step)
    torch.testing.assert_close(shifted[..., inner, inner], model(x).roll((step, step), (2, 3))[..., inner, inner])


def test_lstm_sees_the_past_only():
    model, x = build(lstm, {}, *SEQUENCE).double(), torch.rand(1, 1, 40, dtype=torch.float64)
    changed = x.clone()
    changed[..., 20:] = 0
    assert torch.equal(model(x)[..., :20], model(changed)[..., :20])
    assert not torch.equal(model(x)[..., 20:], model(changed)[..., 20:])


def test_lstm2_and_deep_unets_see_the_whole_image_and_conv_bn_does_not():
    shape = (1, 32, 32)
    for factory, fields, whole in ((lstm2, {"hidden": 4}, True), (unet, {"levels": 5}, True), (conv_bn, {}, False)):
        model = build(factory, fields, shape, shape, stir=True).double().eval()
        x = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(x)[0, 0, 2, 2], x)
        assert (gradient[0, 0, 24:, 24:].abs().max() > 0) == whole


def test_classifiers_with_a_global_maximum_find_a_shape_anywhere():
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    image[..., 40:48, 40:52] = 1
    for factory, fields in ((fcn, {}), (vgg, {"head": "max"}), (projection, {})):
        model = build(factory, fields, (1, 96, 96), (2,)).double().eval()
        torch.testing.assert_close(model(image), model(image.roll((8, 12), (2, 3))))


def test_projection_treats_both_axes_alike():
    model, x = build(projection, {}, (1, 24, 32), (3,)).eval(), torch.rand(2, 1, 24, 32)
    torch.testing.assert_close(model(x), model(x.mT))


def bggr(image: np.ndarray) -> np.ndarray:
    """The mosaic of [3, H, W], zeros where a colour is not measured."""
    colours = np.full(image.shape[1:], 1)
    colours[::2, ::2], colours[1::2, 1::2] = 2, 0
    return np.where(colours == np.arange(3)[:, None, None], image, 0)


def bilinear(mosaic: np.ndarray) -> np.ndarray:
    """Known neighbours averaged, the picture mirrored about its border pixels: [3, H, W] of a BGGR mosaic."""
    cross, square = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4, np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    kernels = (square, cross, square)
    return np.stack([scipy.ndimage.convolve(c, k, mode="mirror") for c, k in zip(mosaic, kernels, strict=True)])


@pytest.mark.parametrize("extent", [(64, 80), (63, 81)])
def test_polyphase_starts_far_better_than_bilinear_demosaicing(extent):
    image = skimage.data.astronaut()[100 : 100 + extent[0], 140 : 140 + extent[1]].transpose(2, 0, 1) / 255
    mosaic = bggr(image)
    model = polyphase((3, *extent), (3, *extent)).double()
    found = model(torch.from_numpy(mosaic)[None])[0].detach().numpy()
    assert ((found - image) ** 2).mean() < 0.5 * ((bilinear(mosaic) - image) ** 2).mean()
    measured = mosaic > 0
    np.testing.assert_allclose(found[measured], image[measured], atol=2e-3)


def test_polyphase_preserves_constant_colours_and_exposure():
    model = build(polyphase, {"channels": 6}, *COLOUR, stir=True).double()
    image, colour = np.random.default_rng(0).random((3, 12, 8)), np.array([0.3, -0.1, 0.2])[:, None, None]
    once = model(torch.from_numpy(bggr(image))[None])
    shifted = model(torch.from_numpy(bggr(image + colour))[None])
    torch.testing.assert_close(shifted, once + torch.from_numpy(colour))
    torch.testing.assert_close(model(3 * torch.from_numpy(bggr(image))[None]), 3 * once)


def test_dilated_starts_as_the_identity():
    x = torch.rand(2, 1, 16, 20)
    assert torch.equal(build(dilated, {}, *GREY)(x), x)


def test_degamma_and_a_matrix_are_xyz():
    model = conv1x1_degamma((3, 8, 8), (3, 8, 8)).double()
    matrix = skimage.color.rgb2xyz(np.eye(3)[None])[0].T
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(matrix)[:, :, None, None])
        model[1].bias.zero_()
    rgb = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    xyz = skimage.color.rgb2xyz(rgb.numpy(), channel_axis=1)
    np.testing.assert_allclose(model(rgb).detach(), xyz, atol=1e-14)


def train(model: nn.Module, x: Tensor, y: Tensor, *, lr: float, steps: int, batch: int = 50) -> float:
    """Adam with a learning rate that falls to 0; the squared error on the last tenth, which it does not see."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    held = len(x) // 10
    for step in range(steps):
        rows = torch.randint(len(x) - held, (batch,))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        F.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return F.mse_loss(model(x[-held:]), y[-held:]).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_recurrence_finds_the_recursive_filter(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((1000, 100)) * (rng.random((1000, 100)) < 0.1)
    y = scipy.signal.lfilter([0, 0.3], [1, -0.7], x, zi=x[:, :1])[0]
    torch.manual_seed(seed)
    model = linear_recurrence((1, 100), (1, 100))
    inputs, targets = (torch.from_numpy(a).float()[:, None] for a in (x, y))
    assert train(model, inputs, targets, lr=0.03, steps=600) < 1e-8
    assert torch.tanh(model.radius).item() == pytest.approx(0.7, abs=1e-3)
    assert model.drive.item() == pytest.approx(0.3, abs=1e-3)


def test_bidirectional_recurrence_learns_a_gaussian_up_to_its_reflecting_border():
    x = (np.random.default_rng(0).random((1000, 60)) < 0.1).astype(np.float32)
    y = 4 * scipy.ndimage.gaussian_filter1d(x, 3.0, axis=1)
    fields = {"poles": 0, "pole_pairs": 2, "bidirectional": True, "start_samples": 16}
    model = build(linear_recurrence, fields, (1, 60), (1, 60))
    error = train(model, torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None], lr=0.03, steps=600)
    assert error < 1e-3 * y.var()


def test_fft_and_fc_learn_a_windowed_spectrum():
    x = np.random.default_rng(0).standard_normal((1000, 32))
    spectrum = np.fft.rfft(x * np.hanning(32), norm="ortho")
    inputs = torch.from_numpy(x).float()[:, None]
    targets = torch.from_numpy(np.stack([spectrum.real, spectrum.imag], 1)).float()
    for factory in (fft, fc):
        assert train(build(factory, {}, (1, 32), (2, 17)), inputs, targets, lr=0.02, steps=300) < 1e-5


def test_rank_filter_learns_the_median():
    x = np.random.default_rng(0).random((200, 16, 16)).astype(np.float32)
    y = scipy.ndimage.median_filter(x, (1, 4, 4))
    model = build(rank, {}, (1, 16, 16), (1, 16, 16))
    mean = F.mse_loss(model(torch.from_numpy(x)[:, None]), torch.from_numpy(y)[:, None]).item()
    error = train(model, torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None], lr=0.5, steps=60, batch=20)
    assert error < 1e-3 * mean
    assert model.logits.argmax() == 8


def test_a_classifier_may_have_logits_beyond_the_classes():
    problem = square_rectangle()
    fitting.check(vgg((1, 128, 128), (2,), outputs=10), problem, "vgg")
    with pytest.raises(ValueError, match=r"model=conv gives \[1, 128, 128\]"):
        fitting.check(nn.Conv2d(1, 1, 1), problem, "conv")
