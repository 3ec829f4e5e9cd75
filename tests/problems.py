"""Small problems shared by the tests of the heart: a model with everything that goes wrong elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import steppe

BASES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}


class Net(nn.Module):
    """Batch norm, dropout, a tied weight, a frozen weight and one that some batches do not touch."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(dropout)
        self.second, self.tied = nn.Linear(7, 7), nn.Linear(7, 7)
        self.tied.weight = self.second.weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.rare, self.last = nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, rare: bool = True) -> Tensor:
        h = self.drop(torch.tanh(self.norm(self.first(x))))
        h = torch.tanh(self.tied(self.second(h))) + self.frozen(h)
        return self.last(h + self.rare(h) if rare else h)


class Adapted(nn.Module):
    """A frozen linear layer with LoRA factors away from zero, laid out as PEFT's layers are."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(into, out).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(into, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, out, bias=False)})
        self.scaling = {"default": 2.0}

    def forward(self, x: Tensor) -> Tensor:
        change = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + self.scaling["default"] * change


class LoraNet(Net):
    """The same with adapters on two of its layers."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__(dropout)
        self.first, self.last = Adapted(5, 7), Adapted(7, 3)  # type: ignore[assignment]


def net(dtype: torch.dtype = torch.float64, dropout: float = 0.25, seed: int = 0, lora: bool = False) -> Net:
    torch.manual_seed(seed)
    return (LoraNet if lora else Net)(dropout).to(dtype)


def batches(
    count: int, dtype: torch.dtype = torch.float64, size: int = 8, seed: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(size, 5, generator=generator, dtype=dtype), torch.randint(3, (size,), generator=generator)


def loss_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def losses_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """One loss per sample."""
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, copied."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal bit for bit (NaN equals NaN)."""
    return a.keys() == b.keys() and all(torch.equal(_bits(a[k]), _bits(b[k])) for k in a)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8) if x.ndim else x.reshape(1).view(torch.uint8)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, sharp: object | None, steps: int = 12
) -> dict[str, Tensor]:
    """The loop of the README, from a fixed generator state; ``sharp=None`` is the plain loop."""
    torch.manual_seed(7)
    f = loss_of(model)
    for batch in batches(steps, next(model.parameters()).dtype):
        if sharp is None:
            f(batch).backward()
        else:
            sharp.backward(f, batch)
        optimizer.step()
        optimizer.zero_grad()
    return everything(model)


def make(model: nn.Module, **parts: object) -> tuple[torch.optim.Optimizer, steppe.SharpnessAware]:
    optimizer = BASES["sgd"](model)
    return optimizer, steppe.SharpnessAware(model, optimizer, **parts)  # type: ignore[arg-type]


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}


def close(a: dict[str, Tensor | None], b: dict[str, Tensor | None], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is None) == (b[name] is None), name
        if a[name] is not None:
            torch.testing.assert_close(a[name], b[name], **({"rtol": 1e-12, "atol": 1e-14} | tolerance))


def by_hand(model: nn.Module, batch: tuple[Tensor, Tensor], rho: float = 0.05) -> dict[str, Tensor | None]:
    """SAM's gradient the slow way, on a copy."""
    twin = copy.deepcopy(model)
    loss_of(twin)(batch).backward()
    moved = [p for p in twin.parameters() if p.grad is not None]
    length = torch.sqrt(sum((p.grad**2).sum() for p in moved))  # type: ignore[arg-type, misc]
    with torch.no_grad():
        for p in moved:
            p += rho * p.grad / length
            p.grad = None
    loss_of(twin)(batch).backward()
    return grads(twin)


BATCH = next(batches(1))
