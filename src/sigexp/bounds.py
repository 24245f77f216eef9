"""Bounds that a problem and a model's form have in closed form, and how far a result is from them.

A linear model is held against the least-squares solution of its own form and borders: `least_squares_train`, fitted to
the training data, is what training can reach; `least_squares_test`, fitted to the test data, is what no such model can
pass there. Any other model is held against one convolution of the experiment's footprint and, where it sees another
window, one of that size too: `least_squares_train_21x21`.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from sigexp import evaluation, sharing
from sigexp.layers.chain import chain
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.layers.recurrence import LinearRecurrence
from sigexp.population.feed import Feed
from sigexp.problem import Batch, Problem, Reference
from sigexp.signal import least_squares, linear_map
from sigexp.signal.quality import mse

log = logging.getLogger("sigexp")
Predictor = Callable[[Tensor], Tensor]
Filter = tuple[Tensor, Tensor]  # weight [D, C, h, w], or [D, C, w] of sequences, and bias [D]
Convolution = nn.Conv1d | nn.Conv2d
CURVE_EXAMPLES, CURVE_TEST, CURVE_OUTPUTS = 5000, 250, 512  # most of each in a learning curve


@dataclass(frozen=True)
class Form:
    """A family of linear models.

    kernel: taps (h, w) of a zero-padded convolution; None for a weight from every input to every output.
    separable: the kernel is one down the columns, then one along the rows. front: what is done to inputs first.
    """

    kernel: tuple[int, int] | None
    separable: bool = False
    front: nn.Module = field(default_factory=nn.Identity)

    def key(self) -> tuple[Any, ...]:
        """Equal for forms of runs with the same architecture that are the same."""
        return self.kernel, self.separable, repr(self.front)


def form_of(model: nn.Module) -> Form | None:
    """The linear family of which a model can be any member; None where it is not seen to have one."""
    modules = [module for module in chain(model) if not isinstance(module, nn.Identity)]
    front: nn.Module = nn.Identity()
    if modules and isinstance(modules[0], LinearizeSRGB):
        front, modules = modules[0], modules[1:]
    convolutions = [module for module in modules if same_extent(module)]
    if convolutions and len(convolutions) == len(modules):
        return _of_convolutions(convolutions, front)
    wide = all(bank.out_channels >= bank.in_channels for bank in convolutions)
    matrix = [type(module) for module in modules[len(convolutions) :]] == [nn.Flatten, nn.Linear, nn.Unflatten]
    return Form(None, front=front) if matrix and wide else None


def same_extent(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether a module is a convolution whose outputs line up with its inputs, zeros beyond the border."""
    if type(module) not in (nn.Conv1d, nn.Conv2d, FFTConv2d):
        return False
    assert isinstance(module, Convolution)
    padded = module.padding_mode == "zeros" and tuple(module.padding) == tuple(k // 2 for k in module.kernel_size)
    odd = all(k % 2 for k in module.kernel_size)
    return padded and odd and {*module.stride, *module.dilation, module.groups} == {1} and module.bias is not None


def _of_convolutions(chain: list[Convolution], front: nn.Module) -> Form | None:
    """One convolution; one with a matrix behind it that loses nothing; or a column filter, then a row filter."""
    kernels = [((1, *conv.kernel_size)[-2], conv.kernel_size[-1]) for conv in chain]
    hidden, outputs = chain[0].out_channels, chain[-1].out_channels
    whole = hidden >= min(chain[0].weight[0].numel(), outputs)
    if len(chain) == 1 or (len(chain) == 2 and kernels[1] == (1, 1) and whole):
        return Form(kernels[0], front=front)
    if len(chain) == 2 and kernels[0][1] == kernels[1][0] == 1 and hidden == outputs:
        return Form((kernels[0][0], kernels[1][1]), separable=True, front=front)
    return None


def forms(model: nn.Module, problem: Problem, footprint: int, sight: tuple[int, ...] | None) -> dict[str, Form]:
    """What a model is to be held against: suffix of the reference's name -> form, the model's own first."""
    shape, target = problem.shapes()
    own = form_of(model)
    if shape[1:] != target[1:]:
        return {"": own or Form(None)}
    axes = len(shape) - 1
    linear = (1 if axes == 1 else footprint, footprint) if footprint % 2 else None
    if own is not None:
        return {"": own, **({_suffix(linear[-axes:]): Form(linear)} if linear and own.kernel is None else {})}
    # A recurrence forgets, but never all: where its derivative is lost in rounding says nothing of its form.
    remembers = any(isinstance(module, (nn.RNNBase, LinearRecurrence)) for module in model.modules())
    seen = (1 if axes == 1 else sight[0], sight[-1]) if sight and not remembers else None
    further = {_suffix(seen[-axes:]): Form(seen)} if seen and seen != linear else {}
    return {**({"": Form(linear)} if linear else {}), **further}


def _suffix(kernel: tuple[int, ...]) -> str:
    return "_" + "x".join(str(n) for n in kernel)


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
    batches: dict[str, Callable[[], Iterator[Batch]]] = {"test": partial(_batches, problem, "test")}
    if feed.size is not None:
        batches = {"train": lambda: iter([Batch(*(part.cpu() for part in feed.data()))]), **batches}
    keys = tuple(form.key() for form in wanted.values())
    shared = {
        split: sharing.once((split, keys), partial(_shared_equations, list(wanted.values()), given))
        for split, given in batches.items()
    }
    found = {}
    for suffix, form in wanted.items():
        for split, given in batches.items():
            name, total = f"least_squares_{split}{suffix}", shared[split]
            if fitted is not None and name == "least_squares_train":
                predict: Predictor | None = sharing.once((name, form.key()), partial(_filtering, form, [fitted]))
            elif total is not None and form.kernel is not None:
                predict = sharing.once(
                    (name, form.key()), partial(_convolution_predictor, form, total.within(form.kernel))
                )
            else:
                predict = sharing.once((name, form.key()), partial(_fitted, form, given, name))
            if predict is not None:
                found[name] = Reference(predict=predict)
    return found


def _fitted(form: Form, given: Callable[[], Iterator[Batch]], name: str) -> Predictor | None:
    return fit(form, given(), name)


def _batches(problem: Problem, split: str) -> Iterator[Batch]:
    return (problem.sample(split, index) for index in evaluation.chunks(problem, split))


def _shared_equations(wanted: list[Form], given: Callable[[], Iterator[Batch]]) -> least_squares.Sums | None:
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
    total = _equations(form, batches, name)
    return None if total is None else _convolution_predictor(form, total)


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
