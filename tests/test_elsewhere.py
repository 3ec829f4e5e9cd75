"""A recipe's word for a setting, set on the method: refused with the part that holds it."""

from __future__ import annotations

import dataclasses

import pytest
from tests.problems import make, net

import steppe


@pytest.mark.parametrize(
    ("name", "part"),
    [("rho", "ascent"), ("k", "schedule"), ("p", "schedule"), ("alpha", "combine"), ("samples", "look")],
)
def test_it_is_refused_with_the_part_that_holds_it(name: str, part: str) -> None:
    _, sharp = make(net())
    with pytest.raises(
        AttributeError, match=rf"{name}=0.1 was set on the method.*expected another part in sharp.{part}"
    ):
        setattr(sharp, name, 0.1)
    assert not hasattr(sharp, name)


def test_another_part_is_heard() -> None:
    _, sharp = make(net(), measure=True)
    sharp.ascent = dataclasses.replace(sharp.ascent, rho=0.3)
    assert sharp.ascent == steppe.Ascent(0.3)
