"""States that version 0.1.0 wrote load, and go on as they did there: to the rounding of another processor."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.fixtures.states import FILE, METHODS, SAVED, TOTAL, advance, build

OLD: dict[str, Any] = torch.load(FILE, weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_0_1_0_resumes_as_before(name: str) -> None:
    built = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each, state in zip(built, OLD[name]["states"], strict=True):
            each.load_state_dict(state)
    assert built[2].step == SAVED
    assert advance(built, SAVED, TOTAL) == OLD[name]["ascended"]
    for key, value in built[0].state_dict().items():
        torch.testing.assert_close(value, OLD[name]["weights"][key], rtol=0, atol=1e-12)
