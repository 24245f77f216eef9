"""The command line: `sigexp VERB ...`, or Hydra overrides for a run.

Verbs that only read, and `--help`, import neither Hydra nor torch. What a user can cause ends as one or two lines on
standard error with exit code 2; `HYDRA_FULL_ERROR=1` shows the traceback.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sigexp import __version__, catalog, garbage, stopping
from sigexp.usage import FIRST, HELP, WrongCommand
from sigexp.verbs import VERBS, carry_out

ONLY_SHOW = ("help", "hydra_help", "cfg", "info", "shell_completion")  # Hydra's options with which nothing is trained


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if words is None else words)
    # Examples are drawn in threads of our own; BLAS threads inside them only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return command(words)
    except KeyboardInterrupt as stop:
        say(how_to_go_on(words, [str(arg) for arg in stop.args]))
        return 143 if isinstance(stop, stopping.Interrupted) else 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing to say to it
        return 0
    except Exception as error:
        if full:
            raise
        code, message = explain(error)
        say(message)
        return code


def how_to_go_on(words: Sequence[str], about: Sequence[str]) -> str:
    """What an interrupted user is told. about: the folder of the run under way and what is saved of it, if any."""
    saved = "".join(f"; {one}" for one in about[1:])
    if about and "reproduce" not in words[:1]:
        return f"interrupted{saved}. Go on with: sigexp resume {shlex.quote(about[0])}"
    return f"interrupted{saved}. Start again with: sigexp {shlex.join(words)}"


def say(message: str) -> None:
    """An error's lines on standard error; names out of a folder steer no terminal."""
    from sigexp.track.documents import printable

    print("\n".join(map(printable, f"sigexp: {message}".split("\n"))), file=sys.stderr)


def command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP if words else FIRST, end="")
        return 0
    if words[0] in ("--version", "-V"):
        print(f"sigexp {__version__}")
        return 0
    if words[0] in VERBS:
        return carry_out(words[0], words[1:])
    if not words[0].startswith("-") and "=" not in words[0] and words[0][:1] not in ("~", "+"):
        from sigexp.fields import did_you_mean

        hint = did_you_mean(words[0], VERBS)
        raise WrongCommand(f"{words[0]!r} is neither a verb nor a setting NAME=VALUE{hint}; `sigexp --help` shows both")
    return hydra_run(words)


def wrong_words(message: str) -> Any:
    raise WrongCommand(f"{message}; `sigexp --help` shows what there is")


def prepare(trust: Sequence[str] = ()) -> None:
    """What a process of ours needs before it composes a config: the schema, and the user's modules beside ./conf, or
    those that `--trust` names."""
    from sigexp import config

    config.register()
    if (trust or catalog.user_conf()) and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # appended: a user's file must not hide a package of ours


def names_of(choices: dict[str, Any]) -> Any:
    from sigexp.names import Names

    dataset, experiment = choices.get("dataset"), choices.get("experiment")
    if experiment is not None and "/" in str(experiment):
        experiment = str(experiment).replace("/", "-")
    named = experiment or dataset or "unnamed"
    conf = catalog.digests({group: str(name) for group, name in choices.items() if not group.startswith("hydra")})
    return Names(str(named), str(dataset or named), str(choices.get("model")), str(choices.get("search")), conf)


def compose(overrides: list[str]) -> tuple[dict[str, Any], Any]:
    """The resolved config of a run without starting it."""
    prepare()
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from sigexp import config

    with initialize_config_dir(version_base="1.3", config_dir=str(catalog.conf_dir())):
        cfg = hydra_compose("config", overrides=overrides, return_hydra_config=True)
        return config.plain(cfg), names_of(dict(cfg.hydra.runtime.choices))


def hydra_run(words: list[str]) -> int:
    """Everything that is not a verb: Hydra composes, sweeps and calls `task` for every job."""
    prepare()
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import DictConfig

    from sigexp import config
    from sigexp.population import building

    parser = get_args_parser()
    parser.error = wrong_words  # type: ignore[method-assign]
    sys.argv = ["sigexp", *overrides_first(words, parser)]
    if not any(getattr(parser.parse_args(sys.argv[1:]), name) for name in ONLY_SHOW):
        building.begin()  # beside the imports of what a run needs
    failures: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        info = HydraConfig.get()
        if info.mode == RunMode.MULTIRUN:
            from sigexp.sweep_job import run_job

            run_job(cfg)
            return None
        try:
            names = names_of(dict(info.runtime.choices))
            return one_run(config.plain(cfg), names, list(info.overrides.task))
        except Exception as error:
            failures.append(error)  # Hydra would print lines of its own
            return None

    with errors_raised():
        hydra.main(version_base="1.3", config_path=str(catalog.conf_dir()), config_name="config")(task)()
    if failures:
        raise failures[0]
    return 0


@contextmanager
def errors_raised() -> Iterator[None]:
    """Let Hydra raise what goes wrong, which it else prints; `main` decides what is shown."""
    previous = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["HYDRA_FULL_ERROR"]


def overrides_first(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Hydra's parser wants all settings in one group: settings first, options behind, in whatever order they came."""
    overrides = list(parser.parse_intermixed_args(words).overrides)
    if nameless := [word for word in overrides if word.lstrip("+~").startswith("=")]:
        wrong_words(f"{nameless[0]!r}: expected NAME=VALUE")
    options = list(words)
    for word in overrides:
        options.remove(word)
    return [*overrides, *options]


def one_run(config: dict[str, Any], names: Any, overrides: list[str]) -> float:
    """One job: run it and show the result. Returns its loss on validation data."""
    done = start(config, names, overrides)
    from sigexp import machine
    from sigexp.report.terminal import show_result

    show_result(done.result, str(done.folder))
    loss = float(done.result["best"]["valid"]["loss"])
    del done
    machine.release_memory()  # a sweep's next job follows in this process
    return loss


def start(
    config: dict[str, Any], names: Any, overrides: list[str], command: str = "", again: Path | None = None
) -> Any:
    """Set up the process for a run, and run it; what it came to is an `experiment.Run`.

    command: what the record says it was started by; by default the overrides. again: the folder of a run that is taken
    up.
    """
    from sigexp import config as config_module
    from sigexp import effects, machine

    config_module.check(config)
    for line in effects.without_effect(config, names, overrides):
        say(line)
    trainer = config["trainer"]
    tuned = trainer["tune_allocator"] and machine.tune_allocator()
    machine.configure_torch(trainer["threads"], trainer["deterministic"])
    from sigexp import experiment

    garbage.now()
    said = command or shlex.join(["sigexp", *overrides])
    return experiment.run(config, names, overrides, said, allocator_tuned=tuned, again=again)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    from sigexp.errors import explanation

    return explanation(error)


def script() -> None:
    """The console script."""
    garbage.later()
    stopping.install()
    code = main()
    garbage.never()
    sys.exit(code)


if __name__ == "__main__":
    script()
