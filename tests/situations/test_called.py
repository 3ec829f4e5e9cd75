"""What a loss binds by calls that no name tells of: setters, operators, inherited methods, another criterion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.situations.centred import RHO, Batch, Centred, batches, by_hand, compare
from torch import Tensor, nn

import steppe
from steppe._bound import places


class BySetter(Centred):
    @property
    def mean(self) -> Tensor:
        return self._mean if hasattr(self, "_mean") else self.begun()

    @mean.setter
    def mean(self, value: Tensor) -> None:
        self._mean = value

    def centre(self, out: Tensor) -> Any:
        here = self.mean
        self.mean = here / 2 + out.mean(0)
        return here


class BySetattr(Centred):
    def centre(self, out: Tensor) -> Any:
        here = self.state
        setattr(self, "state", here / 2 + out.mean(0))  # noqa: B010
        return here


class Hook:
    def __init__(self) -> None:
        self.mean = torch.zeros(3, dtype=torch.float64)

    def moved(self, out: Tensor) -> Tensor:
        here, self.mean = self.mean, out.mean(0)
        return here


class ByName(Centred):
    """As libraries of semi-supervised learning call their hooks."""

    def begun(self) -> Any:
        return {"centre": Hook()}

    def call(self, name: str, hook: str, *arguments: Any) -> Any:
        return getattr(self.state[hook], name)(*arguments)

    def centre(self, out: Tensor) -> Any:
        return self.call("moved", "centre", out)


class Inherited(Hook):
    def moved(self, out: Tensor) -> Tensor:
        return 1.0 * super().moved(out)

    @staticmethod
    def apart(hook: Any, out: Tensor) -> None:
        hook.mean = out.mean(0)

    def __iadd__(self, out: Tensor) -> Any:
        self.mean = self.mean / 2 + out.mean(0)
        return self


class BySuper(Centred):
    def begun(self) -> Any:
        return Inherited()

    def centre(self, out: Tensor) -> Any:
        return self.state.moved(out)


class ByStaticMethod(BySuper):
    def centre(self, out: Tensor) -> Any:
        here = self.state.mean
        Inherited.apart(self.state, out)
        return here


class ByOperator(BySuper):
    def centre(self, out: Tensor) -> Any:
        here = self.state.mean
        self.state += out
        return here


class ByHandlers(Centred):
    """Functions in a list that lies in a dict, as an engine has them."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers = {"out": [Inherited.apart]}

    def begun(self) -> Any:
        return Inherited()

    def centre(self, out: Tensor) -> Any:
        here = self.state.mean
        for handler in self.handlers["out"]:
            handler(self.state, out)
        return here


KINDS = (BySetter, BySetattr, ByName, BySuper, ByStaticMethod, ByOperator, ByHandlers)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_pass_at_the_weights_left(kind: type[Centred]) -> None:
    compare(kind)


class Exchanged(Centred):
    """The centre comes with a criterion that takes another's place, also one that was the loop's own to choose."""

    later = 2

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.criterion: Any = nn.functional.cross_entropy

    def loss_of(self, criterion: Any) -> Any:
        return lambda batch: criterion(self.model(batch[0]), batch[1])

    def loss(self, batch: Batch) -> Tensor:
        return self.loss_of(self.criterion)(batch)

    def begin(self) -> None:
        if self.steps == self.later:
            self.criterion = Moving()
        self.steps += 1


class Moving:
    def __init__(self) -> None:
        self.centre = torch.zeros(3, dtype=torch.float64)

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        here, self.centre = self.centre, out.detach().mean(0)
        return nn.functional.cross_entropy(out - here, y)


@pytest.mark.parametrize("how", ["closed over", "an attribute"])
def test_a_criterion_that_takes_another_s_place(how: str) -> None:
    ours, hand = Exchanged(), Exchanged()
    sharp = steppe.SAM(ours.model, ours.optimizer, rho=RHO)
    through = lambda batch: ours.criterion(ours.model(batch[0]), batch[1])  # noqa: E731
    for batch in batches():
        for world in (ours, hand):
            world.begin()
        sharp.backward(through if how == "an attribute" else ours.loss_of(ours.criterion), batch)
        by_hand(hand, batch)
        for world in (ours, hand):
            world.optimizer.step()
            world.optimizer.zero_grad()
    for p, q in zip(ours.model.parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


class Books:
    """A trainer with long lists that its loss does not name, and one that it reaches by a name made at run time."""

    def __init__(self) -> None:
        self.net, self.steps = nn.Linear(3, 2), 0
        self.history, self.sums_0 = list(range(2000)), {"loss": torch.zeros(())}

    def loss(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.net(x).square().mean()

    def summed(self, x: Tensor) -> Tensor:
        out = self.loss(x)
        getattr(self, f"sums_{0}")["loss"] = getattr(self, f"sums_{0}")["loss"] + out.detach()
        return out


def test_what_no_code_names_is_not_copied_at_every_step_unless_it_may_be_reached() -> None:
    """Twenty lists of 4,000 made a step of 0.7 ms one of 3.7, and arrays of 1 MB one of 33."""
    books = Books()
    kept = [id(getattr(place, "_container", None)) for place in places(books.loss, ())]
    assert id(books.history) not in kept
    assert id(books.sums_0) in [id(getattr(place, "_container", None)) for place in places(books.summed, ())]

    sharp = steppe.SAM(books.net, torch.optim.SGD(books.net.parameters(), lr=0.1), rho=0.1)
    start, x = copy.deepcopy(books.net), torch.randn(4, 3)
    sharp.backward(books.summed, x)
    torch.testing.assert_close(books.sums_0["loss"], start(x).square().mean().detach())
