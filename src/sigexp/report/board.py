"""What TensorBoard shows of one run: `sigexp board`.

Scalars: learning/EXPERIMENT/METRIC/{best,median,quantile_25,quantile_75} on validation data, loss/..., population/...,
references/EXPERIMENT/METRIC/NAME, test/METRIC. Images: progress/... of a handful of rounds, result/..., search/members.
Text: result, run/config, run/model. Beside them the model's graph, the run's line in the hparams tab, and the layout of
the custom scalars. Steps are member-samples of the search.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigexp import clock, sharing
from sigexp.metrics import METRICS, higher_is_better
from sigexp.names import Names
from sigexp.population.state import module_of
from sigexp.problem import Batch, Problem
from sigexp.report import model_graph, snapshots
from sigexp.report.board_text import described, hparams_of, indented, layout, verdict
from sigexp.report.pictures import has_own_scale, worth_showing
from sigexp.report.terminal import best_reference
from sigexp.report.tiles import kernel_weights
from sigexp.search.records import RoundRecord
from sigexp.signal.response import Response
from sigexp.track.documents import dump_yaml
from sigexp.track.events import Events, Node

log = logging.getLogger("sigexp")
EXAMPLES = 3
JUDGED = 200  # validation examples of the confusion matrix while a run goes on
MOMENTS = (0.0, 0.25, 0.5, 0.75)  # shares of the budget from which the next round is pictured, and the end
YOUNG_S = 5.0  # of a run, whose pictures wait: a run that ends by then is not held up by them
LEVELS = 4  # references beside a learning curve
COLUMNS = ("test/headline", "test/best_reference", *(f"test/{metric}" for metric in METRICS))
FIRST = ("experiment", "model", "metric", "seed", "lr")  # TensorBoard shows five columns, and others where ticked


class Board:
    """The event file of a run. A picture that cannot be drawn is missing, and run.log says why; OSError is raised."""

    def __init__(
        self,
        folder: Path,
        problem: Problem,
        names: Names,
        model: nn.Module,
        device: torch.device,
        budget: int,
        before: Sequence[RoundRecord] = (),
        pictured: int = -1,
    ) -> None:
        """before, pictured: the rounds of a run that is taken up again, and the step of its last pictures."""
        self.events, self.problem, self.device, self.budget = Events(folder), problem, device, budget
        self.names, self.judged = names, f"{names.experiment}/{problem.headline}"
        self.template = copy.deepcopy(model).to(device)
        self.taken_up = bool(before) or pictured >= 0
        self.rounds = list(before)
        self.due = [share for share in MOMENTS if share * budget > pictured]
        self.waiting: list[tuple[int, Mapping[str, Tensor]]] = []  # steps to be pictured, and the best member then
        self.began = clock.seconds()
        self.levels: dict[str, float] = {}
        self.pictured = pictured  # step of the last pictures of progress
        self.confusion = np.zeros((problem.classes or 0,) * 2)
        self.shown: Batch | None = None
        self.reference: tuple[str, Tensor] | None = None  # the best known predictor, and what it makes of `shown`

    def close(self) -> None:
        self.events.close()

    def begin(self, config: Mapping[str, Any]) -> None:
        """What is known before training: settings, model, graph, layout."""
        if self.taken_up:
            return  # an earlier file has it
        self.events.layout(layout(self.names.experiment, self.problem.headline))
        self.events.begin_hparams(hparams_of(config, self.names, self.problem.headline), COLUMNS, FIRST)
        self.events.text("run/config", indented(dump_yaml({"names": asdict(self.names), **config})))
        nodes: list[Node] = []
        try:
            shape = self.problem.shapes()[0]
            images = torch.zeros(1, *shape, device=self.device)
            nodes = sharing.once("graph", lambda: model_graph.graph(copy.deepcopy(self.template).eval(), images))
            self.events.graph(nodes)
        except OSError:
            raise
        except Exception as error:  # a model may do anything
            log.info("no graph for TensorBoard: %s", " ".join(str(error).split())[:200])
        self.events.text("run/model", described(self.template, nodes))

    def references(self, valid: Mapping[str, Mapping[str, float]]) -> None:
        """What validation data give by known predictors: reference -> metric -> value."""
        headline, problem = self.problem.headline, self.problem
        known = {name: found[headline] for name, found in valid.items() if math.isfinite(found.get(headline, math.nan))}
        for name in sorted(known, key=known.__getitem__, reverse=higher_is_better(headline))[:LEVELS]:
            self.levels[f"references/{self.judged}/{name}"] = known[name]
        if not self.taken_up:
            self.events.scalars(self.levels, 0)
        size = problem.sizes["valid"]
        count = JUDGED if problem.kind == "class" else EXAMPLES
        self.shown = problem.examples("valid", 0, count if size is None else min(size, count))
        drawn = {
            n: r.predict for n, r in problem.references.items() if r.predict and worth_showing(n, problem.references)
        }
        best = best_reference({name: {headline: known[name]} for name in drawn if name in known}, headline)
        if best is not None and problem.kind != "class":
            with torch.no_grad():
                self.reference = best[0], drawn[best[0]](self.shown.inputs)

    def round(self, done: RoundRecord) -> None:
        """After every round: scalars; at some of them pictures."""
        step = done.total_samples
        self.rounds.append(replace(done, best_state={}))
        self.events.scalars(round_scalars(done, self.judged), step)
        if self.due and step >= self.due[0] * self.budget:
            self.due = [share for share in self.due if share * self.budget > step]
            self.waiting.append((step, done.best_state))
        if clock.seconds() - self.began > YOUNG_S:
            self.catch_up()

    def catch_up(self) -> None:
        """The pictures that wait."""
        while self.waiting:
            step, state = self.waiting.pop(0)
            self.progress(module_of(self.template, state), step)

    def give_up(self) -> None:
        """The run has failed, and its pictures may say why."""
        with suppress(Exception):  # its own error is what counts
            self.catch_up()

    def progress(self, model: nn.Module, step: int) -> None:
        """Pictures of the best member so far; the same tags every time, so that a slider goes through them."""
        if step == self.pictured or self.shown is None:
            return
        self.pictured, shown = step, self.shown
        self.events.scalars(self.levels, step)
        with torch.no_grad():
            outputs = model.to(self.device).eval()(shown.inputs.to(self.device)).cpu()
        if self.problem.kind == "class":
            counts = count_decisions(outputs, shown.targets, self.problem.classes or 0)
            self.draw("progress/confusion", step, lambda: snapshots.confusion(counts, self.labels()))
        else:
            beside = dict([self.reference] if self.reference else [])
            columns = {"input": shown.inputs, "output": outputs, "target": shown.targets, **beside}
            own = has_own_scale(self.problem)
            self.draw("progress/examples", step, lambda: snapshots.examples(self.problem.kind, columns, own_scale=own))
        found = kernel_weights(model)
        if found is not None:
            self.draw("progress/kernels", step, lambda: snapshots.kernels(*found))

    def draw(self, tag: str, step: int, picture: Callable[[], bytes | None]) -> None:
        try:
            png = picture()
        except OSError:
            raise
        except Exception as error:  # a run is worth more than its pictures
            log.warning("no picture %s: %s", tag, " ".join(str(error).split())[:200])
            return
        if png is not None:
            self.events.picture(tag, png, step)

    def watch(self, index: Tensor, batch: Batch, outputs: Tensor) -> None:
        """Counts decisions while test data are passed over (`evaluation.Watch`)."""
        if self.problem.kind == "class":
            self.confusion += count_decisions(outputs.cpu(), batch.targets.cpu(), self.problem.classes or 0)

    def result(self, model: nn.Module, pictures: Mapping[str, bytes], looks: Response | None) -> None:
        """Pictures of the best member when the search has ended. pictures: those of the run's folder, as PNG."""
        step = self.rounds[-1].total_samples
        self.catch_up()
        self.progress(model, step)
        for name, png in pictures.items():
            if name != "kernels":  # progress has the last of them
                self.events.picture(f"result/{name}", png, step)
        true = self.problem.kernel
        if looks is not None and true is not None:
            self.draw("result/kernel_beside_true", step, lambda: snapshots.kernel_beside_true(looks, true))
        if self.confusion.any():
            self.draw("result/confusion", step, lambda: snapshots.confusion(self.confusion, self.labels()))
        self.draw("search/members", step, lambda: snapshots.members(self.rounds))

    def end(self, result: Mapping[str, Any]) -> None:
        """The result, and that the run is finished. result: what result.json holds."""
        step, headline, test = result["samples"], self.problem.headline, result["best"]["test"]
        scalars = {f"test/{name}": value for name, value in test.items()}
        scalars["test/headline"] = test[headline]
        best = best_reference(result["references"], headline)
        if best is not None:
            scalars["test/best_reference"] = best[1]
        self.events.scalars(scalars, step)
        self.events.text("result", verdict(result), step)
        self.events.end_hparams()

    def labels(self) -> Sequence[str]:
        return self.problem.labels or tuple(map(str, range(self.problem.classes or 0)))


