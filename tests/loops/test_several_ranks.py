"""Two optimizers for one network whose ranks share the batch: the ranks stay alike and equal one process."""

from typing import Any

import pytest
import torch
from tests.loops import distributed as d
from torch import nn

import steppe

# What meets the optimizers, each its own: a norm over both, a remembered pull, the rate after the step, the momentum.
NAMES = ("sam", "look_sam", "wsam", "msam")
KINDS = ("DDP", "FSDP2")


def _halves(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return [torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest, lr=0.01)]


def _trained(kind: str, name: str) -> dict[str, Any]:
    model = d.wrap(kind, d.network(torch.float64))
    optimizers = _halves(model)
    sharp = d.sharpen(name, model, optimizers)  # type: ignore[arg-type]
    decisions = []
    for batch in d.batches(dtype=torch.float64):
        sharp.backward(d.loss_of(model), batch)
        decisions.append(sharp.last.ascended)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {"weights": d.weights(model), "decisions": decisions, "step": sharp.step}


def _all() -> dict[str, dict[str, Any]]:
    return {f"{kind} {name}": _trained(kind, name) for kind in KINDS for name in NAMES}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Any]]]:
    return d.run(2, _all)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_one_process(name: str, kind: str, ranks: list[Any]) -> None:
    single = _trained("single", name)
    assert single["step"] == d.STEPS
    d.assert_equal(name, [rank[f"{kind} {name}"] for rank in ranks], single, 1e-12, 2)


def test_both_halves_are_perturbed() -> None:
    """Else the equality above could be one of two wrong numbers: with a half left out the weights are others."""
    whole = _trained("single", "sam")["weights"]
    model = d.wrap("single", d.network(torch.float64))
    optimizers: list[Any] = _halves(model)
    optimizers[1].param_groups[0]["perturb"] = False
    sharp = steppe.SAM(model, optimizers, rho=0.1)
    for batch in d.batches(dtype=torch.float64):
        sharp.backward(d.loss_of(model), batch)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert float((d.weights(model) - whole).abs().max()) > 1e-6
