"""Networks for windows of a series: forecasters by column, and a small causal transformer on bytes."""

from __future__ import annotations

from collections.abc import Callable

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


class _GPT(nn.Module):
    """Tokens, learned positions, pre-norm blocks that see no later token, a score for each token that may come next."""

    def __init__(self, context: int, tokens: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))
        later = torch.ones(context, context, dtype=torch.bool).triu(
            1
        )  # a mask of numbers would be averaged with weights
        self.register_buffer("later", later, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.token(x) + self.position, mask=self.later, is_causal=True))


def gpt(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small causal transformer (width 128, 2 blocks) over whole numbers below `classes`: 0.5 M weights."""
    return _GPT(shape[0], classes)


FORECASTERS: dict[str, type[_Forecaster]] = {"channel_attention": _ChannelAttention, "linear": _Forecaster}
"""Model name -> network(look-back, columns, horizon, targets)."""

TOKENS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"gpt": gpt}
"""Model name -> network(shape of one example, number of tokens)."""
