"""The population against the slow obvious code, in float64: P members and P loops of torch.optim on the same examples.

Every model of every experiment, every convolution algorithm, networks drawn at random, odd modules, and members that
diverge. Sizes are small, because parity does not depend on them; the fields of the models are those of conf/.

Axes: P members, B examples, C channels, H W pixels, T samples.
"""

import copy
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigexp import catalog, cli
from sigexp.config import build
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.population import compiling, native, together
from sigexp.population.convolution import (
    Kernels,
    by_direct,
    by_fft,
    by_library,
    by_patches,
    by_scatter,
    convolve,
)
from sigexp.population.geometry import Geometry
from sigexp.population.optimizers import Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.rules import Stacked, cross_entropy
from sigexp.problem import Batch, PerExample, Problem
from sigexp.signal.quality import mse

PAIRS = [(choice.name, model) for choice in catalog.choices("experiment") for model in choice.models]
PLANS = {
    "together": Plan(way="together"),
    "together-2_a_pass": Plan(way="together", slice=2),
    "together-padded": Plan(way="together", padded=True),
    "one_by_one-channels_last": Plan(way="one by one", channels_last=True),
}
MIXED, EQUAL = (3, 4, 6), (4, 4, 4)
EXAMPLES = 80  # 20 steps of 4; members with minibatches of 3 and 6 end with some that fill no minibatch
CHUNKS = (7, 26, 3, 44)  # of a population's calls
SIDE, LENGTH = 16, 24
FIELDS: dict[str, dict[str, Any]] = {  # where those of conf/ take seconds
    "deep": {"channels": 6},
    "dilated": {"channels": 6},
    "fcn": {"channels": [4, 6, 6, 6]},
    "lstm2": {"channels": [4, 6], "hidden": 5},
    "mlp": {"hidden": [8, 8]},
    "polyphase": {"channels": 6},
    "projection": {"channels": [4, 6, 6]},
    "unet": {"levels": 2, "channels": 3},
}
TOLERANCE = 1e-9

