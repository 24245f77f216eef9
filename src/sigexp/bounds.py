"""Bounds that a problem and a model's form have in closed form, and how far a result is from them.

A linear model is held against the least-squares solution of its own form and borders: `least_squares_train`, fitted to
the training data, is what training can reach; `least_squares_test`, fitted to the test data, is what no such model can
pass there. Any other model is held against one convolution of the experiment's footprint and, where it sees another
window, one of that size too: `least_squares_train_21x21`.
"""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigexp import evaluation, sharing
from sigexp.forms import Form, form_of, forms
from sigexp.population.feed import Feed
from sigexp.problem import Batch, Problem, Reference
from sigexp.signal import least_squares, linear_map
from sigexp.signal.quality import mse

log = logging.getLogger("sigexp")
Predictor = Callable[[Tensor], Tensor]
Given = Callable[[], Iterator[Batch]]
Filter = tuple[Tensor, Tensor]  # weight [D, C, h, w], or [D, C, w] of sequences, and bias [D]
CURVE_EXAMPLES, CURVE_TEST, CURVE_OUTPUTS = 5000, 250, 512  # most of each in a learning curve


def linear_bounds(
    model: nn.Module,
    problem: Problem,
    feed: Feed,
    footprint: int,
    sight: tuple[int, ...] | None = None,
    fitted: Filter | None = None,
) -> dict[str, Reference]:
    """The least-squares references of a model: fitted to the training set, if it is no stream, and to the test set.

    sight: what the model sees along each axis, in samples, if that is known and finite. fitted: weight and bias of a
    model that is one layer, of least squared error on the training set, if they are known. Nothing where the loss is
    not the squared error; a fit that would take more than some seconds is left out, which the log says.
    """
    if problem.loss is not mse:
        return {}
    wanted = forms(model, problem, footprint, sight)
    own = form_of(model)
    if own is None or own.kernel is None or own.separable:
        fitted = None  # of other borders, say, than the form that the model is held against
    batches: dict[str, Given] = {"test": partial(_batches, problem, "test")}
    if feed.size is not None:
        batches = {"train": lambda: iter([Batch(*(part.cpu() for part in feed.data()))]), **batches}
    found, kernels = {}, _convolutions(wanted)
    further = {suffix: form for suffix, form in kernels.items() if suffix or fitted is None}
    equations = {
        split: normal_equations(further if split == "train" else kernels, split, given)
        for split, given in batches.items()
    }
    for suffix, form in wanted.items():
        for split, given in batches.items():
            name = f"least_squares_{split}{suffix}"
            if suffix in equations[split]:
                compute: Callable[[], Predictor | None] = partial(_solution, form, equations[split][suffix])
            elif suffix in kernels:
                assert fitted is not None
                compute = partial(_filtering, form, [fitted])
            else:
                compute = partial(_fitted, form, given, name)
            predict = sharing.once((name, form.key()), compute)
            if predict is not None:
                found[name] = Reference(predict=predict)
    return found


def before_training(
    model: nn.Module, problem: Problem, footprint: int
) -> tuple[dict[Hashable, dict[str, least_squares.Sums | None]], dict[str, Predictor]]:
    """What the bounds of a linear model have of the test data, in which training has no part: normal equations by the
    key under which `linear_bounds` shares them, and their solutions by the name of the reference."""
    if problem.loss is not mse or form_of(model) is None:
        return {}, {}
    kernels = _convolutions(forms(model, problem, footprint, None))
    equations = normal_equations(kernels, "test", partial(_batches, problem, "test"))
    if None in equations.values():  # a run's log says why
        return {}, {}
    solved = {f"least_squares_test{suffix}": _solution(form, equations[suffix]) for suffix, form in kernels.items()}
    return {_key("test", kernels): equations}, {name: predict for name, predict in solved.items() if predict}


def _convolutions(wanted: Mapping[str, Form]) -> dict[str, Form]:
    return {suffix: form for suffix, form in wanted.items() if form.kernel is not None}


def _key(split: str, kernels: Mapping[str, Form]) -> Hashable:
    return split, tuple((suffix, form.key()) for suffix, form in kernels.items())


def normal_equations(kernels: Mapping[str, Form], split: str, given: Given) -> dict[str, least_squares.Sums | None]:
    """Those of convolutions, by the suffix of their reference's name; None where they would take too long."""

    def compute() -> dict[str, least_squares.Sums | None]:
        total, found = _shared_equations(list(kernels.values()), given), {}
        for suffix, form in kernels.items():
            assert form.kernel is not None
            name = f"least_squares_{split}{suffix}"
            found[suffix] = total.within(form.kernel) if total else _equations(form, given(), name)
        return found

    return sharing.once(_key(split, kernels), compute)


def _solution(form: Form, equations: least_squares.Sums | None) -> Predictor | None:
    return None if equations is None else _convolution_predictor(form, equations)


def _fitted(form: Form, given: Given, name: str) -> Predictor | None:
    return fit(form, given(), name)


def _batches(problem: Problem, split: str) -> Iterator[Batch]:
    return (problem.sample(split, index) for index in evaluation.chunks(problem, split))


def _shared_equations(wanted: list[Form], given: Given) -> least_squares.Sums | None:
    """The normal equations of a window that covers those of several forms, so that examples are passed over once.

    None where that saves nothing, or would take too long.
    """
    windows = [form.kernel for form in wanted if form.kernel is not None]
    if len(windows) < 2 or any(type(form.front) is not nn.Identity for form in wanted):
        return None
    return _equations(Form((max(h for h, _ in windows), max(w for _, w in windows))), given(), "shared fit")


