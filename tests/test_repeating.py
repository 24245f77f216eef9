"""Passes that are repeated as their kernels: the same bits as without, and left alone where that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sigexp.population import native, repeating
from sigexp.population.convolution import _planes
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.repeating import CALLS, Recording, Repeating
from sigexp.population.state import HPARAMS
from sigexp.problem import Batch
from sigexp.signal.quality import squared_error

P, B = 3, 12


def population(make, sizes=(B,) * P, padded=False, optimizer="adam"):
    torch.manual_seed(0)
    members = [make() for _ in range(P)]
    values = (torch.tensor([0.01, 0.02, 0.03]), torch.full((P,), 0.9), torch.zeros(P), torch.tensor(sizes))
    return Population(
        members,
        loss=squared_error,
        metrics={},
        optimizer=optimizer,
        hparams=dict(zip(HPARAMS, values, strict=True)),
        plan=Plan(way="together", padded=padded),
    )


def images():
    torch.manual_seed(1)
    return Batch(torch.randn(240, 1, 9, 10), torch.randn(240, 1, 9, 10))


def sequences():
    torch.manual_seed(1)
    return Batch(torch.randn(240, 1, 11), torch.randn(240, 1, 11))


class Recurrent(nn.Sequential):
    """Not of the packages that are known, as a user's module is."""


def lstm():
    from sigexp.models.recurrent import seqlstm

    return seqlstm((1, 11), (1, 11), hidden=3)


def convolutions():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 1, 5, padding=2), nn.ReLU())


def advance(learner, data, chunk=24):
    for start in range(0, len(data.inputs), chunk):
        learner.minibatch_losses(Batch(*(part[start : start + chunk] for part in data)))
    return learner.state()


def recordings(learner):
    return [one for one in learner.together._again.recordings.values() if one is not None]


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Recordings are used however long they take, or tests would depend on the machine's mood."""
    monkeypatch.setattr(repeating, "_seconds", lambda device, function, *_: float(not isinstance(function, Recording)))
    monkeypatch.setattr(repeating, "LONGEST", 1e9)


@pytest.mark.parametrize(("make", "data"), [(lstm, sequences), (convolutions, images)])
@pytest.mark.parametrize(("sizes", "padded"), [((B, B, B), False), ((4, 6, 12), False), ((5, 7, 12), True)])
def test_the_bits_are_those_without_recordings(make, data, sizes, padded):
    one, other = (population(make, sizes, padded) for _ in range(2))
    other.together._repeats = False
    found, expected = (advance(learner, data()) for learner in (one, other))
    assert recordings(one)
    assert not other.together._again.recordings
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_member_that_diverges_leaves_the_others_as_they_are():
    one, other = (population(lstm, optimizer="sgd") for _ in range(2))
    other.together._repeats = False
    for learner in (one, other):
        learner.hparams["lr"][1] = 1e30
        learner.drop_pending()
    found, expected = (advance(learner, sequences()) for learner in (one, other))
    assert not found["alive"][1]
    assert recordings(one)
    for name, tensor in expected.items():
        assert torch.equal(found[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


def test_what_is_recorded_goes_on_with_other_members():
    """The memory of a recording is its own: members that are loaded or copied take part like those before."""
    one, other = (population(lstm) for _ in range(2))
    other.together._repeats = False
    for learner in (one, other):
        advance(learner, sequences())
        learner.copy(torch.tensor([2, 2, 0]))
    found, expected = (advance(learner, sequences()) for learner in (one, other))
    assert recordings(one)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def hooked():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("make", [lambda: Recurrent(nn.Conv2d(1, 1, 3, padding=1)), hooked])
def test_code_of_others_is_called_every_time(make):
    learner = population(make)
    advance(learner, images())
    assert not learner.together._again.calls


@pytest.mark.parametrize("layer", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm2d(1)])
def test_random_numbers_and_running_statistics_are_not_recorded(layer):
    one, other = (
        population(lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer(), nn.Conv2d(1, 1, 1))) for _ in range(2)
    )
    other.together._repeats = False
    found, expected = [], []
    for learner, states in ((one, found), (other, expected)):
        torch.manual_seed(3)
        states.append(advance(learner, images()))
    assert one.together._again.recordings
    assert not recordings(one)
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name


