"""Extents, strides, padding and dilation of convolutions."""

from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]


def pair(value: Any) -> Pair:
    return (int(value[0]), int(value[-1])) if isinstance(value, tuple | list) else (int(value), int(value))


@dataclass(frozen=True)
class Geometry:
    """What a convolution does besides its weights."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> "Geometry | None":
        """From the arguments of `F.conv2d`; None where padding='same' is not the same on both sides."""
        kernel, dilation = pair(kernel), pair(dilation)
        if padding == "same":
            reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            if any(r % 2 for r in reach):
                return None
            padding = tuple(r // 2 for r in reach)
        return cls(kernel, pair(stride), pair(0 if padding == "valid" else padding), dilation, groups)

    @classmethod
    def of_line(cls, kernel: int, stride: Any, padding: Any, dilation: Any, groups: int) -> "Geometry | None":
        """From the arguments of `F.conv1d`, as a convolution of images one pixel high."""
        stride, dilation = ((1, pair(value)[1]) for value in (stride, dilation))
        padding = padding if isinstance(padding, str) else (0, pair(padding)[1])
        return cls.of((1, kernel), stride, padding, dilation, groups)

    def extent(self, size: Pair) -> Pair:
        """Output pixels for inputs of `size`."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        return (size[0] + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (size[1] + 2 * pw - dw * (kw - 1) - 1) // sw + 1

    def transposed(self) -> "Geometry":
        """The geometry whose patches are the adjoint of this one's; for stride 1."""
        padding = tuple(d * (k - 1) - p for k, d, p in zip(self.kernel, self.dilation, self.padding, strict=True))
        return Geometry(self.kernel, (1, 1), (padding[0], padding[1]), self.dilation, self.groups)
