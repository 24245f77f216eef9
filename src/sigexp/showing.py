"""The verbs that show: what can be chosen, a preview of a dataset, TensorBoard."""

import json
import shutil
import socket
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigexp import catalog
from sigexp.names import Names
from sigexp.usage import Parser, WrongCommand

LEAST_COLUMNS = 20  # for words beside a list's names; in less it is not folded


def list_choices(words: list[str]) -> int:
    """`sigexp list`: what can be chosen, a line each."""
    parser = Parser(prog="sigexp list", description="What can be chosen, from the packaged conf and your own ./conf.")
    parser.add_argument("kind", nargs="?", choices=list(catalog.KINDS), metavar="|".join(catalog.KINDS))
    parser.add_argument("--json", action="store_true", help="machine-readable")
    arguments = parser.parse_args(words)
    kinds = [arguments.kind] if arguments.kind else list(catalog.KINDS)
    found = {kind: catalog.choices(catalog.KINDS[kind]) for kind in kinds}
    if arguments.json:
        print(json.dumps({kind: [vars(choice) for choice in items] for kind, items in found.items()}, indent=2))
        return 0
    for kind, items in found.items():
        print(f"{kind}:")
        width = max((len(choice.name) for choice in items), default=0)
        for choice in items:
            own = " (your ./conf)" if choice.own else ""
            models = f"  [{', '.join(choice.models)}]" if choice.models else ""
            print(folded(f"  {choice.name:<{width}}  {choice.description}{models}{own}", width + 4))
    return 0


def folded(line: str, indent: int) -> str:
    """A line in as many as the terminal's width asks for, the further ones indented; one where it is piped."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if len(line) <= columns or columns < indent + LEAST_COLUMNS:
        return line
    filled = textwrap.TextWrapper(columns, subsequent_indent=" " * indent, break_on_hyphens=False)
    return filled.fill(line)


def preview(words: list[str]) -> int:
    """`sigexp preview experiment=NAME`: a picture of inputs and targets."""
    parser = Parser(prog="sigexp preview", description="A picture of inputs and targets before any training.")
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="as for a run: experiment=bayer dataset.seed=1"
    )
    parser.add_argument("-o", "--output", type=Path, help="the PNG file to write (preview-NAME.png)")
    arguments = parser.parse_intermixed_args(words)
    from sigexp import cli

    config, names = cli.compose(arguments.settings)
    print(draw(config, names, arguments.output))
    return 0


def draw(config: Mapping[str, Any], names: Names, output: Path | None) -> str:
    """Write a picture of the first training examples; returns the lines to print."""
    import torch

    from sigexp import config as configuration
    from sigexp.config import ConfigError
    from sigexp.problem import expected
    from sigexp.report import pictures, snapshots

    if not isinstance(config["dataset"], Mapping):
        raise ConfigError("no dataset: give experiment=NAME or dataset=NAME (`sigexp list` shows them)")
    problem = expected(configuration.build(config["dataset"], what="dataset"), config["dataset"]["_target_"])
    inputs, targets = problem.sample("train", torch.arange(8 if problem.kind == "class" else 4))
    if problem.kind == "class":
        labels = problem.labels or tuple(map(str, range(problem.classes or 0)))
        picture = snapshots.decisions(inputs, [labels[t] for t in targets.tolist()])
    else:
        picture = snapshots.examples(problem.kind, {"input": inputs, "target": targets}, side=pictures.SIDE)
    path = (output or Path(f"preview-{names.experiment}")).with_suffix(".png")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    path.write_bytes(picture)
    shapes = problem.shapes()
    sizes = ", ".join(f"{split} {'stream' if n is None else n}" for split, n in problem.sizes.items())
    source = "; ".join(f"{key}: {value}" for key, value in problem.source.items())
    return "\n".join(
        [
            f"{names.experiment}: {problem.kind} problem, inputs {list(shapes[0])}, targets {list(shapes[1])}",
            f"examples: {sizes}; metrics: {', '.join(problem.metrics)}",
            f"references: {', '.join(problem.references) or 'none'}",
            *([f"data: {source}"] if source else []),
            f"picture: {path}",
        ]
    )


def board(words: list[str]) -> int:
    """`sigexp board [DIR]`: TensorBoard, on this machine only."""
    parser = Parser(prog="sigexp board", description="TensorBoard on localhost for the runs in a folder.")
    parser.add_argument("folder", nargs="?", default="outputs", type=Path, metavar="DIR")
    parser.add_argument("--port", type=int, default=6006, help="first port to try (6006)")
    arguments = parser.parse_args(words)
    if not arguments.folder.is_dir():
        raise WrongCommand(f"{arguments.folder}: no such folder; give the folder the runs are in, or start a run first")
    return serve(arguments.folder, arguments.port)


def free_port(first: int) -> int:
    """The first port from `first` on that nobody on this machine listens on."""
    if not 0 <= first < 65536:
        raise ValueError(f"--port {first}: expected a number from 0 to 65535")
    for port in range(first, min(first + 200, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ValueError(f"--port {first}: no free port from there on; give another")


def plugins() -> list[Any]:
    """TensorBoard's tabs without its projector, which reads any file of this machine that a folder's
    projector_config.pbtxt names."""
    from tensorboard import default

    return [one for one in default.get_plugins() if getattr(one, "__name__", "") != "ProjectorPlugin"]


def serve(folder: Path, first_port: int) -> int:
    """Serve TensorBoard for a folder on localhost until interrupted."""
    from tensorboard import program

    server = program.TensorBoard(plugins=plugins())
    server.configure(argv=[None, "--logdir", str(folder), "--host", "127.0.0.1", "--port", str(free_port(first_port))])
    print(f"TensorBoard of {folder}: {server.launch()} (Ctrl-C ends it)", flush=True)
    import threading

    threading.Event().wait()
    return 0
