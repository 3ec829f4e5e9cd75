"""Trainers in small, and the loop they are compared with, written out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

import steppe  # noqa: E402
from steppe.methods import get  # noqa: E402

LOOP_METHODS = ("sam", "asam", "grst", "look_sam", "gsam", "adasam")
SETTINGS: dict[str, dict[str, Any]] = {"look_sam": {"k": 4, "rho": 0.1}, "grst": {"seed": 2, "p": 0.6}}
Rows = list[dict[str, Any]]

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()


def factory(name: str) -> Callable[..., steppe.SharpnessAware]:
    return functools.partial(get(name).recipe, **SETTINGS.get(name, {}))


def base(name: str, model: nn.Module) -> torch.optim.Optimizer:
    make = get(name).optimizer or (lambda p: torch.optim.AdamW(p, lr=0.01))
    return make(p for p in model.parameters() if p.requires_grad)


def arguments(folder: Path, **settings: Any) -> Any:
    usual = {"per_device_train_batch_size": 2, "max_steps": 3, "max_grad_norm": 0.5, "save_strategy": "no"}
    return transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, **usual | settings
    )


class Seeds(transformers.TrainerCallback):
    """The same dropout masks in both loops: the generator is set as each step begins."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.manual_seed(100 + state.global_step)


def by_hand(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sharp: steppe.SharpnessAware | None,
    steps: list[list[Any]],
    loss_of: Callable[[Any, list[Any]], torch.Tensor],
    m_sharpness: bool = False,
) -> list[float]:
    """What the Trainer does with micro-batches, written out; the loss of every step comes back."""
    scheduler = transformers.get_scheduler("linear", optimizer, 0, len(steps))
    model.train()
    losses = []
    for t, micro_batches in enumerate(steps):
        torch.manual_seed(100 + t)
        groups = [[b] for b in micro_batches] if m_sharpness else [micro_batches]
        for group in groups:
            sharp.backward(lambda b: loss_of(b, micro_batches), micro_batches=group)
            losses.append(float(sharp.last.loss))
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses


def in_steps(rows: Rows, accumulation: int, size: int = 2) -> list[list[Any]]:
    batches = [transformers.default_data_collator(rows[i : i + size]) for i in range(0, len(rows), size)]
    return [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]


def class_loss(model: nn.Module, bf16: bool = False) -> Callable[[Any, list[Any]], torch.Tensor]:
    def loss_of(batch: Any, whole: list[Any]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**batch).loss.float()

    return loss_of
