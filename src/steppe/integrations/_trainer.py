"""What the sharpness-aware Trainer is made of: its passes, its log, its checkpoint's file, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn

from steppe._length import of_this_length
from steppe._nested import tensors_of
from steppe._words import an
from steppe.protocol import Method, checked

FILE, WRITTEN_LAST = "sharpness_aware.pt", "trainer_state.json"

Factory = Callable[..., Method]


class TrainerLoss:
    """The loss of a micro-batch, forward and backward being the Trainer's step; it notes what went through."""

    def __init__(self, trainer: Any, model: nn.Module, whole: list[Any], step: Callable[[Any], Tensor]) -> None:
        self._trainer, self._model, self._whole, self._step = trainer, model, whole, step
        self.of_user = trainer.compute_loss  # whose state, in the Trainer's attributes, moves once
        self._calls = 0
        self._losses: list[Tensor] = []
        self._shares = 0.0
        self.counters: dict[str, Any] = {}  # the Trainer's, as the first pass left them

    def __call__(self, inputs: Any) -> Tensor:
        """Run one micro-batch, or what a look takes of it; processes average their gradients with a pass's last one."""
        number = self._calls % len(self._whole)  # every pass is over all of them, in order
        self._calls += 1
        with nullcontext() if number == len(self._whole) - 1 else self._trainer.accelerator.no_sync(self._model):
            loss = self._step(inputs).detach()
        if self._calls == len(self._whole):
            self.counters = {k: deepcopy(v) for k, v in vars(self._trainer).items() if k in self._trainer.counters}
        self._note(loss, inputs, self._whole[number])
        return loss.detach().requires_grad_()

    def _note(self, loss: Tensor, inputs: Any, whole: Any) -> None:
        share = 1.0 if inputs is whole else _size(inputs) / _size(whole)
        self._shares += share
        if inputs is whole:
            self._losses.append(loss)

    @property
    def count(self) -> float:
        """How many passes over the whole data went through; divided once, so that whole ones are exact."""
        return self._shares / len(self._whole)

    @property
    def loss(self) -> Tensor:
        """The loss of the first pass over the whole data (the only one, at w + eps, where the ascent saw a slice)."""
        return torch.stack(self._losses[: len(self._whole)]).sum()


def _size(inputs: Any) -> int:
    """The elements of the largest tensor: a look is counted by its samples, pixels or tokens."""
    return max(t.numel() for t in tensors_of(inputs))


class NoFurther:
    """Stands before a Trainer: resumed where its training had ended, it takes no step more.

    The Trainer looks at the number of steps only behind a step, so that it would take one within an unfinished epoch.
    """

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; no batches behind the last step."""
        trainer: Any = self
        if self.ended():
            trainer.control.should_training_stop = True
            return [], None
        host: Any = super()
        return host.get_batch_samples(*args, **kwargs)

    def ended(self) -> bool:
        """Whether all steps are taken."""
        trainer: Any = self
        return bool(trainer.state.global_step >= trainer.state.max_steps)


class Tally:
    """Weighted sums of what the logs will show; tensors stay on their device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float) -> None:
        """Add a value that belongs to ``weight`` of an optimizer step."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def note(self, sharp: Method, passes: float, weight: float) -> None:
        """Take down the latest backward, which was ``weight`` of an optimizer step."""
        self.add("passes_per_step", passes * weight, weight)
        if sharp.last.surrogate_gap is not None and not sharp.needs.look:  # else of two different batches
            self.add("surrogate_gap", sharp.last.surrogate_gap, weight)
        if sharp.last.perturbation_norm is not None:
            self.add("perturbation_norm", sharp.last.perturbation_norm * weight, weight)

    def total(self, name: str) -> tuple[float, float]:
        """The weighted sum of a value, and of its weights."""
        return float(self._sums.get(name, 0.0)), self._weights.get(name, 0.0)

    def means(self) -> dict[str, float]:
        """Per optimizer step that had the value."""
        return {name: float(total) / self._weights[name] for name, total in self._sums.items()}


def build(factory: Factory, trainer: Any) -> Method:
    """Call the factory with the model in training and the optimizer that really steps."""
    if trainer.optimizer is None:
        raise RuntimeError("there is no optimizer yet: train() makes it, and sharp after it")
    # The optimizer that the user made or chose, out of accelerate's wrapper.
    optimizer = trainer.optimizer
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    model = trainer.model if isinstance(trainer.model_wrapped, nn.DataParallel) else trainer.model_wrapped
    made: Method = checked(
        of_this_length(factory, lambda: trainer.state.max_steps)(model, optimizer), "sharp returned", "the Trainer"
    )
    if made.optimizer is not optimizer:
        raise TypeError(
            f"sharp returned {an(type(made).__name__)} on another optimizer; expected the very one that it was given "
            "(to choose that one, use the Trainer's optimizers=(optimizer, None))"
        )
    return made


def check_factory(sharp: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(sharp):
        raise TypeError(
            f"sharp is {an(type(sharp).__name__)}; expected a function (model, optimizer) -> steppe.Method such as "
            "functools.partial(steppe.SAM, rho=0.05), because the Trainer makes its optimizer later"
        )


def check_trainer(trainer: Any) -> None:
    """Refuse Trainers whose step cannot be run twice, or whose weights are not here."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "DeepSpeed or FSDP is on; expected one process or DistributedDataParallel: for sharded training use "
            "sharp.backward in a loop of your own"
        )
    if hasattr(trainer, "_step"):  # GRPO, RLOO and distillation count their own micro-batches
        raise TypeError(
            f"{type(trainer).__name__} makes its data within training_step, so that a second pass would see others; "
            "expected a Trainer that is given its data, such as SFTTrainer or DPOTrainer"
        )


def write(state: dict[str, Any], checkpoint: str) -> None:
    """Write the state into a checkpoint, whole or not at all."""
    part = Path(checkpoint, FILE + ".part")
    torch.save(state, part)
    os.replace(part, Path(checkpoint, FILE))


def read(checkpoint: str) -> Any:
    """The state in a checkpoint."""
    path = Path(checkpoint, FILE)
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} holds no {FILE}: it was saved by another Trainer, or with save_only_model; resume with the "
            "Trainer that saved it, or load its model with from_pretrained and train without resume_from_checkpoint"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def unmark(trainer: Any, trial: Any) -> None:
    """Before a checkpoint is written over an older one: take away the file that says the older one is whole."""
    if trainer.args.should_save:
        folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        (folder / WRITTEN_LAST).unlink(missing_ok=True)


def last_whole_checkpoint(folder: str) -> str:
    """The latest checkpoint that was written to its end: a killed process may leave half of one."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit() and _is_whole(p)]
    if not found:
        raise ValueError(f"{folder} holds no whole checkpoint; train without resume_from_checkpoint")
    return str(max(found, key=lambda p: int(p.name.rpartition("-")[2])))


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / WRITTEN_LAST).read_text()))
    except (OSError, ValueError):
        return False
