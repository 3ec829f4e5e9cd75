"""Layers exchanged, parameters replaced, frozen, unfrozen or renamed in mid-training: the present ones count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

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


# --- what may happen to a model; each is told to the optimizer as one does -----------------------------------


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


# --- loops by hand, whose memory belongs to the parameter itself -----------------------------------------------


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


# That something has changed is found out alike for all methods: every change for the one that remembers most. What
# each remembers by itself meets another tensor in an old place, another shape, another name, and one that is frozen.
KEPT = [(method, change) for method in HAND for change in (middle, longer, renamed, freeze)]
KEPT += [("look_sam_guarded", change) for change in CHANGES if ("look_sam_guarded", change) not in KEPT]


@pytest.mark.parametrize(("method", "change"), KEPT, ids=lambda x: getattr(x, "__name__", x))
def test_equals_the_loop_by_hand(method: str, change: Callable[..., None]) -> None:
    """The change falls between a refresh of LookSAM and a step that reuses it."""
    one, other = net(), net()
    base, plain = (torch.optim.SGD(m.parameters(), lr=LR) for m in (one, other))
    sharp = METHODS[method.removesuffix("_guarded")].recipe(one, base, rho=RHO, **HAND[method])
    hand = ByHand(method, other, plain)
    for t in range(9):
        if t == 5:
            change(one, base)
            change(other, plain)
        sharp.backward(losses(one), batch(t))
        base.step()
        for p in one.parameters():
            p.grad = None
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.parametrize("change", [middle, longer, untold], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_method_goes_on_with_what_is_there(name: str, change: Callable[..., None]) -> None:
    """The present parameters are moved, and none is handed the sum of two passes."""
    model, row = net(), METHODS[name]
    base = (row.optimizer or (lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9)))(model.parameters())
    more = {"total_steps": 12} if name in ("aesam", "late_sam") else {}
    more |= {"start": 1} if name == "late_sam" else {"s": 0.9} if name == "sl_sam" else {}
    sharp = row.recipe(model, base, rho=RHO, **more)
    passes: list[dict[str, Tensor]] = []

    def loss(data: Any) -> Tensor:
        if torch.is_grad_enabled():
            passes.append({k: p.detach().clone() for k, p in model.named_parameters()})
        return losses(model, row.per_sample)(data)

    ever = set()
    for t in range(12):
        if t == 3:
            change(model, base)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        passes.clear()
        sharp.backward(loss, batch(t))
        assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
        if t >= 3:
            ever |= {k for at in passes for k in at if not torch.equal(at[k], before[k])}
        held = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None and change is untold}
        if {"b.weight"} <= held.keys() and t >= 3 and name != "esam":
            with torch.no_grad():
                for k, p in model.named_parameters():
                    p.copy_(passes[-1][k])
            wanted = torch.autograd.grad(losses(model)(batch(t)), model.b.weight)[0]
            with torch.no_grad():
                for k, p in model.named_parameters():
                    p.copy_(before[k])
            torch.testing.assert_close(held["b.weight"], wanted, **TIGHT)
        base.step()
        for p in model.parameters():
            p.grad = None
    mine = {p for g in base.param_groups for p in g["params"]}
    moved = {k for k, p in model.named_parameters() if p in mine and p.requires_grad}
    assert ever == ({k for k in moved if k.startswith("norm")} if name == "sam_on" else moved)


def test_unfrozen_in_mid_training() -> None:
    """Layer by layer, as in gradual unfreezing, with a group for each; equals the loop by hand."""
    one, other = net(), net()
    bases = []
    for model in (one, other):
        for p in model.parameters():
            p.requires_grad_(False)
        model.head.requires_grad_(True)
        bases.append(torch.optim.SGD(model.head.parameters(), lr=LR))
    sharp, hand = steppe.SAM(one, bases[0], rho=RHO), ByHand("sam", other, bases[1])
    for t in range(8):
        if t in (3, 6):
            for model, base in zip((one, other), bases, strict=True):
                layer = model.c if t == 3 else model.b
                layer.requires_grad_(True)
                base.add_param_group({"params": layer.parameters()})
        sharp.backward(losses(one), batch(t))
        bases[0].step()
        bases[0].zero_grad()
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_in_phases_too() -> None:
    one, other = net(), net()
    bases = [torch.optim.SGD(m.parameters(), lr=LR) for m in (one, other)]
    sharp, hand = steppe.SAM(one, bases[0], rho=RHO), ByHand("sam", other, bases[1])
    for t in range(6):
        if t == 3:
            middle(one, bases[0])
            middle(other, bases[1])
        sharp.mark()
        losses(one)(batch(t)).backward()
        assert sharp.ascend()
        losses(one)(batch(t)).backward()
        sharp.restore()
        bases[0].step()
        bases[0].zero_grad()
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_a_state_is_of_the_present_parameters() -> None:
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.FSAM(model, base, rho=RHO)
    sharp.backward(losses(model), batch(0))
    base.step()
    longer(model, base)
    average = sharp.state_dict()["memory"]["ascent"]["average"]
    assert average["table.weight"].shape == (7, 4) and not average["table.weight"].any()
    assert average["b.weight"].any()
    sharp.load_state_dict(sharp.state_dict())


def test_an_id_that_comes_back_is_another_parameter() -> None:
    """A freed parameter's address is soon used again; only the object itself says which one it is."""
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.FSAM(model, base, rho=RHO)
    for t in range(6):
        sharp.backward(losses(model), batch(t))
        base.step()
        base.zero_grad()
        middle(model, base)
        average = sharp.state_dict()["memory"]["ascent"]["average"]
        assert not average["b.weight"].any() and average["a.weight"].any()


@pytest.mark.parametrize("make", [nn.LazyLinear, lambda n: nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_gets_a_sentence(make: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), make(3))
    base = torch.optim.SGD(model.parameters(), lr=LR)
    with pytest.raises(ValueError, match=r"lazy.*1\.(weight|running_mean).*run one batch through the model first"):
        steppe.SAM(model, base)
    model(torch.ones(2, 2))
    steppe.SAM(model, base).backward(lambda: model(torch.ones(2, 2)).sum())
