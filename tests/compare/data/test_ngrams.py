"""Counts with Kneser-Ney smoothing equal the formula by hand, at every place of a window."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from steppe.compare.data.ngrams import Counts

TEXT = b"the hen then went; the ten men met the hen there, and then ten went then."


def by_hand(context: bytes, byte: int, order: int) -> float:
    """Interpolated Kneser-Ney, from the sets of n-grams themselves."""

    def counted(n: int) -> Counter:
        if n == order:
            return Counter(TEXT[i : i + n] for i in range(len(TEXT) - n + 1))
        return Counter(gram[1:] for gram in {TEXT[i : i + n + 1] for i in range(len(TEXT) - n)})

    def chance(context: bytes) -> float:
        n = len(context) + 1
        found = counted(n)
        once, twice = (sum(times == k for times in found.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        lower = chance(context[1:]) if context else 1 / 256
        here = {gram: times for gram, times in found.items() if gram[:-1] == context}
        if not here:
            return lower
        own = max(here.get(context + bytes([byte]), 0) - discount, 0)
        return (own + discount * len(here) * lower) / sum(here.values())

    return chance(context[-(order - 1) :] if order > 1 else b"")


@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_probability_is_that_of_the_formula(order):
    counts = Counts(torch.tensor(list(TEXT)), order)
    asked = [b"then the", b"hen zqen", b"xxxx the"]
    found = counts(torch.tensor([list(each) for each in asked])).exp()
    assert torch.allclose(found.sum(-1), torch.ones(3, 8), atol=1e-5)
    for row, each in enumerate(asked):
        for place in range(8):
            for byte in b"etn zx":
                expected = by_hand(each[: place + 1], byte, order)
                assert float(found[row, place, byte]) == pytest.approx(expected, rel=1e-4), (each, place, byte)


def test_a_text_shorter_than_an_n_gram_is_counted_too():
    found = Counts(torch.tensor(list(b"abc")))(torch.tensor([list(b"ab")])).exp()
    assert found.argmax(-1).tolist() == [[ord("b"), ord("c")]]
