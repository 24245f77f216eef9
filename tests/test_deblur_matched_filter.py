"""The datasets `deblur` and `matched_filter`, and the matched filter itself."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from sigexp.data.digits import digit_source
from sigexp.datasets.deblur import blurred_digits
from sigexp.datasets.matched_filter import hidden_digit
from sigexp.signal.matched import correlate, correlate_centred, lecture_map

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory):
    """40 training and 15 test digits in original files."""
    from sigexp.data.synthetic_digits import draw_digits

    folder = tmp_path_factory.mktemp("digits")
    for stem, count in (("train", 40), ("t10k", 15)):
        images, labels = draw_digits(0, stem, count)
        for name, code, values in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
            header = bytes([0, 0, 8, code]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{stem}-{name}-ubyte").write_bytes(header + values.tobytes())
    return str(folder)


@pytest.fixture
def deblur(digit_folder):
    def build(**fields):
        return blurred_digits(**{"digits": digit_folder, "size": 36, "test_size": 15, **fields})

    return build


@pytest.fixture
def hidden(digit_folder):
    def build(**fields):
        return hidden_digit(**{"digits": digit_folder, "test_size": 50, "image_size": 64, **fields})

    return build


def every(problem, split, stop):
    return problem.sample(split, torch.arange(stop))


# Deblurring


@pytest.mark.parametrize("sigma", [(2.0, 0.5), (0.0, 1.0)])
def test_blur_equals_scipy_image_by_image(deblur, sigma):
    batch = every(deblur(noise=0.0, sigma=sigma), "test", 15)
    expected = np.stack([scipy.ndimage.gaussian_filter(image[0], sigma) for image in batch.targets.double().numpy()])
    np.testing.assert_allclose(batch.inputs[:, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_example_i_of_a_fixed_set_is_digit_i(deblur, digit_folder, split):
    source = digit_source(digit_folder)
    problem = deblur()
    batch = every(problem, split, problem.sizes[split])
    np.testing.assert_array_equal(np.rint(255 * batch.targets[:, 0].numpy()), source.images(split))
    assert batch.targets.dtype == batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == batch.targets.shape


def test_noise_is_white_of_the_given_deviation_and_differs_between_examples(deblur):
    clean, noisy = (every(deblur(noise=noise), "train", 36).inputs for noise in (0.0, 0.1))
    noise = noisy - clean
    assert abs(float(noise.std()) - 0.1) < 0.002
    assert abs(float(noise.mean())) < 0.003
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 1e-4
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 1e-4


def test_a_stream_takes_digits_at_random_with_fresh_noise(deblur, digit_folder):
    problem = deblur(size="stream")
    assert problem.sizes["train"] is None
    pool = {image.tobytes() for image in digit_source(digit_folder).images("train")}
    batch = every(problem, "train", 720)
    drawn = [image.tobytes() for image in np.rint(255 * batch.targets[:, 0].numpy()).astype(np.uint8)]
    assert set(drawn) == pool
    assert drawn[:36] != drawn[36:72]
    assert len({image.tobytes() for image in batch.inputs.numpy()}) == 720


@pytest.mark.parametrize("size", [36, "stream"])
def test_an_example_does_not_depend_on_what_is_asked_with_it(deblur, size):
    problem = deblur(size=size)
    batch = every(problem, "train", 36)
    for i in (0, 7, 35):
        one = deblur(size=size).sample("train", torch.tensor([i]))
        assert torch.equal(one.inputs[0], batch.inputs[i])
        assert torch.equal(one.targets[0], batch.targets[i])
    assert not torch.equal(batch.inputs, every(deblur(size=size, seed=1), "train", 36).inputs)


def test_deblur_is_reported_by_psnr_first_and_its_references_run(deblur):
    problem = deblur()
    assert list(problem.metrics) == ["psnr", "mse", "mse_interior", "ssim"]
    batch = problem.examples("test")
    identity, constant = (problem.references[name].predict(batch.inputs) for name in ("identity", "constant"))
    assert (
        problem.metrics["psnr"](identity, batch.targets).mean()
        > problem.metrics["psnr"](constant, batch.targets).mean()
    )
    assert constant.shape == batch.targets.shape
    assert constant.unique().numel() == 1
    interior = problem.metrics["mse_interior"](identity, batch.targets)
    torch.testing.assert_close(interior, (identity - batch.targets)[..., 5:-5, 5:-5].square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": (-1.0, 1.0)}, r"dataset.sigma=\[-1.0, 1.0\]: expected two numbers of pixels"),
        ({"sigma": (1.0, 1.0, 1.0)}, "dataset.sigma="),
        ({"sigma": (1.0, math.inf)}, "dataset.sigma="),
        ({"noise": -0.1}, "dataset.noise=-0.1: expected a standard deviation"),
        ({"noise": math.nan}, "dataset.noise=nan"),
        ({"size": 37}, "dataset.size=37: expected 1..36"),
        ({"test_size": 16}, "dataset.test_size=16: expected 1..15"),
        ({"test_size": 0}, "dataset.test_size=0: expected 1..15"),
        ({"size": "many"}, "dataset.size=many"),
        ({"digits": "minst"}, "did you mean mnist"),
    ],
)
def test_deblur_refuses_what_cannot_be(deblur, fields, message):
    with pytest.raises(ValueError, match=message):
        deblur(**fields)


# The matched filter


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    return rng.random((2, 3, 40, 45)), rng.random((28, 27))


def test_correlation_equals_scipy(scene):
    images, template = scene
    whole = correlate(torch.from_numpy(images), torch.from_numpy(template))
    centred = correlate_centred(torch.from_numpy(images), torch.from_numpy(template))
    for place in np.ndindex(2, 3):
        expected = scipy.signal.correlate2d(images[place], template)
        np.testing.assert_allclose(whole[place], expected, atol=1e-9)
        np.testing.assert_allclose(centred[place], expected[13 : 13 + 40, 13 : 13 + 45], atol=1e-9)


def test_correlation_is_largest_at_the_centre_of_the_template(scene):
    template = torch.from_numpy(scene[1])
    image = torch.zeros(60, 50, dtype=torch.float64)
    image[9 : 9 + 28, 20 : 20 + 27] = template
    place = int(correlate_centred(image, template).argmax())
    assert divmod(place, 50) == (9 + 14, 20 + 13)


def test_lecture_map_equals_its_formula_image_by_image(scene):
    images, template = scene
    maps = lecture_map(torch.from_numpy(images), torch.from_numpy(template))
    for place in np.ndindex(2, 3):
        c = scipy.signal.correlate2d(images[place], template)
        expected = scipy.special.expit(10 * (c - 0.7 * c.max()))
        np.testing.assert_allclose(maps[place], expected, atol=1e-9)


def test_correlation_shifts_with_the_image(scene):
    images, template = (torch.from_numpy(array) for array in scene)
    moved = F.pad(images, (5, 0, 3, 0))
    torch.testing.assert_close(correlate(moved, template)[..., 3:, 5:], correlate(images, template))


def test_an_odd_kernel_that_covers_the_template_computes_the_same_map(hidden, digit_folder):
    """So a linear layer of footprint 29 can be the matched filter exactly, position for position."""
    batch = every(hidden(), "test", 4)
    digit = torch.from_numpy(digit_source(digit_folder).images("train")[0].astype(np.float32)) / 255
    kernel = F.pad(digit, (0, 1, 0, 1))[None, None]
    expected = F.conv2d(batch.inputs - 0.5, kernel, padding=14)
    torch.testing.assert_close(correlate_centred(batch.inputs - 0.5, digit), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("template", [0, 5])
def test_input_is_uniform_noise_plus_the_digit_where_the_map_says(hidden, digit_folder, template):
    digit = digit_source(digit_folder).images("train")[template].astype(np.float32) / 255
    batch = every(hidden(template=template), "test", 50)
    assert batch.inputs.dtype == batch.targets.dtype == torch.float32
    noise = batch.inputs[:, 0].numpy().copy()
    for image, target in zip(noise, batch.targets[:, 0].numpy(), strict=True):
        ((row, column),) = np.argwhere(target)
        assert target[row, column] == 1
        assert 14 <= row <= 64 - 14
        assert 14 <= column <= 64 - 14
        image[row - 14 : row + 14, column - 14 : column + 14] -= 0.5 * digit
    assert -1e-6 <= noise.min() <= noise.max() < 1 + 1e-6
    assert abs(noise.mean() - 0.5) < 0.005
    assert abs(noise.var() - 1 / 12) < 0.002


def test_every_place_wholly_inside_is_used(hidden):
    targets = every(hidden(image_size=30), "train", 300).targets
    counts = targets.sum((0, 1))
    assert torch.equal(targets.sum((1, 2, 3)), torch.ones(300))
    assert (counts[14:17, 14:17] > 10).all()
    assert counts.sum() == counts[14:17, 14:17].sum()


def test_the_classical_filter_finds_the_digit_and_chance_does_not(hidden):
    problem = hidden()
    assert list(problem.metrics) == ["hit_rate", "cross_entropy"]
    batch = problem.examples("test")
    outputs = problem.references["correlation"].predict(batch.inputs)
    found = {name: float(metric(outputs, batch.targets).mean()) for name, metric in problem.metrics.items()}
    chance = problem.references["chance"].values
    assert found["hit_rate"] >= 0.98
    assert found["cross_entropy"] < 0.2
    assert chance == {"hit_rate": 9 / 37**2, "cross_entropy": pytest.approx(math.log(37**2))}
    uniform = torch.zeros(1, 1, 37, 37)
    one = F.one_hot(torch.tensor([3]), 37**2).reshape(1, 1, 37, 37).float()
    assert float(problem.metrics["cross_entropy"](uniform, one)) == pytest.approx(chance["cross_entropy"])
    # without a digit there is nothing to find
    blind = hidden(amplitude=0.0)
    batch = blind.examples("test")
    outputs = problem.references["correlation"].predict(batch.inputs)
    assert float(blind.metrics["hit_rate"](outputs, batch.targets).mean()) < 0.1


def test_a_hidden_digit_is_a_function_of_seed_split_and_index(hidden):
    batch = every(hidden(), "train", 30)
    one = hidden().sample("train", torch.tensor([27]))
    assert torch.equal(one.inputs[0], batch.inputs[27])
    assert torch.equal(one.targets[0], batch.targets[27])
    assert not torch.equal(batch.inputs, every(hidden(), "valid", 30).inputs)
    assert not torch.equal(batch.inputs, every(hidden(seed=1), "train", 30).inputs)
    assert hidden().sizes == {"train": None, "valid": 100, "test": 50}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 27}, "dataset.image_size=27: expected pixels"),
        ({"amplitude": -1.0}, "dataset.amplitude=-1.0: expected a factor"),
        ({"template": 36}, "dataset.template=36: expected a training digit, 0..35"),
        ({"template": -1}, "dataset.template=-1"),
        ({"size": 0}, "dataset.size=0"),
    ],
)
def test_hidden_digit_refuses_what_cannot_be(hidden, fields, message):
    with pytest.raises(ValueError, match=message):
        hidden(**fields)


# Their configuration


@pytest.mark.parametrize(("name", "function"), [("deblur", blurred_digits), ("matched_filter", hidden_digit)])
def test_the_yaml_lists_every_field_with_its_default(name, function):
    text = (CONF / "dataset" / f"{name}.yaml").read_text()
    fields = OmegaConf.to_container(OmegaConf.create(text))
    assert text.startswith("# ")
    assert fields.pop("_target_") == f"{function.__module__}.{function.__qualname__}"
    defaults = {key: field.default for key, field in inspect.signature(function).parameters.items()}
    assert fields == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
