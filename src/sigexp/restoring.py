"""The config of a run out of its folder, for what goes on with it: resume, replay. The folder may be a stranger's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigexp.names import Names

REPLAY = "sigexp.search.replay.Replay"  # which no conf offers, because `sigexp replay` writes it
PARTS = (("dataset", ("dataset", "experiment")), ("model", ("model",)), ("search", ("search",)))


def restored(folder: Path, settings: Sequence[str], trust: Sequence[str]) -> tuple[dict[str, Any], Names]:
    """The config of config.yaml with settings of the command line, and its names.

    Raises ValueError for what is missing or damaged, and for what a folder may not say: targets that neither conf
    offers, values that would be computed, paths that lead out of the working directory.
    """
    from omegaconf import OmegaConf

    from sigexp.config import Config
    from sigexp.track.record import load_yaml, mapping
    from sigexp.trust import check_targets, leads_out, own_outputs, refuse_magic, targets

    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a run's folder has it")
    found = mapping(load_yaml(folder, path.name))
    refuse_magic(found, path)
    names = names_in(found.pop("names", None), path)
    found["outputs"] = own_outputs(folder, found.get("outputs")) or "outputs"
    anew = {word.partition("=")[0] for word in settings}
    for part, groups in PARTS:
        named = [target for target in targets(found.get(part)) if target != REPLAY or part != "search"]
        check_targets(named, groups, trust, path)
        for name, value in mapping(found.get(part)).items():
            if leads_out(value) and f"{part}.{name}" not in anew:
                raise ValueError(f"{path}: {part}.{name}={value!r} leads out of the working directory; say it again")
    search = mapping(found.get("search"))
    own = {name: search[name] for name in search if name not in Config().search.__dict__}  # of this search alone
    found["search"] = {name: value for name, value in search.items() if name not in own}
    typed = OmegaConf.from_dotlist(list(settings))
    whole = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(Config), found, typed), resolve=True)
    assert isinstance(whole, dict)
    del whole["sweep"]  # no part of a run's config
    whole["search"] = {**whole["search"], **own}
    return {str(key): value for key, value in whole.items()}, names


def names_in(found: Any, path: Path) -> Names:
    """The names of a run, which become folders: plain words only."""
    keys = ("experiment", "dataset", "model", "search")
    chosen = [found.get(key) if isinstance(found, Mapping) else None for key in keys]
    if not all(isinstance(name, str) and re.fullmatch(r"\w[\w.@-]{0,99}", name) for name in chosen):
        raise ValueError(f"{path}: damaged, or none of sigexp's (names: {str(found)[:80]!r})")
    experiment, dataset, model, search = map(str, chosen)
    return Names(experiment, dataset, model, search)
