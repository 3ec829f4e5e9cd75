"""Networks of the suite that `steppe compare` has none of: functions of the input's shape and the number of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _GRU(nn.Module):
    """A bidirectional GRU over the points of a signal, and a linear map of the mean of its states."""

    def __init__(self, classes: int, width: int = 48) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x.flatten(1).unsqueeze(-1))[0].mean(1))
        return out


class _Mixer(nn.Module):
    """One block of an MLP-Mixer (arXiv 2105.01601): a map over patches, a map over channels, each with a residual."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(self.norms[1](x))
        return out


class _MixerNet(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, patch: int = 4, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        channels, height, breadth = shape
        patches = (height // patch) * (breadth // patch)
        self.stem = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(_Mixer(patches, width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.flatten(self.stem(x), 2).transpose(1, 2)
        out: Tensor = self.head(self.blocks(tokens).mean(1))
        return out


def gru(shape: tuple[int, ...], classes: int) -> nn.Module:
    """For signals."""
    return _GRU(classes)


def mixer(shape: tuple[int, ...], classes: int) -> nn.Module:
    """For images whose sides are multiples of four."""
    return _MixerNet(shape, classes)
