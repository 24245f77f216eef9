"""Which shapes a model fits. Every factory asks here before it builds anything.

Shapes are without the batch: images (C, H, W), sequences (C, T), class logits (K,).
"""

from collections.abc import Sequence

from torch import nn

from sigexp.ranges import MOST_TAPS

Shape = tuple[int, ...]
MOST_CHANNELS, MOST_LAYERS, MOST_DILATION = 65_536, 64, 4096
CONVOLUTION: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def describe(shape: Shape) -> str:
    if len(shape) == 1:
        return f"{shape[0]} classes"
    return f"{'images' if len(shape) == 3 else 'sequences'} {list(shape)}"


def refuse(model: str, does: str, input_shape: Shape, target_shape: Shape) -> ValueError:
    """What the model does, against what this dataset asks of it."""
    return ValueError(
        f"model={model} {does}; this dataset's inputs are {describe(input_shape)} "
        f"and its targets are {describe(target_shape)}: choose another model"
    )


def images(model: str, input_shape: Shape, target_shape: Shape) -> None:
    """Refuse inputs that are not images."""
    if len(input_shape) != 3:
        raise refuse(model, "takes images [C, H, W]", input_shape, target_shape)


def sequences(model: str, input_shape: Shape, target_shape: Shape) -> None:
    """Refuse inputs that are not sequences."""
    if len(input_shape) != 2:
        raise refuse(model, "takes sequences [C, T]", input_shape, target_shape)


def classes(model: str, input_shape: Shape, target_shape: Shape) -> int:
    """The number of classes; refuse targets that are not classes."""
    if len(target_shape) != 1:
        raise refuse(model, "gives classes", input_shape, target_shape)
    return target_shape[0]


def same_extent(model: str, input_shape: Shape, target_shape: Shape) -> int:
    """The number of axes behind the channels, 1 or 2; refuse targets of another extent than the inputs."""
    if len(target_shape) == 1 or input_shape[1:] != target_shape[1:]:
        raise refuse(model, "gives signals of its inputs' extent", input_shape, target_shape)
    return len(input_shape) - 1


def odd(name: str, value: int) -> int:
    """A kernel size that leaves the extent as it is."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"model.{name}={value}: expected an odd number, so that outputs line up with inputs")
    at_least(name, 1, value, most=MOST_TAPS)
    return value


def at_least(name: str, least: int, *values: int, most: int = MOST_CHANNELS) -> None:
    """Refuse counts below `least` or above `most`, and an empty or endless list of them."""
    if not values or any(value < least for value in values):
        shown = values[0] if len(values) == 1 else list(values)
        raise ValueError(f"model.{name}={shown}: expected whole numbers of at least {least}")
    if max(values) > most:
        raise ValueError(f"model.{name}={max(values)}: expected whole numbers of at most {most:,}")
    if len(values) > MOST_LAYERS:
        raise ValueError(f"model.{name}: {len(values)} numbers; expected at most {MOST_LAYERS}")


def two(name: str, values: Sequence[int]) -> tuple[int, int]:
    """Two counts of at least 1."""
    if len(values) != 2:
        raise ValueError(f"model.{name}={list(values)}: expected two numbers")
    at_least(name, 1, *values)
    return values[0], values[1]
