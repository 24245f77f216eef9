"""Gradients by given ones of the outputs, against torch's."""

import pytest
import torch

from sigexp.population import gradients as module
from sigexp.population.gradients import gradients


@pytest.mark.parametrize("engine", ["as it is", "another"])
def test_gradients_are_those_of_torch(engine, monkeypatch):
    """Also of what is used several times, or not at all, and with a release that has no such engine."""
    if engine == "another":
        monkeypatch.setattr(module, "_run_backward", lambda: None)
    generator = torch.Generator().manual_seed(0)
    x, weight, unused = (torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(3))
    upstream = torch.randn(4, generator=generator)
    ours = gradients((x * weight + x.sin()).sum(0), [x, weight, unused], upstream)
    theirs = torch.autograd.grad((x * weight + x.sin()).sum(0), [x, weight, unused], upstream, allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], theirs[:2], strict=True))
    assert ours[2] is theirs[2] is None
    assert not any(leaf.grad is not None for leaf in (x, weight, unused)), "nothing is accumulated"
    with pytest.raises(RuntimeError, match=r"\[3\] is given of outputs \[4\]"):
        gradients(x.sum(0), [x], upstream[:3])


def test_this_release_of_torch_has_the_engine():
    with torch.no_grad(), torch.device("meta"):
        assert module._run_backward.__wrapped__() is not None


def test_an_engine_that_takes_something_else_is_left_alone(monkeypatch):
    class Engine:
        def run_backward(self, outputs, upstream):
            raise AssertionError("it does not come to this")

    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", Engine())
    assert module._run_backward.__wrapped__() is None
