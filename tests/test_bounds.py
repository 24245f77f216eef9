"""Closed-form bounds of a model's own form, the excess over them in parts, and what a full matrix needs."""

import pytest
import torch
from torch import nn

from sigexp import evaluation
from sigexp.bounds import Form, excess, fit, form_of, forms, linear_bounds, passing
from sigexp.datasets.bayer import bayer_mosaic
from sigexp.datasets.color import rgb_to_xyz
from sigexp.datasets.deblur import blurred_digits
from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.datasets.sequences import iir
from sigexp.datasets.shapes import circle_square
from sigexp.datasets.spectrum import spectrum
from sigexp.models import filters, spectral
from sigexp.population.feed import Feed
from sigexp.population.moments import Moments
from sigexp.problem import Batch
from sigexp.report.tables import result_tables, split_in_words

IMAGE, SEQUENCE = (1, 20, 20), (1, 50)


def feed_of(problem) -> Feed:
    return Feed(problem, seed=0, device=torch.device("cpu"))


def judged(problem, model=None, **bounds):
    predictors = {name: r.predict for name, r in {**problem.references, **bounds}.items() if r.predict}
    found = evaluation.evaluate_all({**predictors, **({"model": model} if model else {})}, problem)
    return found.pop("model", None), found


@pytest.mark.parametrize(
    ("model", "form"),
    [
        (filters.linear(IMAGE, IMAGE, kernel_size=15), Form((15, 15))),
        (filters.linear(SEQUENCE, SEQUENCE, kernel_size=5), Form((1, 5))),
        (filters.separable(IMAGE, IMAGE, kernel_size=7), Form((7, 7), separable=True)),
        (filters.fc(IMAGE, IMAGE), Form(None)),
        (filters.conv1x1((3, 8, 8), (3, 8, 8)), Form((1, 1))),
        (spectral.conv1d(SEQUENCE, SEQUENCE, kernel_size=31), Form((1, 31))),
        (spectral.conv1d(SEQUENCE, (2, 26), kernel_size=31), Form(None)),
        (spectral.conv1d(SEQUENCE, SEQUENCE, kernel_size=31, activation="square"), None),
        (spectral.conv1d((4, 50), (4, 50), filters=2, kernel_size=5), None),
        (filters.deep(IMAGE, IMAGE), None),
        (filters.deep(IMAGE, IMAGE, activation="identity"), None),
        (filters.nin((3, 8, 8), (3, 8, 8)), None),
        (filters.dilated(IMAGE, IMAGE), None),
        (nn.Conv2d(1, 1, 3), None),
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), None),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), None),
        (nn.Conv2d(1, 1, 3, padding=1, bias=False), None),
    ],
)
def test_the_family_of_a_model(model, form):
    found = form_of(model)
    assert (found and (found.kernel, found.separable)) == (form and (form.kernel, form.separable))


def test_a_model_is_held_against_its_own_form_and_its_own_window():
    problem = blurred_digits(size=20, test_size=10)
    shapes = problem.shapes()
    cases = (
        (filters.linear(*shapes, kernel_size=5), {"": (5, 5)}),
        (filters.fc(*shapes), {"": None, "_11x11": (11, 11)}),
        (filters.deep(*shapes, kernel_size=11), {"": (11, 11), "_21x21": (21, 21)}),
    )
    for model, expected in cases:
        found = forms(model, problem, 11, (21, 21))
        assert {suffix: form.kernel for suffix, form in found.items()} == expected
    assert set(forms(filters.deep(*shapes), problem, 11, (11, 11))) == {""}
    assert set(forms(filters.deep(*shapes), problem, 11, None)) == {""}
    assert set(forms(filters.deep(*shapes, kernel_size=3), problem, 4, (5, 5))) == {"_5x5"}


