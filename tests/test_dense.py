"""Full layers by oneDNN against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F

from sigexp.population import dense, race
from sigexp.population.convolution import Kernels
from sigexp.population.rules import LINEAR_WAYS, Stacked, by_onednn, by_torch, linear


@pytest.mark.parametrize("shifts", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("way", [by_onednn, by_torch])
def test_both_ways_are_linear(way, shared, shifts):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 33) if shared else (3, 7, 33), (3, 18, 33), *([(3, 18)] if shifts else [])]
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    if way is by_onednn and not dense.usable(*leaves):
        pytest.skip("this torch is without oneDNN")
    x, weight, *bias = leaves
    if not shared:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)  # as one wide layer leaves it
    out = way(x, weight, bias[0] if shifts else None)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    rows = [[one if shared and n == 0 else one[p] for n, one in enumerate(exact)] for p in range(3)]
    expected = torch.stack([F.linear(*row) for row in rows])
    factor = torch.randn(out.shape, generator=generator)
    ours = torch.autograd.grad((out * factor).sum(), leaves)
    theirs = torch.autograd.grad((expected * factor.double()).sum(), exact)
    for found, wanted in zip((out, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_both_take_part_in_a_race():
    raced = []

    def choose(candidates, arguments):
        raced.extend(candidates)
        return "torch"

    weight, x = torch.randn(2, 5, 3), torch.randn(2, 4, 6, 3)
    kernels = Kernels(choose=choose)
    out = linear(kernels, 2, Stacked(x, own=True), Stacked(weight, own=True))
    torch.testing.assert_close(out, torch.stack([x[p] @ weight[p].T for p in range(2)]))
    out = linear(kernels, 2, Stacked(x[0, 0], own=False), Stacked(weight, own=True))
    torch.testing.assert_close(out, torch.stack([x[0, 0] @ weight[p].T for p in range(2)]))
    if dense.usable(weight):
        assert raced == ["torch", "onednn"] * 2
        assert sorted(kernels.chosen) == ["linear own (5, 3)", "linear shared (5, 3)"]


def test_what_onednn_cannot_have_is_torchs():
    assert not dense.usable(torch.randn(2, 3).double())
    assert not dense.usable(torch.randn(0, 3))


def test_a_race_is_run_over_as_many_rows_as_a_minibatch_has(monkeypatch):
    seen = []
    monkeypatch.setattr(
        race, "quickest", lambda candidates, arguments: seen.append(tuple(arguments[0].shape)) or "torch"
    )
    few, many = torch.randn(2, 4, 3, requires_grad=True), torch.randn(4000, 3)
    for x in (few, many):
        assert race.Race._quickest(50, LINEAR_WAYS, (x, torch.randn(2, 5, 3), None)) == "torch"
    race.Race._quickest(50, {"one": by_torch, "other": by_torch}, (many[:4], torch.randn(2, 5, 3), None))
    assert seen == [(2, 200, 3), (4000, 3), (4, 3)]  # more would not change the choice, but take memory
