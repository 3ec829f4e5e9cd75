"""Articles and numbers in sentences."""

import pytest
import torch

import steppe
from steppe._words import an, count


def test_a_name_has_its_article() -> None:
    told = "an AdamW, an SGD, a SAM, a Linear, an int, a str, an MLP, a NoneType, an LSTM, a LoRA, a Module"
    assert ", ".join(an(each.split()[1]) for each in told.split(", ")) == told


def test_refusals_use_it() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match="model is an AdamW; expected a torch.nn.Module"):
        steppe.SAM(torch.optim.AdamW([weight]), torch.optim.SGD([weight]))


def test_one_is_no_plural() -> None:
    assert [count(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
