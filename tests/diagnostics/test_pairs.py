"""Balancedness of pairs as they stand, on paper."""

import pytest
import torch
from torch import nn

from steppe.diagnostics import balance


class Adapter(nn.Module):
    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = (nn.ModuleDict({"default": nn.Linear(4, 4, bias=False)}) for _ in "AB")
        nn.init.constant_(self.lora_A["default"].weight, a)  # of norm 4 |a|
        nn.init.constant_(self.lora_B["default"].weight, b)


def test_each_pair_on_paper():
    found = balance(nn.Sequential(Adapter(1.0, 0.5), Adapter(0.0, 2.0), Adapter(0.0, 0.0)))
    first, second, third = found.pairs
    assert first.name == "0.default"
    assert (first.x, first.y, first.balancedness) == (4.0, 2.0, 6.0)
    assert first.relative == pytest.approx(0.6)
    assert (second.balancedness, second.relative) == (-32.0, -1.0)
    assert third.relative == 0.0
    expected = {"name": "1.default", "x": 0.0, "y": 8.0, "balancedness": -32.0, "relative": -1.0}
    assert found.as_dict()["pairs"][1] == expected


def test_the_picture_has_a_point_for_each_pair():
    found = balance(nn.Sequential(Adapter(1.0, 0.5), Adapter(0.0, 2.0)))
    line = found.plot(label="run").get_lines()[0]
    assert list(line.get_ydata()) == pytest.approx([0.6, -1.0])


def test_a_model_without_pairs_is_refused():
    with pytest.raises(ValueError, match="pair"):
        balance(nn.Linear(2, 2))


def test_the_model_is_only_read():
    model = Adapter(1.0, 0.5)
    before = [w.detach().clone() for w in model.parameters()]
    balance(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