# Of operations that vmap computes member by member, or in a tensor that it has to resize first; both are exact.
vmap_warns = pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore:An output with one or more elements was resized",
    "ignore:Using padding='same'",
)  # fmt: skip
ways = pytest.mark.parametrize("plan", list(PLANS.values()), ids=list(PLANS))


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Equal within `tolerance`, relative to the largest entry where that is above 1; NaN equals nothing."""
    assert found.shape == expected.shape, what
    found, expected = found.detach(), expected.detach()
    if not expected.is_floating_point():
        assert torch.equal(found, expected), what
        return
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    error = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{what}: {error:.1e} of {scale:.1e}"


# Training for 20 steps.


@dataclass(frozen=True)
class Task:
    """What the members of a population begin with and learn from."""

    members: tuple[nn.Module, ...]
    loss: PerExample
    batch: Batch


def hparams(sizes: Sequence[int], optimizer: str) -> dict[str, Tensor]:
    """Rates at which no member diverges, because divergence would amplify rounding.

    Under Adam all weights decay: the gradient of a bias directly in front of BatchNorm, which subtracts it, is 0 up to
    rounding, Adam divides it by its own spread, and no two correct programs would agree on such a bias.
    """
    gentle = optimizer in ("sgd", "nesterov")
    rates = [0.003, 0.002, 0.01] if gentle else [1e-3, 3e-3, 2e-4]
    return {
        "lr": torch.tensor(rates, dtype=torch.float64),
        "momentum": torch.tensor([0.5, 0.9, 0.8], dtype=torch.float64),
        "weight_decay": torch.tensor([0.0 if gentle else 1e-4, 1e-2, 1e-3], dtype=torch.float64),
        "batch_size": torch.tensor(sizes),
    }


@cache
def problem(experiment: str) -> Problem:
    config, _ = cli.compose([f"experiment={experiment}"])
    return build(config["dataset"], what="dataset")


def small(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    return (shape[0], *[side] * (len(shape) - 1))


def shapes(experiment: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of inputs and outputs as the experiment has them, but smaller."""
    inputs, outputs = problem(experiment).shapes()
    side = SIDE if len(inputs) == 3 else LENGTH
    same = outputs[1:] == inputs[1:]
    assert same or outputs[1:] in ((), (inputs[-1] // 2 + 1,)), "say here how the new experiment's shapes scale"
    return small(inputs, side), small(outputs, side if same else side // 2 + 1)


def examples(experiment: str) -> Batch:
    inputs, outputs = shapes(experiment)
    rng = torch.Generator().manual_seed(zlib.crc32(experiment.encode()))
    drawn = torch.rand(EXAMPLES, *inputs, generator=rng, dtype=torch.float64)
    if problem(experiment).kind == "class":
        return Batch(drawn, torch.randint(outputs[0], (EXAMPLES,), generator=rng))
    targets = torch.rand(EXAMPLES, *outputs, generator=rng, dtype=torch.float64)
    if experiment == "matched_filter":  # a map that sums to 1
        targets = targets / targets.sum((1, 2, 3), keepdim=True)
    return Batch(drawn, targets)


@cache
def task(experiment: str, model: str) -> Task:
    config, _ = cli.compose([f"experiment={experiment}", f"model={model}"])
    node = {**config["model"], **FIELDS.get(model, {})}
    members = []
    for p in range(3):
        torch.manual_seed(p)
        member = build(node, *shapes(experiment), what="model").double()
        with torch.no_grad():
            for parameter in member.parameters():  # some start at zero, where half of a net has no gradient
                parameter.add_(0.03 * torch.randn_like(parameter))
        members.append(member)
    return Task(tuple(members), problem(experiment).loss, examples(experiment))


def torch_optimizer(name: str, module: nn.Module, lr: float, momentum: float, weight_decay: float):
    if name in ("sgd", "nesterov"):
        nesterov = name == "nesterov"
        return torch.optim.SGD(
            module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(module.parameters(), lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def trained_alone(
    module: nn.Module, loss: PerExample, batch: Batch, size: int, name: str, clip_norm: float | None, **values: float
) -> tuple[nn.Module, Tensor]:
    """The module after one pass over the batch, in full minibatches of `size`, and its losses [minibatches]."""
    module = copy.deepcopy(module).train()
    optimizer = torch_optimizer(name, module, **values)
    losses = []
    for start in range(0, len(batch.inputs) - size + 1, size):
        here = slice(start, start + size)
        value = loss(module(batch.inputs[here]), batch.targets[here]).mean()
        optimizer.zero_grad()
        value.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        losses.append(value.detach())
    return module.eval(), torch.stack(losses)


@cache
def alone(
    experiment: str, model: str, optimizer: str, sizes: tuple[int, ...], clip_norm: float | None = None
) -> list[tuple[nn.Module, Tensor]]:
    learned, values = task(experiment, model), hparams(sizes, optimizer)
    return [
        trained_alone(
            member, learned.loss, learned.batch, size, optimizer, clip_norm,
            **{name: float(values[name][p]) for name in ("lr", "momentum", "weight_decay")},
        )
        for p, (member, size) in enumerate(zip(learned.members, sizes, strict=True))
    ]  # fmt: skip


def trained_as_population(
    learned: Task, optimizer: str, sizes: Sequence[int], plan: Plan, clip_norm: float | None = None
) -> tuple[Population, list[Tensor]]:
    """The population after one pass over the examples, and every member's losses."""
    values = hparams(sizes, optimizer)
    population = Population(
        learned.members, loss=learned.loss, metrics={}, optimizer=optimizer, hparams=values, clip_norm=clip_norm,
        plan=plan,
    )  # fmt: skip
    calls = [
        population.minibatch_losses(Batch(*part))
        for part in zip(*(whole.split(CHUNKS) for whole in learned.batch), strict=True)
    ]
    return population, [torch.cat(losses) for losses in zip(*calls, strict=True)]


def assert_equal_members(population: Population, losses: Sequence[Tensor], expected, batch: Batch) -> None:
    for p, (module, own_losses) in enumerate(expected):
        assert_close(losses[p], own_losses, TOLERANCE, f"losses of member {p}")
        member = population.member(p)
        ours = member.state_dict()
        for name, tensor in module.state_dict().items():
            assert_close(ours[name], tensor, TOLERANCE, f"{name} of member {p}")
        with torch.no_grad():
            assert_close(member(batch.inputs[:5]), module(batch.inputs[:5]), TOLERANCE, f"outputs of member {p}")


@ways
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("experiment", "model"), PAIRS, ids=[f"{name}-{model}" for name, model in PAIRS])
def test_a_model_equals_separate_training(experiment, model, optimizer, plan):
    learned = task(experiment, model)
    batch_norm = any(isinstance(module, _BatchNorm) for module in learned.members[0].modules())
    # With sizes of their own, members with BatchNorm are computed one by one whatever the plan is.
    for sizes in (MIXED, EQUAL) if batch_norm and plan.way == "together" else (MIXED,):
        population, losses = trained_as_population(learned, optimizer, sizes, plan)
        assert_equal_members(population, losses, alone(experiment, model, optimizer, sizes), learned.batch)


@ways
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_the_other_optimizers_equal_separate_training(optimizer, plan):
    learned = task("deblur", "dilated")
    population, losses = trained_as_population(learned, optimizer, MIXED, plan)
    assert_equal_members(population, losses, alone("deblur", "dilated", optimizer, MIXED), learned.batch)


@pytest.mark.parametrize("sizes", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("plan", ["together", "together-2_a_pass", "together-padded"])
def test_a_schedule_is_followed_as_by_members_one_by_one(plan, sizes):
    learned, found = task("deblur", "deep"), []
    for one in (PLANS[plan], Plan()):
        population = Population(
            learned.members, loss=learned.loss, metrics={}, optimizer="sgd", hparams=hparams(sizes, "sgd"), plan=one
        )
        population.schedule = Schedule("cosine", 0.1, 1 / 100)
        population.minibatch_losses(learned.batch)
        found.append(population.state())
    for name, tensor in found[0].items():
        assert_close(tensor, found[1][name], 1e-12, name)


@ways
@pytest.mark.parametrize(("experiment", "model"), [("spikes", "seqlstm"), ("deblur", "deep")], ids=["lstm", "conv"])
def test_clipped_gradients_equal_those_of_separate_training(experiment, model, plan):
    """An LSTM's two biases have the same gradient, which may be one tensor: nothing must be done to it twice."""
    learned, clip_norm = task(experiment, model), 0.02
    population, losses = trained_as_population(learned, "sgd", MIXED, plan, clip_norm)
    assert_equal_members(population, losses, alone(experiment, model, "sgd", MIXED, clip_norm), learned.batch)


# Convolution algorithms.

ALGORITHMS: dict[str, Callable[..., Tensor]] = {
    "patches": by_patches,
    "scatter": by_scatter,
    "fft": by_fft,
    "library": by_library,
}
SIZE = (11, 8)
GEOMETRIES = {
    "1x1": Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1-padded": Geometry((1, 1), (1, 1), (2, 1), (1, 1), 1),
    "1x1-stride_2x3": Geometry((1, 1), (2, 3), (0, 0), (1, 1), 1),
    "1x1-strided_to_the_same_size": Geometry((1, 1), (2, 2), (5, 4), (1, 1), 1),
    "3x3": Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    "3x3-unpadded": Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1),
    "3x3-padded_by_4": Geometry((3, 3), (1, 1), (4, 4), (1, 1), 1),
    "2x4": Geometry((2, 4), (1, 1), (1, 2), (1, 1), 1),
    "3x3-stride_2": Geometry((3, 3), (2, 2), (1, 1), (1, 1), 1),
    "2x3-stride_3x2": Geometry((2, 3), (3, 2), (1, 0), (1, 1), 1),
    "3x3-dilated_2x3": Geometry((3, 3), (1, 1), (2, 3), (2, 3), 1),
    "3x2-dilated-strided": Geometry((3, 2), (2, 1), (1, 2), (2, 1), 1),
    "3x1": Geometry((3, 1), (1, 1), (1, 0), (1, 1), 1),
    "1x5": Geometry((1, 5), (1, 1), (0, 2), (1, 1), 1),
    "5x1-unpadded": Geometry((5, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x5-padded_across": Geometry((1, 5), (1, 1), (2, 3), (1, 1), 1),
    "5x1-padded_across": Geometry((5, 1), (1, 1), (2, 3), (1, 1), 1),
    "1x7-padded_by_9": Geometry((1, 7), (1, 1), (0, 9), (1, 1), 1),
    "15x1-longer_than_the_image": Geometry((15, 1), (1, 1), (7, 0), (1, 1), 1),
    "9x9": Geometry((9, 9), (1, 1), (4, 4), (1, 1), 1),
    "9x10-unevenly_padded": Geometry((9, 10), (1, 1), (2, 6), (1, 1), 1),
    "15x15-larger_than_the_image": Geometry((15, 15), (1, 1), (7, 7), (1, 1), 1),
    "15x15-one_output": Geometry((15, 15), (1, 1), (3, 4), (1, 1), 1),
    "9x9-padded_by_10": Geometry((9, 9), (1, 1), (10, 10), (1, 1), 1),
}


def applies(algorithm: str, geometry: Geometry) -> bool:
    """As their docstrings say; scatter and direct moreover need no more padding than the kernel reaches."""
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel, strict=True)]
    within = all(p <= r for p, r in zip(geometry.padding, reach, strict=True))
    plain = geometry.stride == (1, 1) and geometry.dilation == (1, 1) and geometry.groups == 1
    return {
        "patches": geometry.groups == 1,
        "scatter": geometry.stride == (1, 1) and geometry.groups == 1 and within,
        "fft": plain,
        "direct": geometry.stride == (1, 1) and geometry.groups == 1 and within,
        "library": True,
    }[algorithm]


def drawn_convolution(geometry: Geometry, channels: tuple[int, int], shared: bool, examples: int = 4, size=SIZE):
    """Inputs, weights and biases of 3 members, and what multiplies the outputs in the objective."""
    rng = torch.Generator().manual_seed(3)
    inputs, outputs = channels
    leading = (examples,) if shared else (3, examples)
    shapes = [
        (*leading, inputs, *size), (3, outputs, inputs // geometry.groups, *geometry.kernel), (3, outputs),
        (3, examples, outputs, *geometry.extent(size)),
    ]  # fmt: skip
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def assert_equals_conv2d(function: Callable[..., Tensor], geometry: Geometry, channels, shared: bool) -> None:
    """Values and gradients of `function(x, weight, bias)`; x [B, C, H, W] if shared, else [P, B, C, H, W]."""
    *tensors, factor = drawn_convolution(geometry, channels, shared)
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    expected = torch.stack([F.conv2d(x if shared else x[p], weight[p], bias[p], *options) for p in range(3)])
    found = function(x, weight, bias)
    assert_close(found, expected, 1e-11, "values")
    gradients = [torch.autograd.grad((out * factor).sum(), (x, weight, bias)) for out in (found, expected)]
    for name, ours, theirs in zip(("input", "weight", "bias"), *gradients, strict=True):
        assert_close(ours, theirs, 1e-11, f"gradient of the {name}")


APPLICABLE = [
    pytest.param(algorithm, geometry, shared, id=f"{algorithm}-{name}-{'shared' if shared else 'own'}")
    for algorithm in ALGORITHMS  # in float64
    for name, geometry in GEOMETRIES.items()
    for shared in (True, False)
    if applies(algorithm, geometry)
]


@pytest.mark.parametrize(("algorithm", "geometry", "shared"), APPLICABLE)
def test_an_algorithm_equals_conv2d(algorithm, geometry, shared):
    def function(x, weight, bias):
        planes = (x[None] if shared else x).transpose(1, 2).contiguous()
        return ALGORITHMS[algorithm](geometry, planes, weight, bias).transpose(1, 2)

    for channels in ((1, 1), (3, 2), (2, 5), (5, 4)):
        assert_equals_conv2d(function, geometry, channels, shared)


# Sizes whose rows are whole vectors of any processor, or none, or one and a part; with several examples at a time.
COMPILED = [
    pytest.param(geometry, size, id=f"{name}-{size[0]}x{size[1]}")
    for name, geometry in GEOMETRIES.items()
    for size in ((16, 32), (5, 3), (6, 19), (2, 16))
    if applies("direct", geometry) and min(geometry.extent(size)) > 0
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("geometry", "size"), COMPILED)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_the_compiled_convolution_is_conv2d(shared, geometry, size, threads, monkeypatch):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for channels in ((1, 1), (2, 1), (3, 2), (1, 3), (6, 5), (5, 8)):
        assert_compiled_equals_conv2d(geometry, size, channels, shared, 7)


# Rows that leave vectors half empty, of so many examples that vectors across them are fuller; more channels than are
# taken at a time; and the least that gives two rows of a single output at a time.
@pytest.mark.parametrize("examples", [33, 16])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
        Geometry((3, 5), (1, 1), (0, 2), (2, 1), 1),
        Geometry((7, 5), (1, 1), (3, 2), (1, 1), 1),
        Geometry((5, 2), (1, 1), (4, 1), (1, 2), 1),
    ],
    ids=str,
)
def test_the_compiled_convolution_across_examples_is_conv2d(geometry, shared, examples):
    if (library := compiling.kernel()) is None:
        pytest.skip("there is no C compiler")
    size = (6, 18)
    for channels in ((1, 1), (9, 1), (3, 9), (1, 17), (10, 11)):
        layer = native._convolution(
            shared, examples, torch.empty(3, *channels[::-1], *geometry.kernel), size, geometry.extent(size),
            geometry.padding, geometry.dilation,
        )  # fmt: skip
        assert native._across_library(library, layer) is compiling.kernel(compiling.ACROSS), "this tests the other way"
        assert compiling.kernel(compiling.ACROSS) is not None
        assert_compiled_equals_conv2d(geometry, size, channels, shared, examples)


def assert_compiled_equals_conv2d(geometry: Geometry, size, channels, shared: bool, examples: int) -> None:
    """Values and gradients in float32 against float64."""
    *tensors, factor = drawn_convolution(geometry, channels, shared, examples, size)
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    expected = torch.stack([F.conv2d(x if shared else x[p], weight[p], bias[p], *options) for p in range(3)])
    leaves = [tensor.detach().float() for tensor in (x[None] if shared else x, weight, bias)]
    learned = [leaf.requires_grad_() for leaf in leaves[shared:]]
    found = by_direct(geometry, leaves[0].transpose(1, 2).contiguous(), *leaves[1:]).transpose(1, 2)
    assert_close(found.double(), expected, 1e-5, "values")
    ours = torch.autograd.grad((found * factor).sum(), learned)
    theirs = torch.autograd.grad((expected * factor).sum(), [x, weight, bias][shared:])
    for name, own, other in zip(("bias", "weight", "input"), ours[::-1], theirs[::-1], strict=False):
        assert_close(own.double(), other, 1e-5, f"gradient of the {name}")


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3), (16, 66)], ids=str)
def test_compiled_pooling_is_max_pool2d(size):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    x = torch.randn((9, *size), generator=torch.Generator().manual_seed(0)).mul(2).round()  # with equal ones
    x[0, 0, 1], x[1] = torch.nan, -torch.inf
    results = []
    for pooled in (lambda x: native.Pooling.apply(compiling.kernel(), x), lambda x: F.max_pool2d(x, 2)):
        leaf = x.clone().requires_grad_()
        out = pooled(leaf)
        factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append((out, *torch.autograd.grad(out, leaf, factor)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours.nan_to_num(7e7), theirs.nan_to_num(7e7))


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [2, 5, 64, 2047, 6000])
def test_compiled_normalization_is_batch_norm(count, threads, relu, monkeypatch):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn((3, count), generator=rng) + torch.tensor([0.0, 50.0, -3.0])[:, None]).requires_grad_()
    weight, bias = (torch.randn(3, generator=rng).requires_grad_() for _ in range(2))
    factor = torch.randn((3, count), generator=rng)
    mean, variance = native.statistics(x.detach())
    found = native.Normalization.apply(compiling.kernel(), x, weight, bias, mean, variance, 1e-5, False, relu)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    expected = F.batch_norm(exact[0][None], None, None, *exact[1:], True)[0]
    expected = F.relu(expected) if relu else expected
    assert_close(mean.double(), exact[0].mean(1), 1e-6, "mean")
    assert_close(variance.double(), exact[0].var(1, correction=0), 1e-5, "variance")
    assert_close(found.double(), expected, 2e-5, "values")
    ours = torch.autograd.grad((found * factor).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((expected * factor).sum(), exact)
    for name, own, other in zip(("input", "weight", "bias"), ours, theirs, strict=True):
        assert_close(own.double(), other, 1e-4 if count > 2 else 1e-3, f"gradient of the {name}")


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3), (16, 66), (64, 40)], ids=str)
def test_compiled_maxima_are_batch_norm_and_max_pool2d(size, relu):
    if compiling.kernel() is None:
        pytest.skip("there is no C compiler")
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn((3, 7, *size), generator=rng) + torch.tensor([0.0, 9.0, -3.0]).view(3, 1, 1, 1)).requires_grad_()
    weight, bias = (torch.tensor(v, requires_grad=True) for v in ([1.5, -0.7, 0.3], [0.1, -0.4, 0.8]))
    measured = native.statistics(x.detach().flatten(1))
    found = native.Normalization.apply(compiling.kernel(), x, weight, bias, *measured, 1e-5, True, relu)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    normal = F.batch_norm(exact[0].transpose(0, 1), None, None, *exact[1:], True)
    expected = F.max_pool2d(F.relu(normal) if relu else normal, 2).transpose(0, 1)
    factor = torch.randn(found.shape, generator=rng)
    assert_close(found.double(), expected, 2e-5, "values")
    ours = torch.autograd.grad((found * factor).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((expected * factor).sum(), exact)
    for name, own, other in zip(("input", "weight", "bias"), ours, theirs, strict=True):
        assert_close(own.double(), other, 1e-4, f"gradient of the {name}")


def preferring(algorithm: str) -> Kernels:
    """Every convolution takes this algorithm where it is offered."""
    return Kernels(choose=lambda offered, _: algorithm if algorithm in offered else next(iter(offered)))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", list(GEOMETRIES.values()), ids=list(GEOMETRIES))
def test_whatever_is_offered_for_a_convolution_equals_conv2d(geometry, groups, shared):
    geometry = replace(geometry, groups=groups)
    channels = ((4, 2), (2, 4)) if groups == 2 else ((1, 1), (5, 3))
    for algorithm, pair in itertools.product(ALGORITHMS, channels):
        function = partial(convolve, preferring(algorithm), geometry, shared=shared)
        assert_equals_conv2d(function, geometry, pair, shared)


# One step of any net.


def step_alone(module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, gradients and buffers after one pass in training mode."""
    module = copy.deepcopy(module).train()
    value = mse(module(batch.inputs), batch.targets).mean()
    named = dict(module.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    gradients = {n: torch.zeros_like(named[n]) if g is None else g for n, g in zip(named, found, strict=True)}
    return value.detach(), gradients, dict(module.named_buffers())


def assert_one_step_is_exact(modules: Sequence[nn.Module], batch: Batch, plan: Plan) -> None:
    """The losses, gradients and buffers of a step equal those of separate modules, to 1e-10 of the largest gradient.

    With learning rate 1 and plain SGD the gradient is what the step took away.
    """
    count = len(modules)
    values = {
        name: torch.full((count,), value, dtype=torch.float64)
        for name, value in (("lr", 1.0), ("momentum", 0.0), ("weight_decay", 0.0))
    }
    values["batch_size"] = torch.full((count,), len(batch.inputs))
    population = Population(modules, loss=mse, metrics={}, optimizer="sgd", hparams=values, plan=plan)
    losses = population.step(batch)
    for p, module in enumerate(modules):
        expected, gradients, buffers = step_alone(module, batch)
        assert_close(losses[p], expected, 1e-10, "loss")
        member = population.member(p)
        largest = max([float(g.abs().max()) for g in gradients.values() if g.numel()], default=0.0)
        before, after = module.state_dict(), member.state_dict()
        for name, gradient in gradients.items():
            error = float((before[name] - after[name] - gradient).abs().max())
            assert error <= 1e-10 * largest + 1e-14, f"gradient of {name}: {error:.1e} of {largest:.1e}"
        for name, buffer in member.named_buffers():
            assert_close(buffer, buffers[name], 1e-10, name)


class Joined(nn.Module):
    """[x, body(x)] as channels, or x + body(x)."""

    def __init__(self, body: nn.Module, how: str):
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1) if self.how == "cat" else x + self.body(x)


class Columns(nn.Module):
    """An LSTM that reads the columns of an image, left to right: [B, C, H, W] -> [B, D, 1, W]."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(1, 2)  # [B, C H, W]
        if self.lstm.batch_first:
            return self.lstm(columns.transpose(1, 2))[0].transpose(1, 2)[:, :, None]
        return self.lstm(columns.permute(2, 0, 1))[0].permute(1, 2, 0)[:, :, None]


class Lines(nn.Module):
    """A layer for sequences along the columns of every row: [B, C, H, W] -> [B, D, H, W']."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rows = self.layer(x.transpose(1, 2).flatten(0, 1))
        return rows.unflatten(0, (len(x), -1)).transpose(1, 2)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


Shape = tuple[int, int, int]
Build = Callable[[], nn.Module]


@st.composite
def convolutions(draw, shape: Shape) -> Build:
    channels, height, width = shape
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if channels % g == 0]))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    kernel = draw(st.tuples(st.sampled_from([1, 2, 3, 5, 9]), st.sampled_from([1, 2, 3, 5, 9])))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "circular", "replicate"]))
    least = min(height, width) - 1
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(
        min(least, p) if r < n + 2 * min(least, p) else r for p, r, n in zip(padding, reach, shape[1:], strict=True)
    )
    options = {
        "stride": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode if max(padding) <= least else "zeros",
    }
    if draw(st.integers(0, 4)) == 0:
        options.update(stride=1, padding="same", padding_mode="zeros")
    outputs = groups * draw(st.integers(1, 3))
    return lambda: nn.Conv2d(channels, outputs, kernel, **options)


@st.composite
def transposed_convolutions(draw, shape: Shape) -> Build:
    stride, kernel = draw(st.integers(1, 2)), draw(st.integers(2, 3))
    options = {"bias": draw(st.booleans()), "padding": draw(st.integers(0, 1)), "output_padding": 0}
    return lambda: nn.ConvTranspose2d(shape[0], 2, kernel, stride, **options)


def same_size(channels: int, kernel: int, dilation: int) -> nn.Module:
    reach = dilation * (kernel // 2)
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=reach, dilation=dilation), nn.Tanh())


@st.composite
def joins(draw, shape: Shape) -> Build:
    how = draw(st.sampled_from(["cat", "add"]))
    kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
    return lambda: Joined(same_size(shape[0], kernel, dilation), how)


@st.composite
def norms(draw, shape: Shape) -> Build:
    channels = shape[0]
    affine, tracked = draw(st.booleans()), draw(st.booleans())
    momentum = draw(st.sampled_from([0.1, 0.3]))
    return draw(
        st.sampled_from([
            lambda: nn.BatchNorm2d(channels, momentum=momentum, affine=affine, track_running_stats=tracked),
            lambda: nn.BatchNorm2d(channels),
            lambda: nn.GroupNorm(1, channels, affine=affine),
            lambda: nn.GroupNorm(channels, channels),
            lambda: nn.LayerNorm(shape[2], elementwise_affine=affine),
        ])
    )  # fmt: skip


@st.composite
def poolings(draw, shape: Shape) -> Build:
    kernel, stride = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    padding, ceil = draw(st.integers(0, 1)), draw(st.booleans())
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    return draw(
        st.sampled_from([
            lambda: nn.MaxPool2d(**options),
            lambda: nn.MaxPool2d(2),
            lambda: nn.AvgPool2d(**options),
            lambda: nn.AdaptiveAvgPool2d((3, 2)),
            lambda: nn.AdaptiveMaxPool2d((2, 3)),
            lambda: nn.Upsample(scale_factor=2, mode=mode),
        ])
    )  # fmt: skip


@st.composite
def recurrences(draw, shape: Shape) -> Build:
    options = {
        "num_layers": draw(st.integers(1, 2)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
    }
    return lambda: Columns(nn.LSTM(shape[0] * shape[1], 3, **options))


@st.composite
def lines(draw, shape: Shape) -> Build:
    kernel, dilation, stride = draw(st.sampled_from([1, 2, 3, 5])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = dilation * (kernel - 1)
    return draw(
        st.sampled_from([
            lambda: Lines(nn.Conv1d(shape[0], 2, kernel, stride, padding, dilation)),
            lambda: nn.Linear(shape[2], 4),
            Transposed,
        ])
    )  # fmt: skip


POINTWISE = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.PReLU, nn.Softplus, lambda: nn.LeakyReLU(0.1)]


@st.composite
def nets(draw) -> tuple[Shape, list[Build]]:
    """The shape of an input, and what builds the layers of a net for it."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(5, 10)), draw(st.integers(5, 10)))
    probe, builds = torch.zeros(2, *shape), []
    for _ in range(draw(st.integers(2, 6))):
        here = tuple(probe.shape[1:])
        kinds = [convolutions, joins, norms, poolings, recurrences, lines, transposed_convolutions]
        for kind in (draw(st.sampled_from([convolutions, *kinds])), None):
            made = draw(kind(here)) if kind else draw(st.sampled_from(POINTWISE))
            try:
                following = made()(probe.clone()).detach()
            except (RuntimeError, ValueError):  # a layer that does not fit this shape
                continue
            if 0 < following[0].numel() <= 4000:
                probe = following
                builds.append(made)
    if draw(st.booleans()):
        size = probe[0].numel()
        builds += [nn.Flatten, lambda: nn.Linear(size, 3)]
    return shape, builds


def members_of(build_one: Build, count: int = 3) -> list[nn.Module]:
    members = []
    for p in range(count):
        torch.manual_seed(p)
        members.append(build_one().double())
    return members


def random_batch(shape: Sequence[int], module: nn.Module, size: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(size, *shape, generator=rng, dtype=torch.float64)
    outputs = copy.deepcopy(module)(inputs)
    return Batch(inputs, torch.randn(outputs.shape, generator=rng, dtype=torch.float64))


@vmap_warns
def test_a_random_net_is_exact_or_refused():
    outcomes: Counter[str] = Counter()

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(nets(), st.sampled_from([PLANS["together"], PLANS["together-2_a_pass"]]))
    def check(drawn, plan):
        shape, builds = drawn
        members = members_of(lambda: nn.Sequential(*[made() for made in builds]))
        if not list(members[0].parameters()):
            return
        batch = random_batch(shape, members[0])
        try:
            assert_one_step_is_exact(members, batch, plan)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            outcomes[str(error).splitlines()[0]] += 1
        else:
            outcomes["exact"] += 1

    check()
    assert outcomes["exact"] > 0.9 * outcomes.total(), outcomes


# Odd modules.


class Odd(nn.Module):
    """Layers, a parameter of the module's own, and a forward that is a function of both."""

    def __init__(self, layers: Sequence[nn.Module], forward: Callable[["Odd", Tensor], Tensor]):
        super().__init__()
        self.layers, self.scale = nn.ModuleList(layers), nn.Parameter(torch.rand(1) + 0.5)
        self.function = forward

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def in_turn(module: Odd, x: Tensor) -> Tensor:
    for layer in module.layers:
        x = layer(x)
    return x


def strided_dilated_grouped() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    ]  # fmt: skip


def reused(m: Odd, x: Tensor) -> Tensor:
    return F.conv2d(m[0](m[0](x)), m[0].weight, padding="same")


def mixes_the_batch(m: Odd, x: Tensor) -> Tensor:
    return m[0](x - x.mean(0, keepdim=True)) - m[0](x).std(0)


def attention(m: Odd, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*m[0](x[:, 0]).chunk(3, -1))


def over_columns(m: Odd, x: Tensor) -> Tensor:
    out = m[1](m[0](x.permute(3, 0, 2, 1).flatten(1, 2))[0].relu())  # [W, B H, D]
    return out.unflatten(1, (len(x), -1)).movedim(1, 0)


def upsampled(m: Odd, x: Tensor) -> Tensor:
    return F.interpolate(F.pad(m[0](x), (1, 1, 1, 1), mode="reflect"), scale_factor=2, mode="bilinear")


def joined(m: Odd, x: Tensor) -> Tensor:
    """With the minibatch itself, and along every axis."""
    y = m[0](x)
    wide = torch.cat([torch.cat([y, x], 1), torch.cat([x, y], dim=-3)], dim=-1)
    return torch.cat([torch.cat((wide, wide), 2).mean(1), y[:, 0].repeat(1, 1, 2)], 1)


def resized(m: Odd, x: Tensor) -> Tensor:
    y = m[0](x)
    doubled = [F.interpolate(y, scale_factor=2), nn.Upsample(scale_factor=(2.0, 2.0))(y), F.interpolate(y, (32, 32))]
    return sum(doubled) + F.interpolate(m[1](y[:, 0]), 32, mode="linear")[:, None]


COLOUR, GREY = (3, 16, 16), (1, 16, 16)
ODD: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[Odd, Tensor], Tensor], tuple[int, ...]]] = {
    "in-place relu": (
        lambda: [conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 3, 3)], in_turn, COLOUR
    ),
    "in-place relu after a convolution": (lambda: [conv(1, 8, 9), nn.ReLU(inplace=True)], in_turn, GREY),
    "concatenated": (lambda: [conv(3, 4, 3)], joined, COLOUR),
    "resized": (lambda: [conv(3, 4, 3), nn.Conv1d(16, 32, 3, padding=1)], resized, COLOUR),
    "own parameter": (lambda: [conv(3, 3, 3)], lambda m, x: x + m.scale * m[0](x), COLOUR),
    "transposed convolution, group norm": (
        lambda: [conv(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.ConvTranspose2d(8, 3, 2, 2)], in_turn, COLOUR
    ),
    "strided, dilated, grouped": (strided_dilated_grouped, in_turn, COLOUR),
    "reused layer": (lambda: [conv(3, 3, 3)], reused, COLOUR),
    "mixes the batch": (lambda: [conv(3, 3, 3)], mixes_the_batch, COLOUR),
    "transformer layer": (
        lambda: [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)], lambda m, x: m[0](x[:, 0]), GREY
    ),
    "attention": (lambda: [nn.Linear(16, 48)], attention, GREY),
    "gru": (lambda: [nn.GRU(16, 4, batch_first=True)], lambda m, x: m[0](x[:, 0])[0], GREY),
    "lstm over columns": (lambda: [nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 2)], over_columns, COLOUR),
    "lstm's last state": (lambda: [nn.LSTM(16, 4, batch_first=True)], lambda m, x: m[0](x[:, 0])[1][0][0], GREY),
    "embedding": (lambda: [nn.Embedding(10, 4)], lambda m, x: m[0]((x * 9).long().clamp(0, 9)).mean(1), (3, 16)),
    "branch on data": (lambda: [conv(3, 3, 3)], lambda m, x: m[0](x) if m[0](x).sum() > 0 else x * m.scale, COLOUR),
    "loop and dictionary": (
        lambda: [conv(3, 3, 3) for _ in range(3)], lambda m, x: {"out": sum(layer(x) for layer in m.layers)}["out"],
        COLOUR,
    ),
    "shape arithmetic": (
        lambda: [conv(3, 4, 3), nn.Linear(1024, 5)], lambda m, x: m[1](m[0](x).view(x.shape[0], -1)), COLOUR
    ),
    "instance norm, prelu, adaptive pooling": (
        lambda: [conv(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(), nn.AdaptiveAvgPool2d(1)], in_turn, COLOUR
    ),
    "cumulative statistics": (lambda: [nn.BatchNorm2d(3, momentum=None)], in_turn, COLOUR),
    "weight norm": (lambda: [nn.utils.parametrizations.weight_norm(conv(3, 3, 3))], in_turn, COLOUR),
    "reflection, bilinear upsampling": (lambda: [conv(3, 3, 3)], upsampled, COLOUR),
}  # fmt: skip
# Refusing is allowed where torch's vmap does, and where `view` meets another memory layout than it expects.
MAY_BE_REFUSED = {"embedding", "branch on data", "cumulative statistics", "gru", "shape arithmetic"}


