"""The Python door: what `run` and `load` give, and arrays through a model."""

import numpy as np
import pytest
import torch

import sigexp
from sigexp import predictor
from sigexp.models import demosaic, filters, recurrent, shapes
from sigexp.predictor import Predictor
from sigexp.signal.bayer import mosaic


def ready(model, input_shape, target_shape, *, kind="image", mosaic=False, labels=()):
    torch.manual_seed(0)
    for parameter in model.parameters():  # fresh models start as the identity, or as no function of what is far
        parameter.data.normal_(0, 0.1)
    return Predictor(model.eval(), "test", "model", kind, labels, input_shape, target_shape, mosaic)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return sigexp.run(
        "gaussian", outputs=str(folder), dataset__size=20, dataset__test_size=4, dataset__image_size=24, footprint=5,
        search__members=1, search__survivors=1, overrides=["search.max_samples=40"],
    )  # fmt: skip


def test_a_result_predicts_and_shows_itself(finished):
    assert finished.result["samples"] <= 40
    picture = np.random.default_rng(0).random((30, 41), dtype=np.float32)
    expected = finished.model(torch.from_numpy(picture)[None, None])[0, 0].detach().numpy()
    np.testing.assert_array_equal(finished.predict(picture), expected)
    assert finished.show()._repr_png_().startswith(b"\x89PNG")
    html = finished._repr_html_()
    assert "<td>linear (learned)</td>" in html
    assert "data:image/png;base64," in html
    assert "mse" in repr(finished)
    with pytest.raises(ValueError, match="'kernels'"):
        finished.show("curves")


def test_a_loaded_run_is_the_same(finished):
    again = sigexp.load(finished.folder)
    x = torch.rand(2, 1, 24, 24)
    assert torch.equal(again(x), finished(x))
    assert again.result["best"]["test"] == finished.result["best"]["test"]
    assert again._repr_html_() == finished._repr_html_()


def test_what_a_stranger_wrote_is_escaped(finished):
    bad = {"best": {"test": {"<script>": 1.0}}, "references": {"<img onerror=x>": {"<script>": 2.0}, "x": [1]}}
    html = sigexp.api.Result(finished.folder, bad, finished.predictor)._repr_html_()
    assert "<script>" not in html
    assert "<img onerror" not in html


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((20, 30), (20, 30)),
        ((20, 30, 3), (20, 30, 3)),
        ((20, 30, 1), (20, 30, 1)),
        ((2, 20, 30), (2, 20, 30)),
        ((2, 20, 30, 3), (2, 20, 30, 3)),
    ],
)
def test_shapes_of_pictures_in_numpy(given, expected):
    model = ready(filters.linear((1, 8, 8), (1, 8, 8), kernel_size=3), (1, 8, 8), (1, 8, 8))
    found = model.predict(np.random.default_rng(0).random(given))
    assert found.shape == expected
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [((20, 30), (3, 20, 30)), ((3, 20, 30), (3, 20, 30)), ((2, 3, 20, 30), (2, 3, 20, 30)), ((1, 20, 30), (3, 20, 30))],
)
def test_shapes_of_tensors_to_colour(given, expected):
    model = ready(filters.conv1x1((3, 8, 8), (3, 8, 8)), (3, 8, 8), (3, 8, 8))
    found = model.predict(torch.rand(given))
    assert isinstance(found, torch.Tensor)
    assert found.shape == expected


def test_a_raw_picture_and_its_mosaic_give_the_same_colours():
    model = ready(demosaic.polyphase((3, 8, 8), (3, 8, 8), channels=4, layers=3), (3, 8, 8), (3, 8, 8), mosaic=True)
    rgb = np.random.default_rng(0).integers(0, 256, (3, 21, 34), dtype=np.uint8)
    three = mosaic(rgb)
    colours = model.predict(three.sum(0).astype(np.uint8))
    assert colours.shape == (21, 34, 3)
    np.testing.assert_array_equal(colours, model.predict(three.transpose(1, 2, 0)))
    np.testing.assert_array_equal(colours, model.predict(three.transpose(1, 2, 0) / np.float32(255)))
    with pytest.raises(ValueError, match="not a mosaic"):
        model.predict(rgb.transpose(1, 2, 0))


def test_sequences_and_classes():
    line = ready(recurrent.lstm((1, 9), (1, 9), hidden=2), (1, 9), (1, 9), kind="sequence")
    for shape in ((50,), (2, 50), (4, 1, 50)):
        assert line.predict(np.ones(shape)).shape == shape
    classes = ready(shapes.fcn((1, 32, 32), (2,)), (1, 32, 32), (2,), kind="class")
    found = classes.predict(np.random.default_rng(0).random((3, 40, 50)))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert classes.predict(np.ones((40, 50, 3), np.uint8)).shape == (2,)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((9, 9), np.nan), "NaN"),
        (np.ones((9, 9), np.int64), "uint8"),
        (np.ones(9), r"\[H, W\]"),
        (np.ones((9, 9), complex), "real numbers"),
        (np.empty((0, 9)), "real numbers"),
        (np.ones((9, 9, 3)), "3 channels"),
    ],
)
def test_what_a_model_cannot_take_is_told(array, match):
    model = ready(filters.linear((2, 8, 8), (1, 8, 8), kernel_size=3), (2, 8, 8), (1, 8, 8))
    with pytest.raises(ValueError, match=match):
        model.predict(array)


def test_floats_far_outside_0_to_1_are_refused_for_pictures_alone():
    model = ready(filters.linear((1, 8, 8), (1, 8, 8), kernel_size=3), (1, 8, 8), (1, 8, 8))
    with pytest.raises(ValueError, match=r"values up to 254.9; floats are expected in 0..1 \(divide by 255, or pass"):
        model.predict(np.full((9, 9), 254.9))
    with pytest.raises(ValueError, match="values down to -3"):
        model.predict(np.full((9, 9), -3.0))
    model.predict(np.full((9, 9), 1.5))
    line = ready(recurrent.lstm((1, 9), (1, 9), hidden=2), (1, 9), (1, 9), kind="sequence")
    line.predict(np.full(50, 300.0))


def test_a_model_for_one_size_says_so():
    model = ready(filters.fc((1, 8, 8), (1, 8, 8)), (1, 8, 8), (1, 8, 8))
    assert model.predict(np.ones((8, 8))).shape == (8, 8)
    with pytest.raises(ValueError, match=r"cannot take \[1, 9, 9\].*\[1, 8, 8\]"):
        model.predict(np.ones((9, 9)))


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(predictor.machine, "free_memory_bytes", lambda device: 10_000_000)
    model = ready(recurrent.lstm2((1, 16, 16), (1, 16, 16), hidden=2), (1, 16, 16), (1, 16, 16))
    with pytest.raises(ValueError, match="sees all of it at once"):
        model.predict(np.zeros((2000, 2000), np.float32))
