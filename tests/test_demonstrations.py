"""The demonstrations' numbers, each against a computation of another kind."""

import io
import subprocess
import sys
from functools import cache

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import scipy.signal
import skimage.color
import torch

from sigexp import demonstrate
from sigexp.cli import main
from sigexp.demonstrations import (
    DEMONSTRATIONS,
    aliasing,
    cie_rgb,
    drawing,
    fc_matrix,
    gabor,
    gabor_2d,
    nonlinearities,
    separable_svd,
)
from sigexp.demonstrations.page import Page, Picture, table

computed = cache(demonstrate.compute)  # a page that several tests look at


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from sigexp.cli import main; assert main(['demonstrate', '--list']) == 0; "
        "loaded = {'torch', 'hydra', 'numpy', 'matplotlib'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in DEMONSTRATIONS)


def test_unknown_names_are_refused(capsys):
    assert main(["demonstrate", "aliazing"]) == 2
    assert "did you mean aliasing" in capsys.readouterr().err


def test_pages_keep_what_is_written_by_hand_and_have_their_pictures(workdir, monkeypatch, capsys):
    made = Page(title="T", parts=["words", Picture("one", b"png", "a picture")], numbers={})
    monkeypatch.setattr(demonstrate, "compute", lambda name: made)
    path = workdir / "g" / "demonstrations" / "gabor" / "README.md"
    assert main(["demonstrate", "gabor", "--gallery", "g"]) == 0
    text = path.read_text()
    assert text.startswith(f"# T\n\n{DEMONSTRATIONS['gabor']}.\n\n<!-- measured:")
    assert "![a picture](one.png)" in text
    assert (path.parent / "one.png").read_bytes() == b"png"
    assert "by `sigexp demonstrate gabor`" in text
    path.write_text(text.replace("# T", "# Mine"))
    assert main(["demonstrate", "gabor", "--gallery", "g"]) == 0
    assert path.read_text() == text.replace("# T", "# Mine")
    overview = (workdir / "g" / "README.md").read_text()
    assert f"| [gabor](demonstrations/gabor/README.md) | {DEMONSTRATIONS['gabor']} | demonstration |" in overview


@pytest.mark.parametrize("name", ["cie_rgb", "gabor", "nonlinearities"])
def test_a_page_is_whole(name):
    page = computed(name)
    pictures = [part for part in page.parts if isinstance(part, Picture)]
    assert pictures
    for picture in pictures:
        assert len(picture.png) < 100_000
        assert PIL.Image.open(io.BytesIO(picture.png)).size[0] > 200
    assert all(np.isfinite(value) for value in page.numbers.values())
    for part in page.parts:
        if isinstance(part, str) and part.startswith("|"):
            assert len({line.count("|") for line in part.splitlines()}) == 1


def test_a_table_is_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_pixel_of_a_grid_is_whole_pixels_of_the_picture():
    image = np.array([[0.0, 1.0], [1.0, 0.0]])
    shown = np.asarray(PIL.Image.open(io.BytesIO(drawing.pixel_grid([[image]], [["x"]], 40, vmin=0, vmax=1))))
    square = shown[-drawing.GAP - 40 : -drawing.GAP, drawing.GAP : drawing.GAP + 40]
    assert np.array_equal(square, np.kron(image, np.ones((20, 20))) * 255)


@pytest.mark.parametrize(("frequency", "step"), [(0.3, 4), (0.11, 4), (0.45, 3), (0.26, 2)])
def test_a_sine_above_nyquist_is_its_alias_sample_by_sample(frequency, step):
    m = np.arange(50)
    kept = np.cos(2 * np.pi * frequency * step * m)
    assert np.cos(2 * np.pi * aliasing.alias(frequency, step) * m) == pytest.approx(kept, abs=1e-10)
    assert aliasing.alias(frequency, step) <= 0.5


