"""What a run may be told: the typed schema, its cross-field checks, and the one safe instantiate.

Nothing here imports torch, so that a typing error is answered at once.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from sigexp.fields import accepts, describe, did_you_mean, setting_meant
from sigexp.ranges import out_of_range


class ConfigError(ValueError):
    """A setting that cannot work; the message says what was given, what was expected and what to do."""


@dataclass
class Optimizer:
    """Values of a `search=fixed` run and the start of the other searches."""

    name: str = "sgd"  # sgd, adam or adamw
    lr: float = 0.01
    momentum: float = 0.9  # SGD's momentum; Adam's beta1
    weight_decay: float = 1e-5
    nesterov: bool = False  # of SGD


@dataclass
class Trainer:
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: int = 100
    start: str = "random"  # least_squares: of two convolutions, as the best linear filter of what they see
    precision: str = "fp32"  # fp32 or bf16 (autocast)
    schedule: str = "constant"  # constant or cosine: over search.max_samples
    clip_norm: float | None = None  # each member's gradient norm is clipped to this
    shuffle: bool = True  # false: minibatches are contiguous slices from a random start
    # auto: what is measured to be quickest; together, sequential: all members at once, one by
    # one; moments: from second-order statistics, for linear models
    execution: str = "auto"
    engine: str = "local"  # ray: actors in place of processes, on the cluster RAY_ADDRESS or on this machine
    # auto: one for every core where that is quicker, with ray as many as are free; the number changes no result
    processes: Any = "auto"
    threads: int | None = None  # of the arithmetic; null: all cores
    memory_limit: float | None = None  # GB for the activations of one pass; null: half of what is free
    compile: bool = False  # torch.compile; it takes half a minute before the first step, and the members one by one
    tune_allocator: bool = True  # glibc keeps big tensors' memory between steps: several times quicker
    deterministic: bool = True


@dataclass
class Search:
    _target_: str = MISSING
    members: int = 8
    survivors: int = 4
    initial_samples: int = 2000  # for each initial member
    round_samples: int = 2000  # for each member and round
    max_samples: int = 100_000  # member-samples of the whole search
    lr_decades: float = 1.0  # initial learning rates: trainer.optimizer.lr x 10^(-decades .. decades)
    lr_min: float = 1e-7
    lr_max: float = 1e2
    batch_min: int = 1
    batch_max: int = 1000
    selection: str = "valid"  # by validation loss; train: by the mean of the last 100 minibatch losses
    valid_samples: int = 500  # validation examples a round is scored on, at most
    selection_noise: float = 0.0  # the score is multiplied by 1 + noise x N(0, 1)
    patience: Any = "auto"  # rounds without improvement before it stops; auto: 12, null under a schedule
    min_improvement: float = 0.001  # relative; less does not count


@dataclass
class Lecture:
    """What `search=lecture` uses: the lecture's settings of one experiment."""

    batch_size: int = 200
    initial_samples: int = 10_000
    round_samples: int = 10_000
    max_samples: int = 1_000_000
    weight_decay: float = 1e-5


@dataclass
class Sweep:
    """What `-m` does with its jobs; no part of any job's own config."""

    on_error: str = "go_on"  # stop: no further job begins when one has failed
    rerun: str = "missing"  # finished jobs are skipped, interrupted ones go on; all: every job runs anew


@dataclass
class Config:
    seed: int = 0  # initial weights and search; dataset.seed is the data's own
    device: str = "auto"
    outputs: str = "outputs"
    footprint: int = 5  # kernel size in pixels or samples, read by the models
    models: list[str] = field(default_factory=list)  # models of the experiment, default first
    lecture: Lecture = field(default_factory=Lecture)
    dataset: Any = None
    model: Any = None
    search: Search = field(default_factory=Search)
    trainer: Trainer = field(default_factory=Trainer)
    sweep: Sweep = field(default_factory=Sweep)


