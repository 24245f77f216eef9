"""sigexp from Python: `sigexp.run("bayer", model="deep")` and `sigexp.load(RUN)`."""

from pathlib import Path
from typing import Any

from torch import nn

from sigexp import cli, experiment, saved
from sigexp.experiment import Run
from sigexp.fields import override_text


def run(name: str, **settings: Any) -> Run:
    """Run an experiment as the command line would and return its folder, result and best model.

    Settings are the command line's, with `__` for a dot: `run("bayer", model="deep", search__max_samples=10_000)`.
    The process's allocator is left as it is. Raises ValueError for what cannot
    work and `sigexp.search.rounds.Diverged` where every member diverged.
    """
    overrides = [f"experiment={name}"]
    overrides += [f"{key.replace('__', '.')}={override_text(value)}" for key, value in settings.items()]
    try:
        config, names = cli.compose(overrides)
    except Exception as error:
        raise ValueError(cli.explain(error)[1]) from error
    return experiment.run(config, names, overrides, f"sigexp.run({name!r}, ...): {' '.join(overrides)}")


def load(folder: str | Path) -> nn.Module:
    """The best model of a run's folder, in evaluation mode."""
    cli.prepare()
    return saved.load_model(Path(folder))