def test_a_grating_folds_to_where_the_alias_is():
    side, step = 128, 4
    rows = np.arange(side)[:, None]
    grating = np.cos(2 * np.pi * 0.3125 * rows) * np.ones(side)  # 40 of 128 periods
    spectrum = np.abs(np.fft.fft2(aliasing.decimate(grating, step)))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert min(row, side // step - row) / (side // step) == aliasing.alias(0.3125, step)
    assert column == 0
    found = aliasing.judge(grating + np.cos(2 * np.pi * rows / 32), np.ones((side, side)), step)
    assert found["folded"] == pytest.approx(1)  # both gratings have the same energy
    assert found["lost"] == pytest.approx(0)
    assert aliasing.share_above(grating, step) == pytest.approx(1)


def test_decimation_adds_up_the_spectrum_and_the_band_below_nyquist_is_what_it_leaves_alone():
    side, step = 64, 4
    picture = np.random.default_rng(0).random((side, side))
    spectrum = np.fft.fft2(picture)
    folded = spectrum.reshape(step, side // step, step, side // step).mean((0, 2))
    assert np.fft.fft2(aliasing.decimate(picture, step)) == pytest.approx(folded)
    rows = np.arange(side)[:, None] * np.ones(side)
    for periods, above in ((7, 0), (8, 1), (9, 1)):  # 16 samples are kept: their Nyquist frequency has 8 periods
        grating = np.cos(2 * np.pi * periods * rows / side)
        assert aliasing.share_above(grating, step) == pytest.approx(above)
        assert aliasing.share_above(grating.T, step) == pytest.approx(above)


def test_gaussian_low_pass_is_scipys_and_what_it_costs_is_its_gain():
    picture = np.random.default_rng(0).random((64, 64))
    response = aliasing.gaussian_response(64, 2.0)
    expected = scipy.ndimage.gaussian_filter(picture, 2.0, mode="wrap")
    assert aliasing.filtered(picture, response) == pytest.approx(expected)
    grating = np.cos(2 * np.pi * 4 / 64 * np.arange(64))[:, None] * np.ones(64)
    gain = np.exp(-2 * np.pi**2 * 2.0**2 * (4 / 64) ** 2)
    assert aliasing.judge(grating, response, 4)["lost"] == pytest.approx(1 - gain**2, rel=1e-3)


def test_shifts_survive_decimation_only_behind_a_low_pass():
    picture = np.random.default_rng(0).random((64, 64))
    assert aliasing.shifted(picture, 3) == pytest.approx(np.roll(picture, 3, axis=0))
    ideal = aliasing.judge(picture, aliasing.within_nyquist(64, 4) * 1.0, 4)
    plain = aliasing.judge(picture, np.ones((64, 64)), 4)
    assert ideal["shift_error"] < 1e-12
    assert plain["shift_error"] > 0.5


@pytest.mark.parametrize(("mu", "sigma", "frequency"), [(0.0, 1.0, 1.0), (2.0, 0.5, 1.5), (1.0, 2.0, 0.5)])
def test_a_gabor_functions_response_is_the_gaussian_of_the_formula(mu, sigma, frequency):
    kernel = gabor.gabor(gabor.X, mu=mu, sigma=sigma, frequency=frequency)
    at, magnitude = gabor.spectrum(kernel, gabor.X[1] - gabor.X[0])

    def bump(centre):
        return sigma * np.sqrt(np.pi / 2) * np.exp(-2 * (np.pi * sigma * (at - centre)) ** 2)

    assert magnitude == pytest.approx(bump(frequency), abs=2e-3)  # its mirror image at -frequency is too far to add
    peak, width = gabor.peak_and_width(at, magnitude)
    assert peak == pytest.approx(frequency, abs=0.004)
    assert width == pytest.approx(np.sqrt(2 * np.log(2)) / (np.pi * sigma), abs=0.008)


def test_no_function_is_narrower_in_both_than_a_gabor_function():
    for sigma, frequency in ((1.0, 1.0), (3.0, 0.2)):
        assert gabor.uncertainty(sigma, frequency) == pytest.approx(1 / (4 * np.pi), rel=1e-6)


def test_the_fit_finds_the_parameters_again():
    known, found, residual, white = gabor.recovered()
    assert found[:, 0] == pytest.approx(known[:, 0], abs=0.5)
    assert found[:, 1] == pytest.approx(known[:, 1], rel=0.2)
    assert found[:, 2] == pytest.approx(known[:, 2], abs=0.015)
    assert residual.max() < 0.1 < 0.5 < white


def test_a_quarter_turn_pair_does_not_see_phase():
    one, both = gabor.phase_ripple()
    assert one > 0.99
    assert both < 1e-3


def test_the_lectures_half_halves_the_frequency():
    step = 2 * gabor_2d.EXTENT / gabor_2d.SIDE
    kernel = gabor_2d.lecture_filter({"frequency": (1.0, 1.0)})
    rows = np.arange(gabor_2d.SIDE) * step - gabor_2d.EXTENT
    y, x = np.meshgrid(rows, rows, indexing="ij")
    by_hand = np.exp(-(x**2 + y**2) / 2) * np.sin(np.pi * (x + y))
    assert kernel == pytest.approx(by_hand)
    assert gabor_2d.peak(kernel, step) == pytest.approx(np.sqrt(0.5), abs=0.01)


def test_a_round_gabor_function_is_two_separable_ones():
    values = gabor_2d.singular_values(gabor_2d.lecture_filter({}))
    assert values[1] > 0.9
    assert values[2] < 1e-12


def test_filters_answer_to_their_own_direction():
    told = np.array(gabor_2d.confusion())
    assert told.diagonal().min() > 0.99
    pair = gabor_2d.pair((1.0, 1.0), 0.125)
    assert np.abs(pair.sum((1, 2))).max() < 1e-12
    picture = np.random.default_rng(0).random((40, 40))
    by_hand = sum(scipy.signal.convolve2d(picture, kernel, mode="valid") ** 2 for kernel in pair)
    assert gabor_2d.energy(picture, pair) == pytest.approx(by_hand)


def test_the_lectures_sigmoids_are_as_far_off_as_by_hand():
    numbers = computed("nonlinearities").numbers
    assert numbers["identity_largest"] == pytest.approx(4 - 10 * (1 / (1 + np.exp(-1.6)) - 0.5))
    x = np.linspace(-5, 5, nonlinearities.POINTS)
    off = 10 / (1 + np.exp(2.6 - 0.55 * x)) - np.log1p(np.exp(x))
    assert numbers["softplus_rms"] == pytest.approx(np.sqrt((off**2).mean()))
    assert numbers["softplus_best_rms"] < numbers["softplus_rms"] / 4
    assert numbers["slope_0.05"] == pytest.approx(0.05**2 * 4**3 / 12, rel=0.02)
    errors = [numbers[f"relus_{n}"] for n in (7, 15, 31)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_nonlinearities_are_torchs():
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    for name, function in (
        ("sigmoid", torch.sigmoid),
        ("ReLU", torch.relu),
        ("softplus", torch.nn.functional.softplus),
    ):
        assert nonlinearities.FUNCTIONS[name](x.numpy()) == pytest.approx(function(x).numpy(), abs=1e-8)


def test_the_best_unit_is_the_function_itself_where_it_can_be():
    tripled = lambda x: 3 * nonlinearities.FUNCTIONS["sigmoid"](2 * x - 1) + 0.5  # noqa: E731
    parameters, rms, _ = nonlinearities.best_unit(nonlinearities.FUNCTIONS["sigmoid"], tripled, 3.0)
    assert rms < 1e-3
    assert parameters == pytest.approx((3, 2, -1, 0.5), abs=0.05)


def test_singular_terms_are_the_nearest_and_their_energy_adds_up():
    kernel = np.random.default_rng(0).standard_normal((15, 15))
    left = [np.square(kernel - separable_svd.of_rank(kernel, terms)).sum() for terms in (0, 1, 3, 15)]
    shares = [separable_svd.energy_left(kernel, terms) for terms in (0, 1, 3, 15)]
    assert shares == pytest.approx([one / np.square(kernel).sum() for one in left], abs=1e-12)
    other = np.outer(kernel[:, 0], kernel[0])  # any other of rank one, at its best height
    other *= (other * kernel).sum() / np.square(other).sum()
    assert np.square(kernel - other).sum() > left[1]


def test_the_true_gaussian_is_separable_and_others_need_their_terms():
    kernels = separable_svd.others()
    terms = {name: int((np.linalg.svd(kernel)[1] > 1e-12).sum()) for name, kernel in kernels.items()}
    assert terms == {
        "the true Gaussian, sigma 4 and 1": 1,
        "the same, turned by 45 degrees": 15,
        "disc of radius 5": 4,
        "Laplacian of a Gaussian, sigma 2": 2,
        "Gabor, 45 degrees": 2,
        "white noise": 15,
    }
    impulse = np.zeros((41, 41))
    impulse[20, 20] = 1
    expected = scipy.ndimage.gaussian_filter(impulse, (4.0, 1.0), mode="constant")[13:28, 13:28]
    assert kernels["the true Gaussian, sigma 4 and 1"] == pytest.approx(expected)


def test_the_first_singular_pair_reads_the_filter_off_a_fitted_kernel(monkeypatch):
    monkeypatch.setattr(separable_svd, "EXAMPLES", 200)
    monkeypatch.setattr(separable_svd, "TEST", 20)
    numbers = separable_svd.page().numbers
    assert numbers["rank_1_residual"] < 0.02
    assert numbers["reading_error"] < numbers["kernel_error"]
    true = np.exp(-((np.arange(33) - 16.0) ** 2) / 32)
    assert numbers["reach"] == pytest.approx(true[9:24].sum() / true.sum(), rel=1e-3)
    errors = {name: value for name, value in numbers.items() if name.endswith(": mse")}
    assert min(errors, key=errors.__getitem__) == "least squares of a column and a row: mse"


def test_the_true_matrix_filters_as_scipy_does():
    image = np.random.default_rng(0).random((fc_matrix.SIDE, fc_matrix.SIDE))
    filtered = scipy.ndimage.gaussian_filter(image, fc_matrix.SIGMA)
    assert fc_matrix.true_matrix() @ image.ravel() == pytest.approx(filtered.ravel(), abs=1e-6)


def test_weights_of_a_convolution_are_tied_and_those_of_a_reflecting_filter_nearly(monkeypatch):
    monkeypatch.setattr(fc_matrix, "SIDE", 8)
    kernel = np.random.default_rng(0).standard_normal((3, 3))
    impulses = np.eye(64).reshape(64, 8, 8)
    columns = [scipy.ndimage.correlate(one, kernel, mode="constant").ravel() for one in impulses]
    assert fc_matrix.tied(np.stack(columns, axis=1)) == pytest.approx(1)
    assert fc_matrix.band_share(np.stack(columns, axis=1)) == pytest.approx((3 * 8 - 2) ** 2 / 64**2)
    reflecting = [scipy.ndimage.correlate(one, kernel, mode="reflect").ravel() for one in impulses]
    assert 0.7 < fc_matrix.tied(np.stack(reflecting, axis=1)) < 0.999


def test_targets_are_scikit_images_and_the_wrong_matrix_is_as_wrong_as_said():
    rgb = np.random.default_rng(0).random((500, 3))
    targets = skimage.color.rgb2xyz(rgb[None])[0]
    assert cie_rgb.xyz(rgb) == pytest.approx(targets, abs=1e-12)
    assert cie_rgb.linear(rgb) @ np.array(skimage.color.colorconv.xyz_from_rgb).T == pytest.approx(targets)
    wrong = cie_rgb.linear(rgb) @ (0.17697 * np.array(skimage.color.colorconv.xyz_from_rgbcie)).T  # scaled to Y = 1
    ours = cie_rgb.linear(rgb) @ cie_rgb.CIE.T
    assert ours == pytest.approx(wrong, abs=3e-3)  # scikit-image has fewer digits
    assert cie_rgb.difference(targets, targets) == 0
    assert cie_rgb.difference(ours, targets) > 3


def test_the_fitted_matrix_solves_the_normal_equations():
    rgb = np.random.default_rng(0).random((200, 3))
    matrix, offset = cie_rgb.fitted(rgb, cie_rgb.xyz(rgb))
    left = rgb @ matrix.T + offset - cie_rgb.xyz(rgb)
    assert np.abs(rgb.T @ left).max() < 1e-10
    assert np.abs(left.sum(0)).max() < 1e-10
    given, best = cie_rgb.fitted(rgb, cie_rgb.xyz(rgb), cie_rgb.LEARNED)
    assert np.abs((rgb @ given.T + best - cie_rgb.xyz(rgb)).sum(0)).max() < 1e-10


def test_numbers_of_the_colour_page():
    numbers = computed("cie_rgb").numbers
    assert numbers["the curve undone, sRGB matrix: mse"] < 1e-20
    assert numbers["learned_to_CIE"] == pytest.approx(0.3528, abs=1e-3)
    assert numbers["learned_to_sRGB"] == pytest.approx(0.2638, abs=1e-3)
    best = numbers["least squares of pixels as they are, fitted to the training photographs: mse"]
    assert numbers["the curve undone, CIE RGB matrix: mse"] < best
    assert best < numbers["the lecture's weights, with the best offset: mse"]
