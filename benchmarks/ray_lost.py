"""Actors of Ray that are lost, what Ray costs, and 1,000 members.

    python -m benchmarks.ray_lost                      # all tables, some five minutes on two idle cores
    python -m benchmarks.ray_lost lost --output FILE   # one of: overhead, lost, nodes, members

Runs of the command line in a folder of their own, which share their plans. That two runs are equal means: the weights
of the best member, the record of every member and round, the last checkpoint's tensors, bit for bit.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import runs
from benchmarks.faults.table import Row, print_table
from sigexp import cli, machine, training
from sigexp.population.cluster import opened
from sigexp.population.feed import Feed
from sigexp.population.plan import Plan
from sigexp.population.shards import Shards
from sigexp.problem import Batch

LIMIT_S = 600.0  # of one run
MEMBERS = 1000
WORDS = [word for word in runs.WORDS if not word.startswith("trainer.threads")]
SMALL = ["experiment=gaussian", "model=linear", "dataset.size=500", "dataset.test_size=20", "dataset.image_size=24"]
MANY = [
    *SMALL, f"search.members={MEMBERS}", "search.survivors=250", "search.initial_samples=200",
    "search.round_samples=200", "search.max_samples=600000", "search.valid_samples=50", "trainer.memory_limit=0.3",
]  # fmt: skip


def run(words: Sequence[str], work: Path, name: str, *, hit: Callable[[Path, int], None] | None = None) -> Path:
    """A run to its end; its folder. hit: gets the folder and the process when the run has begun its second round."""
    began = runs.start([*words, f"outputs={name}"], work, name)
    if hit is not None:
        outputs = work / name
        rounds = lambda: any(path.stat().st_size for path in outputs.glob("*/*/*/rounds.jsonl"))  # noqa: E731
        if not runs.until(rounds, began.process, LIMIT_S, 0.01):
            raise RuntimeError(began.log.read_text(errors="replace")[-2000:])
        time.sleep(0.2)
        hit(runs.folder_of(outputs), began.process.pid)
    if began.process.wait(LIMIT_S) != 0:
        raise RuntimeError(began.log.read_text(errors="replace")[-2000:])
    return runs.folder_of(work / name)


def actors(pid: int) -> Iterator[int]:
    """The processes of actors below one."""
    for child in runs.children(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_text().startswith("ray::Carrier"):
                yield child
        yield from actors(child)


def kill_an_actor(folder: Path, pid: int) -> None:
    os.kill(next(actors(pid)), signal.SIGKILL)


def judged(what: str, folder: Path, known: dict[str, Any], told: Sequence[str]) -> Row:
    """Whether a run is equal to a known one, and its log has told what was to happen."""
    found, log = runs.fingerprint(folder), (folder / "run.log").read_text()
    wrong = [f"other {name}" for name in known if found[name] != known[name]]
    wrong += [f"its log has no {text!r}" for text in told if text not in log]
    heard = [line.partition("WARNING ")[2][:160] for line in log.splitlines() if "WARNING" in line]
    return Row(what, 1, not wrong, "; ".join(wrong + heard * bool(wrong)) or "; ".join(["bit for bit", *told]))


def lost() -> list[Row]:
    """One of two actors killed in mid-round."""
    with runs.folder_for_work() as temporary:
        work = Path(temporary)
        known = runs.fingerprint(run([*WORDS, "trainer.processes=2"], work, "local"))
        words = [*WORDS, "trainer.processes=2", "trainer.engine=ray"]
        undisturbed = run(words, work, "ray")
        hit = run(words, work, "hit", hit=kill_an_actor)
        return [
            judged("two actors, undisturbed: the population of two local processes", undisturbed, known, []),
            judged("one of two actors killed in mid-round: the same", hit, known,
                   ["begins again in new processes", "2 actors of 2, 1 of them new"]),
        ]  # fmt: skip


def nodes() -> list[Row]:
    """One of three nodes lost in mid-round, with a core each, and none in its place."""
    from ray.cluster_utils import Cluster

    with runs.folder_for_work() as temporary:
        work = Path(temporary)
        known = runs.fingerprint(run([*WORDS, "trainer.processes=3"], work, "local"))
        store = {"num_cpus": 1, "object_store_memory": 100_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={**store, "include_dashboard": False})
        try:
            others = [cluster.add_node(**store) for _ in range(2)]
            cluster.wait_for_nodes()
            words = [*WORDS, "trainer.processes=3", "trainer.engine=ray"]
            os.environ["RAY_ADDRESS"] = cluster.address
            hit = run(words, work, "nodes", hit=lambda *_: cluster.remove_node(others[0], allow_graceful=False))
            more = [*WORDS, "trainer.processes=4", "trainer.engine=ray", "outputs=short"]
            short = runs.start(more, work, "short", {"SIGEXP_RAY_TIMEOUT": "5"})
            code = short.process.wait(LIMIT_S)
            message = short.log.read_text().splitlines()[-1].replace(cluster.address, "ADDRESS")
        finally:
            os.environ.pop("RAY_ADDRESS", None)
            cluster.shutdown()
        return [
            judged("three nodes of a core, one lost in mid-round: the population of three local processes", hit, known,
                   ["3 actors of 3", "2 actors of 3, 0 of them new"]),
            Row("four actors asked of what is left: a message, exit 2", 1, code == 2 and "2 cores" in message, message),
        ]  # fmt: skip


def members() -> list[Row]:
    """1,000 members, from statistics and by training steps."""
    found = []
    with runs.folder_for_work() as temporary:
        work = Path(temporary)
        for execution in ("auto", "together"):
            words = [*MANY, "trainer.processes=2", f"trainer.execution={execution}"]
            began = time.perf_counter()
            folder = run([*words, "trainer.engine=ray"], work, execution)
            seconds = time.perf_counter() - began
            result = json.loads((folder / "result.json").read_text())
            plan = re.search(r"plan: (.*?) \(", (folder / "run.log").read_text())
            note = (
                f"{plan[1] if plan else '?'}; {result['train_seconds']:.1f} s of training, {seconds:.0f} s in all; "
                f"{result['peak_memory_bytes'] / 1e6:,.0f} MB of memory, driver and actors together"
            )
            good = len(runs.fingerprint(folder)["rounds"]) >= MEMBERS
            found.append(Row(f"{MEMBERS:,} members, trainer.execution={execution}", 1, good, note))
    return found


def overhead(rounds: int = 40) -> list[Row]:
    """What a round takes with two processes and with two actors, in turns, so that other work disturbs both alike."""
    config, names = cli.compose(SMALL)
    machine.configure_torch(1, deterministic=True)
    ready = training.prepare(config, names)
    device = torch.device("cpu")
    feed = Feed(ready.problem, seed=0, device=device)
    valid = feed.validation(20)
    feed.data()
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    states = []
    with opened("ray", device, 0) as cluster, contextlib.ExitStack() as stack:
        carried = {}
        for name, where in (("local", None), ("ray", cluster)):
            population, _ = training.populate(ready.members, ready.problem, config["trainer"], device)
            population.use(Plan(way="together", slice=16, shards=2))
            carried[name] = Shards(population, 2, cluster=where)
            stack.callback(carried[name].close)
        for number in range(rounds):
            for name, shards in carried.items():
                seconds[name].append(_round(shards, feed, valid, number))
        states = [shards.state() for shards in carried.values()]
    equal = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    medians = {name: 1e3 * statistics.median(taken[5:]) for name, taken in seconds.items()}
    difference = [1e3 * (b - a) for a, b in zip(seconds["local"][5:], seconds["ray"][5:], strict=True)]
    lines = ", ".join(f"{name} {median:.1f} ms" for name, median in medians.items())
    note = f"median of {rounds - 5} rounds: {lines}; difference, median {statistics.median(difference):.1f} ms"
    return [Row("a round of a small model by two actors and by two processes: the same population", 1, equal, note)]


def _round(shards: Shards, feed: Feed, valid: Batch, number: int) -> float:
    """What a search does in one: weights out and in, three steps, an evaluation; nine calls to everyone."""
    began = time.perf_counter()
    shards.restore(shards.snapshot())
    for step in range(3):
        shards.advance(feed, 60 * number + 20 * step, 20)
    shards.drop_pending()
    shards.evaluate(valid)
    return time.perf_counter() - began


TABLES = {"overhead": overhead, "lost": lost, "nodes": nodes, "members": members}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("-o", "--output", type=Path, help="write the table there, as Markdown")
    given = parser.parse_args()
    if unknown := [name for name in given.tables if name not in TABLES]:
        parser.error(f"{unknown[0]}: expected {', '.join(TABLES)}")
    rows = [row for name in given.tables or TABLES for row in TABLES[name]()]
    show = partial(print_table, rows)
    show()
    if given.output:
        with open(given.output, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            print(f"# Ray\n\n`python -m benchmarks.ray_lost`: {machine.describe_device('cpu')}; {versions()}.\n")
            show()


def versions() -> str:
    import ray

    return f"Ray {ray.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
