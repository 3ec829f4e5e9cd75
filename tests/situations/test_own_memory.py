"""A direction of a user's own names what it remembers as it likes: its tensors are known by the parameters' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.ahead import Ahead
from steppe.ascent import Direction


@dataclass(frozen=True)
class Rolling(Direction):
    """v <- mass v + g; beside it one number for all and one for each parameter."""

    mass: float = 0.9
    blanks: bool = True

    def __call__(self, grads: Any, memory: Any, scale: Any = 1.0) -> Any:
        old = memory.get("velocity", {})
        new = {k: self.mass * old[k] + g if k in old else g.clone() for k, g in grads.items()}
        sizes = {k: v.norm() for k, v in new.items()}
        return {k: v.clone() for k, v in new.items()}, {"velocity": new, "sizes": sizes, "drag": torch.tensor(0.5)}

    def blank(self, params: Any) -> Any:
        return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}} if self.blanks else {}


def built(width: int = 3, direction: Any = None, names: str = "01") -> steppe.SharpnessAware:
    torch.manual_seed(0)
    layers = {name: nn.Linear(width, width) for name in names}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer.double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(0.3, direction or Rolling()))


def trained(sharp: steppe.SharpnessAware, steps: int) -> steppe.SharpnessAware:
    x = torch.arange(6 * sharp.model.get_submodule("0").in_features, dtype=torch.float64).sin().view(6, -1)  # type: ignore[arg-type]
    for _ in range(steps):
        sharp.backward(lambda: sharp.model(x).square().mean())
        sharp.optimizer.step()
        sharp.optimizer.zero_grad()
    return sharp


@pytest.mark.parametrize("blanks", [True, False])
@pytest.mark.parametrize("other", [{"width": 2}, {"names": "02"}], ids=["another shape", "another name"])
def test_memory_of_another_model_is_refused(other: dict[str, Any], blanks: bool) -> None:
    state = trained(built(direction=Rolling(blanks=blanks)), 2).state_dict()
    there = built(**other, direction=Rolling(blanks=blanks))
    with pytest.raises(ValueError, match="load it into the model it was saved from"):
        there.load_state_dict(state)
    assert there.step == 0 and not there.memory


def test_memory_of_no_known_name_is_refused_by_its_place() -> None:
    state = trained(built(), 2).state_dict()
    with pytest.raises(ValueError, match="no such parameter"):
        built(names="0")  # builds
        built(names="89").load_state_dict(state)


def test_it_resumes_bit_for_bit() -> None:
    whole, first, second = trained(built(), 4), trained(built(), 2), built()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())  # type: ignore[union-attr]
    second.load_state_dict(first.state_dict())
    assert second.memory["ascent"]["drag"] == 0.5 and second.memory["ascent"]["sizes"]["0.bias"].ndim == 0
    trained(second, 2)
    assert all(map(torch.equal, whole.model.parameters(), second.model.parameters()))


@dataclass(frozen=True)
class Counting(Ahead):
    """The sum of the gradients handed on, and how many there were: a number between the dicts."""

    def vector(self, params: Any, optimizer: Any, memory: Any, step: int, seed: int) -> Any:
        return {k: memory["sum"][k].clone() for k in params if k in memory.get("sum", {})}

    def after(self, grads: Any, memory: Any, scale: Any = 1.0) -> Any:
        old: dict[str, Tensor] = memory.get("sum", {})
        return {"sum": {k: g + old.get(k, 0) for k, g in grads.items()}, "count": memory.get("count", 0) + 1}


def test_with_several_optimizers_each_leaves_the_others_memory() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    several = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    sharp = steppe.SharpnessAware(model, several, ascent=steppe.Ascent(0.1, Counting()))
    sums: dict[str, Any] = {}
    for i in range(3):
        x = torch.full((2, 3), i + 1.0, dtype=torch.float64)
        sharp.backward(lambda x=x: model(x).square().mean())
        for name, p in model.named_parameters():
            sums[name] = sums.get(name, 0) + p.grad
        for optimizer in several:
            optimizer.step()
            optimizer.zero_grad()
    assert sharp.memory["ascent"]["sum"].keys() == sums.keys() and sharp.memory["ascent"]["count"] == 6
    for name, total in sums.items():
        torch.testing.assert_close(sharp.memory["ascent"]["sum"][name], total, rtol=1e-12, atol=1e-14)