@vmap_warns
@pytest.mark.parametrize("plan", [PLANS["together"], PLANS["one_by_one-channels_last"]], ids=["together", "one_by_one"])
@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_module_is_exact_or_refused(name, plan):
    layers, function, shape = ODD[name]
    members = members_of(lambda: Odd(layers(), function))
    batch = random_batch(shape, members[0])
    try:
        assert_one_step_is_exact(members, batch, plan)
    except (RuntimeError, ValueError, NotImplementedError):
        if name not in MAY_BE_REFUSED:
            raise


# The rules of rules.py, in every setting of the functions that they take over.

POOLINGS = {
    "rounded up": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "overlapping": {"kernel_size": 3, "stride": 1, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 3},
    "uneven": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
}
LSTMS = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "two layers": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2},
}
NORMS = {
    "plain": {},
    "no scale and shift": {"affine": False},
    "no running statistics": {"track_running_stats": False},
    "other constants": {"momentum": 0.3, "eps": 1e-2},
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("options", list(POOLINGS.values()), ids=list(POOLINGS))
def test_max_pooling_is_exact(options, shared):
    layers = (
        (lambda: [nn.MaxPool2d(**options), conv(2, 2, 3)])
        if shared
        else lambda: [conv(2, 2, 3), nn.MaxPool2d(**options)]
    )
    members = members_of(lambda: nn.Sequential(*layers()))
    assert_one_step_is_exact(members, random_batch((2, 12, 11), members[0]), PLANS["together"])


def everything(m: Odd, x: Tensor) -> Tensor:
    """Outputs, last hidden states and last cells of an LSTM over the rows of a grey image."""
    rows = x[:, 0] if m[0].batch_first else x[:, 0].transpose(0, 1)
    out, (hidden, cells) = m[0](rows)
    out = out if m[0].batch_first else out.transpose(0, 1)
    return torch.cat([part.flatten(1) for part in (out, hidden.transpose(0, 1), cells.transpose(0, 1))], 1)


def from_a_learned_state(m: Odd, x: Tensor) -> Tensor:
    state = m.scale.expand(m[0].num_layers * (1 + m[0].bidirectional), len(x), m[0].hidden_size)
    return m[0](x[:, 0].transpose(0, 1), (state, 2 * state))[0].transpose(0, 1)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("options", list(LSTMS.values()), ids=list(LSTMS))
def test_all_that_an_lstm_gives_is_exact(options, shared):
    forward = everything if shared else lambda m, x: everything(m, m.scale * x)
    members = members_of(lambda: Odd([nn.LSTM(6, 3, **options)], forward))
    assert_one_step_is_exact(members, random_batch((1, 7, 6), members[0]), PLANS["together"])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_an_lstm_from_a_learned_state_is_exact(bidirectional):
    members = members_of(lambda: Odd([nn.LSTM(6, 3, bidirectional=bidirectional)], from_a_learned_state))
    assert_one_step_is_exact(members, random_batch((1, 7, 6), members[0]), PLANS["together"])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("flat", [True, False], ids=["1d", "2d"])
@pytest.mark.parametrize("options", list(NORMS.values()), ids=list(NORMS))
@pytest.mark.parametrize("behind", [[], [nn.ReLU()], [nn.MaxPool2d(2)], [nn.ReLU(), nn.MaxPool2d(2)]], ids=str)
def test_batch_norm_is_exact_in_training_and_evaluation(behind, options, flat, shared):
    if flat:
        behind = [layer for layer in behind if isinstance(layer, nn.ReLU)]
        layers = lambda: [nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8, **options), *behind]  # noqa: E731
    else:
        layers = lambda: [conv(1, 2, 3), nn.BatchNorm2d(2, **options), *behind]  # noqa: E731
    norm_first = [nn.BatchNorm2d(1, **options)] if shared else []
    members = members_of(lambda: nn.Sequential(*copy.deepcopy(norm_first), *layers()))
    batch = random_batch((1, 5, 6), members[0])
    assert_one_step_is_exact(members, batch, PLANS["together"])
    values = hparams(EQUAL, "sgd")
    population = Population(members, loss=mse, metrics={}, optimizer="sgd", hparams=values, plan=PLANS["together"])
    population.step(batch)
    for p, outputs in enumerate(population.predict(batch.inputs)):
        assert_close(outputs, population.member(p)(batch.inputs), 1e-12, f"outputs of member {p}")


