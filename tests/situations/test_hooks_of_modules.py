"""What a model's hooks and forwards move outside of modules is that of the pass at w, and what lies in modules too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.situations.centred import RHO, Batch, Centred, batches, compare
from torch import Tensor, nn

import steppe

seen: dict[str, Any] = {}


class Hooked(Centred):
    """The centre is what a hook of the last layer has gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.hang()

    def hang(self) -> None:
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])


class ByMethod(Hooked):
    def hang(self) -> None:
        self.model[2].register_forward_hook(self.moved)

    def moved(self, module: Any, given: Any, out: Tensor) -> Tensor:
        here, self.state = self.state, self.state / 2 + out.detach().mean(0)
        return out - here


class Recorder:
    def __init__(self) -> None:
        self.mean = torch.zeros(3, dtype=torch.float64)

    def __call__(self, module: Any, given: Any, out: Tensor) -> Tensor:
        here, self.mean = self.mean, self.mean / 2 + out.detach().mean(0)
        return out - here


class ByObject(Hooked):
    def hang(self) -> None:
        self.state = Recorder()
        self.model[2].register_forward_hook(self.state)


class BeforeIt(Hooked):
    def hang(self) -> None:
        self.state = torch.zeros(5, dtype=torch.float64)
        self.model.register_forward_pre_hook(self.moved)

    def moved(self, module: Any, given: Any) -> Any:
        here, self.state = self.state, self.state / 2 + given[0].mean(0)
        return (given[0] - here,)


class OfWhatIsNoLoop(nn.Module):
    """A forward that reads and moves a global."""

    def forward(self, out: Tensor) -> Tensor:
        here = seen.get("mean", 0.0)
        seen["mean"] = here / 2 + out.detach().mean(0)
        return out - here


class OfItsClass(nn.Module):
    mean: Any = 0.0

    def forward(self, out: Tensor) -> Tensor:
        here = OfItsClass.mean
        OfItsClass.mean = here / 2 + out.detach().mean(0)
        return out - here


class Slots:
    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = torch.zeros(3, dtype=torch.float64)


class Named(dict):  # type: ignore[type-arg]
    __setattr__ = dict.__setitem__  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


class Within(nn.Module):
    """A state in an object that the module holds."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def forward(self, out: Tensor) -> Tensor:
        here = self.state.mean
        self.state.mean = here / 2 + out.detach().mean(0)
        return out - here


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = np.zeros(3)

    def forward(self, out: Tensor) -> Tensor:
        here = torch.tensor(self.mean)
        self.mean *= 0.5
        self.mean += out.detach().mean(0).numpy()
        return out - here


@pytest.mark.parametrize("kind", [ByMethod, ByObject, BeforeIt])
def test_what_a_hook_moves(kind: type[Centred]) -> None:
    compare(kind)


def inserted(made: Any) -> type[Centred]:
    class Inserted(Hooked):
        def hang(self) -> None:
            self.model.append(made())

    return Inserted


@pytest.mark.parametrize(
    "made",
    [lambda: Within(Slots()), lambda: Within(Named(mean=torch.zeros(3, dtype=torch.float64))), Numbers],
    ids=["slots", "kind of dict", "array"],
)
def test_what_a_module_holds(made: Any) -> None:
    compare(inserted(made))


@pytest.mark.parametrize("kind", [OfWhatIsNoLoop, OfItsClass])
def test_what_a_forward_moves_that_is_no_module_s(kind: Any) -> None:
    """By hand the second pass begins from what the first has read, and what the first has left is put back."""
    found = []
    for ours in (True, False):
        seen.clear()
        OfItsClass.mean = 0.0
        world = inserted(kind)()
        sharp = steppe.SAM(world.model, world.optimizer, rho=RHO)
        for batch in batches():
            if ours:
                sharp.backward(world.loss, batch)
            else:
                stepped(world, batch)
            world.optimizer.step()
            world.optimizer.zero_grad()
        found.append([*world.model.parameters(), seen.get("mean", OfItsClass.mean)])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def stepped(world: Centred, batch: Batch) -> None:
    """As by hand, on a model that has no copy of what is global."""
    mean = dict(seen), OfItsClass.mean
    params = list(world.model.parameters())
    grads = torch.autograd.grad(world.loss(batch), params)
    left = dict(seen), OfItsClass.mean
    length = torch.cat([g.flatten() for g in grads]).norm()
    before = [p.detach().clone() for p in params]
    seen.clear()
    seen.update(mean[0])
    OfItsClass.mean = mean[1]
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p += RHO * g / length
    world.loss(batch).backward()
    with torch.no_grad():
        for p, w in zip(params, before, strict=True):
            p.copy_(w)
    seen.update(left[0])
    OfItsClass.mean = left[1]
