"""A residual net on the four phase planes of a Bayer mosaic.

The planes make the net the same at every second pixel, which is the mosaic's own symmetry, at a fourth of the positions
(Gharbi et al. 2016, "Deep joint demosaicking and denoising", pack the mosaic so too).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.bayer import ColourPreservingConv, demosaicing_layer
from sigexp.layers.padding import crop_to
from sigexp.layers.residual import Residual, kaiming, zero
from sigexp.models.fit import MOST_LAYERS, Shape, at_least, images, refuse, same_extent


class Polyphase(nn.Module):
    """Mosaic [B, 3, H, W], zeros where a colour was not measured, or [B, 1, H, W] -> image [B, 3, H, W].

    Adding a constant colour to the scene adds it to the output, and a longer exposure scales it: the first layers
    preserve colours, and there are no biases (Mohan et al. 2020, arXiv:1906.05478). So photographs whose colours are
    unlike those of the training set come out right.
    """

    def __init__(self, pattern: str, channels: int, layers: int):
        super().__init__()
        body: list[nn.Module] = [kaiming(ColourPreservingConv(pattern, channels)), nn.LeakyReLU(0.1)]
        for _ in range(layers - 2):
            body += [kaiming(nn.Conv2d(channels, channels, 3, padding=1, bias=False)), nn.LeakyReLU(0.1)]
        body += [zero(nn.Conv2d(channels, 12, 3, padding=1, bias=False))]
        self.planes = Residual(nn.Sequential(*body), demosaicing_layer(pattern))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        mosaic = x.sum(1, keepdim=True)
        # Mirroring about the border pixel keeps every pixel's phase; an odd size gets one more row or column.
        mosaic = F.pad(mosaic, (2, 2 + width % 2, 2, 2 + height % 2), mode="reflect")
        image = F.pixel_shuffle(self.planes(F.pixel_unshuffle(mosaic, 2)), 2)
        return crop_to(image, (height, width))


def polyphase(
    input_shape: Shape, target_shape: Shape, *, pattern: str = "BGGR", channels: int = 48, layers: int = 5
) -> nn.Module:
    """A net of 3x3 convolutions on the phase planes that corrects a phase-aware linear demosaicing, the skip.

    pattern: colours at rows and columns (even, even), (even, odd), (odd, even), (odd, odd); the skip starts as the
        best linear demosaicing of a Markov random field, and the whole net starts as the skip.
    """
    images("polyphase", input_shape, target_shape)
    same_extent("polyphase", input_shape, target_shape)
    if input_shape[0] not in (1, 3) or target_shape[0] != 3:
        raise refuse("polyphase", "turns mosaics [1 or 3, H, W] into colour [3, H, W]", input_shape, target_shape)
    if sorted(pattern) != ["B", "G", "G", "R"]:
        raise ValueError(f"model.pattern={pattern!r}: expected the letters B, G, G, R in the mosaic's order")
    if min(input_shape[1:]) < 4:
        raise ValueError(f"model=polyphase needs images of at least 4x4 pixels; got {list(input_shape)}")
    at_least("channels", 1, channels)
    at_least("layers", 2, layers, most=MOST_LAYERS)
    return Polyphase(pattern, channels, layers)
