"""Two ranks, each with half of the batch, are one process with the whole of it: the same noise, one averaged ascent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed
from tests.lora.factors import trained
from tests.problems import batches
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe


class Adapted(nn.Module):
    """Laid out as PEFT's layers are; PEFT itself takes many seconds to import on every rank."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(into, out).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(into, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, out, bias=False)})
        self.scaling = {"default": 2.0}

    def forward(self, x: Tensor) -> Tensor:
        change = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + self.scaling["default"] * change


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Adapted(5, 7), nn.Tanh(), Adapted(7, 3)).double()


MAKE: dict[str, Any] = {
    "flat": lambda m, o: steppe.FlatLoRA(m, o, sigma=0.5, schedule="constant"),
    "bi": lambda m, o: steppe.BiLoRA(m, o, rho=0.5, lr=0.02),
    "bi_sgd": lambda m, o: steppe.BiLoRA(m, o, rho=0.5, lr=0.5, rule="sgd"),
}


def train(name: str, rank: int | None, wrapped_first: bool = True) -> list[Tensor]:
    """Weights and auxiliary factors; the Trainer wraps the model after the method was built on it."""
    model = inner = network()
    if rank is not None and wrapped_first:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(trained(inner), lr=0.1)
    sharp = MAKE[name](model, optimizer)
    if rank is not None and not wrapped_first:
        model = DistributedDataParallel(model)
    for batch in batches(5):
        piece = batch if rank is None else tuple(part.chunk(2)[rank] for part in batch)
        sharp.backward(lambda b: nn.functional.cross_entropy(model(b[0]), b[1]), piece)
        optimizer.step()
        optimizer.zero_grad()
    auxiliary = [t for pair in getattr(sharp, "auxiliary", ()) for t in pair]
    return [p.detach().clone() for p in (*trained(inner), *auxiliary)]


def on_a_rank() -> dict[str, list[Tensor]]:
    rank = dist.get_rank()
    late = {f"{name}, wrapped later": train(name, rank, wrapped_first=False) for name in MAKE}
    return late | {name: train(name, rank) for name in MAKE}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, list[Tensor]]]:
    return distributed.run(2, on_a_rank)


@pytest.mark.parametrize("when", ["", ", wrapped later"])
@pytest.mark.parametrize("name", MAKE)
def test_two_ranks_equal_one_process(name: str, when: str, ranks: list[dict[str, list[Tensor]]]) -> None:
    first, second = (rank[name + when] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "ranks stay bit-identical"
    for got, wanted in zip(first, train(name, None), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
