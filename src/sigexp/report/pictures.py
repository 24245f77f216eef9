"""What can be seen of a trained model: examples with its outputs, and its first layer's kernels."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sigexp.problem import Problem, Reference
from sigexp.report import snapshots
from sigexp.report.tiles import kernel_weights

EXAMPLES = 4
SIDE = 160  # pixels of an example
DETAIL = 64  # pixels of a side shown of a whole photograph
PLAIN = ("identity", "constant", "exact")  # references that show nothing which input and target do not


def pictures(
    model: nn.Module, problem: Problem, references: Mapping[str, Reference], device: torch.device
) -> dict[str, Callable[[], bytes]]:
    """What can be seen of a model: name -> what draws it as PNG."""
    model = model.to(device).eval()

    def learned(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return model(inputs.to(device)).cpu()

    if problem.kind == "class":
        found = {"examples": decisions(learned, problem)}
    else:
        shown = {name: r.predict for name, r in references.items() if r.predict and worth_showing(name, references)}
        columns = details if "test" in problem.ragged else first_examples
        beside = columns(problem, {"output": learned, **shown})
        own = has_own_scale(problem)
        found = {"examples": partial(snapshots.examples, problem.kind, beside, own_scale=own, side=SIDE)}
    kernels = kernel_weights(model)
    return {**found, "kernels": partial(snapshots.kernels, *kernels)} if kernels else found


def has_own_scale(problem: Problem) -> bool:
    """Whether outputs are maps of which the place of the maximum counts, and not the values."""
    return problem.headline == "hit_rate"


def worth_showing(name: str, references: Mapping[str, Reference]) -> bool:
    """Not what shows nothing new, and of the bounds the one fitted to training data."""
    if name.startswith("least_squares_"):
        return name == ("least_squares_train" if "least_squares_train" in references else "least_squares_test")
    return name not in PLAIN


def decisions(predict: Callable[[Tensor], Tensor], problem: Problem) -> Callable[[], bytes]:
    """Test examples of a class problem, captioned by what they are and what the model says."""
    inputs, targets = problem.examples("test", 0, min(2 * EXAMPLES, problem.sizes["test"] or 2 * EXAMPLES))
    labels = problem.labels or tuple(map(str, range(problem.classes or 0)))
    said = [labels[o] if o < len(labels) else str(o) for o in predict(inputs).argmax(1).tolist()]
    true = [labels[t] for t in targets.tolist()]
    wrong = [t != s for t, s in zip(true, said, strict=True)]
    captions = [f"{t}, said {s}" for t, s in zip(true, said, strict=True)]
    return partial(snapshots.decisions, inputs, captions, wrong)


def first_examples(problem: Problem, predictors: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """Input, outputs and target of the first test examples, by column."""
    inputs, targets = problem.examples("test", 0, min(EXAMPLES, problem.sizes["test"] or EXAMPLES))
    outputs = {name: predict(inputs) for name, predict in predictors.items()}
    return {"input": inputs, "target": targets, **outputs}


def details(problem: Problem, predictors: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """The busiest places of the first two test photographs, cut from what was computed for the whole of them."""
    rows: dict[str, list[Tensor]] = {}
    for i in range(min(2, problem.sizes["test"] or 2)):
        inputs, targets = problem.sample("test", torch.tensor([i]))
        whole = {"input": inputs, "target": targets, **{name: predict(inputs) for name, predict in predictors.items()}}
        for top, left in busiest(targets[0], EXAMPLES // 2):
            for name, image in whole.items():
                rows.setdefault(name, []).append(image[0, :, top : top + DETAIL, left : left + DETAIL])
    smallest = min(min(part.shape[1:]) for part in rows["target"])
    return {name: torch.stack([part[:, :smallest, :smallest] for part in parts]) for name, parts in rows.items()}


def busiest(image: Tensor, count: int, size: int = DETAIL) -> list[tuple[int, int]]:
    """Corners (top, left), even so that a mosaic keeps its phase, of the windows of [C, H, W] with most variance."""
    height, width = image.shape[1:]
    corners = [
        (top, left)
        for top in range(0, max(1, height - size + 1), size // 2)
        for left in range(0, max(1, width - size + 1), size // 2)
    ]
    variance = {c: float(image[:, c[0] : c[0] + size, c[1] : c[1] + size].var((1, 2)).sum()) for c in corners}
    chosen: list[tuple[int, int]] = []
    for corner in sorted(corners, key=variance.__getitem__, reverse=True):
        if all(abs(corner[0] - c[0]) >= size or abs(corner[1] - c[1]) >= size for c in chosen):
            chosen.append(corner)
    return chosen[:count]
