"""The LSTM of a population, in torch and in C, against torch.nn.LSTM member by member."""

import logging
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sigexp.population import building, compiling
from sigexp.population.recurrent import lstm_layers

# members, inputs' members, T, B, I, H, layers, directions, bias
CASES = {
    "one direction": (3, 3, 5, 7, 2, 3, 1, 1, True),
    "shared input": (3, 1, 6, 17, 1, 4, 1, 2, True),
    "one sample": (2, 2, 1, 9, 3, 5, 2, 2, False),
    "one example": (2, 1, 21, 1, 5, 8, 1, 2, True),
    "two layers": (2, 1, 19, 40, 5, 8, 2, 2, True),
    "no bias": (2, 2, 33, 19, 9, 6, 2, 1, False),
    "one hidden unit": (1, 1, 10, 33, 1, 1, 1, 2, True),
    "many blocks": (1, 1, 3, 400, 4, 7, 1, 2, True),
}


def problem(case: str) -> tuple[list[Tensor], int, int, bool]:
    """x and the weights in float64, layers, directions, bias."""
    P, Q, T, B, inputs, H, layers, directions, bias = CASES[case]
    torch.manual_seed(0)
    leaves = [torch.randn(Q, T, B, inputs, dtype=torch.float64)]
    for layer in range(layers):
        width = inputs if layer == 0 else directions * H
        shapes = [(P, 4 * H, width), (P, 4 * H, H), *[(P, 4 * H)] * (2 * bias)]
        leaves += [torch.randn(shape, dtype=torch.float64) / 2 for _ in range(directions) for shape in shapes]
    return [leaf.requires_grad_() for leaf in leaves], layers, directions, bias


def separate(leaves: list[Tensor], layers: int, directions: int, bias: bool) -> list[Tensor]:
    x, *weights = leaves
    hidden, results = weights[1].shape[2], []
    for p in range(len(weights[0])):
        start = x.new_zeros(layers * directions, x.shape[2], hidden)
        own = [weight[p] for weight in weights]
        one = x[p if len(x) > 1 else 0]
        results.append(torch._VF.lstm(one, (start, start), own, bias, layers, 0.0, True, directions == 2, False))
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def with_gradients(function, leaves: list[Tensor], *settings) -> list[Tensor]:
    """Outputs, last h and c, and the gradients of a fixed random functional of all three."""
    results = function(leaves, *settings)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(r.shape, dtype=torch.float64, generator=generator).to(r) for r in results]
    return [*results, *torch.autograd.grad(results, leaves, upstream)]


def together(leaves: list[Tensor], *settings) -> tuple[Tensor, ...]:
    return lstm_layers(leaves[0], leaves[1:], *settings)


def single(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.detach().float().requires_grad_() for leaf in leaves]