def fit(form: Form, batches: Iterable[Batch], name: str = "least squares") -> Predictor | None:
    """The member of a family with the least squared error over all examples; None where it would take too long."""
    if form.kernel is None:
        return _fit_matrix(form, list(batches), name)
    return _solution(form, _equations(form, batches, name))


def _too_large(work: float, name: str, form: Form, inputs: Tensor) -> bool:
    if work > least_squares.MOST_FLOPS:
        log.info("no %s: %s on inputs %s is too large", name, form.kernel or "a full matrix", list(inputs.shape))
    return work > least_squares.MOST_FLOPS


def _fit_matrix(form: Form, batches: list[Batch], name: str) -> Predictor | None:
    inputs, targets = batches[0]
    count = sum(len(batch.inputs) for batch in batches)
    if _too_large(linear_map.matrix_flops(count, inputs[0].numel(), targets[0].numel()), name, form, inputs):
        return None
    given = [(form.front(batch.inputs).flatten(1), batch.targets.flatten(1)) for batch in batches]
    weight, bias = (part.float() for part in linear_map.fit_matrix(given))

    def predict(x: Tensor) -> Tensor:
        return F.linear(form.front(x).flatten(1), weight.to(x), bias.to(x)).view(-1, *targets.shape[1:])

    return predict


def _equations(form: Form, batches: Iterable[Batch], name: str) -> least_squares.Sums | None:
    assert form.kernel is not None
    total, work = None, 0.0
    for batch in batches:
        inputs, targets = (_image(part) for part in batch)
        if total is None:  # their solution comes on top
            work += (inputs.shape[1] * math.prod(form.kernel)) ** 3 / 3
        work += least_squares.flops(inputs.shape, form.kernel)
        if _too_large(work, name, form, inputs):
            return None
        part = least_squares.sums(form.front(inputs), targets, form.kernel)
        total = part if total is None else total + part
    assert total is not None
    return total


def _image(signals: Tensor) -> Tensor:
    """Sequences [B, C, T] as images one pixel high."""
    return signals[:, :, None] if signals.ndim == 3 else signals


def _convolution_predictor(form: Form, total: least_squares.Sums) -> Predictor:
    if form.separable:
        down, first, across, second = least_squares.separable(total)
        return _filtering(form, [(down, first), (across, second)])
    return _filtering(form, [least_squares.convolution(total)])


def _filtering(form: Form, filters: Sequence[Filter]) -> Predictor:
    """One filter after the other, with zeros beyond the border."""
    layers = [(_image(weight).float(), bias.float()) for weight, bias in filters]

    def predict(x: Tensor) -> Tensor:
        y = _image(form.front(x))
        for weight, bias in layers:
            y = F.conv2d(y, weight.to(x), bias.to(x), padding=(weight.shape[2] // 2, weight.shape[3] // 2))
        return y[:, :, 0] if x.ndim == 3 else y

    return predict


def excess(
    model: nn.Module, problem: Problem, test: Mapping[str, float], references: Mapping[str, Mapping[str, float]]
) -> dict[str, float] | None:
    """A linear model's test loss over the least one known, in three parts, in the loss's unit.

    approximation: the best of its family on the test data, over the best predictor known. estimation: the one fitted
    to the training data, over that. optimisation: what was reached, over that; less than 0 where stopping early helped.
    None where a part is not defined.
    """
    metric = next((name for name, function in problem.metrics.items() if function is problem.loss), None)
    if metric is None or form_of(model) is None:
        return None
    known = [values[metric] for values in references.values() if metric in values]
    train, least = (references.get(f"least_squares_{split}", {}).get(metric) for split in ("train", "test"))
    if train is None or least is None:
        return None
    return {"approximation": least - min(known), "estimation": train - least, "optimisation": test[metric] - train}


def passing(
    model: nn.Module, problem: Problem, feed: Feed, references: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """With how many training examples a full matrix passes one convolution fitted to all of them, in closed form.

    The learning curve of the matrix on (some of) the test data: numbers of examples and test MSE; the convolution's;
    and the first number from which the matrix is better (None: not with those there are). None for other models.
    """
    form = form_of(model)
    linear = [values["mse"] for name, values in references.items() if name.startswith("least_squares_train_")]
    if form is None or form.kernel is not None or not linear or feed.size is None or "test" in problem.ragged:
        return None
    data = feed.data()
    count = min(feed.size, data.inputs[0].numel() + 2, CURVE_EXAMPLES)
    test = problem.examples("test", 0, min(problem.sizes["test"] or 0, CURVE_TEST))
    outputs = data.targets[0].numel()
    step = next(n for n in range(max(1, outputs // CURVE_OUTPUTS), outputs + 1) if n == 1 or outputs % n)
    x, t = (form.front(part.cpu()).flatten(1) for part in (data.inputs[:count], test.inputs))
    y, expected = (part.cpu().flatten(1)[:, ::step] for part in (data.targets[:count], test.targets))
    examples, errors = linear_map.learning_curve(x, y, t, expected)
    better = [error < linear[0] for error in errors]
    last = next((i for i in reversed(range(len(better))) if not better[i]), -1) + 1
    first = examples[last] if last < len(examples) else None
    return {"examples": examples, "mse": errors, "linear_mse": linear[0], "passes_linear_at": first}
