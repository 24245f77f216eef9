"""Colour spaces, the Bayer mosaic, classical demosaicing, and the two datasets made of them."""

import colour_demosaicing
import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import torch

from sigexp.datasets.bayer import bayer_mosaic
from sigexp.datasets.color import rgb_to_xyz
from sigexp.signal import color
from sigexp.signal.bayer import BLUE, GREEN, RED, bayer_masks, mosaic, single_plane
from sigexp.signal.demosaic import CODES, METHODS, PADDING, demosaic
from sigexp.signal.quality import mse, psnr


def random_rgb(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def evaluate(problem, reference: str) -> float:
    """The headline metric of a reference, mean over the whole test photographs."""
    batches = [problem.sample("test", torch.tensor([i])) for i in range(problem.sizes["test"])]
    predict, metric = problem.references[reference].predict, problem.metrics[problem.headline]
    return float(np.mean([metric(predict(b.inputs), b.targets).item() for b in batches]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_rgb_to_xyz_equals_skimage(dtype, tolerance):
    rgb = random_rgb(5, 3, 20, 30).to(dtype)
    rgb[0, :, 0, :4] = torch.tensor([0.0, 0.04045, 0.0405, 1.0], dtype=dtype)
    expected = skimage.color.rgb2xyz(rgb.double().numpy(), channel_axis=1)
    np.testing.assert_allclose(color.rgb_to_xyz(rgb).numpy(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(color.rgb_to_xyz(rgb[0]), color.rgb_to_xyz(rgb)[0], rtol=0, atol=1e-7)


def test_white_goes_to_the_white_of_each_space():
    white = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    xyz = color.rgb_to_xyz(white).flatten().tolist()
    assert xyz == pytest.approx([0.950456, 1.0, 1.088754], abs=1e-6)
    assert torch.tensor(color.CIE_RGB_TO_XYZ).sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_srgb_curve_is_monotone_continuous_and_differentiable_at_black():
    values = torch.linspace(0, 1, 10_001, dtype=torch.float64, requires_grad=True)
    linear = color.srgb_to_linear(values)
    steps = linear.diff()
    assert (steps > 0).all()
    assert steps.max() < 3e-4
    linear.sum().backward()
    assert values.grad.isfinite().all()
    assert values.grad[0].item() == pytest.approx(1 / 12.92)


def test_the_matrix_is_that_of_srgb_not_of_cie_rgb():
    problem = rgb_to_xyz()
    batch = problem.examples("train", 0, 250)
    linear, xyz = (x.double().transpose(0, 1).flatten(1).T for x in (color.srgb_to_linear(batch.inputs), batch.targets))
    found = torch.linalg.lstsq(linear, xyz).solution.T
    torch.testing.assert_close(found, torch.tensor(color.SRGB_TO_XYZ, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (found - torch.tensor(color.CIE_RGB_TO_XYZ, dtype=torch.float64)).abs().max() > 0.1


def test_color_is_tested_on_whole_photographs():
    problem = rgb_to_xyz()
    batch = problem.sample("test", torch.tensor([1]))
    assert batch.inputs.shape == batch.targets.shape == (1, 3, 400, 600)
    assert problem.ragged == ("test",)
    assert problem.shapes() == ((3, 32, 32), (3, 32, 32))
    scores = {name: evaluate(problem, name) for name in problem.references}
    assert scores["exact"] == 0
    assert 0 < scores["constant"] < scores["identity"]


@pytest.mark.parametrize("shape", [(2, 2), (5, 8), (7, 3)])
def test_masks_partition_the_pixels(shape):
    masks = bayer_masks(*shape)
    assert masks.shape == (3, *shape)
    assert (masks.sum(0) == 1).all()
    if shape[0] % 2 == shape[1] % 2 == 0:
        assert masks.mean((1, 2)).tolist() == [0.25, 0.5, 0.25]


def test_layout_is_bggr():
    assert bayer_masks(2, 2).argmax(0).tolist() == [[BLUE, GREEN], [GREEN, RED]]


def test_mosaic_keeps_what_was_measured_and_nothing_else():
    rgb = random_rgb(3, 3, 6, 8) + 0.5
    seen = mosaic(rgb)
    masks = torch.tensor(bayer_masks(6, 8)).expand(3, -1, -1, -1)
    torch.testing.assert_close(seen[masks], rgb[masks], rtol=0, atol=0)
    assert (seen[~masks] == 0).all()
    np.testing.assert_array_equal(mosaic(rgb.numpy()), seen.numpy())
    assert mosaic(rgb.numpy()).dtype == np.float32
    assert mosaic(rgb.double()).dtype == torch.float64
    torch.testing.assert_close(mosaic(seen), seen, rtol=0, atol=0)


def test_single_plane_holds_one_colour_a_pixel():
    rgb = random_rgb(2, 3, 4, 4)
    plane = single_plane(mosaic(rgb))
    assert plane.shape == (2, 4, 4)
    assert plane[0, 0, 0] == rgb[0, BLUE, 0, 0]
    assert plane[1, 1, 1] == rgb[1, RED, 1, 1]
    assert plane[1, 2, 3] == rgb[1, GREEN, 2, 3]


@pytest.fixture(scope="module")
def coffee() -> torch.Tensor:
    return bayer_mosaic(scale="full").sample("test", torch.tensor([1])).targets


@pytest.mark.parametrize("suffix", ["", "_VNG", "_EA"])
def test_our_code_is_the_best_of_opencvs_four(coffee, suffix):
    plane = single_plane(mosaic(coffee))[0].mul(255).round().to(torch.uint8).numpy()
    scores = {}
    for layout in ("BG", "GB", "RG", "GR"):
        code = getattr(cv2, f"COLOR_Bayer{layout}2RGB{suffix}")
        rgb = torch.from_numpy(cv2.demosaicing(plane, code)).permute(2, 0, 1)[None] / 255
        scores[code] = psnr(rgb, coffee, border=4).item()
    ours = scores.pop(CODES[{"": "bilinear", "_VNG": "vng", "_EA": "edge_aware"}[suffix]])
    assert ours > max(scores.values()) + 10


def test_bilinear_is_the_mean_of_the_nearest_measured():
    seen = mosaic(random_rgb(1, 3, 16, 20))
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    kernels = {RED: square, GREEN: cross, BLUE: square}
    expected = [scipy.ndimage.convolve(seen[0, c].numpy(), kernels[c], mode="mirror") for c in range(3)]
    found = demosaic(seen, "bilinear")[0].numpy()
    np.testing.assert_allclose(found, np.stack(expected), atol=1.5 / 255)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 2), (4, 6), (32, 32), (33, 47)])
def test_a_plain_colour_is_restored_to_the_very_border(method, shape):
    flat = torch.tensor([51, 102, 204])[None, :, None, None].expand(2, 3, *shape) / 255
    restored = demosaic(mosaic(flat), method)
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored, flat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_demosaicing_loses_nothing_at_the_border(method, coffee):
    patch = coffee[:, :, 100:164, 100:164]
    error = (demosaic(mosaic(patch), method) - patch).square().mean(1)[0]
    inner = error[8:-8, 8:-8].mean()
    rim = torch.ones_like(error, dtype=torch.bool)
    rim[4:-4, 4:-4] = False
    assert error[rim].mean() < 6 * inner


def test_demosaicing_clips_and_keeps_the_type():
    wild = mosaic(random_rgb(1, 3, 8, 8).double() * 4 - 2)
    restored = demosaic(wild, "vng")
    assert restored.dtype == torch.float64
    assert restored.min() >= 0
    assert restored.max() <= 1
    with pytest.raises(ValueError, match="demosaicing method 'ahd': expected one of bilinear, vng, edge_aware"):
        demosaic(wild, "ahd")


@pytest.mark.parametrize("method", ["malvar", "menon"])
@pytest.mark.parametrize("shape", [(40, 44), (33, 47), (2, 4)])
def test_malvar_and_menon_equal_those_of_colour_demosaicing(method, shape):
    rgb = random_rgb(1, 3, *shape).double()
    padding = ((PADDING, PADDING), (PADDING, PADDING))
    plane = np.pad(single_plane(mosaic(rgb))[0].numpy(), padding, mode="reflect")
    theirs = {
        "malvar": colour_demosaicing.demosaicing_CFA_Bayer_Malvar2004,
        "menon": colour_demosaicing.demosaicing_CFA_Bayer_Menon2007,
    }[method]
    expected = theirs(plane, "BGGR")[PADDING:-PADDING, PADDING:-PADDING].clip(0, 1).transpose(2, 0, 1)
    found = demosaic(mosaic(rgb), method)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("half", {"bilinear": 30.67, "edge_aware": 30.61, "vng": 34.64}),
        ("full", {"bilinear": 31.76, "edge_aware": 31.71, "vng": 36.09}),
    ],
)
def test_classical_figures_on_the_test_photographs(scale, expected):
    problem = bayer_mosaic(scale=scale)
    found = {name: evaluate(problem, name) for name in expected}
    assert found == pytest.approx(expected, abs=0.1)


def test_bayer_inputs_are_mosaics_of_the_targets():
    problem = bayer_mosaic()
    for split, n in (("train", 40), ("valid", 40), ("test", 1)):
        batch = problem.examples(split, 0, n)
        torch.testing.assert_close(batch.inputs, mosaic(batch.targets), rtol=0, atol=0)
        assert 0 <= batch.targets.min() < batch.targets.max() <= 1


def test_bayer_is_tested_on_whole_photographs_of_even_size():
    full, half = bayer_mosaic(scale="full"), bayer_mosaic()
    chelsea = torch.tensor([0])
    assert full.sample("test", chelsea).inputs.shape == (1, 3, 300, 450)  # 300x451
    assert half.sample("test", chelsea).inputs.shape == (1, 3, 150, 224)  # 150x225
    assert full.ragged == ("test",)


def test_half_scale_is_the_mean_of_two_by_two_pixels():
    full = bayer_mosaic(scale="full").sample("test", torch.tensor([1])).targets
    half = bayer_mosaic().sample("test", torch.tensor([1])).targets
    expected = torch.nn.functional.avg_pool2d(full, 2)
    torch.testing.assert_close(half, expected, rtol=0, atol=1e-6)


def test_bayer_judges_psnr_first_without_the_border():
    problem = bayer_mosaic()
    assert problem.headline == "psnr"
    target = random_rgb(1, 3, 32, 32)
    spoiled = target.clone()
    spoiled[..., :4, :] = spoiled[..., -4:, :] = spoiled[..., :4] = spoiled[..., -4:] = 0
    scores = {name: metric(spoiled, target).item() for name, metric in problem.metrics.items()}
    assert scores["mse"] == pytest.approx(mse(spoiled, target).item())
    assert scores["mse"] > 0
    assert (scores["psnr"], scores["mse_interior"]) == (200, 0)
    assert scores["ssim"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": "quarter"}, r"dataset\.scale=quarter: expected 'half' or 'full'"),
        ({"patch_size": 33}, r"dataset\.patch_size=33: expected an even number"),
        ({"patch_size": 8}, r"dataset\.patch_size=8: expected at least 20 pixels"),
        ({"patch_size": 512}, r"astronaut.png: 512x512 pixels \(256x256 after downsampling\), too small"),
    ],
)
def test_bayer_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        bayer_mosaic(**fields)