def largest_error(results: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(results, expected, strict=True)
    return max(((r.double() - e).abs().max() / e.abs().max().clamp(min=1e-3)).item() for r, e in pairs)


@pytest.fixture
def compiled() -> None:
    if compiling.kernel(compiling.LSTM) is None:
        pytest.skip("there is no C compiler")


@pytest.fixture
def fresh() -> Iterator[None]:
    """`kernel` forgets what it has loaded, before and after."""
    compiling.kernel.cache_clear()
    yield
    compiling.kernel.cache_clear()


@pytest.fixture(params=["torch", "C"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(compiling, "kernel", lambda *part: None)
    else:
        request.getfixturevalue("compiled")


@pytest.mark.parametrize("case", CASES)
def test_torch_version_is_nn_lstm(case):
    leaves, *settings = problem(case)
    expected = with_gradients(separate, leaves, *settings)
    assert largest_error(with_gradients(together, leaves, *settings), expected) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_single_precision_is_close_to_double(case, version):
    leaves, *settings = problem(case)
    expected = with_gradients(separate, leaves, *settings)
    results = with_gradients(together, single(leaves), *settings)
    assert all(r.dtype == torch.float32 for r in results)
    assert largest_error(results, expected) < 1e-5


def test_strides_of_any_kind(compiled):
    leaves, *settings = problem("no bias")
    expected = with_gradients(separate, leaves, *settings)
    x, *weights = single(leaves)
    examples_last = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    spread = x.detach().repeat_interleave(2, 3)[..., ::2].requires_grad_()
    for other in (examples_last, spread):
        assert largest_error(with_gradients(together, [other, *weights], *settings), expected) < 1e-5


@pytest.mark.parametrize("used", [0, 1, 2])
def test_gradients_of_one_result_alone(used, version):
    leaves, *settings = problem("two layers")
    expected = torch.autograd.grad(separate(leaves, *settings)[used].square().sum(), leaves)
    own = single(leaves)
    results = torch.autograd.grad(together(own, *settings)[used].square().sum(), own)
    assert largest_error(list(results), list(expected)) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_member_is_seen_and_leaves_the_others_alone(bad, version):
    leaves, *settings = problem("shared input")
    healthy = with_gradients(together, single(leaves), *settings)
    broken = single(leaves)
    broken[2].data[1] = bad
    results = with_gradients(together, broken, *settings)
    for before, after in zip(healthy, results, strict=True):
        if len(before) == 3:  # all but the gradient of the shared input
            assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not results[0][1].isfinite().all()
    assert not results[4][1].isfinite().any()


def test_large_inputs_saturate_as_in_torch(version):
    leaves, *settings = problem("shared input")
    leaves[0].data *= 1e4
    results = together(single(leaves), *settings)
    assert largest_error(list(results), separate(leaves, *settings)) < 1e-5


def test_the_same_bits_every_time(compiled):
    leaves, *settings = problem("many blocks")
    runs = [with_gradients(together, single(leaves), *settings) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_library_is_compiled_once(compiled, fresh, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "cache"))
    assert compiling.kernel(compiling.LSTM) is not None
    (library,) = (tmp_path / "cache").iterdir()
    made = library.stat().st_mtime_ns
    compiling.kernel.cache_clear()
    assert compiling.kernel(compiling.LSTM) is not None
    assert library.stat().st_mtime_ns == made


def test_each_part_is_compiled_when_it_is_asked_for(compiled, fresh, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path))
    assert compiling.takes(torch.ones(1))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == [compiling.LAYERS]
    assert compiling.takes(torch.ones(1), part=compiling.LSTM)
    assert compiling.takes(torch.ones(1), part=compiling.ACROSS)
    assert sorted(path.name.split("-")[1] for path in tmp_path.iterdir()) == sorted(building.SOURCES)


@pytest.mark.parametrize("awaited", [False, True])
def test_compilers_leave_a_core_until_somebody_waits_for_them(awaited, tmp_path: Path, monkeypatch):
    running, most = [], []

    class Compiler:
        def __init__(self, *_, **__):
            self.pid, self.left = 2**30, 3
            running.append(self)
            most.append(len(running))

        def poll(self):
            self.left -= 1
            if self.left == 0:
                running.remove(self)
            return None if self.left > 0 else 0

    monkeypatch.setattr(building, "cores", lambda: 3)
    monkeypatch.setattr(building.subprocess, "Popen", Compiler)
    monkeypatch.setattr(building, "_run", lambda command: Path(command[-1]).touch())
    monkeypatch.setattr(building, "_awaited", {"layers"} if awaited else set())
    building._compile(["cc"], "layers", [Path(f"{n}.c") for n in range(6)], tmp_path / "kernels.so", 10)
    assert max(most) == (3 if awaited else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.so"]


def test_of_many_that_start_together_one_compiles(compiled, fresh, tmp_path: Path, monkeypatch):
    """A compiler that takes notes: five threads stand for five runs, and hold five descriptors as they would."""
    notes, compiler, real = tmp_path / "notes", tmp_path / "cc", shlex.join(building._compiler())
    script = f'case "$*" in *" -c "*lstm.c*) echo compiled >> "{notes}" ;; esac\nexec {real} "$@"\n'
    compiler.write_text(f"#!/bin/sh\n{script}")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "cache"))
    with ThreadPoolExecutor(5) as pool:
        paths = list(pool.map(lambda i: building.built(compiling.LSTM), range(5)))
    assert notes.read_text() == "compiled\n"
    assert len(set(paths)) == 1
    assert paths[0].is_file()


@pytest.mark.parametrize(("name", "value"), [("SIGEXP_NATIVE", "0"), ("CC", "/bin/false"), ("CC", "/no/such/compiler"),
                                         ("CC", "'"), ("SIGEXP_DATA", "/dev/null/cache")])  # fmt: skip
def test_without_the_library_torch_does_the_work(name, value, fresh, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path))
    monkeypatch.setenv(name, value)
    leaves, *settings = problem("shared input")
    with caplog.at_level(logging.INFO, "sigexp"):
        results = [together(single(leaves), *settings)[0] for _ in range(2)]
    assert largest_error(results[:1], separate(leaves, *settings)[:1]) < 1e-5
    assert len(caplog.records) == (name != "SIGEXP_NATIVE")
    assert not list(tmp_path.iterdir())


def test_a_damaged_library_is_not_used(compiled, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path))
    building.built(compiling.LSTM).write_bytes(b"damaged")
    assert compiling.kernel(compiling.LSTM) is None
