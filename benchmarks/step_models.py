"""Models that the benchmark of step times adds to those of `steppe bench`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from steppe._command.networks import _ViT

WORDS = 32_000


def vit192(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A vision transformer of width 192 and depth 6: 1.8 M weights, 65 tokens from an image of 32 x 32."""
    return _ViT(shape, classes, width=192, depth=6)


class Language(nn.Module):
    """A causal language model with tied words."""

    def __init__(self, width: int, depth: int, length: int, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, tokens.device, self.words.weight.dtype)
        h = self.words(tokens) + self.places.weight[:length]
        return F.linear(self.blocks(h, mask=mask, is_causal=True), self.words.weight)


def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


def transformer100m(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """110 M weights: width 768, depth 12, 32,000 words, sequences of 512 tokens."""
    return Language(768, 12, 512), torch.randint(WORDS, (batch_size, 513)), next_token


def transformer_tiny(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """The same in small, to try the benchmark where there is no GPU."""
    return Language(64, 2, 32, 500), torch.randint(500, (batch_size, 33)), next_token
