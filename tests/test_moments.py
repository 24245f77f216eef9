"""Losses and gradients out of second-order statistics against autograd on the module itself, in float64."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from sigexp.layers.bayer import ColourPreservingConv
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.models.filters import conv1x1, conv1x1_degamma, fc, linear
from sigexp.population import compiling, moments
from sigexp.population.moments import Moments
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.problem import Batch
from sigexp.signal.quality import cross_entropy, mse

MODELS = {
    "colour": (nn.Conv2d(3, 3, 1), (3, 6, 5)),
    "bayer": (nn.Conv2d(3, 3, 5, padding=2), (3, 8, 7)),
    "fft": (FFTConv2d(1, 2, 15, padding=7), (1, 20, 9)),
    "sequence": (nn.Conv1d(2, 3, 4, padding=3, dilation=2), (2, 17)),
    "fc": (nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (2, 3))), (3, 4)),
    "linear on the last axis": (nn.Sequential(nn.Linear(4, 3), nn.Flatten()), (5, 4)),
    "degamma": (nn.Sequential(LinearizeSRGB(), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))), (3, 5, 6)),
    "in place": (nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(2, 1, 3)), (2, 9)),
    "no bias": (nn.Conv2d(2, 3, (3, 2), bias=False), (2, 5, 6)),
    "even, same": (nn.Conv2d(2, 1, (4, 2), padding="same"), (2, 6, 6)),
    "reflect": (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 6)),
    "kernel above image": (nn.Conv2d(1, 2, 7, padding=3, dilation=(1, 2)), (1, 3, 9)),
}


IMAGES = [name for name in MODELS if not any(isinstance(m, nn.Linear) for m in MODELS[name][0].modules())]


def data(model: nn.Module, shape: tuple[int, ...], examples: int = 7, *, noise: float = 1.0) -> Batch:
    """Random inputs, and targets that a linear model reaches but for the noise; seeded."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(examples, *shape, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        y = model.double()(x.clone())
    return Batch(x, y + noise * torch.randn(y.shape, generator=rng, dtype=torch.float64))


def single(model: nn.Module, shape: tuple[int, ...], **settings: float) -> tuple[nn.Module, Batch]:
    """A copy of the model and `data`, in float32."""
    batch = data(copy.deepcopy(model), shape, **settings)
    return copy.deepcopy(model).float(), Batch(*(part.float() for part in batch))


def stacked(model: nn.Module, count: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(count, *p.shape, generator=rng, dtype=torch.float64) for name, p in model.named_parameters()
    }


def check(model: nn.Module, shape: tuple[int, ...]) -> None:
    batch, params = data(model, shape), stacked(model, 3)
    statistics = Moments.of(model, mse)
    assert statistics is not None
    kept = batch.inputs.clone()
    table = statistics.compute(batch)
    assert torch.equal(batch.inputs, kept)
    assert table.shape == (len(kept), statistics.values)
    index, weights = torch.tensor([3, 0, 5, 5]), torch.tensor([1.0, 0.25, 3.0], dtype=torch.float64)
    losses, gradients = statistics.losses_and_gradients(params, table, index, weights)
    for p, weight in enumerate(weights):
        member = {name: tensor[p].clone().requires_grad_() for name, tensor in params.items()}
        loss = mse(functional_call(model, member, (kept[index],)), batch.targets[index]).sum()
        torch.testing.assert_close(losses[p], loss.detach(), rtol=1e-10, atol=1e-10)
        expected = torch.autograd.grad(weight * loss, list(member.values()))
        for gradient, true in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[p], true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_equals_autograd(name):
    check(*MODELS[name])


def test_chunks_do_not_show(monkeypatch):
    monkeypatch.setattr(moments, "CHUNK", 1)
    check(*MODELS["bayer"])


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    extra=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
)
def test_equals_autograd_for_any_convolution(kernel, padding, dilation, extra, channels, bias):
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    size = [max(1, r - 2 * p + e) for r, p, e in zip(reach, padding, extra, strict=True)]
    check(nn.Conv2d(*channels, kernel, padding=padding, dilation=dilation, bias=bias), (channels[0], *size))


@pytest.mark.parametrize("build", [linear, conv1x1, conv1x1_degamma, fc])
def test_finds_the_linear_models_of_the_catalog(build):
    assert Moments.of(build((3, 8, 8), (3, 8, 8)), mse) is not None


