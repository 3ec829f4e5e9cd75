"""MNIST-1D (Greydanus and Kobak, arXiv 2011.14439), made from its description: ten templates of twelve points, moved.

Each example is a template, padded, stretched, scaled, rotated along the line, with smooth noise where it is zero and a
little everywhere, sheared and read at forty points. A linear model comes to about 32 %, a small convolution above 90 %.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5), (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5), (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5), (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5), (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5), (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)  # fmt: skip
LENGTH, MOST_PADDING, POINTS = 72, 60, 40


def make(examples: int = 5000, seed: int = 42) -> tuple[Tensor, Tensor]:
    """`examples` signals of forty numbers, in random order, and their classes; standardised as a whole."""
    rng = np.random.default_rng(seed)
    shapes = np.asarray(TEMPLATES, dtype=float)
    shapes = (shapes - shapes.mean(1, keepdims=True)) / shapes.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    classes = rng.permutation(np.arange(examples) % len(shapes))
    signals = np.stack([_moved(shapes[each], rng) for each in classes])
    signals = (signals - signals.mean()) / signals.std()
    return torch.tensor(signals, dtype=torch.float32), torch.tensor(classes)


def _moved(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    padded = np.concatenate([shape + 1e-8, np.zeros(rng.integers(36, MOST_PADDING + 1))])
    signal = _stretched(padded, LENGTH) * (1 + 0.4 * (rng.random() - 0.5))
    signal = np.roll(signal, rng.integers(48))
    signal = np.where(signal == 0, gaussian_filter(0.25 * rng.standard_normal(LENGTH), 2), signal)
    signal = signal + 0.02 * rng.standard_normal(LENGTH)
    return _stretched(signal - 0.75 * (rng.random() - 0.5) * np.linspace(-0.5, 0.5, LENGTH), POINTS)


def _stretched(signal: np.ndarray, points: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(signal)), signal)
