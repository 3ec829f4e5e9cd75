"""What a loss changes by a method, a kernel or a setter, and binds nowhere, moves once a step too."""

from __future__ import annotations

import copy
import random
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe

STEPS, RHO = 5, 0.3
Batch = tuple[Tensor, Tensor]


class Centred:
    """A loss of outputs less a centre, which moves with what it has seen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.state: Any = self.begun()

    def begun(self) -> Any:
        return torch.zeros(3, dtype=torch.float64)

    def loss(self, batch: Batch) -> Tensor:
        out = self.model(batch[0])
        return nn.functional.cross_entropy(out - self.centre(out.detach()), batch[1])

    def centre(self, out: Tensor) -> Any:
        raise NotImplementedError


class InPlace(Centred):
    """StyleGAN's mean of path lengths: of an object that has no other state."""

    def centre(self, out: Tensor) -> Any:
        here = self.state.clone()
        self.state.mul_(0.5).add_(out.mean(0))
        return here


class ByKernel(Centred):
    def begun(self) -> Any:
        return torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def centre(self, out: Tensor) -> Any:
        here = self.state[0].clone()
        nn.functional.batch_norm(out, *self.state, training=True, momentum=0.5)
        return here


class ByData(Centred):
    """More than what is always copied."""

    def begun(self) -> Any:
        return torch.zeros(3000, 3, dtype=torch.float64)

    def centre(self, out: Tensor) -> Any:
        here = self.state[0].clone()
        self.state.data[0] = here / 2 + out.mean(0)
        return here


class Labels(Centred):
    def begun(self) -> Any:
        return Counter()

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([self.state[k] / 10 for k in range(3)])
        self.state.update(out.argmax(1).tolist())
        return here


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[int] = Counter()

    def forward(self, out: Tensor) -> Tensor:
        here = torch.tensor([self.seen[k] / 10 for k in range(3)])
        self.seen.update(out.argmax(1).tolist())
        return here


class InAModule(Centred):
    def begun(self) -> Any:
        return Counting()

    def centre(self, out: Tensor) -> Any:
        return self.state(out)


class Met(Centred):
    def begun(self) -> Any:
        return set()

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([float(k in self.state) for k in range(3)])
        for k in out.argmax(1).tolist():
            self.state.add(k)
        return here


class ByArray(Centred):
    def begun(self) -> Any:
        return np.zeros(3)

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(self.state / 10)
        np.add.at(self.state, out.argmax(1).numpy(), 1)
        return here


class Turning(Centred):
    def begun(self) -> Any:
        return deque([0.0, 1.0, 2.0])

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(list(self.state))
        self.state.rotate(1)
        return here


class Shuffled(Turning):
    def begun(self) -> Any:
        return [0.0, 1.0, 2.0]

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(self.state)
        random.shuffle(self.state)
        return here


class OfManyClasses(Centred):
    def begun(self) -> Any:
        return dict.fromkeys(range(100), 0.0)

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([self.state[k] for k in range(3)])
        for k, x in enumerate(out.mean(0).tolist()):
            self.state[k] = self.state[k] / 2 + x
        return here


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


class Reservoir(Centred):
    """Experience replay: a list that grows until it is full."""

    def begun(self) -> Any:
        return []

    def centre(self, out: Tensor) -> Any:
        here = sum(self.state) / 10 if self.state else 0.0
        for x in out[:3]:
            if len(self.state) < 8:
                self.state.append(x)
            else:
                self.state[random.randrange(8)] = x
        return here


class Meter:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.total, self.count = self.total + value, self.count + count


class Meters(Centred):
    """As the loggers of many training scripts: objects in a dict."""

    def begun(self) -> Any:
        return defaultdict(Meter)

    def centre(self, out: Tensor) -> Any:
        here = self.state["mean"].total / max(1, self.state["mean"].count)
        self.state["mean"].update(float(out.sum()), len(out))
        return torch.tensor([here, 0.0, 0.0])


KINDS = (
    InPlace,
    ByKernel,
    ByData,
    Labels,
    InAModule,
    Met,
    ByArray,
    Turning,
    Shuffled,
    OfManyClasses,
    BySetter,
    BySetattr,
    ByName,
    Reservoir,
    Meters,
)


def batches() -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, dtype=torch.float64, generator=draws), torch.randint(3, (8,), generator=draws))
        for _ in range(STEPS)
    ]


def by_hand(world: Centred, batch: Batch) -> Tensor:
    """A step of SAM whose second pass runs in a copy of the world as it was before the first."""
    drawn, there = random.getstate(), copy.deepcopy(world)
    loss, params = world.loss(batch), list(world.model.parameters())
    grads = torch.autograd.grad(loss, params)
    length = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(there.model.parameters(), grads, strict=True):
            p += RHO * g / length
    after = random.getstate()
    random.setstate(drawn)
    there.loss(batch).backward()
    random.setstate(after)
    for p, q in zip(params, there.model.parameters(), strict=True):
        p.grad = q.grad
    return loss.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_pass_at_the_weights_left(kind: type[Centred]) -> None:
    ours, hand = kind(), kind()
    sharp = steppe.SAM(ours.model, ours.optimizer, rho=RHO)
    for batch in batches():
        random.seed(0)
        found = sharp.backward(ours.loss, batch)
        random.seed(0)
        torch.testing.assert_close(found, by_hand(hand, batch), rtol=0, atol=1e-12)
        for world in (ours, hand):
            world.optimizer.step()
            world.optimizer.zero_grad()
    for p, q in zip(ours.model.parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


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
