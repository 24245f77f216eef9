"""How predictors are judged: in passes, whatever the layout a model can take."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sigexp import evaluation
from sigexp.problem import Batch, Problem
from sigexp.signal.quality import mse


class Viewing(nn.Module):
    """Looks at its values in the order of memory, which images with channels innermost do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(len(x), -1)
        self.calls.append(len(x))
        return (2 * flat).view(x.shape)


def problem(count: int, shape: tuple[int, ...]) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)

    def sample(split: str, index: Tensor) -> Batch:
        return Batch(inputs[index], inputs[index] + 1)

    return Problem(kind="image", sample=sample, sizes={"train": count, "test": count}, loss=mse, metrics={"mse": mse})


def test_a_model_goes_over_images_in_passes_that_stay_in_the_caches():
    inputs = torch.zeros(50, 1, 128, 128)
    assert [len(part) for part in evaluation.passes(inputs)] == [8] * 6 + [2]
    assert [len(part) for part in evaluation.passes(torch.zeros(3, 1, 1024, 1024))] == [1, 1, 1]
    assert [len(part) for part in evaluation.passes(torch.zeros(250, 64))] == [250]


@pytest.mark.parametrize("shape", [(3, 96, 96), (2, 300), (5000,)])
def test_passes_change_no_value_beyond_rounding(shape):
    torch.manual_seed(0)
    kinds = {3: nn.Conv2d(3, 3, 5, padding=2), 2: nn.Conv1d(2, 2, 5, padding=2), 1: nn.Linear(5000, 5000)}
    model = nn.Sequential(kinds[len(shape)], nn.Sigmoid()).eval()
    asked = problem(60, shape)
    found = evaluation.evaluate({"model": model}, asked, "test")["model"]["mse"]
    with torch.no_grad():
        batch = asked.sample("test", torch.arange(60))
        assert found == pytest.approx(float(mse(model(batch.inputs), batch.targets).double().mean()), rel=1e-5)


def test_a_model_that_needs_the_usual_layout_gets_it():
    model = Viewing()
    asked = problem(40, (3, 128, 128))
    found = evaluation.evaluate({"model": model}, asked, "test")["model"]["mse"]
    inputs, targets = asked.sample("test", torch.arange(40))
    assert found == pytest.approx(float(mse(2 * inputs, targets).double().mean()), rel=1e-5)
    assert sum(model.calls) == 40


def test_a_model_with_weights_of_any_rank_is_judged():
    model = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.Flatten(2), nn.Unflatten(2, (2, 32, 32))).eval()
    asked = problem(4, (1, 2, 32, 32))
    assert evaluation.evaluate({"model": model}, asked, "test")["model"]["mse"] > 0


def test_judging_leaves_the_model_as_it_was():
    model = nn.Conv2d(3, 3, 3, padding=1).eval()
    before, strides = copy.deepcopy(model.state_dict()), model.weight.stride()
    evaluation.evaluate({"model": model}, problem(4, (3, 32, 32)), "test")
    assert model.weight.stride() == strides
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
