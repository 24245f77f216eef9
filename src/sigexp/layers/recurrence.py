"""First- and second-order recursive filters with learned poles, computed as exact convolutions.

A recursive filter's response to an impulse is a sum of powers of its poles. Written out for all T samples at once it
is a convolution, and no loop over time is left; diagonal state-space models do the same (Gu et al. 2022,
arXiv:2206.11893).
"""

import torch
from torch import Tensor, nn


class LinearRecurrence(nn.Module):
    """A sum of recursive filters: [B, C, T] -> [B, D, T].

    Each real pole p holds a state z of D channels,

        z[t] = p z[t-1] + V x[t-1],    z[0] = sum_j S_j x[j],    y[t] = sum of z[t] over the poles + F x[t],

    and a pair of complex poles r exp(+-i w) holds two, whose responses are r^t cos(w t) and r^t sin(w t). V, S_j and F
    are learned matrices [D, C]. `bidirectional` adds filters of their own that run from the last sample to the first.
    |p| = |tanh(.)| < 1 keeps every filter stable.

    start_samples: how many samples j the initial state is made of. One is enough for y[0] = x[0]; a border that
        reflects, or any other linear continuation, takes as many as the filter remembers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        poles: int = 1,
        pole_pairs: int = 0,
        bidirectional: bool = False,
        start_samples: int = 1,
    ):
        super().__init__()
        directions, states = 2 if bidirectional else 1, poles + 2 * pole_pairs
        self.poles, self.pole_pairs, self.start_samples = poles, pole_pairs, start_samples
        radius = torch.empty(directions, poles + pole_pairs).uniform_(0.5, 0.9)
        self.radius = nn.Parameter(torch.atanh(radius))
        slots = torch.arange(pole_pairs) + torch.empty(directions, pole_pairs).uniform_(0.25, 0.75)
        self.angle = nn.Parameter(slots / max(pole_pairs, 1)) if pole_pairs else None
        self.drive = nn.Parameter(torch.empty(directions, states, out_channels, in_channels).uniform_(-0.3, 0.3))
        self.start = nn.Parameter(torch.zeros(directions, states, out_channels, in_channels, start_samples))
        self.feedthrough = nn.Parameter(torch.zeros(out_channels, in_channels))

    def powers(self, length: int) -> Tensor:
        """What each state does by itself from 1 on: [directions, states, length]."""
        time = torch.arange(length, dtype=self.radius.dtype, device=self.radius.device)
        decay = torch.tanh(self.radius)[..., None] ** time
        if self.angle is None:
            return decay
        real, pairs = decay.split([self.poles, self.pole_pairs], 1)
        phase = self.angle[..., None] * time
        return torch.cat([real, pairs * phase.cos(), pairs * phase.sin()], 1)

    def begun(self, first: Tensor, direction: int, powers: Tensor) -> Tensor:
        """What the initial state, made of the first samples [B, C, n], does from there on: [B, D, T]."""
        start = self.start[direction][..., : first.shape[-1]]
        return torch.einsum("bso,st->bot", torch.einsum("soij,bij->bso", start, first), powers)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        powers = self.powers(length)
        # Elementwise, because an FFT of what autocast makes of a matrix product would fail.
        driven = (self.drive[..., None] * powers[:, :, None, None, : length - 1]).sum(1)  # lags 1, 2, ...
        backward = driven[1].flip(-1) if len(driven) == 2 else torch.zeros_like(driven[0])  # lags ..., -2, -1
        now = self.feedthrough[..., None]
        taps = torch.cat([now, driven[0], torch.zeros_like(now), backward], -1)  # circular, 2 T lags
        spectrum = torch.einsum("bif,oif->bof", torch.fft.rfft(x, 2 * length), torch.fft.rfft(taps))
        y = torch.fft.irfft(spectrum, 2 * length)[..., :length]
        y = y + self.begun(x[..., : self.start_samples], 0, powers[0])
        if len(driven) == 2:
            y = y + self.begun(x.flip(-1)[..., : self.start_samples], 1, powers[1]).flip(-1)
        return y
