"""Results in words: what a reference is, how a model stands beside it, and the line that says it all."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sigexp.metrics import higher_is_better
from sigexp.report.tables import number

EQUAL, AS_GOOD = "equal", "as good as"
LEAST_DB = 0.005  # a difference that two decimals do not show
EXACT = 1e-9  # of the model's error: a reference below this is right but for rounding

MEANINGS = {
    "identity": "the input itself",
    "constant": "the best constant",
    "chance": "guessing",
    "exact": "the algorithm that the targets come from",
    "wiener": "the Wiener filter",
    "gaussian": "a Gaussian filter",
    "correlation": "correlation with the known digit",
    "bilinear": "bilinear interpolation (OpenCV)",
    "vng": "variable number of gradients (OpenCV)",
    "edge_aware": "edge-aware interpolation (OpenCV)",
    "malvar": "Malvar 2004",
    "menon": "Menon 2007",
    "histogram": "sees the histogram of the pixels alone",
    "ink": "sees the amount of ink alone",
    "fill_holes": "fills every hole",
    "noise_floor": "the noise that no predictor can know",
    "least_squares_train": "best linear filter in closed form, fitted to the training data",
    "least_squares_test": "best linear filter in closed form, fitted to the test data",
}

Values = Mapping[str, float | None]


def meaning(reference: str) -> str:
    """What a reference is; '' for one that a user's own dataset brings."""
    sized = re.fullmatch(r"(least_squares_(?:train|test))_(\d+(?:x\d+)?)", reference)
    if sized:
        return MEANINGS[sized[1]].replace("best", f"best {sized[2]}", 1)
    return MEANINGS.get(reference, "")


def beside(model: float | None, reference: float | None, metric: str) -> str:
    """How far the model is from a reference: '1.7 % worse', '0.86 dB better'; '' where there is nothing to compare."""
    if model is None or reference is None:
        return ""
    gain = model - reference if higher_is_better(metric) else reference - model
    word = "better" if gain > 0 else "worse"
    name = metric.rpartition("/")[2]
    if gain == 0 or (name.startswith("psnr") and abs(gain) < LEAST_DB):
        return EQUAL
    if name.startswith("psnr"):
        return f"{abs(gain):.2f} dB {word}"
    if name in ("error", "pixel_error", "hit_rate"):
        return f"{100 * abs(gain):.3g} points {word}"
    if exact(model, reference, metric):
        return word
    if name in ("ssim", "iou") or min(model, reference) <= 0:
        return f"{abs(gain):.3g} {word}"
    ratio = max(model, reference) / min(model, reference)
    return f"{100 * (ratio - 1):.2g} % {word}" if ratio < 2 else f"{_times(ratio)} times {word}"


def _times(ratio: float) -> str:
    if ratio < 10:
        return f"{ratio:.1f}"
    return f"{ratio:,.0f}" if ratio < 1e5 else f"{ratio:.0e}".replace("e+0", "e").replace("e+", "e")


def exact(model: float, reference: float, metric: str) -> bool:
    """Whether a reference makes no error but rounding, so that a ratio to it says nothing."""
    return not higher_is_better(metric) and abs(reference) <= EXACT * abs(model)


@dataclass(frozen=True)
class Verdict:
    """state: 'ahead' of every reference, 'between' them, or 'behind' the best constant or chance."""

    text: str
    state: str


def verdict(model: str, test: Values, references: Mapping[str, Values]) -> Verdict:
    """Where the model stands among its references by the headline metric, in a sentence."""
    metric, value = next(iter(test.items()))
    if value is None:
        return Verdict(f"{model}: the {metric} on test data is not a finite number.", "behind")
    start = f"{model} reaches {spoken(metric)} {number(value, metric)} on test data"
    known = {name: v for name, values in references.items() if (v := values.get(metric)) is not None}
    floor = next((name for name in ("constant", "chance") if name in known), None)
    sign = 1 if higher_is_better(metric) else -1
    if floor and sign * value < sign * known[floor]:
        words = comparison(value, known[floor], metric)
        return Verdict(f"{start}: {words} {named(floor)}.", "behind")
    # What the targets come from is no rival.
    rivals = {name: v for name, v in known.items() if name != "exact"}
    note = f"; the exact algorithm has {number(known['exact'], metric)}" if "exact" in known else ""
    if not rivals:
        return Verdict(f"{start}{note}.", "between")
    best = max(rivals, key=lambda name: sign * rivals[name])
    words = comparison(value, rivals[best], metric)
    said = f"{start}: {words} {named(best)} ({number(rivals[best], metric)})"
    if len(rivals) > 1:
        behind = sum(sign * v < sign * value for v in rivals.values())
        said += f", the best of {len(rivals)} references"
        said += f"; ahead of {behind} of them" if 0 < behind < len(rivals) else ""
    state = "ahead" if sign * value >= sign * rivals[best] or words == AS_GOOD else "between"
    return Verdict(f"{said}{note}.", state)


def comparison(model: float, reference: float, metric: str) -> str:
    """`beside` as it stands before the reference's name: '1.7 % worse than', 'as good as'."""
    if exact(model, reference, metric) and model != reference:
        return "far from"
    words = beside(model, reference, metric)
    return AS_GOOD if words == EQUAL else f"{words} than"


def named(reference: str) -> str:
    return MEANINGS[reference] if reference in ("identity", "constant", "chance") else reference


def spoken(metric: str) -> str:
    """A metric as it is written in a sentence: PSNR, MSE, hit rate."""
    name = metric.rpartition("/")[2]
    known = {"psnr": "PSNR", "mse": "MSE", "ssim": "SSIM", "iou": "IoU"}
    head, _, rest = name.partition("_")
    return f"{known.get(head, head)}{' ' + rest.replace('_', ' ') if rest else ''}"


def counted(count: int, noun: str) -> str:
    """1 member, 2 members."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def phases(seconds: Values) -> str:
    """What a run's time went to beside training: 'data 20 s, testing 31 s'; what is not worth a second is left out."""
    known = {name: value for name, value in seconds.items() if value is not None and name != "training"}
    return ", ".join(f"{name} {value:.0f} s" for name, value in known.items() if value >= 0.5)


def duration(seconds: float | None) -> str:
    """7 s, 2 min 5 s, 1 h 12 min."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
