"""Random settings: every valid one runs, every other is refused in one clear message, before anything is written.

hypothesis draws an experiment, a model and some settings out of three kinds: ones that are known to be valid, ones
that are known to be wrong, and ones that may be either. What may be either has to run or be refused; an internal
error, a traceback, a folder left behind and no answer in a minute are failures.
"""

import sys
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.faults.inprocess import Outcome, bounded, command, show
from benchmarks.faults.table import Row
from sigexp import catalog, cli, machine

CASES = 2000
SHORT = 12
TINY = (
    "dataset.size=20", "dataset.test_size=2", "search.max_samples=40", "search.members=2", "search.survivors=1",
    "search.initial_samples=10", "search.round_samples=10", "search.valid_samples=10", "trainer.batch_size=5",
    "trainer.threads=1", "trainer.tune_allocator=false", "trainer.execution=sequential", "trainer.processes=1",
)  # fmt: skip
SMALL = {
    "gaussian": ("dataset.image_size=16", "footprint=3"),
    "color": ("dataset.patch_size=8",),
    "matched_filter": ("dataset.image_size=40",),
    "spectrum": ("dataset.length=32", "footprint=7"),
    "circle_square": ("dataset.image_size=48",),
    "square_rectangle": ("dataset.image_size=48",),
    "boundary": ("dataset.image_size=32",),
    "fill": ("dataset.image_size=32",),
    "iir": ("dataset.length=30", "footprint=7"),
    "spikes": ("dataset.length=30", "footprint=7"),
    "bayer": ("dataset.patch_size=20",),
    "median": ("dataset.patch_size=16", "dataset.dots_size=16", "footprint=3"),
    "deblur": ("footprint=3",),
}
QUICK = ("gaussian", "iir", "spikes", "spectrum", "matched_filter", "circle_square", "boundary", "color")
SLOW = ("bayer", "deblur", "fill", "median", "square_rectangle")  # seconds of drawing or of references

