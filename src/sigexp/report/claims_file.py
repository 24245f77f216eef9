"""Claims in YAML, read and checked.

`conf/claims/<experiment>.yaml`, and files of the same name in the user's own `./conf/claims/`, map an id to a claim:

    linear_reaches_the_closed_form:
      text: One convolution learns the filter as well as the closed form does.
      run: {model: linear, search.max_samples: 48000}  # settings beside the experiment; equal ones share their runs
      metric: test.mse                                 # in result.json; test, train: of the best member
      at_most: {reference: least_squares_train, factor: 1.02}  # or a number; or at_least; or told: true, no bound
      also: [{metric: train.mse, at_most: 1.0e-4}]     # further conditions on the same run
      tested_on: {dataset.image_size: 256}             # judge the learned model on this test data instead
      lecture: 2.3e-5 on training data
      quick: {run: {search.max_samples: 6000}, at_most: 5.0e-5}  # replaces fields under --quick; false leaves it out

A reference's metric is the condition's own unless it gives another; its value is multiplied by `factor`, then
`offset` is added.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sigexp import catalog
from sigexp.fields import did_you_mean
from sigexp.report.claims import Claim, Condition, Settings, Threshold

COMPARISONS = ("at_most", "at_least", "told")
ROOTS = ("test", "train", "references", "best", "kernels", "excess", "learning_curve", "response")
NUMBERS = ("samples", "seconds", "train_seconds", "parameters", "peak_memory_bytes", "member_samples_per_second")
FIELDS = ("text", "run", "metric", *COMPARISONS, "also", "tested_on", "lecture", "quick")
QUICK_FIELDS = ("run", "metric", *COMPARISONS, "also", "tested_on")
CONDITION_FIELDS = ("metric", *COMPARISONS)
THRESHOLD_FIELDS = ("reference", "metric", "factor", "offset")


class ClaimError(ValueError):
    """A claim that cannot be read or judged; the message names the claim and its field."""


def select(names: Sequence[str], *, quick: bool = False) -> list[Claim]:
    """The claims of EXPERIMENT or EXPERIMENT/CLAIM, by default all; raises `ClaimError` for names of nothing."""
    known = experiments()
    found: dict[str, Claim] = {}
    for name in names or known:
        experiment, _, claim_id = name.partition("/")
        if experiment not in known:
            raise ClaimError(f"{name}: no experiment of this name has claims{did_you_mean(experiment, known)}")
        claims = {claim.id: claim for claim in load(experiment, quick=quick)}
        if claim_id and claim_id not in claims:
            left_out = claim_id in {claim.id for claim in load(experiment)}
            hint = "; --quick leaves it out" if left_out else did_you_mean(claim_id, claims)
            raise ClaimError(f"{name}: no such claim{hint}")
        found |= {claim.name: claim for claim in claims.values() if claim_id in ("", claim.id)}
    return list(found.values())


def experiments() -> list[str]:
    """The experiments that have claims; raises `ClaimError` for a file that is named after none."""
    known = {choice.name for choice in catalog.choices("experiment")}
    found = set()
    for conf in _confs():
        for path in sorted((conf / "claims").glob("*.yaml")):
            if path.stem not in known:
                raise ClaimError(f"{path}: there is no experiment {path.stem!r}{did_you_mean(path.stem, known)}")
            found.add(path.stem)
    return sorted(found)


def load(experiment: str, *, quick: bool = False) -> list[Claim]:
    """The claims of an experiment, the packaged ones first; with `quick`, as their `quick` fields change them."""
    claims: dict[str, Claim] = {}
    for conf in _confs():
        path = conf / "claims" / f"{experiment}.yaml"
        if not path.is_file():
            continue
        for name, node in _read(path).items():
            where = f"{path}: {name}"
            if name in claims:
                raise ClaimError(f"{where}: sigexp has a claim of this name; choose another")
            full, short = (_claim(where, experiment, name, node, q, conf != catalog.conf_dir()) for q in (False, True))
            chosen = short if quick else full
            if chosen:
                claims[name] = chosen
    return list(claims.values())


def _confs() -> list[Path]:
    return [conf for conf in (catalog.conf_dir(), catalog.user_conf()) if conf]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ClaimError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ClaimError(f"{path}: expected claims, each `id:` with its fields")
    return {str(name): node for name, node in found.items()}


def _claim(where: str, experiment: str, name: str, node: Any, quick: bool, own: bool) -> Claim | None:
    """A checked claim; None where --quick leaves it out."""
    node = _mapping(where, node, FIELDS)
    if not re.fullmatch(r"\w+", name):
        raise ClaimError(f"{where}: expected an id of letters, digits and _")
    change = node.pop("quick", {})
    if change is False and quick:
        return None
    if quick:
        change = _mapping(f"{where}.quick", change, QUICK_FIELDS)
        run = {
            **_settings(f"{where}.run", node.get("run", {})),
            **_settings(f"{where}.quick.run", change.get("run", {})),
        }
        node, where = {**node, **change, "run": run}, f"{where}.quick"
    text, lecture = node.get("text"), node.get("lecture", "")
    if not isinstance(text, str) or not text.strip():
        raise ClaimError(f"{where}.text: expected one sentence that says what the claim means")
    if not isinstance(lecture, (str, int, float)) or isinstance(lecture, bool):
        raise ClaimError(f"{where}.lecture: expected the lecture's number, or words")
    also = node.get("also", [])
    if not isinstance(also, list):
        raise ClaimError(f"{where}.also: expected a list of conditions, each with metric and at_most or at_least")
    conditions = [_condition(where, {key: node[key] for key in CONDITION_FIELDS if key in node})]
    conditions += [_condition(f"{where}.also[{i}]", part) for i, part in enumerate(also)]
    return Claim(
        experiment=experiment,
        id=name,
        text=" ".join(text.split()),
        run=_run(f"{where}.run", node.get("run", {})),
        conditions=tuple(conditions),
        tested_on=_settings(f"{where}.tested_on", node.get("tested_on", {})),
        lecture=str(lecture),
        own=own,
    )


def _mapping(where: str, node: Any, fields: Sequence[str]) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ClaimError(f"{where}: expected fields: {', '.join(fields)}")
    for name in node:
        if name not in fields:
            raise ClaimError(f"{where}.{name}: no such field{did_you_mean(str(name), fields)}")
    return dict(node)


def _settings(where: str, node: Any) -> Settings:
    if not isinstance(node, dict):
        raise ClaimError(
            f"{where}: expected settings as a mapping, such as {{model: linear, search.max_samples: 5000}}"
        )
    for name, value in node.items():
        if isinstance(value, dict):
            raise ClaimError(f"{where}.{name}: expected a value; write nested settings with dots, {name}.FIELD: VALUE")
    return {str(name): value for name, value in node.items()}


def _run(where: str, node: Any) -> Settings:
    """A run's settings; what it chooses must exist, and seeds are not its to set."""
    settings = _settings(where, node)
    if "model" not in settings:
        raise ClaimError(f"{where}.model: is missing; a claim names its model")
    for group in ("model", "dataset", "search"):
        known = [choice.name for choice in catalog.choices(group)]
        if group in settings and settings[group] not in known:
            raise ClaimError(
                f"{where}.{group}={settings[group]}: no such {group}{did_you_mean(settings[group], known)}"
            )
    for name in ("seed", "dataset.seed", "outputs", "experiment"):
        if name in settings:
            raise ClaimError(f"{where}.{name}: is set by `sigexp reproduce` itself; leave it out")
    return settings