@pytest.mark.parametrize(
    ("problem", "model", "footprint"),
    [
        (gaussian_impulses(size=60, test_size=20, image_size=16), "linear", 7),
        (gaussian_impulses(size=60, test_size=20, image_size=16), "separable", 7),
        (gaussian_impulses(size=400, test_size=20, image_size=16), "fc", 7),
        (iir(size=50, test_size=20), "linear", 11),
        (spectrum(size=300, test_size=20, length=32), "fc", 5),
        (bayer_mosaic(size=20, test_size=1), "linear", 3),
        (rgb_to_xyz(size=20, test_size=1), "conv1x1_degamma", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_no_member_of_the_family_passes_the_bound_on_test_data(problem, model, footprint):
    fields = {"kernel_size": footprint} if model in ("linear", "separable") else {}
    member = getattr(filters, model)(*problem.shapes(), **fields)
    bounds = linear_bounds(member, problem, feed_of(problem), footprint)
    test, references = judged(problem, member, **bounds)
    train, least = (references[f"least_squares_{split}"]["mse"] for split in ("train", "test"))
    assert least <= train * (1 + 1e-6) + 1e-12
    assert least <= test["mse"]
    parts = excess(member, problem, test, references)
    known = min(values["mse"] for values in references.values())
    assert sum(parts.values()) == pytest.approx(test["mse"] - known, rel=1e-9)
    assert parts["estimation"] >= -1e-12
    assert parts["approximation"] >= 0


def test_training_reaches_the_bound_and_no_more_on_the_training_set():
    problem = gaussian_impulses(size=40, test_size=10, image_size=12)
    member = filters.linear(*problem.shapes(), kernel_size=5)
    inputs, targets = problem.examples("train")
    reference = linear_bounds(member, problem, feed_of(problem), 5)["least_squares_train"]
    least = float(problem.loss(reference.predict(inputs), targets).mean())
    optimizer = torch.optim.LBFGS(member.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = problem.loss(member(inputs), targets).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() == pytest.approx(least, rel=1e-3)
    assert loss().item() >= least * (1 - 1e-5)


@pytest.mark.parametrize(
    ("problem", "make", "size"),
    [
        (gaussian_impulses(size=60, test_size=20, image_size=16), filters.linear, 7),
        (iir(size=50, test_size=20), filters.linear, 11),
        (rgb_to_xyz(size=20, test_size=1), filters.conv1x1_degamma, 1),
    ],
    ids=["images", "sequences", "behind a front"],
)
def test_statistics_that_were_learned_from_give_the_same_bound(problem, make, size):
    member = make(*problem.shapes(), **({"kernel_size": size} if size > 1 else {}))
    inputs, targets = problem.examples("train")
    statistics = Moments.of(member, problem.loss)
    fitted = statistics.least_squares(statistics.compute(Batch(inputs, targets)))
    known, found = (linear_bounds(member, problem, feed_of(problem), size, None, f) for f in (fitted, None))
    assert known.keys() == found.keys()
    expected = found["least_squares_train"].predict(inputs)
    assert known["least_squares_train"].predict(inputs).allclose(expected, rtol=1e-4, atol=1e-4)
    losses = [float(problem.loss(one["least_squares_train"].predict(inputs), targets).mean()) for one in (known, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 1, 5, padding=2, padding_mode="reflect"), nn.Conv2d(1, 1, 5, padding=2, bias=False)],
    ids=["other borders", "no bias"],
)
def test_statistics_of_another_form_are_no_bound(layer):
    problem = gaussian_impulses(size=60, test_size=20, image_size=16)
    statistics = Moments.of(layer, problem.loss)
    inputs, targets = problem.examples("train")
    fitted = statistics.least_squares(statistics.compute(Batch(inputs, targets)))
    known, found = (linear_bounds(layer, problem, feed_of(problem), 7, None, f) for f in (fitted, None))
    outputs = [one["least_squares_train"].predict(inputs) for one in (known, found)]
    assert torch.equal(*outputs)


def test_photographs_are_fitted_whole_as_the_model_is_judged():
    problem = bayer_mosaic(size=10)
    member = filters.linear(*problem.shapes(), kernel_size=3)
    reference = linear_bounds(member, problem, feed_of(problem), 3)["least_squares_test"]
    layer = nn.Conv2d(3, 3, 3, padding=1)
    batches = [problem.sample("test", torch.tensor([i])) for i in range(2)]
    impulse = torch.zeros(1, 3, 5, 5)
    with torch.no_grad():
        layer.bias[:] = reference.predict(impulse)[0, :, 2, 2]
        for channel in range(3):
            one = impulse.clone()
            one[0, channel, 2, 2] = 1
            layer.weight[:, channel] = (reference.predict(one)[0, :, 1:4, 1:4] - layer.bias[:, None, None]).flip(1, 2)
    error = sum((layer(b.inputs) - b.targets).square().sum() for b in batches)
    error.backward()
    whole = sum(b.targets.numel() for b in batches)
    assert float(layer.weight.grad.abs().max()) < 1e-5 * whole
    assert float(layer.bias.grad.abs().max()) < 1e-5 * whole


def test_what_is_too_large_is_left_out_and_said(monkeypatch, caplog):
    monkeypatch.setattr("sigexp.signal.least_squares.MOST_FLOPS", 1e3)
    monkeypatch.setattr("sigexp.bounds.log.propagate", True)
    caplog.set_level("INFO", logger="sigexp")
    problem = gaussian_impulses(size=20, test_size=10, image_size=16)
    for model in (filters.linear(*problem.shapes(), kernel_size=5), filters.fc(*problem.shapes())):
        assert linear_bounds(model, problem, feed_of(problem), 5) == {}
    assert "no least_squares_train: (5, 5)" in caplog.text
    assert "no least_squares_test: a full matrix" in caplog.text


def test_only_squared_errors_have_such_bounds_and_streams_none_from_training():
    problem = circle_square(size=10, test_size=10)
    assert linear_bounds(filters.fc(*problem.shapes()), problem, feed_of(problem), 3) == {}
    stream = gaussian_impulses(size="stream", test_size=10, image_size=16)
    member = filters.linear(*stream.shapes(), kernel_size=5)
    bounds = linear_bounds(member, stream, feed_of(stream), 5)
    assert set(bounds) == {"least_squares_test"}
    test, references = judged(stream, member, **bounds)
    assert excess(member, stream, test, references) is None
    assert passing(member, stream, feed_of(stream), references) is None


def test_the_front_of_a_form_is_applied():
    problem = rgb_to_xyz(size=20, test_size=1)
    predict = fit(form_of(filters.conv1x1_degamma(*problem.shapes())), [problem.examples("train")])
    inputs, targets = problem.sample("test", torch.tensor([0]))
    assert float(problem.loss(predict(inputs), targets)) < 1e-10


def test_a_full_matrix_passes_the_convolution_about_when_it_knows_every_pixel():
    problem = gaussian_impulses(size=300, test_size=50, image_size=12, density=0.1)
    member = filters.fc(*problem.shapes())
    bounds = linear_bounds(member, problem, feed_of(problem), 7)
    _, references = judged(problem, member, **bounds)
    curve = passing(member, problem, feed_of(problem), references)
    assert 0.5 * 144 < curve["passes_linear_at"] <= 146
    assert curve["linear_mse"] == references["least_squares_train_7x7"]["mse"]
    before = [e for n, e in zip(curve["examples"], curve["mse"], strict=True) if n < curve["passes_linear_at"]]
    assert before[-1] >= curve["linear_mse"] > curve["mse"][-1]


def test_the_split_is_told_below_the_table():
    parts = {"approximation": 2e-5, "estimation": 1e-6, "optimisation": -1e-7}
    result = {
        "experiment": "gaussian",
        "model": {"name": "linear"},
        "best": {"test": {"mse": 2.1e-5, "noisy/mse": 1.0}},
        "references": {"exact": {"mse": 0.0}, "noise_floor": {"noisy/mse": 0.5}},
        "excess": parts,
    }
    text = split_in_words(result)
    assert text.splitlines() == [
        "excess loss 2.090e-05",
        "  approximation 2.000e-05",
        "  estimation 1.000e-06",
        "  optimisation -1.000e-07",
    ]
    plain, noisy = result_tables(result)
    assert (plain.caption, noisy.caption) == (text, None)
    assert [list(table.columns[0].cells) for table in (plain, noisy)] == [
        ["exact", "linear (learned)"],
        ["noise_floor", "linear (learned)"],
    ]
    result["learning_curve"] = {"examples": [32, 64], "passes_linear_at": 64}
    assert split_in_words(result).endswith("passes the convolution\n  with 64 examples")