VALID = (
    "seed=0", "seed=7", "seed=9223372036854775807", "dataset.seed=9223372036854775807", "dataset.size=1",
    "dataset.size=3", "dataset.size=stream", "dataset.test_size=1", "dataset.test_size=3", "footprint=1", "footprint=5",
    "search=fixed", "search=random", "search=automlp", "search.members=2", "search.members=3", "search.survivors=1",
    "search.max_samples=7", "search.max_samples=90", "search.initial_samples=1", "search.initial_samples=1000000000000",
    "search.round_samples=1", "search.round_samples=999999999999999", "search.valid_samples=1",
    "search.valid_samples=1000000000", "search.lr_decades=0", "search.lr_decades=30", "search.selection=train",
    "search.selection_noise=0.5", "search.patience=null", "search.patience=1", "search.min_improvement=1",
    "trainer.batch_size=1", "trainer.batch_size=30", "trainer.batch_size=1000", "trainer.optimizer.name=adam",
    "trainer.optimizer.name=adamw", "trainer.optimizer.name=sgd", "trainer.optimizer.lr=1e-7",
    "trainer.optimizer.lr=100", "trainer.optimizer.momentum=0", "trainer.optimizer.momentum=0.99999",
    "trainer.optimizer.weight_decay=0", "trainer.optimizer.weight_decay=10", "trainer.schedule=cosine",
    "trainer.clip_norm=1e-9", "trainer.clip_norm=1e30", "trainer.clip_norm=null", "trainer.shuffle=false",
    "trainer.execution=auto", "trainer.execution=together", "trainer.memory_limit=0.001", "trainer.precision=bf16",
    "trainer.deterministic=false", "lecture.batch_size=3", "lecture.weight_decay=0", "device=cpu", "device=auto",
    "outputs='of mine'", "outputs=größe", "outputs=a/b/c", "++seed=3", "trainer.optimizer={lr:0.01}",
)  # fmt: skip
WRONG = (
    "sead=1", "search.membrs=3", "trainer.lr=1", "dataset.sz=3", "model.chanels=3", "modell=linear", "a.b.c=1", "é=1",
    "+dataset._args_=[1]", "+model._partial_=true", "+search.nothing=1", "~seed", "~model", "~dataset", "=3", "seed",
    "seed==1", "seed=", "seed=-1", "seed=1.5", "seed=nan", "seed=9223372036854775808", "seed=true", "seed=[1]",
    "seed={a:1}", "seed=null", "seed=ten", "seed=1,2", "seed='\x1b[31m'", "seed=${seed}", "seed=${nowhere}", "seed=???",
    "dataset=gausian", "dataset=[gaussian,iir]", "model=[linear,deep]", "model=nosuch", "model=null", "search=serch",
    "experiment=null", "tune=nosuch", "lecture=nosuch", "dataset.seed=-1", "dataset.seed=x", "dataset.size=0",
    "dataset.size=-5", "dataset.size=many", "dataset.size=2.5", "dataset.size=true", "dataset.size=[10]",
    "dataset.size=1000000000000", "dataset.size=" + "9" * 40, "dataset.size=null", "dataset.test_size=0",
    "dataset.test_size=1000000000000", "dataset.test_size=x", "dataset.test_size=[1]", "dataset._target_=os.nothing",
    "dataset._target_=..up", "dataset._target_=3", "dataset._target_=builtins.print", "model._target_=builtins.dict",
    "search._target_=sigexp.search.base.Search", "footprint=0", "footprint=-3", "footprint=1000000001", "footprint=x",
    "search.members=0", "search.members=-1", "search.members=1000000000", "search.members=many", "search.survivors=0",
    "search.survivors=9", "search.max_samples=0", "search.max_samples=1", "search.max_samples=" + "9" * 30,
    "search.initial_samples=0", "search.round_samples=-7", "search.valid_samples=0", "search.lr_decades=-1",
    "search.lr_decades=inf", "search.lr_decades=1e300", "search.lr_min=0", "search.lr_min=nan", "search.lr_max=inf",
    "search.lr_max=1e-9", "search.batch_min=0", "search.batch_max=0", "search.selection=best",
    "search.selection_noise=-1", "search.selection_noise=1e308", "search.patience=0", "search.min_improvement=2",
    "trainer.batch_size=0", "trainer.batch_size=-1", "trainer.batch_size=1000000000000", "trainer.batch_size=x",
    "trainer.optimizer.name=adan", "trainer.optimizer.name=null", "trainer.optimizer.name=''",
    "trainer.optimizer.name='\x1b]0;x\x07'", "trainer.optimizer.lr=0", "trainer.optimizer.lr=-1",
    "trainer.optimizer.lr=inf", "trainer.optimizer.lr=nan", "trainer.optimizer.lr=1e3", "trainer.optimizer.momentum=1",
    "trainer.optimizer.momentum=-0.1", "trainer.optimizer.momentum=nan", "trainer.optimizer.weight_decay=-1",
    "trainer.optimizer.weight_decay=inf", "trainer.optimizer=sgd", "trainer.clip_norm=0", "trainer.clip_norm=nan",
    "trainer.clip_norm=inf", "trainer.schedule=linear", "trainer.precision=fp8", "trainer.execution=fast",
    "trainer.engine=ray2", "trainer.start=middle", "trainer.processes=0", "trainer.processes=1.5",
    "trainer.processes=100000", "trainer.threads=0", "trainer.threads=1000000000", "trainer.memory_limit=0",
    "trainer.memory_limit=inf", "trainer.memory_limit=-1", "trainer.shuffle=perhaps", "device=gpu", "device=cuda:x",
    "device=cuda:-1", "device=cpu:7", "device=''", "device=cuda:²", "outputs=''", "outputs=null", "outputs=[a]",
    "lecture.batch_size=0", "lecture.weight_decay=-1", "lecture.max_samples=x", "trainer=nosuch",
    "dataset.seed=" + "9" * 5000,
)  # fmt: skip
NUMBERS = (
    "0", "-0.0", "1", "2", "3", "4", "-1", "7", "0.5", "1.5", "1e-320", "1e-9", "100", "1e9", "1e30", "1e300", "-1e300",
    "inf", "-inf", "nan", "1000000000", "1000000000000", "9" * 30, "true", "null",
)  # fmt: skip
WORDS = (
    "''", "x", "many", "[]", "[1]", "[1,2]", "[2,1]", "[0,0]", "[-1,3]", "[nan,1]", "[1,inf]", "[1,2,3]", "[[1],[2]]",
    "[a,b]", "[1000000000,1000000000]", "[1e300,1e300]", "{a:1}", "'\x1b[2J'", "größe", "'a b'", "${seed}", "relu",
    "half", "synthetic", "/", "~", "~nosuchuser", "..", "'" + "y" * 4000 + "'", "'\x00'", "BGGR", "max",
)  # fmt: skip