def _condition(where: str, node: Any) -> Condition:
    node = _mapping(where, node, CONDITION_FIELDS)
    metric = node.get("metric")
    if not isinstance(metric, str):
        raise ClaimError(f"{where}.metric: expected a path into result.json, such as test.mse")
    _check_path(f"{where}.metric", metric)
    given = [name for name in COMPARISONS if name in node]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ClaimError(f"{where}: expected exactly one of {', '.join(COMPARISONS)}; got {got}")
    comparison = given[0]
    if comparison == "told":
        if node["told"] is not True:
            raise ClaimError(f"{where}.told={node['told']}: expected true, or at_most or at_least instead")
        return Condition(metric, comparison)
    return Condition(metric, comparison, _threshold(f"{where}.{comparison}", node[comparison], metric))


def _check_path(where: str, metric: str) -> None:
    root, *rest = metric.split(".")
    if not rest and root in NUMBERS:
        return
    if root not in ROOTS:
        raise ClaimError(f"{where}={metric}: no such number{did_you_mean(root, (*ROOTS, *NUMBERS))}")
    wanted = {"references": "references.NAME.METRIC"}.get(root, f"{root}.METRIC")
    if len(rest) != wanted.count(".") or not all(rest):
        raise ClaimError(f"{where}={metric}: expected {wanted}")


def _threshold(where: str, node: Any, metric: str) -> Threshold:
    if not isinstance(node, dict):
        return Threshold(offset=_number(where, node))
    node = _mapping(where, node, THRESHOLD_FIELDS)
    reference, own = node.get("reference"), node.get("metric", metric.rpartition(".")[2])
    if not isinstance(reference, str):
        raise ClaimError(f"{where}.reference: expected the name of a reference of the same run")
    if not isinstance(own, str):
        raise ClaimError(f"{where}.metric: expected the name of a metric, such as mse")
    factor, offset = (
        _number(f"{where}.{key}", node.get(key, default)) for key, default in (("factor", 1), ("offset", 0))
    )
    return Threshold(offset, factor, reference, own)


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ClaimError(f"{where}={value}: expected a number, or {{reference: NAME, factor: X, offset: Y}}")
    return float(value)
