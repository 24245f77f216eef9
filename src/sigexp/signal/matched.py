"""The matched filter: where in a noisy image does a known template lie?

The correlation with the template maximises the signal-to-noise ratio in white noise (North 1943). Correlations are
products of spectra, so their cost does not depend on the template's size.
"""

import torch
from torch import Tensor


def correlate(images: Tensor, template: Tensor) -> Tensor:
    """Full cross-correlation of [..., H, W] with a template [h, w], zeros outside: [..., H + h - 1, W + w - 1].

    Equal to `scipy.signal.correlate2d(image, template)` within float32 rounding.
    """
    size = [images.shape[i] + template.shape[i] - 1 for i in (-2, -1)]
    spectrum = torch.fft.rfft2(images, s=size) * torch.fft.rfft2(template.flip(0, 1).to(images), s=size)
    return torch.fft.irfft2(spectrum, s=size)


def correlate_centred(images: Tensor, template: Tensor) -> Tensor:
    """The correlation at every pixel taken as the template's centre, (h // 2, w // 2) from its corner: [..., H, W]."""
    rows, columns = ((n - 1) // 2 for n in template.shape)
    return correlate(images, template)[..., rows : rows + images.shape[-2], columns : columns + images.shape[-1]]


def lecture_map(images: Tensor, template: Tensor) -> Tensor:
    """The lecture's map of places, sigmoid(10 (c - 0.7 max c)) with the full correlation c of every image.

    Images [..., H, W] and a template [h, w] give [..., H + h - 1, W + w - 1].
    """
    c = correlate(images, template)
    return torch.sigmoid(10 * (c - 0.7 * c.amax((-2, -1), keepdim=True)))
