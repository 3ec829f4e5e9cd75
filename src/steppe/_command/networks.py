"""Small networks by name, for the shape of a task's inputs, or your own as `module:function`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from steppe._command.lookup import named_function, nearest

Builder = Callable[[tuple[int, ...], int], nn.Module]


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions and two linear layers, no normalisation: 0.15 M weights at any image size.

    For signals (channels, length) three convolutions of 25 channels and a linear layer, as MNIST-1D's authors use.
    """
    if len(shape) == 2:
        return _signals(shape, classes)
    channels, height, width = _image(shape, "cnn")
    shrink = [nn.MaxPool2d(2)] if min(height, width) > 16 else []
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), *shrink,
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip


def _signals(shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, length = shape
    left = -(-(-(-(length - 2) // 2) // 2) // 2) if length > 2 else 1
    return nn.Sequential(
        nn.Conv1d(channels, 25, 5, 2, 1), nn.ReLU(),
        nn.Conv1d(25, 25, 3, 2, 1), nn.ReLU(),
        nn.Conv1d(25, 25, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(25 * left, classes),
    )  # fmt: skip


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two hidden layers of 256 on the flattened input."""
    inputs = int(torch.Size(shape).numel())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)
    )


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One linear layer on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.Size(shape).numel()), classes))


class _Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


def resnet18(shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-18 with BatchNorm and the 3x3 stem used for CIFAR: 11 M weights."""
    channels, _, _ = _image(shape, "resnet18")
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Residual(width, outputs, stride), _Residual(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class _ViT(nn.Module):
    """Patches, a class token, learned positions, pre-norm transformer blocks."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        channels, height, height_too = _image(shape, "vit")
        patch = max(2, min(height, height_too) // 8)
        tokens = (height // patch) * (height_too // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        return self.head(self.blocks(h)[:, 0])


def vit(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small vision transformer (width 96, 4 blocks, about 64 patches): 0.3 M weights, LayerNorm."""
    return _ViT(shape, classes)


MODELS: dict[str, Builder] = {"cnn": cnn, "mlp": mlp, "linear": linear, "resnet18": resnet18, "vit": vit}
"""Model name -> builder(shape of one example, number of classes)."""


def find(name: str) -> Builder:
    """The builder called `name`, or the user's `module:function` with the same two arguments."""
    if ":" in name:
        return named_function(name, "model")
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; {nearest(name, MODELS)}, or give your own as module:function")
    return MODELS[name]


def _image(shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ValueError(
            f"model {model!r} needs images of at least 8x8, the task has inputs of shape {shape}; --model mlp reads any"
        )
    return shape[0], shape[1], shape[2]