class Noise(nn.Module):
    """A module without parameters that no statistics could stand for."""

    def forward(self, x):
        return x + torch.randn_like(x)


OTHERS = {
    "two layers": nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)),
    "one layer twice": nn.Sequential(*[nn.Linear(4, 4)] * 2),
    "sigmoid after": nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sigmoid()),
    "batch norm": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)),
    "batch norm without parameters": nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 3)),
    "dropout": nn.Sequential(nn.Dropout(0.1), nn.Conv2d(3, 3, 3)),
    "unknown": nn.Sequential(Noise(), nn.Conv2d(3, 3, 3)),
    "prelu": nn.Sequential(nn.PReLU(), nn.Conv2d(3, 3, 3)),
    "mixed examples": nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)),
    "groups": nn.Conv2d(4, 4, 3, groups=2),
    "stride": nn.Conv2d(4, 4, 3, stride=2),
    "transposed": nn.ConvTranspose2d(3, 3, 3),
    "three axes": nn.Conv3d(1, 1, 3),
    "another forward": ColourPreservingConv("RGGB", 12),
    "no layer": nn.Sequential(nn.Flatten()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_refuses_other_models(name):
    assert Moments.of(OTHERS[name], mse) is None


def test_refuses_hooks():
    model = nn.Conv2d(3, 3, 3)
    model.register_forward_hook(lambda *_: None)
    assert Moments.of(model, mse) is None


@pytest.mark.parametrize("loss", [cross_entropy, partial(mse, border=1), nn.functional.mse_loss])
def test_refuses_other_losses(loss):
    assert Moments.of(nn.Conv2d(3, 3, 3), loss) is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ["colour", "bayer"])
def test_follows_sgd(name, dtype, tolerance):
    """20 steps of `torch.optim.SGD` in float64; in float32 the weights stay within rounding of it."""
    model, shape = MODELS[name]
    batch = data(model, shape, 40)
    start = {key: p.float().double() for key, p in stacked(model, 1).items()}
    member = [p[0].clone().requires_grad_() for p in start.values()]
    sgd = torch.optim.SGD(member, lr=0.1, momentum=0.5)
    statistics = Moments.of(model, mse)
    table = statistics.compute(Batch(*(part.to(dtype) for part in batch)))
    ours = {key: p.to(dtype) for key, p in start.items()}
    velocity = [torch.zeros_like(p) for p in ours.values()]
    for index in torch.arange(40).repeat(5).split(10):
        sgd.zero_grad()
        weights = dict(zip(ours, member, strict=True))
        mse(functional_call(model, weights, (batch.inputs[index],)), batch.targets[index]).mean().backward()
        sgd.step()
        _, gradients = statistics.losses_and_gradients(ours, table, index, torch.full((1,), 0.1, dtype=dtype))
        for p, v, g in zip(ours.values(), velocity, gradients, strict=True):
            p -= 0.1 * v.mul_(0.5).add_(g)
    for p, true in zip(ours.values(), member, strict=True):
        assert (p[0].double() - true.detach()).norm() < tolerance * true.detach().norm()


