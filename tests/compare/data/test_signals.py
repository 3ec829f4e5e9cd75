"""MNIST-1D's signals drawn anew are the paper's, example by example; a task judges on ten thousand of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from steppe.compare.data import readers, signals


def one_by_one(examples: int, seed: int):
    """The description of the paper's appendix, step by step, with the same draws."""
    rng = np.random.RandomState(seed)
    classes = rng.permutation(np.arange(examples) % 10)
    pads = rng.randint(36, 61, examples)
    scales = 1 + 0.4 * (rng.random_sample(examples) - 0.5)
    moves = rng.randint(48, size=examples)
    smooth, little = 0.25 * rng.standard_normal((examples, 72)), 0.02 * rng.standard_normal((examples, 72))
    tilts = 0.75 * (rng.random_sample(examples) - 0.5)
    made = []
    for label, pad, scale, move, wide, small, tilt in zip(
        classes, pads, scales, moves, smooth, little, tilts, strict=True
    ):
        shape = np.array(signals.TEMPLATES[label], dtype=float)
        shape = (shape - shape.mean()) / shape.std()
        padded = np.concatenate([(shape - shape[0]) / 6 + 1e-8, np.zeros(pad)])
        signal = scale * np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(padded)), padded)
        signal = np.roll(signal, move)
        signal = np.where(signal != 0, signal, gaussian_filter1d(wide, 2)) + small
        signal = signal - tilt * np.linspace(-0.5, 0.5, 72)
        made.append(np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, 72), signal))
    return (np.array(made) - np.mean(made)) / np.std(made), classes


def test_all_at_once_they_are_what_one_at_a_time_gives():
    found, classes = signals.drawn(60, seed=5)
    expected, labels = one_by_one(60, seed=5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert classes.tolist() == labels.tolist()


@pytest.mark.parametrize("examples", [200, 10])
def test_classes_are_equal_and_the_whole_is_standardised(examples):
    found, classes = signals.drawn(examples, seed=3)
    assert np.bincount(classes).tolist() == [examples // 10] * 10
    assert found.shape == (examples, 40) and abs(found.mean()) < 1e-12 and found.std() == pytest.approx(1)
    assert not np.array_equal(found, signals.drawn(examples, seed=4)[0])


def test_the_task_trains_on_the_published_ones_chooses_and_judges_by_others():
    source, published = readers.mnist1d_10k(), readers.mnist1d()
    assert torch.equal(source.pool.x, published.pool.x) and source.classes == 10
    for part in (source.val, source.test):
        assert part.x.shape == (10_000, 1, 40) and part.x.dtype == torch.float32
        assert torch.bincount(part.y).tolist() == [1000] * 10
        torch.testing.assert_close(part.x.flatten(1).std(0), published.pool.x.flatten(1).std(0), rtol=0.1, atol=0)
    assert not torch.equal(source.val.x, source.test.x)
