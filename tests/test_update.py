"""The compiled update of all members in float32, against torch.optim in float64 and torch's operations on the same."""

import math

import pytest
import torch

from sigexp.population import compiling, native
from sigexp.population.optimizers import SLOTS, compiled_update
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.state import HPARAMS
from sigexp.problem import Batch
from sigexp.signal.quality import squared_error

STEPS, SIZES = 20, (7, 1, 64)  # numbers of a member's parameters
LR, MOMENTUM, DECAY = [0.1, 0.01, 0.003], [0.9, 0.0, 0.5], [0.0, 0.1, 0.02]
P = len(LR)


@pytest.fixture(autouse=True)
def compiler():
    if compiling.kernel() is None:
        pytest.skip("no compiler")


def by_torch(name, start, gradients, p):
    parameter = torch.nn.Parameter(start[p].double().clone())
    settings = {"lr": LR[p], "weight_decay": DECAY[p]}
    if name in ("sgd", "nesterov"):
        # torch refuses Nesterov's without momentum, which is plain descent.
        optimizer = torch.optim.SGD(
            [parameter], momentum=MOMENTUM[p], nesterov=name == "nesterov" and MOMENTUM[p] > 0, **settings
        )
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = kind([parameter], betas=(MOMENTUM[p], 0.999), **settings)
    for gradient in gradients:
        parameter.grad = gradient[p].double()
        optimizer.step()
    return parameter.detach()


def lines_of(values):
    """Values [P, N] as the line of a population: of each parameter, all members'."""
    return torch.cat([part.reshape(-1) for part in values.split(SIZES, 1)])


@pytest.mark.parametrize("name", SLOTS)
def test_it_equals_torch_optim(name):
    torch.manual_seed(0)
    total = sum(SIZES)
    start, gradients = torch.randn(P, total), torch.randn(STEPS, P, total)
    owner = lines_of(torch.arange(P)[:, None].expand(-1, total))
    lines = [lines_of(start), *(torch.zeros(P * total) for _ in SLOTS[name])]
    step, alive = torch.zeros(P), torch.ones(P, dtype=torch.bool)
    values = zip(("lr", "momentum", "weight_decay"), (LR, MOMENTUM, DECAY), strict=True)
    hparams = {key: torch.tensor(value) for key, value in values}
    for number, gradient in enumerate(gradients):  # the second member has every other minibatch
        turn = torch.tensor([True, number % 2 == 0, True])
        compiled_update(name, lines, lines_of(gradient), owner, hparams, turn, step, alive, torch.ones(P))
    assert step.tolist() == [STEPS, STEPS // 2, STEPS]
    for p in range(P):
        expected = by_torch(name, start, gradients[:: 2 if p == 1 else 1], p)
        found = lines[0][owner == p]
        assert torch.allclose(found.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_who_diverged_is_not_alive_any_longer():
    losses = torch.tensor([1.0, math.inf, math.nan, 2.0])
    alive, step = torch.tensor([True, True, True, False]), torch.zeros(4)
    lines = [torch.ones(4), torch.zeros(4)]
    hparams = {key: torch.zeros(4) for key in ("lr", "momentum", "weight_decay")}
    turn = torch.tensor([True, True, False, True])
    compiled_update("sgd", lines, torch.ones(4), torch.arange(4), hparams, turn, step, alive, losses)
    assert alive.tolist() == [True, False, True, False]
    assert step.tolist() == [1, 1, 0, 1]
    assert losses[:2].tolist() == [1.0, math.inf]
    assert losses[2:].isnan().all()


def in_float64(outputs, targets):
    return squared_error(outputs.double(), targets.double())


@pytest.mark.parametrize(("clip_norm", "loss"), [(None, squared_error), (0.1, squared_error), (None, in_float64)])
@pytest.mark.parametrize(("sizes", "padded"), [((8, 8, 8), False), ((4, 6, 8), False), ((5, 7, 8), True)])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_populations_train_as_without_it(monkeypatch, name, sizes, padded, clip_norm, loss):
    def trained():
        torch.manual_seed(0)
        members = [torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.Tanh(), torch.nn.Conv1d(3, 1, 3)) for _ in LR]
        values = (torch.tensor(value) for value in ([lr / 20 for lr in LR], MOMENTUM, DECAY, sizes))
        learner = Population(
            members, loss=loss, metrics={}, optimizer=name, clip_norm=clip_norm,
            hparams=dict(zip(HPARAMS, values, strict=True)), plan=Plan(way="together", padded=padded),
        )  # fmt: skip
        torch.manual_seed(1)
        losses = [learner.minibatch_losses(Batch(torch.randn(12, 2, 20), torch.randn(12, 1, 16))) for _ in range(10)]
        return learner.state(), [torch.cat(parts) for parts in zip(*losses, strict=True)]

    calls = []
    update = native.update
    monkeypatch.setattr(native, "update", lambda *given: (calls.append(1), update(*given)))
    found, losses = trained()
    assert calls
    monkeypatch.setenv("SIGEXP_NATIVE", "0")
    compiling.kernel.cache_clear()
    try:
        expected, others = trained()
    finally:
        compiling.kernel.cache_clear()
    for key, tensor in expected.items():
        assert torch.allclose(found[key].double(), tensor.double(), rtol=1e-4, atol=1e-5), key
    for one, other in zip(losses, others, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-4)
