"""What can be seen of a trained model: examples with its outputs, and its first layer's kernels."""

from collections.abc import Mapping

import torch
from torch import nn

from sigexp.problem import Problem, Reference
from sigexp.report import figures

EXAMPLES = 4


def pictures(
    model: nn.Module, problem: Problem, references: Mapping[str, Reference], device: torch.device
) -> dict[str, bytes]:
    """What can be seen of a model: name -> PNG."""
    model = model.to(device).eval()
    split = "valid" if "test" in problem.ragged else "test"  # patches show pixels, whole photographs do not
    inputs, targets = problem.examples(split, 0, EXAMPLES)
    with torch.no_grad():
        outputs = model(inputs.to(device)).cpu()
    found = {}
    if problem.kind == "class":
        labels = problem.labels or tuple(map(str, range(problem.classes or 0)))
        captions = [f"{labels[t]}, said {labels[o]}" if o < len(labels) else f"{labels[t]}, said {o}"
                    for t, o in zip(targets.tolist(), outputs.argmax(1).tolist(), strict=True)]  # fmt: skip
        found["examples"] = figures.class_grid(inputs, captions)
    else:
        columns = {"input": inputs, "output": outputs, "target": targets}
        for name, reference in references.items():
            if reference.predict is not None and name not in ("identity", "constant", "exact"):
                columns[name] = reference.predict(inputs)
        found["examples"] = figures.example_rows(problem, columns)
    kernels = figures.kernels(model)
    return {**found, "kernels": kernels} if kernels else found
