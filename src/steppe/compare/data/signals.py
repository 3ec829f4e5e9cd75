"""MNIST-1D's signals drawn anew (Greydanus and Kobak, ICML 2024, arXiv 2011.14439), as many as are wanted.

Each is one of ten templates of twelve points: padded, stretched, scaled and moved along the line, smooth noise where
it is zero and a little everywhere, tilted, and read at forty points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

Array = NDArray[np.float64]

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5), (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5), (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5), (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5), (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5), (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)  # fmt: skip
PADDING, MOVES, POINTS = (36, 60), 48, 40
SCALE, SMOOTH, WIDTH, LITTLE, TILT = 0.4, 0.25, 2, 0.02, 0.75
MARK = 1e-8  # added to a template, so that a zero in it is told from padding


def drawn(examples: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """`examples` signals (examples, 40), standardised as a whole, and their classes, as many of each as of any other.

    Drawn with NumPy's legacy generator, whose stream does not change from one version to the next.
    """
    rng = np.random.RandomState(seed)
    classes = rng.permutation(np.arange(examples) % len(TEMPLATES))
    signals = _moved(_stretched(_padded()[classes], rng), rng)
    noise = gaussian_filter1d(SMOOTH * rng.standard_normal(signals.shape), WIDTH, axis=1)
    signals = np.where(signals == 0, noise, signals) + LITTLE * rng.standard_normal(signals.shape)
    signals -= TILT * (rng.random_sample((examples, 1)) - 0.5) * np.linspace(-0.5, 0.5, signals.shape[1])
    signals = _read(signals, np.linspace(0, signals.shape[1] - 1, POINTS)[None])
    return (signals - signals.mean()) / signals.std(), classes


def _padded() -> Array:
    """The templates of mean 0 and deviation 1, from zero on and a sixth as high, with the longest padding behind."""
    shapes = np.asarray(TEMPLATES, dtype=float)
    shapes = (shapes - shapes.mean(1, keepdims=True)) / shapes.std(1, keepdims=True)
    return np.pad((shapes - shapes[:, :1]) / 6 + MARK, ((0, 0), (0, PADDING[1])))


def _stretched(signals: Array, rng: np.random.RandomState) -> Array:
    """Template and a random padding, stretched to the length of both at their longest, and scaled."""
    length, points = signals.shape[1], len(TEMPLATES[0])
    ends = points + rng.randint(PADDING[0], PADDING[1] + 1, (len(signals), 1)) - 1
    scale = 1 + SCALE * (rng.random_sample((len(signals), 1)) - 0.5)
    return scale * _read(signals, np.linspace(0, 1, length)[None] * ends)


def _moved(signals: Array, rng: np.random.RandomState) -> Array:
    """Each along the line, what leaves at one end coming in at the other."""
    by = rng.randint(MOVES, size=(len(signals), 1))
    return np.take_along_axis(signals, (np.arange(signals.shape[1]) - by) % signals.shape[1], 1)


def _read(signals: Array, places: Array) -> Array:
    """Values at `places` between the points of each signal, on straight lines."""
    places = np.broadcast_to(places, (len(signals), places.shape[1]))
    before = np.minimum(places.astype(int), signals.shape[1] - 2)
    beyond = places - before
    left, right = (np.take_along_axis(signals, before + i, 1) for i in (0, 1))
    return left * (1 - beyond) + right * beyond
