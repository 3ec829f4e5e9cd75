"""The loop that every host is compared with, written out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from tests.problems import net
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

LOOP_METHODS = ("sam", "asam", "grst", "look_sam", "gsam", "adasam")
# k and p such that three steps see both kinds of step; radii large enough to matter in bf16.
SETTINGS = {"look_sam": {"rho": 0.3, "k": 2}, "grst": {"rho": 0.3, "p": 0.5, "seed": 1}}
Batch = tuple[Tensor, Tensor]


def base(name: str, model: nn.Module) -> torch.optim.Optimizer:
    row = METHODS[name]
    return row.optimizer(model.parameters()) if row.optimizer else torch.optim.SGD(model.parameters(), 0.05, 0.9)


def sharpen(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> steppe.SharpnessAware:
    return METHODS[name].recipe(model, optimizer, **SETTINGS.get(name, {"rho": 0.3}))


def micro_batches(count: int, size: int = 8, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]  # fmt: skip


def problem(parameters: str = "full") -> nn.Module:
    """All parameters, or LoRA factors on two of the layers."""
    if parameters == "full":
        return net(torch.float32)
    from peft import LoraConfig, get_peft_model

    model = net(torch.float32)
    config = LoraConfig(r=2, target_modules=["first", "last"], lora_dropout=0.1)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def precision(kind: str, cache: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=cache) if kind == "bf16" else nullcontext()


def train(
    name: str,
    batches: Iterable[Batch],
    accumulate: int = 1,
    kind: str = "fp32",
    clip: float = 0.0,
    cache: bool = True,
    parameters: str = "full",
) -> tuple[nn.Module, steppe.SharpnessAware, list[float]]:
    """Accumulation per micro-batch; the generators are set before each forward, so that masks can be compared.

    ``cache`` is autocast's: whether the tied weight is cast once or twice, on which hosts differ.
    """
    model = problem(parameters)
    optimizer = base(name, model)
    sharp = sharpen(name, model, optimizer)
    losses = []
    for i, (x, y) in enumerate(batches):
        torch.manual_seed(i)

        def loss_of() -> Tensor:
            with precision(kind, cache):
                return nn.functional.cross_entropy(model(x).float(), y) / accumulate

        losses.append(sharp.backward(loss_of).item())
        if (i + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model, sharp, losses
