"""Every model's population on the device `strict` and on the CPU: how far they are apart, and how often the host would
wait for the device while they train. Prints one line of JSON for each.

    python rounds.py LIBRARY
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from strict_device import load, waits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from test_parity import EQUAL, MIXED, PAIRS, PLANS, hparams, task

from sigexp.config import register
from sigexp.population import capturing, lines, optimizers, repeating
from sigexp.population.capturing import Captured, Graph, copy_all, memory_of
from sigexp.population.optimizers import Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.repeating import _again, _plain
from sigexp.problem import Batch

CHUNKS = (20, 26, 3, 31)


def trained(experiment, model, device, *, sizes=EQUAL, plan=PLANS["together"], optimizer="nesterov", clip_norm=None):
    """Losses and state after one pass, the waits of all calls but the first, and the population."""
    learned = task(experiment, model)
    found = Population(
        learned.members, loss=learned.loss, metrics={}, optimizer=optimizer, hparams=hparams(sizes, optimizer),
        clip_norm=clip_norm, device=device, plan=plan,
    )  # fmt: skip
    found.schedule = Schedule("cosine", 0.0, 1 / 160)
    batches = zip(*(part.to(device).split(CHUNKS) for part in learned.batch), strict=True)
    losses, before = [], 0
    for number, batch in enumerate(batches):
        losses.append(found.minibatch_losses(Batch(*batch)))
        before = waits() if number == 0 else before
    waited = waits() - before
    return [torch.cat(of_one).cpu() for of_one in zip(*losses, strict=True)], found.state(), waited, found


def compare(what, experiment, model, counted=True, **how):
    losses, state, waited, learner = trained(experiment, model, "strict", **how)
    expected, wanted, _, _ = trained(experiment, model, "cpu", **how)
    pairs = [*zip(losses, expected, strict=True), *((state[name].cpu(), wanted[name]) for name in wanted)]
    apart = max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)) for a, b in pairs)
    print(
        json.dumps({"what": f"{what} {experiment} {model}", "apart": apart, "waits": waited if counted else 0}),
        flush=True,
    )
    return learner


class Kernels(TorchDispatchMode):
    """The kernels of a call with the memory that they work on, which is all that a graph of a GPU's has."""

    def __init__(self):
        super().__init__()
        self.again = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        given = {memory_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        if function._schema.is_mutable:
            self.again.append(partial(function._op, *_plain(args), **_plain(kwargs)))
        elif function is torch.ops.aten.native_batch_norm.default:  # whose other form loses the running statistics here
            self.again.append(lambda: copy_all(made, function._op(*_plain(args), **_plain(kwargs))))
        elif made and not {memory_of(tensor) for tensor in made} <= given and "empty" not in function._schema.name:
            self.again.append(_again(function, _plain(args), _plain(kwargs), [tensor.detach() for tensor in made]))
        return results


def recorded(function, inputs):
    """As `capturing.capture`."""
    with Kernels() as kernels:
        results = [None if result is None else result.detach() for result in function(*inputs)]

    def replay():
        with torch.inference_mode():
            for kernel in kernels.again:
                kernel()

    return Graph(replay, results, 1)


def compare_captured(experiment, model, **how):
    learner = compare("captured", experiment, model, counted=False, **how)  # what proves a graph right is read
    kept = [*learner.together._again.recordings.values(), *learner.updates.recordings.values()]
    print(json.dumps({"what": f"graphs {experiment} {model}", "graphs": sum(one is not None for one in kept)}))


if __name__ == "__main__":
    load(sys.argv[1])
    register()
    torch.set_num_threads(1)
    for experiment, model in PAIRS:
        for sizes in (EQUAL, MIXED):
            compare(f"{sizes}", experiment, model, sizes=sizes)
    for experiment, model in (("bayer", "polyphase"), ("deblur", "deep"), ("spikes", "seqlstm")):
        compare("padded", experiment, model, sizes=MIXED, plan=PLANS["together-padded"])
        compare("one by one", experiment, model, sizes=MIXED, plan=Plan())
        compare("passes of two, clipped, Adam", experiment, model, sizes=MIXED, plan=PLANS["together-2_a_pass"],
                optimizer="adam", clip_norm=0.02)  # fmt: skip
    repeating.KINDS["strict"], capturing.capture = Captured, recorded
    repeating._seconds = lambda device, function, *_: 0.0 if isinstance(function, Captured) else 1e-3
    for sizes in (EQUAL, MIXED):
        for experiment, model in (("deblur", "deep"), ("spikes", "seqlstm"), ("gaussian", "linear")):
            compare_captured(experiment, model, sizes=sizes)
    compare_captured("circle_square", "vgg")  # whose running statistics are changed
    del repeating.KINDS["strict"]
    optimizers.LARGE = lines.LARGE = 10  # large models are updated member by member
    for sizes in (EQUAL, MIXED):
        compare("large", "deblur", "deep", sizes=sizes)
