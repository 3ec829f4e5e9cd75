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


class _Block(nn.Module):
    """Attention to earlier tokens, then two layers for each token by itself; both read what is normalised.

    Where a token stands is told by turning queries and keys (RoPE, Su et al., arXiv 2104.09864), and half of what
    attention reads is the token before's (token shift, Peng et al., RWKV, arXiv 2305.13048).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        slowness = 10_000 ** (torch.arange(0, width // heads, 2) * heads / width)
        angles = torch.arange(context)[:, None] / slowness
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.layers(self.before_layers(x))

    def attention(self, x: Tensor) -> Tensor:
        """What each token learns from those before it, and from itself."""
        now, before = x.chunk(2, -1)
        x = torch.cat([now, nn.functional.pad(before, (0, 0, 1, 0))[:, :-1]], -1)
        parts = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(
            self.turned(parts[0]), self.turned(parts[1]), parts[2], is_causal=True
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor) -> Tensor:
        """Each pair of numbers turned by an angle that grows with the place."""
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class _GPT(nn.Module):
    """Tokens, pre-norm blocks that see no later token, a score for each token that may come next."""

    def __init__(self, context: int, tokens: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(_Block(context, width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.token(x)))


def gpt(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small causal transformer (width 64, 2 blocks) over whole numbers below `classes`: 0.13 M weights for bytes."""
    return _GPT(shape[0], classes)


FORECASTERS: dict[str, type[_Forecaster]] = {"channel_attention": _ChannelAttention, "linear": _Forecaster}
"""Model name -> network(look-back, columns, horizon, targets)."""

TOKENS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"gpt": gpt}
"""Model name -> network(shape of one example, number of tokens)."""