def test_a_small_loss_in_float32():
    """Targets that the model reaches to one part in 10^5: without C nothing would be left of the loss."""
    model, shape = nn.Conv2d(3, 3, 3, padding=1), (3, 8, 8)
    batch = data(model, shape, 100, noise=1e-5)
    params = {name: p.detach()[None] + 1e-5 for name, p in model.named_parameters()}
    index, one = torch.arange(20), torch.ones(1)
    exact = Moments.of(model, mse)
    true, true_gradients = exact.losses_and_gradients(params, exact.compute(batch), index, one.double())
    rough = Moments.of(model, mse)
    table = rough.compute(Batch(*(part.float() for part in batch)))
    rounded = {name: p.float() for name, p in params.items()}
    losses, gradients = rough.losses_and_gradients(rounded, table, index, one)
    torch.testing.assert_close(losses.double(), true, rtol=2e-2, atol=0)
    for gradient, expected in zip(gradients, true_gradients, strict=True):
        assert (gradient.double() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.skipif(compiling.kernel() is None, reason="no C compiler here")
@pytest.mark.parametrize("name", IMAGES)
def test_compiled_statistics_are_those_of_torch(name, monkeypatch):
    model, batch = single(*MODELS[name], examples=9)
    statistics = Moments.of(model, mse)
    assert statistics is not None
    monkeypatch.setattr(moments, "CHUNK", 3 * (statistics.values + batch.targets[0].numel()))
    table, centre = statistics.compute(batch), statistics.centre
    monkeypatch.setattr(compiling, "kernel", lambda *part: None)
    statistics.use(centre)
    expected = statistics.rows(*batch)
    assert (table - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_no_weights_have_less_error_than_those_of_least_squares(name):
    model, batch = single(*MODELS[name], examples=250)
    statistics = Moments.of(model, mse)
    assert statistics is not None
    weight, bias = statistics.least_squares(statistics.compute(batch))
    assert len(bias) == (0 if statistics.layer.bias is None else len(weight))
    model, (inputs, targets) = model.double(), Batch(*(part.double() for part in batch))
    layer = next(m for m in model.modules() if isinstance(m, type(statistics.layer)))
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    mse(model(inputs.clone()), targets).mean().backward()
    scale = 2 * targets.square().mean().sqrt() * inputs.square().mean().sqrt()
    for parameter in layer.parameters():
        assert parameter.grad.abs().max() < 1e-6 * scale


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_all_examples(name):
    model, shape = MODELS[name]
    batch, params = data(model, shape), stacked(model, 3)
    statistics = Moments.of(model, mse)
    assert statistics is not None
    row = moments.summed(statistics.compute(batch).split(2))
    members = [{name: tensor[p] for name, tensor in params.items()} for p in range(3)]
    expected = [mse(functional_call(model, member, (batch.inputs.clone(),)), batch.targets).sum() for member in members]
    torch.testing.assert_close(statistics.total_losses(params, row), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_validation_out_of_statistics():
    """Computed once for examples that come again, anew where they have changed; not where another metric is asked."""
    model, batch = single(*MODELS["bayer"], examples=20)
    hparams = {name: torch.full((2,), 0.01 * (name == "lr")) for name in ("lr", "momentum", "weight_decay")}
    population = Population(
        [model, nn.Conv2d(3, 3, 5, padding=2)], loss=mse, metrics={"mse": mse, "other": lambda a, b: mse(a, b) + 1},
        optimizer="sgd", hparams={**hparams, "batch_size": torch.full((2,), 5)}, plan=Plan(way="moments"),
    )  # fmt: skip
    statistics = population.moments
    assert statistics is not None
    population.table = statistics.compute(batch)
    valid = Batch(*(part[:9].clone() for part in batch))

    def agrees(metrics: list[str]) -> None:
        found = population.evaluate(valid, metrics)
        expected = torch.stack([mse(out, valid.targets).double().sum() for out in population.predict(valid.inputs)])
        torch.testing.assert_close(found["loss"], expected, rtol=1e-6, atol=0)
        assert found.keys() == {"loss", *metrics}

    agrees(["mse"])
    first = statistics.again(valid)
    assert first is statistics.again(valid)
    population.minibatch_losses(Batch(torch.arange(5), torch.arange(5)))
    agrees(["mse"])
    valid.inputs.mul_(2)
    agrees(["mse"])
    assert statistics.again(valid) is not first
    agrees(["mse", "other"])


def test_no_more_sums_are_kept_than_memory_allows(monkeypatch):
    """And none of examples that are gone: others may lie where they were."""
    model, batch = single(*MODELS["bayer"])
    statistics = Moments.of(model, mse)
    assert statistics is not None
    statistics.compute(batch)
    monkeypatch.setattr(moments, "MOST_BYTES", 8 * statistics.values)
    first, second = (Batch(*(part.clone() for part in batch)) for _ in range(2))
    known = statistics.again(first)
    assert known is not None
    assert statistics.again(Batch(*(part[:] for part in first))) is known, "a view of the same"
    assert statistics.again(second) is None
    del first
    torch.testing.assert_close(statistics.again(second), known)
    assert len(statistics._again) == 1


def test_a_member_that_diverges_has_no_loss_in_its_own_numbers_alone():
    model, batch = single(*MODELS["bayer"])
    statistics, params = Moments.of(model, mse), stacked(model, 4)
    assert statistics is not None
    row = moments.summed([statistics.compute(batch)])
    healthy = statistics.total_losses(params, row)
    for p, value in enumerate((1e30, torch.inf, torch.nan)):
        next(iter(params.values()))[p] = value
    losses = statistics.total_losses(params, row)
    assert not losses[:3].isfinite().any(), "the first has none in float32, in which members have them"
    assert losses[3] == healthy[3]
