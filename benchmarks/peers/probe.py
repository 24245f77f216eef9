"""How the plain loop is quickest on this machine: one process with all threads or one thread each, NCHW or
channels_last."""

import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.peers import task
from benchmarks.peers.plain import Learner
from benchmarks.peers.task import Arrangement, Arrays, Spec
from sigexp import cli, machine

SECONDS = 2.0
EXAMPLES = 1000
MOST_WAIT = 120.0  # for the other processes


def run(spec: Spec) -> dict[str, Any]:
    """Samples per second of each arrangement of Ray's members, by its name, and the quickest one."""
    config, _ = cli.compose([*spec.words(), f"dataset.size={EXAMPLES}"])
    _, arrays = task.draw(config)
    cores = machine.cores()
    layouts = (False, True) if arrays["inputs"].ndim == 4 else (False,)
    ways = dict.fromkeys((Arrangement(min(cores, spec.members()), 1), Arrangement(1, cores)))
    rates = {}
    for way in ways:
        for channels_last in layouts:
            chosen = replace(way, channels_last=channels_last)
            rates[chosen] = together(replace(spec, arrangement=chosen), config, arrays)
    best = max(rates, key=lambda one: rates[one])
    return {
        "rates": {str(one): rate for one, rate in rates.items()},
        "rate": rates[best],
        "workers": best.workers,
        "threads": best.threads,
        "channels_last": best.channels_last,
    }


def together(spec: Spec, config: Mapping[str, Any], arrays: Arrays) -> float:
    """Samples per second of all processes of an arrangement, side by side."""
    if spec.arrangement.workers == 1:
        return rate(spec, config, arrays)
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(spec.arrangement.workers), context.Queue()
    workers = [
        context.Process(target=work, args=(spec, config, arrays, barrier, queue))
        for _ in range(spec.arrangement.workers)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=MOST_WAIT) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(found)


def work(spec: Spec, config: Mapping[str, Any], arrays: Arrays, barrier: Any, queue: Any) -> None:
    machine.tune_allocator()
    queue.put(rate(spec, config, arrays, barrier))


def rate(spec: Spec, config: Mapping[str, Any], arrays: Arrays, barrier: Any = None) -> float:
    """Samples per second of one process; it begins when all have come to the barrier."""
    torch.set_num_threads(spec.arrangement.threads)
    learner = Learner(spec, config, arrays, 0, 10**9)
    step = 2 * learner.batch_size
    learner.train(step)
    if barrier:
        barrier.wait(MOST_WAIT)
    began, samples = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        learner.train(step)
        samples += step
    return samples / (time.perf_counter() - began)
