"""What may happen to the parameters of a model in mid-training, and methods by hand that go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

RHO, LR, TIGHT = 0.3, 0.1, {"rtol": 1e-10, "atol": 1e-12}


class Net(nn.Module):
    """An embedding, three layers in a row and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        for layer in (self.a, self.b, self.c):
            h = h + layer(h).tanh()
        return self.head(self.norm(h))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def linear(wide: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(4, wide).double()


def losses(model: nn.Module, per_sample: bool = False) -> Callable[[Any], Tensor]:
    kind = "none" if per_sample else "mean"
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction=kind)


def batch(t: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(t)
    return torch.randint(5, (8,), generator=source), torch.randint(3, (8,), generator=source)


# What may happen to a model; each is told to the optimizer as one does


def swap(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """In the same place of its group."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    optimizer.state.pop(old, None)


def middle(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """A layer in the middle of the only group: as many parameters, the same first and last."""
    new = linear()
    swap(optimizer, model.b.weight, new.weight)
    swap(optimizer, model.b.bias, new.bias)
    model.b = new


def in_place(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """The same in the group's own list."""
    new, params = linear(), optimizer.param_groups[0]["params"]
    for old, fresh in zip(model.b.parameters(), new.parameters(), strict=True):
        params[[p is old for p in params].index(True)] = fresh
    model.b = new


def longer(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """Two more rows of the embedding."""
    rows = torch.cat([model.table.weight.detach(), torch.ones(2, 4, dtype=torch.float64)])
    new = nn.Parameter(rows)
    swap(optimizer, model.table.weight, new)
    model.table.weight, model.table.num_embeddings = new, 7


def another_head(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """With more classes and as a group of its own; the old parameters stay where they were."""
    model.head = linear(6)
    optimizer.add_param_group({"params": model.head.parameters()})


def untold(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """A layer that the optimizer never hears of: no part of the perturbation, and the latest pass's gradient."""
    model.b = linear()


def one_more(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """A layer where there was none."""
    model.c = nn.Sequential(model.c, linear())
    optimizer.add_param_group({"params": model.c[1].parameters()})


def freeze(model: Net, optimizer: torch.optim.Optimizer) -> None:
    model.a.requires_grad_(False)


def renamed(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """Two layers change places: their names do, they do not."""
    model.a, model.c = model.c, model.a


def nothing(model: Net, optimizer: torch.optim.Optimizer) -> None:
    """For comparison."""


CHANGES = [middle, in_place, longer, another_head, untold, one_more, freeze, renamed, nothing]


# Loops by hand, whose memory belongs to the parameter itself


class ByHand:
    """One method, written with tensors; plain SGD."""

    def __init__(self, method: str, model: Net, optimizer: torch.optim.Optimizer) -> None:
        self.method, self.model, self.optimizer = method, model, optimizer
        self.kept: dict[nn.Parameter, Tensor] = {}
        self.t, self.size = 0, 0.0

    def mine(self) -> list[nn.Parameter]:
        here = {p for g in self.optimizer.param_groups for p in g["params"]}
        return [p for p in self.model.parameters() if p in here and p.requires_grad]

    def gradient(self, data: Any) -> dict[nn.Parameter, Tensor]:
        mine = self.mine()
        found = torch.autograd.grad(losses(self.model)(data), mine, allow_unused=True)
        return {p: g for p, g in zip(mine, found, strict=True) if g is not None}

    def at(self, v: dict[nn.Parameter, Tensor], data: Any) -> dict[nn.Parameter, Tensor]:
        size = length(v)
        saved = {p: p.detach().clone() for p in v}
        with torch.no_grad():
            for p in v:
                p += RHO * v[p] / size
        out = self.gradient(data)
        with torch.no_grad():
            for p in v:
                p.copy_(saved[p])
        return out

    def step(self, data: Any) -> None:
        d = getattr(self, self.method)(data)
        self.t += 1
        with torch.no_grad():
            for p, value in d.items():
                p -= LR * value

    def sam(self, data: Any) -> dict[nn.Parameter, Tensor]:
        return self.at(self.gradient(data), data)

    def fsam(self, data: Any) -> dict[nn.Parameter, Tensor]:
        g = self.gradient(data)
        for p in g:
            self.kept[p] = 0.9 * self.kept.get(p, torch.zeros_like(p)) + 0.1 * g[p]
        return self.at({p: g[p] - self.kept[p] for p in g}, data)

    def s2_sam(self, data: Any) -> dict[nn.Parameter, Tensor]:
        v = {p: self.kept[p] for p in self.mine() if p in self.kept}
        d = self.at(v, data) if v else self.gradient(data)
        self.kept = {p: g.clone() for p, g in d.items()}
        return d

    def msam(self, data: Any) -> dict[nn.Parameter, Tensor]:
        v = {p: -self.kept[p] for p in self.mine() if p in self.kept}
        d = self.at(v, data) if v else self.gradient(data)
        for p in d:
            self.kept[p] = 0.8 * self.kept.get(p, torch.zeros_like(p)) + 0.2 * d[p]
        return d

    def look_sam(self, data: Any) -> dict[nn.Parameter, Tensor]:
        g = self.gradient(data)
        if self.t % 4 == 0:
            return self.refreshed(g, data)
        v = {p: self.kept[p] for p in self.model.parameters() if p in self.kept}  # frozen ones too
        return {p: g[p] + (0.5 * length(g) / length(v) * v[p] if p in v else 0) for p in g}

    def look_sam_guarded(self, data: Any) -> dict[nn.Parameter, Tensor]:
        g = self.gradient(data)
        if self.t % 4 == 0:
            return self.refreshed(g, data)
        v = {p: self.kept[p] for p in self.model.parameters() if p in self.kept}
        c = min(length(g) / self.size, 0.5 * length(g) / length(v))
        c = c if sum(float((v[p] * g[p]).sum()) for p in g if p in v) >= 0 else 0.0
        return {p: g[p] + (c * v[p] if p in v else 0) for p in g}

    def refreshed(self, g: dict[nn.Parameter, Tensor], data: Any) -> dict[nn.Parameter, Tensor]:
        d, self.size = self.at(g, data), length(g)
        along = sum(float((d[p] * g[p]).sum()) for p in g) / self.size**2
        self.kept = {p: d[p] - along * g[p] for p in g}
        return d


def length(v: dict[nn.Parameter, Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in v.values()))


HAND: dict[str, dict[str, Any]] = {
    "sam": {}, "fsam": {"sigma": 1.0, "decay": 0.9}, "s2_sam": {}, "msam": {"decay": 0.8},
    "look_sam": {"k": 4, "alpha": 0.5, "push": "paper"}, "look_sam_guarded": {"k": 4, "alpha": 0.5},
}  # fmt: skip