def paths_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Every field of a schema and of those inside it: 'trainer', 'trainer.optimizer', 'trainer.optimizer.lr'."""
    for name, annotation in get_type_hints(schema).items():
        if not name.startswith("_"):
            yield f"{prefix}{name}"
            if isinstance(annotation, type) and is_dataclass(annotation):
                yield from paths_of(annotation, f"{prefix}{name}.")


SETTINGS = tuple(paths_of(Config))


def register() -> None:
    node = OmegaConf.structured(Config)
    OmegaConf.set_struct(node.search, False)  # a search's YAML may have fields of its own, which `check` judges
    # A sweep over experiments is first composed without one; its settings of a dataset and a model have a place then.
    node.dataset, node.model = (OmegaConf.create({}, flags={"struct": False}) for _ in range(2))
    ConfigStore.instance().store(group="schema", name="config", node=node, provider="sigexp")


def shown(value: Any) -> str:
    """A value in a message of one line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def beyond(value: Any) -> bool:
    """Whether a value is, or holds, NaN, an infinity or a number beyond 2^63."""
    if isinstance(value, (list, tuple)):
        return any(map(beyond, value))
    return isinstance(value, (int, float)) and not abs(value) < 2**63


def target_of(node: Mapping[str, Any], what: str) -> Callable[..., Any]:
    """The function or class a node names, or a `ConfigError` that says why it cannot be imported."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{what} names no _target_: give `_target_: module.function` in its YAML")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise ConfigError(f"{what}: cannot import _target_ {target!r}: {error}") from error
    if not callable(found) or inspect.isabstract(found):
        raise ConfigError(f"{what}: _target_ {target!r} is not a function or class that can be called")
    return found


def _parameters(target: Callable[..., Any], what: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError as error:  # of some builtins
        raise ConfigError(f"{what}: _target_ {target!r} does not say which fields it has") from error


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a target's arguments, none where they cannot be resolved."""
    try:
        return get_type_hints(target if inspect.isfunction(target) else target.__init__)
    except Exception:
        return {}


