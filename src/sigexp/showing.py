"""The verbs that show: a preview of a dataset, and TensorBoard."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigexp.names import Names


def preview(config: Mapping[str, Any], names: Names, output: Path | None) -> str:
    """Write a picture of the first training examples; returns the lines to print."""
    import torch

    from sigexp import config as configuration
    from sigexp.config import ConfigError
    from sigexp.problem import expected
    from sigexp.report import figures

    if not isinstance(config["dataset"], Mapping):
        raise ConfigError("no dataset: give experiment=NAME or dataset=NAME (`sigexp list` shows them)")
    problem = expected(configuration.build(config["dataset"], what="dataset"), config["dataset"]["_target_"])
    inputs, targets = problem.sample("train", torch.arange(8 if problem.kind == "class" else 4))
    if problem.kind == "class":
        labels = problem.labels or tuple(map(str, range(problem.classes or 0)))
        picture = figures.class_grid(inputs, [labels[t] for t in targets.tolist()])
    else:
        picture = figures.example_rows(problem, {"input": inputs, "target": targets})
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


def free_port(first: int) -> int:
    """The first port from `first` on that nobody on this machine listens on."""
    for port in range(first, min(first + 200, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ValueError(f"--port {first}: no free port from there on; give another")


def board(folder: Path, first_port: int) -> int:
    """Serve TensorBoard for a folder on localhost until interrupted."""
    from tensorboard import program

    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(folder), "--host", "127.0.0.1", "--port", str(free_port(first_port))])
    print(f"TensorBoard of {folder}: {server.launch()} (Ctrl-C ends it)", flush=True)
    import threading

    threading.Event().wait()
    return 0
