"""Every model's population on the device `strict` and on the CPU: how far they are apart, and what the host reads from
the device while they train. Prints one line of JSON for each.

    python rounds.py LIBRARY
"""

import json
import sys
from pathlib import Path

import torch
from strict_device import load, read_backs

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from test_parity import EQUAL, MIXED, PAIRS, PLANS, hparams, task

from sigexp.config import register
from sigexp.population import capturing, lines, optimizers, repeating
from sigexp.population.capturing import Captured, Graph
from sigexp.population.optimizers import Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.problem import Batch

CHUNKS = (20, 26, 3, 31)


def trained(experiment, model, device, *, sizes=EQUAL, plan=PLANS["together"], optimizer="nesterov", clip_norm=None):
    """Losses and state after one pass, and the read-backs of all calls but the first."""
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
        before = read_backs() if number == 0 else before
    reads = read_backs() - before
    return [torch.cat(of_one).cpu() for of_one in zip(*losses, strict=True)], found.state(), reads, found


def compare(what, experiment, model, counted=True, **how):
    losses, state, reads, learner = trained(experiment, model, "strict", **how)
    expected, wanted, _, _ = trained(experiment, model, "cpu", **how)
    pairs = [*zip(losses, expected, strict=True), *((state[name].cpu(), wanted[name]) for name in wanted)]
    apart = max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)) for a, b in pairs)
    print(
        json.dumps({"what": f"{what} {experiment} {model}", "apart": apart, "reads": reads if counted else 0}),
        flush=True,
    )
    return learner


def replayed(function, device):
    """What capture gives on a GPU, by calling the function again."""
    results = [None if result is None else result.detach() for result in function()]

    def replay():
        for kept, result in zip(results, function(), strict=True):
            if kept is not None:
                kept.copy_(result)

    return Graph(replay, results), 1


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
    repeating.KINDS["strict"], capturing.capture = Captured, replayed
    repeating._seconds = lambda function, *_: 0.0 if isinstance(function, Captured) else 1.0
    for sizes in (EQUAL, MIXED):
        for experiment, model in (("deblur", "deep"), ("spikes", "seqlstm"), ("gaussian", "linear")):
            compare_captured(experiment, model, sizes=sizes)
    compare_captured("circle_square", "vgg")  # whose running statistics are changed
    del repeating.KINDS["strict"]
    optimizers.LARGE = lines.LARGE = 10  # large models are updated member by member
    for sizes in (EQUAL, MIXED):
        compare("large", "deblur", "deep", sizes=sizes)
