"""Single test examples for the report: the first one for the slider, those with the least and the greatest error.

They are kept while the test data are passed over anyway. Whole photographs are judged by windows, because the mean over
a photograph hides where it is wrong. What is found goes to cases.json: small PNGs, or the samples of sequences.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sigexp.metrics import higher_is_better
from sigexp.problem import Batch, Problem, Reference
from sigexp.report.pictures import busiest, has_own_scale, worth_showing
from sigexp.report.terminal import best_reference
from sigexp.report.tiles import shades

SCHEMA_VERSION = 1
COUNT = 3  # best and worst cases
WINDOW = 64  # pixels of a side of a case that is part of a photograph
SLIDER = 160  # the same for the slider; classical demosaicing takes seconds for a whole photograph
BORDER = 4  # pixels that the metrics of whole photographs leave out
MARGIN = 16  # that a reference sees around what is shown of a photograph
MOST_PIXELS = 256  # of a side of a picture
MOST_SAMPLES = 600  # of a sequence
MOST_LINES = 2  # channels of a sequence drawn as lines; more are an image


@dataclass(frozen=True, eq=False)
class Case:
    """One example, or a window of one: [C, H, W], [C, T] or a class index, on the CPU."""

    rank: tuple[float, float]  # the greater, the worse
    value: float
    index: int
    corner: tuple[int, int] | None
    input: Tensor
    target: Tensor
    output: Tensor


class Cases:
    """Watches an evaluation (`evaluation.Watch`) and keeps the first example, the best and the worst ones."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.windows = "test" in problem.ragged and problem.kind == "image"
        self.values: list[float] = []
        self.best: list[Case] = []
        self.worst: list[Case] = []
        self.first: Case | None = None

    @property
    def metric(self) -> str:
        return "mse" if self.windows else self.problem.headline

    def __call__(self, index: Tensor, batch: Batch, outputs: Tensor) -> None:
        if self.first is None:
            # Windows are places of the input too.
            self.windows = self.windows and batch.inputs.shape[2:] == batch.targets.shape[2:]
            self.first = self._case((0.0, 0.0), 0.0, index, batch, outputs, 0)
        found = self._windows(index, batch, outputs) if self.windows else self._examples(index, batch, outputs)
        self.best = sorted([*self.best, *found], key=lambda case: case.rank)[:COUNT]
        self.worst = sorted([*self.worst, *found], key=lambda case: case.rank, reverse=True)[:COUNT]

    def _examples(self, index: Tensor, batch: Batch, outputs: Tensor) -> list[Case]:
        """Of a chunk, what may be among the best and worst. Where the metric ties, as an error of 0 or 1 does, the
        loss decides."""
        metric, loss = self.problem.metrics[self.metric], self.problem.loss
        values = metric(outputs, batch.targets).cpu().double()
        sign = -1 if higher_is_better(self.metric) else 1
        losses = values if metric is loss else loss(outputs, batch.targets).cpu().double()
        self.values += values.tolist()
        keys = [part.nan_to_num(nan=math.inf).tolist() for part in (sign * values, losses)]
        ranks = list(zip(*keys, strict=True))
        return [self._case(ranks[i], float(values[i]), index, batch, outputs, i) for i in extremes(ranks)]

    def _windows(self, index: Tensor, batch: Batch, outputs: Tensor) -> list[Case]:
        """The same for the windows of one photograph."""
        errors = (outputs - batch.targets).square().mean(1, keepdim=True)
        height, width = errors.shape[-2:]
        border = BORDER if min(height, width) >= WINDOW + 2 * BORDER else 0
        high, wide = min(WINDOW, height), min(WINDOW, width)
        inner = errors[..., border : height - border, border : width - border]
        means = F.avg_pool2d(inner, (high, wide)).cpu().double()[0, 0]
        values = means.flatten().nan_to_num(nan=math.inf).tolist()
        self.values += values
        ranks = [(value, 0.0) for value in values]
        found = []
        for i in extremes(ranks):
            top, left = (
                border + size * int(n) for size, n in zip((high, wide), divmod(i, means.shape[1]), strict=True)
            )
            cut = [part[..., top : top + high, left : left + wide] for part in (*batch, outputs)]
            case = self._case(ranks[i], ranks[i][0], index, Batch(cut[0], cut[1]), cut[2], 0, (top, left))
            found.append(case)
        return found

    def _case(
        self, rank: tuple[float, float], value: float, index: Tensor, batch: Batch, outputs: Tensor, i: int,
        corner: tuple[int, int] | None = None,
    ) -> Case:  # fmt: skip
        parts = [part[i].detach().cpu().clone() for part in (*batch, outputs)]
        return Case(rank, value, int(index[i]), corner, *parts)


def extremes(ranks: Sequence[tuple[float, float]]) -> list[int]:
    """Where the least and the greatest ranks are."""
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    return order if len(order) <= 2 * COUNT else [*order[:COUNT], *order[-COUNT:]]


