"""The second pass on chosen samples with several processes: each rank chooses within its own share of the batch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.loops import distributed as d
from torch import Tensor, nn

import steppe

KINDS = ("DDP", "FSDP2")
RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "esam": (steppe.ESAM, {"beta": 1.0, "gamma": 0.5}), "k_sam": (steppe.KSAM, {"samples": 0.25})
}  # fmt: skip


def losses_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def chooser(name: str, model: nn.Module) -> tuple[torch.optim.Optimizer, steppe.SharpnessAware]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    recipe, settings = RECIPES[name]
    return optimizer, recipe(model, optimizer, rho=0.3, **settings)


def trained() -> dict[str, Tensor]:
    """The weights after all steps, under each kind of parallel model."""
    found = {}
    for kind, name in itertools.product(KINDS, RECIPES):
        model = d.wrap(kind, d.network())
        optimizer, sharp = chooser(name, model)
        for batch in d.batches():
            sharp.backward(lambda b, m=model: losses_of(m, b), batch)
            optimizer.step()
            optimizer.zero_grad()
        found[kind + name] = d.weights(model)
    return found


def by_one_process(name: str, ranks: int) -> Tensor:
    """The same, with every rank's share as a micro-batch, which chooses within itself."""
    model = d.network()
    optimizer, sharp = chooser(name, model)
    for x, y in d.batches():
        parts = list(zip(x.chunk(ranks), y.chunk(ranks), strict=True))
        sharp.backward(lambda b: losses_of(model, b) / ranks, micro_batches=parts)
        optimizer.step()
        optimizer.zero_grad()
    return d.weights(model)


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Tensor]]:
    return d.run(2, trained)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_are_one_process_with_two_micro_batches(kind: str, name: str, ranks: list[dict[str, Tensor]]) -> None:
    assert torch.equal(ranks[0][kind + name], ranks[1][kind + name])
    parts, whole = by_one_process(name, 2), by_one_process(name, 1)
    assert (ranks[0][kind + name] - parts).abs().max() <= 1e-6
    assert (parts - whole).abs().max() > 1e-4, "a choice over the whole batch is another one"