def test_layers_that_are_joined_are_still_there_one_by_one():
    """A module may take what is between the layers of an `nn.Sequential` that it also calls as a whole."""

    def whole_and_halves(parts: Odd, x: Tensor) -> Tensor:
        between = parts[0][:2](x)
        return parts[0](x) + parts[0][2:](between) + between.mean((2, 3), keepdim=True)

    layers = lambda: nn.Sequential(conv(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    members = members_of(lambda: Odd([layers()], whole_and_halves))
    assert_one_step_is_exact(members, random_batch((1, 6, 6), members[0]), PLANS["together"])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_linear_layer_over_the_last_axis_is_exact(shared, bias):
    members = members_of(lambda: nn.Sequential(*[nn.Linear(6, 6, bias) for _ in range(1 if shared else 2)]))
    assert_one_step_is_exact(members, random_batch((2, 5, 6), members[0]), PLANS["together"])


def test_every_rule_is_reached_from_the_layers_it_is_for(monkeypatch):
    """A mode sees the outermost torch function only: a rule for what that one calls would never be used."""
    reached: set[str] = set()

    def spied(rule: Callable) -> Callable:
        def spy(*args, **kwargs):
            reached.add(rule.__name__)
            return rule(*args, **kwargs)

        return spy

    expected = {rule.__name__ for rule in together.RULES.values()}
    monkeypatch.setattr(together, "RULES", {function: spied(rule) for function, rule in together.RULES.items()})
    for layers in (small_net, lambda: nn.Sequential(Lines(nn.Conv1d(1, 1, 3)), FFTConv2d(1, 1, 15, padding=7))):
        members = members_of(layers)
        assert_one_step_is_exact(members, random_batch((1, 9, 8), members[0]), PLANS["together"])
    trained_as_population(task("square_rectangle", "fcn"), "sgd", EQUAL, PLANS["together"])  # its loss
    trained_as_population(task("fill", "unet"), "sgd", EQUAL, PLANS["together"])  # its skips
    assert reached == expected


def test_arguments_by_the_names_that_torch_gives_them_are_exact():
    def forward(parts: Odd, x: Tensor) -> Tensor:
        y = F.conv2d(input=x, weight=parts[0].weight, bias=parts[0].bias, padding=1)
        y = F.max_pool2d(input=y, kernel_size=2)
        y = torch.cat(tensors=[y, y.relu()], axis=1)
        return F.linear(input=y, weight=parts[1].weight, bias=parts[1].bias)

    members = members_of(lambda: Odd([conv(1, 2, 3), nn.Linear(4, 4)], forward))
    assert_one_step_is_exact(members, random_batch((1, 8, 8), members[0]), PLANS["together"])


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("old", [{}, {"reduce": False}, {"size_average": False}, {"reduce": True}], ids=str)
def test_cross_entropy_with_the_older_names_of_its_reduction(old):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 5, 3, generator=generator), torch.randint(0, 3, (5,), generator=generator)
    arguments = Stacked(logits, own=True), Stacked(target, own=False)
    found = cross_entropy(Kernels(), 2, *arguments, None, reduction="none", **old)
    assert_close(
        found, torch.stack([F.cross_entropy(x, target, reduction="none", **old) for x in logits]), 1e-6, "loss"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_few_members_are_exact(count):
    members = members_of(small_net, count)
    assert_one_step_is_exact(members, random_batch((1, 9, 8), members[0]), PLANS["together"])


# Dropout.


@pytest.mark.parametrize("way", ["together", "one by one"])
def test_dropout_is_each_members_own_and_off_in_evaluation(way):
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 8, 3), nn.ReLU(), nn.Dropout(0.3), conv(8, 1, 3)).double()
    values = {**hparams((8, 8, 8), "adam"), "lr": torch.full((3,), 0.03, dtype=torch.float64)}
    population = Population([net] * 3, loss=mse, metrics={}, optimizer="adam", hparams=values, plan=Plan(way=way))
    inputs = torch.rand(160, 1, 8, 8, dtype=torch.float64)
    batch = Batch(inputs, 2 * inputs - 1)
    expected = copy.deepcopy(net).eval()(inputs).detach()
    for outputs in population.predict(inputs):
        torch.testing.assert_close(outputs, expected)
    losses = torch.stack(population.minibatch_losses(batch))  # [P, minibatches]
    assert losses[:, 0].unique().numel() == 3, "the same weights, but every member drops its own"
    before = mse(expected, batch.targets).mean()
    after = torch.stack([mse(outputs, batch.targets).mean() for outputs in population.predict(inputs)])
    assert (after < 0.5 * before).all()
    assert after.unique().numel() == 3
    for first, second in zip(population.predict(inputs), population.predict(inputs), strict=True):
        assert torch.equal(first, second)


