"""The length that a host gives to a method: none where its training has no end."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import steppe
from steppe._length import of_this_length

MODEL = nn.Linear(2, 1)


def built(recipe: object, length: float, **settings: object) -> steppe.SharpnessAware:
    return of_this_length(recipe, lambda: length, settings)(MODEL, torch.optim.SGD(MODEL.parameters(), lr=0.1))


def test_a_training_without_an_end_is_no_length() -> None:
    assert built(steppe.RST, math.inf, p=0.5).schedule == steppe.Bernoulli(0.5)
    assert built(functools.partial(steppe.LateSAM, start=3), math.inf).schedule == steppe.Window(3)


def test_a_method_that_needs_the_end_says_so_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="expected total_steps, the optimizer steps of the training"):
        built(steppe.recommended, math.inf, ramp=0.1)


def test_a_length_is_handed_on() -> None:
    sharp = built(steppe.recommended, 20, ramp=0.5)
    assert sharp.ascent.rho == steppe.curves.Linear(0.0, 0.4, 10) and sharp.hosts_length
