"""Recurrent nets: LSTMs and linear recurrences over sequences (C, T), a two-dimensional LSTM over images (C, H, W)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.activations import pointwise
from sigexp.layers.lstm import LSTM2, SequenceLSTM
from sigexp.layers.padding import GlobalMax, crop_to, pad_to_multiple
from sigexp.layers.recurrence import LinearRecurrence
from sigexp.models.fit import MOST_LAYERS, Shape, at_least, images, same_extent, sequences, two


def seqlstm(
    input_shape: Shape, target_shape: Shape, *, hidden: int = 4, layers: int = 1, bidirectional: bool = True
) -> nn.Module:
    """The lecture's net for spike trains: LSTM, sigmoid, 1x1 convolution."""
    sequences("seqlstm", input_shape, target_shape)
    same_extent("seqlstm", input_shape, target_shape)
    at_least("hidden", 1, hidden)
    at_least("layers", 1, layers, most=MOST_LAYERS)
    recurrent = SequenceLSTM(input_shape[0], hidden, layers=layers, bidirectional=bidirectional)
    return nn.Sequential(recurrent, nn.Sigmoid(), nn.Conv1d(recurrent.out_channels, target_shape[0], 1))


def lstm(
    input_shape: Shape, target_shape: Shape, *, hidden: int = 4, layers: int = 1, bidirectional: bool = False
) -> nn.Module:
    """An LSTM and a linear read-out; in one direction it is causal."""
    sequences("lstm", input_shape, target_shape)
    same_extent("lstm", input_shape, target_shape)
    at_least("hidden", 1, hidden)
    at_least("layers", 1, layers, most=MOST_LAYERS)
    recurrent = SequenceLSTM(input_shape[0], hidden, layers=layers, bidirectional=bidirectional)
    return nn.Sequential(recurrent, nn.Conv1d(recurrent.out_channels, target_shape[0], 1))


def linear_recurrence(
    input_shape: Shape,
    target_shape: Shape,
    *,
    poles: int = 1,
    pole_pairs: int = 0,
    bidirectional: bool = False,
    start_samples: int = 1,
) -> nn.Module:
    """Recursive filters with learned poles, whose state starts as a learned linear map of the first sample(s)."""
    sequences("linear_recurrence", input_shape, target_shape)
    same_extent("linear_recurrence", input_shape, target_shape)
    at_least("poles", 0, poles)
    at_least("pole_pairs", 0, pole_pairs)
    at_least("poles + model.pole_pairs", 1, poles + pole_pairs)
    at_least("start_samples", 1, start_samples)
    return LinearRecurrence(
        input_shape[0],
        target_shape[0],
        poles=poles,
        pole_pairs=pole_pairs,
        bidirectional=bidirectional,
        start_samples=start_samples,
    )


class RecurrentImage(nn.Module):
    """Stem at a fourth of the size, LSTM2, and back up beside the input: [B, C, H, W] -> [B, D, H, W]."""

    def __init__(self, stem: nn.Module, recurrent: LSTM2, skip_channels: int, out_channels: int, output: nn.Module):
        super().__init__()
        self.stem, self.recurrent = stem, recurrent
        self.up = nn.Conv2d(recurrent.out_channels, 16 * 4, 1)
        self.merge = nn.Conv2d(4 + skip_channels, 16, 3, padding=1)
        self.head = nn.Conv2d(16, out_channels, 3, padding=1)
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to_multiple(x, 4)
        seen = F.pixel_shuffle(self.up(self.recurrent(self.stem(padded))), 4)
        y = self.head(F.relu(self.merge(torch.cat([seen, padded], 1))))
        return crop_to(self.output(y), x.shape[2:])


def lstm2(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: int = 24,
    bidirectional: bool = True,
    output_activation: str = "sigmoid",
) -> nn.Module:
    """Two strided convolutions, then LSTMs along the rows and the columns: every output sees the whole image.

    Image targets come back to full size beside the input and pass `output_activation`; classes are the maximum over
    all positions and a linear layer.
    """
    images("lstm2", input_shape, target_shape)
    first, second = two("channels", channels)
    at_least("hidden", 1, hidden)
    stem = nn.Sequential(
        nn.Conv2d(input_shape[0], first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
    )
    recurrent = LSTM2(second, hidden, bidirectional=bidirectional)
    if len(target_shape) == 1:
        return nn.Sequential(stem, recurrent, GlobalMax(), nn.Linear(recurrent.out_channels, target_shape[0]))
    same_extent("lstm2", input_shape, target_shape)
    return RecurrentImage(stem, recurrent, input_shape[0], target_shape[0], pointwise(output_activation))
