"""Many minibatches in one compiled call against the same minibatches one operation after the other."""

import pytest
import torch
from torch import nn

from sigexp.population import compiling
from sigexp.population.descent import Descent
from sigexp.population.optimizers import SLOTS, Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.problem import Batch
from sigexp.signal.quality import mse

pytestmark = pytest.mark.skipif(compiling.kernel() is None, reason="no C compiler here")

MODELS = {
    "three outputs": (lambda: nn.Conv2d(3, 3, 3, padding=1), (3, 8, 7)),
    "large kernel": (lambda: nn.Conv2d(1, 1, 9, padding=4), (1, 12, 12)),
    "no bias": (lambda: nn.Conv1d(2, 2, 3, bias=False), (2, 20)),
    "few features": (lambda: nn.Conv2d(3, 1, 1), (3, 5, 5)),
}
EXAMPLES = 120


def data(name: str) -> Batch:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    x = torch.randn(EXAMPLES, *shape)
    with torch.no_grad():
        y = make()(x)
    return Batch(x, y + 0.1 * torch.randn_like(y))


def population(name: str, sizes: list[int], optimizer: str = "sgd", lr: float = 0.02) -> Population:
    make, _ = MODELS[name]
    members = []
    for seed in range(len(sizes)):
        torch.manual_seed(seed)
        members.append(make())
    count = len(sizes)
    hparams = {
        "lr": torch.linspace(lr, lr / 2, count, dtype=torch.float64),
        "momentum": torch.linspace(0.5, 0.9, count, dtype=torch.float64),
        "weight_decay": torch.linspace(0, 0.01, count, dtype=torch.float64),
        "batch_size": torch.tensor(sizes),
    }
    built = Population(
        members, loss=mse, metrics={"mse": mse}, optimizer=optimizer, hparams=hparams, plan=Plan(way="moments")
    )
    built.table = built.moments.compute(data(name))
    return built


def learn(built: Population, chunks: tuple[int, ...]) -> list[torch.Tensor]:
    """The losses of every member, over examples that come in chunks."""
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(1)).repeat(4)
    built.schedule = Schedule("cosine", 0.1, 0.8 / len(order))
    losses: list[list[torch.Tensor]] = [[] for _ in range(len(built))]
    for index in order[: sum(chunks)].split(chunks):
        for kept, found in zip(losses, built.minibatch_losses(Batch(index, index)), strict=True):
            kept.append(found)
    return [torch.cat(kept) for kept in losses]


def by_operations(monkeypatch: pytest.MonkeyPatch, *given, **settings) -> Population:
    with monkeypatch.context() as patch:
        patch.setattr(Descent, "takes", lambda *_: False)
        built = population(*given, **settings)
    assert type(built._steps) is not Descent
    return built


@pytest.mark.parametrize("sizes", [[10] * 5, [10, 15, 5, 20, 10, 7], [12]], ids=["equal", "mixed", "one member"])
@pytest.mark.parametrize("optimizer", SLOTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_operation_by_operation(name, optimizer, sizes, monkeypatch):
    chunks = (100, 33, 1, 97)
    ours, plain = population(name, sizes, optimizer), by_operations(monkeypatch, name, sizes, optimizer)
    assert type(ours._steps) is Descent
    for found, expected, size in zip(learn(ours, chunks), learn(plain, chunks), sizes, strict=True):
        assert len(found) == sum(chunks) // size
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)
    after, expected = (built.snapshot() for built in (ours, plain))
    for state, other in ((after.members, expected.members), (after.unfinished[0], expected.unfinished[0])):
        assert state.keys() == other.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, other[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("sizes", [[10] * 5, [10, 15, 5, 20, 10]], ids=["equal", "mixed"])
def test_chunks_change_nothing(sizes, monkeypatch):
    monkeypatch.setattr("sigexp.population.descent.SUMMED", 1)  # a few passes at a time
    small = population("three outputs", sizes)
    found = learn(small, (30, 1, 99, 70))
    monkeypatch.undo()
    whole = population("three outputs", sizes)
    for one, other in zip(found, learn(whole, (200,)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(small.store["params/weight"], whole.store["params/weight"], rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_from_a_snapshot_to_the_bit():
    straight, first, second = (population("large kernel", [10, 15, 5]) for _ in range(3))
    learn(first, (33, 50))
    second.restore(first.snapshot())
    second.schedule = first.schedule
    order = torch.arange(EXAMPLES)
    for built in (first, second):
        built.minibatch_losses(Batch(order, order))
    assert torch.equal(first.store["params/weight"], second.store["params/weight"])
    learn(straight, (83,))
    straight.minibatch_losses(Batch(order, order))
    torch.testing.assert_close(straight.store["params/weight"], first.store["params/weight"], rtol=1e-4, atol=1e-6)


def test_a_member_that_diverges_leaves_the_others_to_the_bit():
    healthy, sick = (population("three outputs", [10] * 5) for _ in range(2))
    sick.set_hparams({**sick.hparams, "lr": sick.hparams["lr"].clone().index_fill_(0, torch.tensor([2]), 1e20)})
    expected, found = learn(healthy, (240,)), learn(sick, (240,))
    assert not found[2][-1].isfinite()
    assert sick.store["alive"].tolist() == [True, True, False, True, True]
    for member in (0, 1, 3, 4):
        assert torch.equal(found[member], expected[member])
        assert torch.equal(sick.store["params/weight"][member], healthy.store["params/weight"][member])


def test_gradients_that_are_clipped_go_the_other_way():
    built = population("few features", [10, 10])
    built.clip_norm = 0.1
    built.drop_pending()
    assert type(built._steps) is not Descent
