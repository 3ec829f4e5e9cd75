"""Modules whose forward reads a state and then moves it, each in another way."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Reading(nn.Module):
    """``x w - q``, after which q is something of this batch that depends on w, so that reading it twice shows."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        self.start(torch.linspace(0, 1, size, dtype=torch.float64))

    def start(self, q: Tensor) -> None:
        self.register_buffer("q", q)

    def read(self) -> Tensor:
        return self.q

    def move(self, new: Tensor) -> None:
        self.q.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.w
        q = self.read().clone()
        out = y - q.view(-1)[:3] * q.mean()
        with torch.no_grad():
            self.move(0.5 * q + y.detach().mean(0).tanh().repeat(q.numel() // 3).view(q.shape))
        return out


def kind(**methods: Callable[..., Any]) -> type[Reading]:
    """The same with another start, way to read or way to move."""
    return type("Kind", (Reading,), methods)


def put(self: Reading, new: Tensor) -> None:
    self.q = new


def through_data(self: Reading, new: Tensor) -> None:
    self.q.data.copy_(new)  # counts no version


def other_storage(self: Reading, new: Tensor) -> None:
    self.q.data = new  # as in MoCo: ``param_k.data = param_k.data * m + ...``


def through_numpy(self: Reading, new: Tensor) -> None:
    self.q.numpy()[:] = new.numpy()


def put_twice(self: Reading, new: Tensor) -> None:
    self.q = new + 1.0
    self.q = self.q - 1.0


def frozen(self: Reading, new: Tensor) -> None:
    self.q = nn.Parameter(new, requires_grad=False)


Attribute = kind(start=put, move=put)


class Bank:
    """A memory of one's own class."""

    def __init__(self, q: Tensor) -> None:
        self.q, self.rest = q, {"seen": 0}

    def push(self, new: Tensor) -> None:
        self.q = new
        self.rest["seen"] += 1


class Registered(Reading):
    def start(self, q: Tensor) -> None:
        pass

    def read(self) -> Tensor:
        return self.q if "q" in self._buffers else torch.zeros(3, dtype=torch.float64)

    def move(self, new: Tensor) -> None:
        if "q" in self._buffers:
            self.q.copy_(new)
        else:
            self.register_buffer("q", new)


class Deleted(Reading):
    def read(self) -> Tensor:
        return self.q if "q" in self._buffers else torch.full((3,), 0.1, dtype=torch.float64)

    def move(self, new: Tensor) -> None:
        if "q" in self._buffers:
            del self.q


class NoneAtFirst(Registered):
    def start(self, q: Tensor) -> None:
        self.register_buffer("q", None)

    def read(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64) if self.q is None else self.q

    def move(self, new: Tensor) -> None:
        self.q = new


class Ring(Reading):
    """A queue with an integer that says where it is written."""

    def start(self, q: Tensor) -> None:
        self.register_buffer("q", q)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def move(self, new: Tensor) -> None:
        at = int(self.pointer)
        self.q[at] = new[at]
        self.pointer.copy_((self.pointer + 1) % 3)


class Longer(Reading):
    """A buffer that grows in place."""

    def move(self, new: Tensor) -> None:
        self.q.resize_(len(self.q) + 3).copy_(new.repeat(9)[: len(self.q)])


class Pair(Reading):
    """The state of an LSTM, (h, c)."""

    def start(self, q: Tensor) -> None:
        self.q = (q, 2 * q)

    def read(self) -> Tensor:
        return self.q[0] + self.q[1]

    def move(self, new: Tensor) -> None:
        self.q = (new / 3, new / 5)


class Listed(Reading):
    def start(self, q: Tensor) -> None:
        self.q = [q]

    def read(self) -> Tensor:
        return self.q[-1] * len(self.q)

    def move(self, new: Tensor) -> None:
        self.q.append(new)


class Holding(nn.Module):
    """A recurrent network that begins where the batch before ended."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(4, 3).double()
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.cell(x, self.hidden)
        out, self.hidden = self.hidden, self.hidden.detach()
        return out


class Codebook(nn.Module):
    """A vector-quantised layer whose codes are averages of what fell to them, written behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3).double()
        self.register_buffer("codes", torch.randn(5, 3, dtype=torch.float64))
        self.register_buffer("sizes", torch.ones(5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        chosen = nn.functional.one_hot(torch.cdist(h, self.codes).argmin(1), 5).double()
        commitment = h - (chosen @ self.codes).detach()
        self.sizes.data.mul_(0.7).add_(0.3 * chosen.sum(0))
        self.codes.data.mul_(0.7).add_(0.3 * chosen.t() @ h.detach() / self.sizes[:, None])
        return commitment


class Centre(nn.Module):
    """DINO: the teacher, an average of the student, is centred by what it said before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(4, 3).double()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.data = old.data * 0.6 + new.data * 0.4
        said = self.teacher(x)
        wanted = ((said - self.center) / 0.2).softmax(-1)
        self.center = self.center * 0.8 + said.mean(0) * 0.2
        return (wanted * -self.student(x).log_softmax(-1)).sum(-1)


class Spectral(nn.Module):
    """A spectral norm whose power iteration has not converged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Observed(nn.Module):
    """Quantisation-aware training: observers move minimum and maximum, the fused one without counting a version."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = torch.ao.quantization.FusedMovingAvgObsFakeQuantize if fused else torch.ao.quantization.FakeQuantize
        self.inner = nn.Linear(4, 4)
        self.quantised = kind(torch.ao.quantization.MovingAverageMinMaxObserver, averaging_constant=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantised(self.inner(x.float()))


class Evaluating(nn.Module):
    """The state stands in a module in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Reading().eval()

    def train(self, mode: bool = True) -> Evaluating:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Pseudo(nn.Module):
    """Labels of the network itself in evaluation mode, made in the pass that moves its running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(4, 3).double(), nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        with torch.no_grad():
            label = self.norm(self.inner(x)).sigmoid()
        self.norm.train()
        return self.norm(self.inner(x)) - label


LARGE = 3 * 20_000
"""Elements, in float64: more than is copied without having been seen to move."""

KINDS: dict[str, Callable[[], nn.Module]] = {
    "in place": Reading,
    "through data": kind(move=through_data),
    "through numpy": kind(move=through_numpy),
    "rebound": kind(move=put),
    "rebound twice": kind(move=put_twice),
    "other storage": kind(move=other_storage),
    "registered": Registered,
    "deleted": Deleted,
    "none at first": NoneAtFirst,
    "not persistent": kind(start=lambda self, q: self.register_buffer("q", q, persistent=False)),
    "ring": Ring,
    "longer": Longer,
    "overlapping": kind(  # a buffer of which many elements are one
        start=lambda self, q: self.register_buffer("q", q[:1].clone().expand(3)),
        move=lambda self, new: self.q[:1].copy_(new[:1]),
    ),
    "large": lambda: Reading(LARGE),
    "large, through data": partial(kind(move=through_data), LARGE),
    "large, rebound": partial(kind(move=put), LARGE),
    "frozen": kind(start=frozen),
    "frozen, through data": kind(start=frozen, move=through_data),
    "frozen, other storage": kind(start=frozen, move=other_storage),
    "large, frozen": partial(kind(start=frozen, move=other_storage), LARGE),
    "new parameter": kind(start=frozen, move=frozen),
    "lacked by the optimizer": kind(  # it requires a gradient and gets none
        start=lambda self, q: put(self, nn.Parameter(q)), read=lambda self: self.q.detach()
    ),
    "attribute": Attribute,
    "attribute in place": kind(start=put),
    "attribute at first": kind(
        start=lambda self, q: None, move=put, read=lambda self: getattr(self, "q", torch.zeros(3).double())
    ),
    "number": kind(
        start=lambda self, q: put(self, 0.5),
        read=lambda self: torch.full((3,), self.q, dtype=torch.float64),
        move=lambda self, new: put(self, float(new.sum())),
    ),
    "pair": Pair,
    "pair in place": type("PairInPlace", (Pair,), {"move": lambda self, new: self.q[0].copy_(new / 3)}),
    "list": Listed,
    "deque": type("Queued", (Listed,), {"start": lambda self, q: put(self, deque([q], maxlen=2))}),
    "dict": kind(
        start=lambda self, q: put(self, {"q": q}),
        read=lambda self: self.q["q"],
        move=lambda self, new: self.q.update(q=new),
    ),
    "object": kind(
        start=lambda self, q: put(self, Bank(q)), read=lambda self: self.q.q, move=lambda self, new: self.q.push(new)
    ),
    "object in place": kind(
        start=lambda self, q: put(self, Bank(q)), read=lambda self: self.q.q, move=lambda self, new: self.q.q.copy_(new)
    ),
    "objects in a list": kind(
        start=lambda self, q: put(self, [SimpleNamespace(bank=Bank(q))]),
        read=lambda self: self.q[0].bank.q,
        move=lambda self, new: self.q[0].bank.push(new),
    ),
    "recurrent": Holding,
    "codebook": Codebook,
    "centre": Centre,
    "spectral norm": Spectral,
    "observer": lambda: Observed(fused=False),
    "fused observer": lambda: Observed(fused=True),
    "evaluation mode": Evaluating,
    "pseudo-labels": Pseudo,
}
