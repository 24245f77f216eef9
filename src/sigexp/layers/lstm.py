"""LSTMs over sequences [B, C, T] and over images [B, C, H, W].

The two-dimensional layer runs one LSTM along the rows and a second one along the columns of its result, after
Visin et al. 2015, "ReNet" (arXiv:1505.00393). With both directions every output depends on every input pixel.
"""

from torch import Tensor, nn


class SequenceLSTM(nn.Module):
    """An LSTM with channels first: [B, C, T] -> [B, hidden, T], or [B, 2 hidden, T] in both directions."""

    def __init__(self, in_channels: int, hidden: int, *, layers: int = 1, bidirectional: bool = True):
        super().__init__()
        self.lstm = nn.LSTM(in_channels, hidden, layers, bidirectional=bidirectional)
        self.out_channels = hidden * (2 if bidirectional else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.permute(2, 0, 1).contiguous())[0].permute(1, 2, 0)


class LSTM2(nn.Module):
    """An LSTM along rows, then one along columns: [B, C, H, W] -> [B, D, H, W].

    out_channels: width of a convolution of `kernel_size` (odd) behind the LSTMs. None leaves it out; D is then
        `hidden`, or twice that in both directions.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int | None = None,
        *,
        kernel_size: int = 1,
        layers: int = 1,
        bidirectional: bool = True,
    ):
        super().__init__()
        width = hidden * (2 if bidirectional else 1)
        self.rows = nn.LSTM(in_channels, hidden, layers, bidirectional=bidirectional)
        self.columns = nn.LSTM(width, hidden, layers, bidirectional=bidirectional)
        self.out_channels = width if out_channels is None else out_channels
        self.conv = (
            None if out_channels is None else nn.Conv2d(width, out_channels, kernel_size, padding=kernel_size // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        along_rows = self.rows(x.permute(3, 0, 2, 1).reshape(width, batch * height, -1))[0]
        grid = along_rows.reshape(width, batch, height, -1).permute(2, 1, 0, 3)  # [H, B, W, D]
        along_columns = self.columns(grid.reshape(height, batch * width, -1))[0]
        y = along_columns.reshape(height, batch, width, -1).permute(1, 3, 0, 2)
        return y if self.conv is None else self.conv(y)