def check_fields(node: Mapping[str, Any], what: str) -> None:
    """Refuse unknown, missing and wrongly typed fields of a node, by the signature of its target."""
    target = target_of(node, what)
    signature = _parameters(target, what)
    shapes = 2 if what == "model" else 0  # a model's first two arguments are given by the dataset
    fields = list(signature.items())[shapes:]
    keywords = {name: p for name, p in fields if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    hints = _hints(target)
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in keywords:
            if open_ended and not str(name).startswith("_"):
                continue
            whole = f"{what}.{name}"
            known = [*(f"{what}.{keyword}" for keyword in keywords), *SETTINGS]
            raise ConfigError(f"{whole}: no such field{setting_meant(whole, known)}")
        if isinstance(value, Mapping) and "_target_" in value:
            continue
        annotation = hints.get(name, Any)
        if not accepts(annotation, value):
            raise ConfigError(f"{what}.{name}={shown(value)}: expected {describe(annotation)}")
        if what != "search" and beyond(value):  # its numbers have ranges
            raise ConfigError(f"{what}.{name}={shown(value)}: expected finite numbers below 2^63")
    missing = [name for name, p in keywords.items() if p.default is p.empty and name not in node]
    if missing:
        raise ConfigError(f"{what}: field {missing[0]!r} is missing; give {what}.{missing[0]}=...")


def build(node: Mapping[str, Any], *args: Any, what: str) -> Any:
    """Call a node's target with `args` and the node's fields. The only place that instantiates a config."""
    check_fields(node, what)
    try:
        return instantiate(dict(node), *args, _convert_="all")
    except Exception as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None  # Hydra's wrapper hides where it happened
        raise


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config of one run with every interpolation resolved, as plain dicts and lists."""
    if "hydra" in cfg or "sweep" in cfg:  # they are no part of it, and nothing may refer to them
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "sweep")])
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(f"{name}={value}: unknown{did_you_mean(value, options)}")


def check_sweep(given: Mapping[str, Any]) -> Sweep:
    """The `sweep` section; raises `ConfigError` for what it cannot be."""
    sweep = Sweep(**{str(name): value for name, value in given.items()})
    _one_of("sweep.on_error", sweep.on_error, ("go_on", "stop"))
    _one_of("sweep.rerun", sweep.rerun, ("missing", "all"))
    return sweep


def check(config: Mapping[str, Any]) -> None:
    """Cross-field checks of a resolved config; raises `ConfigError` for what cannot work."""
    _check_names(config)
    _check_choices(config)
    refused = out_of_range(config)
    if refused:
        raise ConfigError(refused)
    _check_pairs(config)
    check_fields(config["dataset"], "dataset")
    check_fields(config["model"], "model")


def _check_names(config: Mapping[str, Any]) -> None:
    """Refuse what is missing, and names that no setting has."""
    for name in Config.__dataclass_fields__:
        if name not in config and name != "sweep":
            raise ConfigError(f"{name}: missing; a setting cannot be taken away, only set")
    if not isinstance(config["dataset"], Mapping) or "_target_" not in config["dataset"]:
        raise ConfigError("no dataset: give experiment=NAME or dataset=NAME (`sigexp list` shows them)")
    if not isinstance(config["model"], Mapping) or "_target_" not in config["model"]:
        raise ConfigError("no model: give model=NAME (`sigexp list models` shows them)")
    sections = (
        ("", config, Config),
        ("search.", config["search"], Search),
        ("trainer.", config["trainer"], Trainer),
        ("trainer.optimizer.", config["trainer"]["optimizer"], Optimizer),
        ("lecture.", config["lecture"], Lecture),
    )
    for section, given, schema in sections:
        # A search may have fields of its own.
        own = _parameters(target_of(given, "search"), "search") if section == "search." else {}
        for name in given:
            if name not in schema.__dataclass_fields__ and name not in own:
                more = [f"search.{field}" for field in own]
                whole = f"{section}{name}"
                raise ConfigError(f"{whole}: no such field{setting_meant(whole, [*SETTINGS, *more])}")


def _check_choices(config: Mapping[str, Any]) -> None:
    """Refuse words that are none of a setting's options."""
    trainer, search = config["trainer"], config["search"]
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", config["device"]):
        raise ConfigError(f"device={config['device']}: expected auto, cpu, cuda, cuda:NUMBER or mps")
    if not config["outputs"].strip():
        raise ConfigError(f"outputs={config['outputs']!r}: expected a folder")
    _one_of("trainer.optimizer.name", trainer["optimizer"]["name"], ("sgd", "adam", "adamw"))
    _one_of("trainer.precision", trainer["precision"], ("fp32", "bf16"))
    _one_of("trainer.schedule", trainer["schedule"], ("constant", "cosine"))
    _one_of("trainer.start", trainer["start"], ("random", "least_squares"))
    _one_of("trainer.execution", trainer["execution"], ("auto", "together", "sequential", "moments"))
    _one_of("trainer.engine", trainer["engine"], ("local", "ray"))
    if trainer["engine"] == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("trainer.engine=ray: Ray is not installed; pip install 'sigexp[cluster]', or engine=local")
    _one_of("search.selection", search["selection"], ("valid", "train"))
    if trainer["processes"] != "auto" and type(trainer["processes"]) is not int:
        raise ConfigError(f"trainer.processes={trainer['processes']}: expected auto or a whole number of at least 1")
    if search["patience"] not in ("auto", None) and type(search["patience"]) is not int:
        raise ConfigError(f"search.patience={search['patience']}: expected auto, null or a whole number of rounds")


def _check_pairs(config: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other."""
    trainer, search, optimizer = config["trainer"], config["search"], config["trainer"]["optimizer"]
    if trainer["compile"] and trainer["execution"] in ("together", "moments"):
        raise ConfigError("trainer.compile=true compiles single members; use trainer.execution=sequential with it")
    if trainer["precision"] != "fp32" and trainer["execution"] == "moments":
        raise ConfigError("trainer.execution=moments computes in float32; use trainer.precision=fp32 with it")
    if optimizer["nesterov"] and (optimizer["name"] != "sgd" or optimizer["momentum"] == 0):
        raise ConfigError("trainer.optimizer.nesterov=true needs trainer.optimizer.name=sgd and a momentum")
    if search["survivors"] > search["members"]:
        raise ConfigError(
            f"search.survivors={search['survivors']} of search.members={search['members']}: "
            "no more can survive than there are; lower search.survivors"
        )
    ranges = (
        ("trainer.optimizer.lr", optimizer["lr"], "search.lr_min", search["lr_min"], "search.lr_max", search["lr_max"]),
        ("trainer.batch_size", trainer["batch_size"], "search.batch_min", search["batch_min"], "search.batch_max",
         search["batch_max"]),
    )  # fmt: skip
    for name, value, low_name, low, high_name, high in ranges:
        if not low <= value <= high:
            raise ConfigError(f"{name}={value}: expected {low_name}={low} to {high_name}={high}; widen the range")
    if search["max_samples"] < search["members"]:
        raise ConfigError(
            f"search.max_samples={search['max_samples']} for {search['members']} members: "
            "give at least one sample for each, or fewer search.members"
        )