# Divergence.


def small_net() -> nn.Module:
    """Every rule of rules.py in one net; the large kernel takes the FFT."""
    return nn.Sequential(
        conv(1, 4, 9), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 2, (3, 1)),
        Columns(nn.LSTM(4, 3, bidirectional=True)), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip


def three_steps(members: Sequence[nn.Module], plan: Plan, **changes: Tensor):
    count = len(members)
    values = {
        "lr": torch.full((count,), 0.05, dtype=torch.float64),
        "momentum": torch.full((count,), 0.9, dtype=torch.float64),
        "weight_decay": torch.full((count,), 1e-3, dtype=torch.float64),
        "batch_size": torch.full((count,), 4),
        **changes,
    }
    population = Population(members, loss=mse, metrics={}, optimizer="sgd", hparams=values, plan=plan, clip_norm=1.0)
    batch = random_batch((1, 9, 8), members[-1], size=16)
    losses = population.minibatch_losses(batch)
    population.predict(batch.inputs)
    return population, losses


@ways
@pytest.mark.parametrize("sick", [1, 2, 3])
@pytest.mark.parametrize("fault", ["overflow", "nan", "infinity"])
def test_members_that_diverge_leave_the_others_bit_identical(fault, sick, plan):
    members = members_of(small_net, 4)
    healthy, expected = three_steps(members, plan)
    ill = list(range(1, 1 + sick))  # the first member is healthy, and with fewer than three ill ones the last too
    rates = torch.full((4,), 0.05, dtype=torch.float64)
    faulty = copy.deepcopy(members)
    for p in ill:
        if fault == "overflow":
            rates[p] = 1e200
        else:
            nn.init.constant_(faulty[p].get_parameter("0.weight"), float(fault))
    population, losses = three_steps(faulty, plan, lr=rates)
    for p in range(4):
        if p in ill:
            assert not (len(losses[p]) == 4 and losses[p].isfinite().all())
            continue
        assert torch.equal(losses[p], expected[p])
        found = population.member(p).state_dict()
        for name, tensor in healthy.member(p).state_dict().items():
            assert torch.equal(found[name], tensor), name
