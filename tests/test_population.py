"""The population against P separate torch.optim loops in float64, and what copying and divergence must not do."""

import copy
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.state import join, take
from sigexp.problem import Batch
from sigexp.signal.quality import mse


def net() -> nn.Module:
    """No bias before BatchNorm: its gradient is rounding noise, which Adam would blow up to full steps."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1)
    ).double()


def members(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [net() for _ in range(count)]


def hparams(count: int, batch_size=(4,)) -> dict[str, torch.Tensor]:
    return {
        "lr": torch.logspace(-3, -1, count, dtype=torch.float64),
        "momentum": torch.linspace(0.5, 0.9, count, dtype=torch.float64),
        "weight_decay": torch.linspace(0, 0.01, count, dtype=torch.float64),
        "batch_size": torch.tensor((list(batch_size) * count)[:count]),
    }


def batches(count: int, size: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(1)
    make = lambda: torch.randn(size, 1, 6, 6, generator=rng, dtype=torch.float64)  # noqa: E731
    return [Batch(make(), make()) for _ in range(count)]


def population(modules, optimizer="sgd", clip_norm=None, plan=None, **changes) -> Population:
    return Population(
        modules,
        loss=mse,
        metrics={"mse": mse},
        optimizer=optimizer,
        hparams={**hparams(len(modules)), **changes},
        clip_norm=clip_norm,
        plan=plan,
    )


def sequential(module, optimizer, clip_norm, lr, momentum, weight_decay, minibatches):
    module = copy.deepcopy(module).train()
    if optimizer in ("sgd", "nesterov"):
        nesterov = {"nesterov": optimizer == "nesterov"}
        update = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, **nesterov)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        update = kind(module.parameters(), lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    losses = []
    for batch in minibatches:
        update.zero_grad()
        loss = mse(module(batch.inputs), batch.targets).mean()
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        update.step()
        losses.append(float(loss.detach()))
    return module, losses


PLANS = [
    Plan(way="one by one"),
    Plan(way="one by one", channels_last=True),
    Plan(way="one by one", slice=3),
    Plan(way="together"),
    Plan(way="together", slice=3),
]


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_equals_separate_training(optimizer, clip_norm, plan):
    modules, steps = members(3), batches(12, 4)
    together = population(modules, optimizer, clip_norm, plan)
    losses = torch.stack([together.step(batch) for batch in steps], 1)
    for p, module in enumerate(modules):
        h = {name: float(value[p]) for name, value in hparams(3).items() if name != "batch_size"}
        alone, expected = sequential(module, optimizer, clip_norm, **h, minibatches=steps)
        torch.testing.assert_close(losses[p], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-10)
        for (name, a), b in zip(alone.state_dict().items(), together.member(p).state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10, msg=name)


def test_members_with_their_own_batch_sizes():
    """A member with minibatches of b learns from the same examples in groups of b, whatever comes in a call."""
    modules, steps = members(3), batches(9, 4)
    sizes = [3, 4, 9]
    together = population(modules, batch_size=torch.tensor(sizes))
    for batch in steps:
        together.step(batch)
    everything = Batch(*(torch.cat(parts) for parts in zip(*steps, strict=True)))
    for p, size in enumerate(sizes):
        parts = zip(everything.inputs.split(size), everything.targets.split(size), strict=True)
        h = {name: float(value[p]) for name, value in hparams(3).items() if name != "batch_size"}
        alone, _ = sequential(modules[p], "sgd", None, **h, minibatches=[Batch(*part) for part in parts])
        for a, b in zip(alone.parameters(), together.member(p).parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)


def test_a_copy_goes_on_as_its_parent():
    same = {name: value[:1].expand(2).clone() for name, value in hparams(2).items()}
    together = population(members(2), "adam", **same)
    first, second = batches(2, 8)
    together.step(first)
    together.copy(torch.tensor([1, 1]))
    losses = together.step(second)
    assert losses[0] == losses[1]
    for a, b in zip(together.member(0).parameters(), together.member(1).parameters(), strict=True):
        assert torch.equal(a, b)


def test_members_are_independent_after_a_copy():
    together = population(members(2))
    together.copy(torch.tensor([0, 0]))
    together.set_hparams({**together.hparams, "lr": torch.tensor([0.0, 0.1], dtype=torch.float64)})
    before = together.member(0).state_dict()["0.weight"].clone()
    together.step(batches(1, 8)[0])
    assert torch.equal(before, together.member(0).state_dict()["0.weight"])
    assert not torch.equal(before, together.member(1).state_dict()["0.weight"])


def test_selection_by_state():
    together = population(members(3))
    state = together.state()
    pool = join(state, take(state, torch.tensor([2])))
    together.load_state(take(pool, torch.tensor([3, 1])))
    assert len(together) == 2
    torch.testing.assert_close(together.hparams["lr"], state["hparams/lr"][[2, 1]])


def test_a_diverged_member_touches_no_other():
    rates = torch.tensor([1e-2, 1e30, 1e-2], dtype=torch.float64)
    sick = population(members(3), lr=rates)
    healthy = population(members(3), lr=torch.tensor([1e-2, 1e-4, 1e-2], dtype=torch.float64))
    for batch in batches(6, 8):
        losses, expected = sick.step(batch), healthy.step(batch)
    assert torch.isnan(losses[1])
    for p in (0, 2):
        assert losses[p] == expected[p]
        for a, b in zip(sick.member(p).parameters(), healthy.member(p).parameters(), strict=True):
            assert torch.equal(a, b)


@dataclass
class Scaled:
    """A metric as users write them: not hashable, and it looks at outputs by `view`."""

    factor: float

    def __call__(self, outputs, targets):
        return self.factor * (outputs.view(len(outputs), -1) - targets.view(len(targets), -1)).abs().mean(1)


@pytest.mark.parametrize("way", ["together", "one by one", "moments"])
def test_metrics_of_any_kind_are_summed_over_the_examples(way):
    torch.manual_seed(0)
    modules, batch = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)], Batch(*torch.randn(2, 6, 2, 8, 8).unbind())
    trained = Population(
        modules, loss=mse, metrics={"mse": mse, "scaled": Scaled(2.0)}, optimizer="sgd", hparams=hparams(3),
        plan=Plan(way=way),
    )  # fmt: skip
    expected = [mse(module(batch.inputs), batch.targets).sum().double() for module in modules]
    found = trained.evaluate(batch)
    torch.testing.assert_close(found["loss"], torch.stack(expected), rtol=1e-6, atol=0)
    assert found["mse"] is found["loss"], "the same function, computed once"
    outputs = [module(batch.inputs) for module in modules]
    scaled = [2 * (out - batch.targets).abs().mean((1, 2, 3)).sum().double() for out in outputs]
    torch.testing.assert_close(found["scaled"], torch.stack(scaled), rtol=1e-6, atol=0)


def test_evaluation_uses_running_statistics_and_changes_nothing():
    together = population(members(2))
    for batch in batches(3, 8):
        together.step(batch)
    batch = batches(1, 8)[0]
    before = together.state()
    whole = together.evaluate(batch)["mse"]
    single = [together.evaluate(Batch(x[None], y[None]))["mse"] for x, y in zip(*batch, strict=True)]
    assert whole.shape == (2,)
    torch.testing.assert_close(whole, torch.stack(single).sum(0))
    assert all(torch.equal(before[name], value) for name, value in together.state().items())


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="sgd, nesterov, adam, adamw"):
        population(members(1), "adagrad")


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 1, 3, padding=1)).double()


@pytest.mark.parametrize(
    "plan", [Plan(way="together"), Plan(way="one by one"), Plan(way="together", padded=True)], ids=str
)
def test_a_pass_that_does_not_fit_into_memory_is_split(plan, monkeypatch, caplog):
    modules = [plain_net() for _ in range(3)]
    free, limited = population(modules, plan=plan), population(modules, plan=plan)
    convolution = nn.Conv2d.forward

    def with_little_memory(self, x):
        if x.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return convolution(self, x)

    batch = batches(1, 12)[0]
    expected = free.step(batch)
    monkeypatch.setattr(nn.Conv2d, "forward", with_little_memory)
    torch.testing.assert_close(limited.step(batch), expected, atol=1e-12, rtol=1e-12)
    assert limited.plan.slice == 2
    assert "out of memory: training goes on" in caplog.text
    monkeypatch.undo()
    for a, b in zip(free.member(1).parameters(), limited.member(1).parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_members_that_do_not_fit_into_memory_together_go_on_alone(monkeypatch, caplog):
    """Batch normalisation needs the whole minibatch, so it is the members that are divided."""
    together, alone = population(members(3), plan=Plan(way="together")), population(members(3))
    gradients, calls = together.together.losses_and_gradients, []

    def fails_the_second_time(*arguments):
        calls.append(gradients(*arguments))
        if len(calls) == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB")
        return calls[-1]

    monkeypatch.setattr(together.together, "losses_and_gradients", fails_the_second_time)
    for batch in batches(3, 8):
        torch.testing.assert_close(together.step(batch), alone.step(batch), atol=1e-12, rtol=1e-12)
    assert together.plan.way == "one by one"
    for a, b in zip(together.member(0).state_dict().values(), alone.member(0).state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_other_errors_of_a_model_are_raised():
    together = population([plain_net() for _ in range(2)], plan=Plan(way="together"))
    with pytest.raises(RuntimeError, match="shapes"):
        together.step(Batch(torch.zeros(4, 2, 6, 6).double(), torch.zeros(4, 1, 6, 6).double()))


@pytest.mark.parametrize("way", ["together", "one by one"])
def test_a_population_is_gone_with_its_last_reference(way):
    trained = population(members(2), plan=Plan(way=way))
    trained.step(batches(1, 8)[0])
    seen = weakref.ref(trained)
    gc.disable()
    try:
        del trained
        assert seen() is None
    finally:
        gc.enable()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 4, bidirectional=True), nn.Conv1d(8, 1, 1)

    def forward(self, x):  # [B, 1, T]
        return self.out(self.lstm(x.movedim(-1, 0))[0].movedim(0, -1))


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize("make", [Recurrent, lambda: nn.Conv1d(1, 1, 5, padding=2)], ids=["lstm", "convolution"])
def test_bfloat16_learns_what_float32_does_but_for_rounding(make, way):
    torch.manual_seed(0)
    modules = [make() for _ in range(2)]
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 1, 12, generator=rng)
    batch = Batch(inputs, inputs.roll(1, -1))
    found = {}
    for precision in ("fp32", "bf16"):
        trained = Population(
            modules, loss=mse, metrics={"mse": mse}, optimizer="sgd", hparams=hparams(2), plan=Plan(way=way),
            precision=precision,
        )  # fmt: skip
        for _ in range(5):
            trained.step(batch)
        found[precision] = trained.evaluate(batch)["loss"]
        assert found[precision].dtype == torch.float64
    assert not torch.equal(found["fp32"], found["bf16"])
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=0.03, atol=0.01)