def called(function, *inputs, times=CALLS + 1):
    again = Repeating()
    for _ in range(times):
        results = again(function, *inputs)
    return again, results


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x * 2 if x.sum() > 0 else x],  # a choice
        lambda x: [x[x > 0]],  # as many as there are
        lambda x: [x.add_(1)],  # changes what it is given
        lambda x: [torch._foreach_add_([x], 1) or x],
        lambda x: [torch.from_numpy((x.numpy() * 2).copy()) + x],  # numbers that torch does not see
    ],
)
def test_what_cannot_be_repeated_is_not(function):
    again, _ = called(function, torch.ones(4))
    assert list(again.recordings.values()) == [None]


def test_numbers_of_others_leave_a_hole(monkeypatch):
    """A compiled function that is not noted is seen: its results are not there when the others are repeated."""
    kernel = native.kernel()
    if kernel is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(native, "call", lambda work: native._checked(work))
    again, _ = called(lambda x: [native.Pooling.apply(kernel, x)], torch.randn(2, 4, 4))
    assert list(again.recordings.values()) == [None]


def test_functions_without_room_for_their_results_are_copied():
    x, table = torch.randn(5, 3), torch.arange(3.0)

    def function(x):
        places = torch.arange(1, 4, dtype=torch.float32)  # a factory, of which one overload takes other arguments
        zeros = torch.zeros(3)
        chosen = places if not zeros.any() else table  # settled, whatever x is
        values, order = (x * chosen).sort(1)
        return [values.sum(0), order, None]

    again, _ = called(function, x)
    assert recorded(again)
    other = torch.randn(5, 3)
    found, expected = again(function, other), function(other)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[2] is None


def recorded(again):
    return [one for one in again.recordings.values() if one is not None]


def test_results_are_not_overwritten_by_the_next_call():
    again, _ = called(lambda x: [x * 2], torch.ones(3))
    first = again(lambda x: [x * 2], torch.ones(3))[0]
    again(lambda x: [x * 2], torch.full((3,), 5.0))
    assert torch.equal(first, torch.full((3,), 2.0))


def test_the_recordings_that_were_used_last_are_kept(monkeypatch):
    def bytes_of(size):
        return 4 * size * 2

    def function(x):
        return [x * 2 + 1]

    monkeypatch.setattr(Recording, "most_bytes", bytes_of(1000) + bytes_of(1002))
    again = Repeating()
    for size in (1000, 1001, 1000, 1002, 10**6):
        for _ in range(CALLS + 1):
            again(function, torch.ones(size))
    kept = [key[0][0][0] for key, recording in again.recordings.items() if recording]
    assert kept == [1000, 1002]
    assert again.recordings[((torch.Size([10**6]), torch.float32),)] is None
    for _ in range(2 * CALLS):
        assert torch.equal(again(function, torch.ones(1001))[0], torch.full((1001,), 3.0))
    assert len(again.recordings) == 3


@pytest.mark.parametrize("shape", [(2, 8, 5, 1, 37), (3, 5, 4, 7, 19), (1, 3, 2, 2, 16)])
def test_planes_of_pixels(shape):
    if native.kernel() is None:
        pytest.skip("no compiler")
    p, c, b, h, w = shape
    lying = torch.randn(p, h, w, b, c, requires_grad=True)
    x = lying.permute(0, 4, 3, 1, 2)
    planes, upstream = _planes(x), torch.randn(shape)
    assert planes.is_contiguous()
    assert torch.equal(planes, x)
    seen = []
    x.register_hook(seen.append)
    planes.backward(upstream)
    assert torch.equal(lying.grad, upstream.permute(0, 3, 4, 2, 1))
    assert seen[0].stride() == x.stride()


def test_training_imports_nothing_of_torchs_compiler():
    """Which takes a second, in every process that trains; torch would for a mode that sees kernels, and for gradients
    of other tensors than single numbers."""
    code = (
        "import sys; import test_repeating as t; from sigexp.population import repeating; "
        "t.population(t.convolutions).step(t.images()); "
        "assert repeating.Recording(lambda x: [x + 1], [t.torch.ones(3)]).kernels; "
        "loaded = {'torch._dynamo', 'torch.fx.experimental.symbolic_shapes', 'sympy'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