def fields_of(node: dict[str, Any], prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name in node if not name.startswith("_")]


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def overlap(word: str, other: str) -> bool:
    """Whether one of two settings may take the other's place."""
    one, two = key_of(word) + ".", key_of(other) + "."
    return one.startswith(two) or two.startswith(one)


@st.composite
def configs(draw: st.DrawFn, pairs: Sequence[tuple[str, str]], fields: dict[tuple[str, str], list[str]]) -> Any:
    """Words of a command, and what is to come of them: 'runs', 'refused' or 'either'."""
    pair = draw(st.sampled_from(pairs))
    words = [f"experiment={pair[0]}", f"model={pair[1]}", *TINY, *SMALL.get(pair[0], ())]
    kind = draw(st.sampled_from(["valid", "wrong", "wrong", "wrong", "either", "either", "either", "either"]))
    if kind == "either":
        field = st.sampled_from(fields[pair]).flatmap(
            lambda name: st.sampled_from(NUMBERS * 2 + WORDS).map(lambda value: f"{name}={value}")
        )
        given_ = draw(st.lists(st.one_of(field, field, st.sampled_from(VALID)), min_size=1, max_size=3))
    else:
        wrong = [draw(st.sampled_from(WRONG))] if kind == "wrong" else []
        beside = [word for word in VALID if not any(overlap(word, other) for other in wrong)]
        given_ = draw(st.lists(st.sampled_from(beside), min_size=kind == "valid", max_size=3)) + wrong
    return kind, [*words, *draw(st.permutations(given_))], given_


def judged(kind: str, outcome: Outcome, given_: Sequence[str]) -> bool:
    """Whether a command ended as it may: a learning rate that explodes is no wrong setting, and exit code 3."""
    learned = outcome.ran() or (outcome.code == 3 and "Traceback" not in outcome.err)
    # Two valid settings may contradict each other, but the message then names one of them.
    names = [key_of(word).removesuffix("._target_") for word in given_]
    named = any(name.rpartition(".")[2] in outcome.err for name in names if name)
    refused = outcome.refused() and (named or any(word in outcome.err for word in given_) or "model=" in outcome.err)
    return {"valid": learned or refused, "wrong": refused, "either": learned or refused}[kind]


def rows(short: bool) -> list[Row]:
    experiments = {choice.name: choice.models for choice in catalog.choices("experiment")}
    weights = {name: 6 if name in QUICK else 1 for name in (QUICK if short else (*QUICK, *SLOW))}
    pairs = [(name, model) for name, weight in weights.items() for model in experiments[name] for _ in range(weight)]
    fields = {}
    for name, model in dict.fromkeys(pairs):
        config, _ = cli.compose([f"experiment={name}", f"model={model}"])
        fields[name, model] = fields_of(config["dataset"], "dataset") + fields_of(config["model"], "model")
    count = {"valid": [0, 0, 0], "wrong": [0, 0, 0], "either": [0, 0, 0]}  # cases, passed, of these run

    @settings(
        max_examples=SHORT if short else CASES, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(configs(pairs, fields))
    def one(case: Any) -> None:
        kind, words, given_ = case
        outcome = command(words)
        passed = judged(kind, outcome, given_)
        if not passed:
            show(words[len(TINY) :], outcome)
        count[kind] = [a + b for a, b in zip(count[kind], (1, passed, outcome.code == 0), strict=True)]
        if (done := sum(cases for cases, _, _ in count.values())) % 100 == 0:
            print(f"config_fuzz: {done:,} of {CASES:,}", file=sys.stderr)

    machine.reset_peak_memory()
    with bounded():
        one()
    peak = f"peak memory {machine.peak_memory_bytes() / 1e9:.1f} GB"
    said = {
        "valid": "settings that are valid one by one",
        "wrong": "settings with a wrong one among them",
        "either": "fields of datasets and models at the edges and beyond",
    }
    return [Row(said[kind], cases, passed, f"{ran} ran; {peak}") for kind, (cases, passed, ran) in count.items()]
