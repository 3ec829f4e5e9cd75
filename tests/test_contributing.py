"""The walk-through of CONTRIBUTING.md: its blocks run as they stand, and make a method as the others are made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import methods

import steppe

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")


def blocks() -> tuple[Any, Any]:
    """The recipe's module and its slow truth."""
    recipe, truth = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[:2]
    source, reference = {"__name__": "tensor_sam"}, dict(vars(methods))
    exec(recipe, source)
    exec(truth, reference)
    return source, reference["tensor_sam"]


def test_the_recipe_makes_the_gradient_of_its_slow_truth() -> None:
    source, truth = blocks()
    assert source["ROW"].recipe is source["TensorSAM"] and source["ROW"].name == "tensor_sam"
    model = torch.nn.Linear(3, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    sharp = source["TensorSAM"](model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
    sharp.backward(lambda: model(x).pow(2).sum())

    def grad(w: Any) -> Any:
        r = x.numpy() @ w["weight"].T + w["bias"]
        return {"weight": 2 * r.T @ x.numpy(), "bias": 2 * r.sum(0)}

    for name, expected in truth(grad, start, 0, {}, rho=0.3).items():
        found = model.get_parameter(name).grad
        assert found is not None and np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12), name


def test_a_part_that_it_makes_by_itself_is_refused_as_by_every_method() -> None:
    source, _ = blocks()
    model = torch.nn.Linear(3, 2)
    with pytest.raises(TypeError, match="was given to TensorSAM, which makes this part of its own settings"):
        source["TensorSAM"](model, torch.optim.SGD(model.parameters(), lr=0.1), ascent=steppe.Ascent())