def count_decisions(outputs: Tensor, targets: Tensor, classes: int) -> np.ndarray:
    """Logits [B, K] and class indices [B] as counts [K, K]: what it is, what the model says."""
    pairs = targets * classes + outputs.argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).double().numpy()


def round_scalars(done: RoundRecord, judged: str) -> dict[str, float]:
    """A population's round in numbers. judged: experiment/metric, whose 'best' is the best member of the search so
    far."""
    healthy = [m for m in done.members if not m.diverged]
    scalars = spread(f"learning/{judged}", [m.valid for m in healthy])
    scalars[f"learning/{judged}/best"] = done.best.valid
    for name, losses in (("train", [m.train_loss for m in healthy]), ("valid", [m.valid_loss for m in healthy])):
        scalars |= spread(f"loss/{name}", losses)
        if losses:
            scalars[f"loss/{name}/best"] = min(losses)
    for name in ("lr", "batch_size"):
        values = [m.hparams[name] for m in healthy]
        scalars[f"population/{name}/best"] = done.best.hparams[name]
        if values:
            scalars |= {f"population/{name}/lowest": min(values), f"population/{name}/highest": max(values)}
    scalars["population/diverged"] = float(len(done.members) - len(healthy))
    scalars["population/samples_per_second"] = done.round_samples / max(done.seconds, 1e-9)
    return scalars


def spread(tag: str, values: list[float]) -> dict[str, float]:
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return {}
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {f"{tag}/median": middle, f"{tag}/quantile_25": low, f"{tag}/quantile_75": high}
