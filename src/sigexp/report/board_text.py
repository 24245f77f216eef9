"""What TensorBoard says of a run in words: settings, layers, result; and the layout of its charts."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from sigexp.names import Names
from sigexp.report.tables import number, ranked, test_sets
from sigexp.track.events import Node


def layout(experiment: str, headline: str) -> dict[str, dict[str, Any]]:
    """The custom scalars tab. Runs of the same experiment share their charts of what is learned, all runs the others.

    TensorBoard adds the charts of later runs to the first one's categories, so all runs have the same categories.
    """
    judged = f"{experiment}/{headline}"
    here, known = (re.escape(f"{group}/{judged}/") for group in ("learning", "references"))
    band = tuple(f"learning/{judged}/{name}" for name in ("median", "quantile_25", "quantile_75"))
    return {
        "Learning": {
            f"{experiment}: {headline} on validation data, and references": [f"{here}(best|median)$", f"{known}.*"],
            f"{experiment}: {headline}, median and quartiles of the population": [band],
        },
        "Population": {
            "training and validation loss": ["loss/(train|valid)/(best|median)$"],
            "learning rate": ["population/lr/.*"],
            "batch size": ["population/batch_size/.*"],
        },
    }


def hparams_of(config: Mapping[str, Any], names: Names, headline: str) -> dict[str, str | float | int]:
    """The same keys for every run, so that the hparams tab compares all of them."""
    optimizer, search = config["trainer"]["optimizer"], config["search"]
    return {
        "experiment": names.experiment,
        "model": names.model,
        "metric": headline,
        "search": names.search,
        "optimizer": optimizer["name"],
        "lr": float(optimizer["lr"]),
        "batch_size": config["trainer"]["batch_size"],
        "members": search["members"],
        "max_samples": search["max_samples"],
        "footprint": config["footprint"],
        "seed": config["seed"],
        "dataset_seed": int(config["dataset"].get("seed", 0)),
    }


def indented(text: str) -> str:
    """A block of code in Markdown, whatever the text holds."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def described(model: nn.Module, nodes: Collection[Node]) -> str:
    """A model's layers as a table, where its graph is known, and as torch writes it."""
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        f"| {node.name} | {node.about['settings']} | {'x'.join(map(str, (node.shape or ())[1:]))} "
        f"| {node.about['parameters']} |"
        for node in nodes
        if "parameters" in node.about
    ]
    head = ["| layer | settings | output | parameters |", "|---|---|---|---:|"] if rows else []
    return "\n".join([f"**{total:,} parameters**", "", *head, *rows, "", indented(str(model))])


def verdict(result: Mapping[str, Any]) -> str:
    """The result in Markdown: the learned model among the references, on every test set; the claims."""
    test, learned = result["best"]["test"], f"{result['model']['name']} (learned)"
    rows = {learned: test, **result["references"]}
    lines = [f"**{result['experiment']}, {result['model']['name']}**: {result['parameters']:,} parameters, "
             f"{result['samples']:,} member-samples, {result['seconds']:.0f} s"]  # fmt: skip
    for name, metrics in test_sets(test).items():
        short = [metric.rpartition("/")[2] for metric in metrics]
        lines += ["", f"test data{name and ', ' + name}", "", "| predictor | " + " | ".join(short) + " |"]
        lines.append("|---|" + "---:|" * len(metrics))
        for row in ranked(rows, metrics[0]):
            cells = [number(rows[row].get(metric), metric) for metric in metrics]
            if any(cells):
                mark = "**" if row == learned else ""
                lines.append(
                    f"| {mark}{row}{mark} | " + " | ".join(f"{mark}{c}{mark}" if c else "" for c in cells) + " |"
                )
    words = {True: "holds", False: "**does not hold**", None: "measured"}
    lines += ["", *(f"- claim {words[claim['holds']]}: {claim['text']}" for claim in result["claims"])]
    return "\n".join(lines)
