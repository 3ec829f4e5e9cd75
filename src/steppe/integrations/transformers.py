"""The Hugging Face Trainer: its gradient becomes sharpness-aware, and everything else stays the Trainer's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from steppe.integrations import _trainer
from steppe.integrations._probing import Probing
from steppe.integrations._trainer import Factory, NoFurther, Tally, TrainerLoss
from steppe.protocol import Method


class SharpTrainerMixin(NoFurther):
    """Makes a Trainer's gradient sharpness-aware; it stands before the Trainer among the bases.

        class SharpSFTTrainer(SharpTrainerMixin, SFTTrainer): ...
        SharpSFTTrainer(..., sharp=functools.partial(steppe.LookSAM, rho=0.05, k=5)).train()

    Both passes run the Trainer's own ``training_step``, so its loss (label smoothing, ``compute_loss``,
    ``num_items_in_batch``), precision and scaling hold; ``max_grad_norm`` clips once, the combined gradient.
    Checkpoints hold one more file. Logs hold ``passes_per_step`` and, of the steps that ascended, ``surrogate_gap``
    (perturbed less clean loss; none with ``samples``, ``view``
    or ``autocast``) and ``perturbation_norm`` (with ``measure=True``); the attribute
    ``passes`` counts over the whole training.

    Args:
        sharp: ``(model, optimizer) -> steppe.Method``, any recipe, called at the start of training, when the Trainer
            has made its optimizer. If it takes a ``total_steps`` that is not set, it is given the Trainer's number of
            steps.
        m_sharpness: False: one perturbation for all micro-batches of an accumulated batch, as if it came in one piece.
            True: each micro-batch is perturbed by itself.
        args, kwargs: the Trainer's own.

    Raises:
        TypeError: ``sharp`` is no such function, or the Trainer makes its data within a step (GRPO, RLOO).
        ValueError: DeepSpeed or FSDP is on.
    """

    counters = ("_metrics", "_total_train_tokens")
    """What ``compute_loss`` adds to besides the loss (these are TRL's): the second pass must not count again."""

    args: Any
    accelerator: Any
    current_gradient_accumulation_steps: int

    def __init__(self, *args: Any, sharp: Factory, m_sharpness: bool = False, **kwargs: Any) -> None:
        _trainer.check_factory(sharp)
        super().__init__(*args, **kwargs)
        _trainer.check_trainer(self)
        self._factory, self.m_sharpness = sharp, m_sharpness
        self._forget()

    def _forget(self) -> None:
        self._sharp: Method | None = None
        self._held: list[Any] = []
        self._tally, self._whole = Tally(), Tally()

    @property
    def passes(self) -> tuple[float, float]:
        """Passes and optimizer steps of this process since training began or was resumed, whatever was logged."""
        return self._whole.total("passes_per_step")

    @property
    def sharp(self) -> Method:
        """The sharpness-aware gradient of the present training, or of the latest."""
        if self._sharp is None:
            self._sharp = _trainer.build(self._factory, self)
        return self._sharp

    # The gradient

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Hold a micro-batch; at the last one of an accumulated batch, run the passes over all that are held."""
        self._held.append(inputs)
        if len(self._held) < self.current_gradient_accumulation_steps:
            return torch.zeros((), device=self.args.device)
        pieces, self._held = self._held, []
        model.train()  # before the guards look for modules that would move their statistics
        groups = [[piece] for piece in pieces] if self.m_sharpness else [pieces]
        return torch.stack([self._backward(model, g, num_items_in_batch, 1 / len(groups)) for g in groups]).sum()

    def _backward(self, model: nn.Module, pieces: list[Any], num_items_in_batch: Any, weight: float) -> Tensor:
        host: Any = super()
        step = lambda inputs: host.training_step(model, inputs, num_items_in_batch)  # noqa: E731
        loss_of = TrainerLoss(self, model, pieces, step)
        # The Trainer's step has run its own backward; what it returns has no graph left, and the same backward on it
        # only shows the loss scale.
        self.sharp.backward(loss_of, micro_batches=pieces, backward=self.accelerator.backward)
        vars(self).update(loss_of.counters)
        self._tally.note(self.sharp, loss_of.count, weight)
        self._whole.add("passes_per_step", loss_of.count * weight, weight)
        return loss_of.loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; what an accumulated batch that was broken off left is dropped."""
        self._held = []
        return super().get_batch_samples(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, called once per training: its sharpness-aware gradient begins anew too."""
        self._forget()
        host: Any = super()
        return host.create_scheduler(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's; a training log also says what the passes since the latest one showed in this process."""
        if "loss" in logs:
            logs.update(self._tally.means())
            self._tally = Tally()
        host: Any = super()
        host.log(logs, *args, **kwargs)

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; ``resume_from_checkpoint=True`` passes over checkpoints that were not written to the end."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _trainer.last_whole_checkpoint(self.args.output_dir)
        host: Any = super()
        return host.train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        _trainer.unmark(self, trial)
        host: Any = super()
        host._save_checkpoint(model, trial, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        host: Any = super()
        host._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            _trainer.write(self.sharp.state_dict(), output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        host: Any = super()
        host._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.sharp.load_state_dict(_trainer.read(checkpoint))


class SharpTrainer(SharpTrainerMixin, Trainer):
    """The Hugging Face Trainer with a sharpness-aware gradient: see :class:`SharpTrainerMixin`.

    SharpTrainer(model, args, train_dataset=data, sharp=functools.partial(steppe.SAM, rho=0.05)).train()
    """


class ProbeCallback(TrainerCallback):
    """A :class:`steppe.Probe` in a :class:`SharpTrainer`, which logs what it notes wherever the Trainer logs.

        trainer = SharpTrainer(model, args, train_dataset=data, sharp=functools.partial(steppe.SAM, rho=0.05))
        trainer.add_callback(ProbeCallback(trainer, every=100))      # report_to="tensorboard" shows probe/cosine, ...

    Args:
        trainer: the very one that it is added to.
        settings: of :class:`steppe.Probe`: ``every``, ``loss_of``, ``batches``, ``lanczos``, ``prefix``.

    Attributes:
        probe: of the present (or latest) training; None before its first step.
    """

    def __init__(self, trainer: SharpTrainerMixin, **settings: Any) -> None:
        self._probing = Probing(lambda: trainer.sharp, trainer.log, settings)

    @property
    def probe(self) -> Any:
        """The probe, with its records."""
        return self._probing.probe

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin to watch, where the step is to be recorded."""
        self._probing.begin()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Note what the step's gradient has shown."""
        self._probing.end()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the method as it was."""
        self._probing.drop()