def as_dict(
    cases: Cases, references: Mapping[str, Reference], judged: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What cases.json holds. judged: the references' metrics on test data."""
    problem, values = cases.problem, np.array(cases.values)
    finite = values[np.isfinite(values)]
    spread = np.quantile(finite, [0.05, 0.5, 0.95]).tolist() if len(finite) else None
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": problem.kind,
        "metric": cases.metric,
        "count": len(values),
        "window": WINDOW if cases.windows else None,
        "quantiles": spread,
        "slider": slider(cases, references, judged),
        "best": [shown(problem, case) for case in cases.best],
        "worst": [shown(problem, case) for case in cases.worst if case not in cases.best],
    }


def slider(
    cases: Cases, references: Mapping[str, Reference], judged: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """The first test example, or the place of most detail in it: input, best classical reference, output, target."""
    first, kind = cases.first, cases.problem.kind
    if first is None or kind == "class":
        return None
    corner = busiest(first.target, 1, SLIDER)[0] if cases.windows else None
    parts = {"input": first.input, "output": first.output, "target": first.target}
    if corner is not None:
        top, left = corner
        parts = {name: part[:, top : top + SLIDER, left : left + SLIDER] for name, part in parts.items()}
    drawn = {name: r.predict for name, r in references.items() if r.predict and worth_showing(name, references)}
    found = best_reference({name: judged.get(name, {}) for name in drawn}, cases.problem.headline)
    if found is not None:
        parts[found[0]] = predicted(drawn[found[0]], first.input, corner)
    if kind == "sequence":
        return {"index": first.index, "lines": {n: samples(p) for n, p in parts.items() if p.shape[0] <= MOST_LINES}}
    pictures = {name: picture(cases.problem, name, part, parts["target"]) for name, part in parts.items()}
    return {"index": first.index, "pictures": pictures}


def predicted(predict: Callable[[Tensor], Tensor], input_: Tensor, corner: tuple[int, int] | None) -> Tensor:
    """A reference's output [C, H, W]; of a photograph only around the window, which starts at an even place so that a
    mosaic keeps its phase."""
    with torch.no_grad():
        if corner is None:
            return predict(input_[None])[0]
        top, left = (max(0, place - MARGIN) for place in corner)
        around = input_[:, top : corner[0] + SLIDER + MARGIN, left : corner[1] + SLIDER + MARGIN]
        whole = predict(around[None])[0]
        return whole[:, corner[0] - top :, corner[1] - left :][:, :SLIDER, :SLIDER]


def shown(problem: Problem, case: Case) -> dict[str, Any]:
    """A case for JSON: where it is, its value, what it looks like."""
    signals = {"input": case.input}
    said = None
    if problem.kind == "class":
        said = decision(problem, case)
    else:
        signals |= {"output": case.output, "target": case.target}
    pictures = {
        name: picture(problem, name, part, case.target)
        for name, part in signals.items() if part.ndim == 3 or part.shape[0] > MOST_LINES
    }  # fmt: skip
    lines = {name: samples(part) for name, part in signals.items() if name not in pictures}
    place = {"index": case.index, "corner": case.corner, "value": case.value}
    return {**place, "said": said, "pictures": pictures, "lines": lines}


def decision(problem: Problem, case: Case) -> dict[str, Any]:
    """What a class example is, what the model says, and how sure it is of that."""
    labels = problem.labels or tuple(map(str, range(problem.classes or 0)))
    shares = case.output.double().softmax(0)
    answer = int(shares.argmax())
    return {
        "is": labels[int(case.target)],
        "answer": labels[answer] if answer < len(labels) else str(answer),
        "probability": float(shares[answer]),
    }


def picture(problem: Problem, name: str, signal: Tensor, target: Tensor) -> str:
    """Outputs are drawn on their target's scale, so that a wrong gain can be seen; a map of which the place of the
    greatest value counts has none."""
    own = name == "input" or has_own_scale(problem)
    return encoded(image(signal, None if own else target))


def image(signal: Tensor, like: Tensor | None = None) -> Image.Image:
    """[C, H, W], or the channels of a sequence [C, T] as rows, as a picture of bounded size."""
    planes = signal[None] if signal.ndim == 2 else signal
    scale = like[None] if like is not None and like.ndim == 2 else like
    array = np.nan_to_num(255 * shades(planes, scale)).round().clip(0, 255).astype(np.uint8)
    grey = planes.shape[0] != 3
    found = Image.fromarray(array[..., 0] if grey and array.ndim == 3 else array)
    if max(found.size) > MOST_PIXELS:
        found.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return found


def encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def samples(signal: Tensor) -> list[list[float]]:
    """The start of every channel of a sequence, in four digits."""
    return [[float(f"{value:.4g}") for value in channel.tolist()] for channel in signal[:, :MOST_SAMPLES].float()]
