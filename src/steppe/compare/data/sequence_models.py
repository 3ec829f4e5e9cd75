"""Networks for windows of a series: forecasters by column, and a small causal transformer on bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NARROW = 16


class _Forecaster(nn.Module):
    """Each column is normalised over its look-back, mapped to the horizon by one layer for all, and brought back.

    The normalisation is RevIN (Kim et al., ICLR 2022): what a window's own mean and deviation took away at its start is
    given back at the end, with a learned scale and offset for each column between.

    Args:
        lookback: rows of an input.
        columns: of an input.
        horizon: rows of a forecast.
        targets: the first so many columns are forecast.
    """

    def __init__(self, lookback: int, columns: int, horizon: int, targets: int) -> None:
        super().__init__()
        self.targets = targets
        self.scale = nn.Parameter(torch.ones(columns, 1))
        self.offset = nn.Parameter(torch.zeros(columns, 1))
        self.head = nn.Linear(lookback, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Forecasts (examples, horizon, targets) of (examples, look-back, columns)."""
        h = x.transpose(1, 2)
        mean, deviation = h.mean(-1, keepdim=True), (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        h = self.head(self.mix((h - mean) / deviation * self.scale + self.offset))
        return ((h - self.offset) / self.scale * deviation + mean)[:, : self.targets].transpose(1, 2)

    def mix(self, h: Tensor) -> Tensor:
        """What the columns learn from each other: nothing."""
        return h


class _ChannelAttention(_Forecaster):
    """The same with one attention between the columns before the last layer.

    As SAMformer (Ilbert et al., ICML 2024, arXiv 2402.10198): with a column's whole look-back as embedding h in R^L,
    h + A(h) h W_V W_O and A(h) = softmax(h W_Q (h W_K)^T / sqrt(d)), d = 16; one head, no feed-forward layer.
    """

    def __init__(self, lookback: int, columns: int, horizon: int, targets: int) -> None:
        super().__init__(lookback, columns, horizon, targets)
        self.query, self.key, self.value = (nn.Linear(lookback, _NARROW) for _ in range(3))
        self.out = nn.Linear(_NARROW, lookback)

    def mix(self, h: Tensor) -> Tensor:
        """What the columns learn from each other."""
        found = nn.functional.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return h + self.out(found)


FORECASTERS: dict[str, type[_Forecaster]] = {"channel_attention": _ChannelAttention, "linear": _Forecaster}
"""Model name -> network(look-back, columns, horizon, targets)."""
