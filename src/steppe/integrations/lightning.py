"""Lightning: a sharpness-aware gradient in automatic optimisation by one callback; the LightningModule stays as it is.

    trainer = L.Trainer(..., callbacks=[SharpCallback(steppe.LookSAM, rho=0.05, k=5)])

During ``fit`` the module's ``backward(loss)`` is two passes. The first is the forward that Lightning has already run
and whose loss it hands over; on a step that ascends, ``training_step`` runs again on the same batch at the perturbed
weights. All around it is Lightning's own: precision, accumulation, clipping, hooks, the optimizer's step.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from inspect import signature
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from steppe._length import of_this_length
from steppe.integrations._lightning import Whole, held_metrics, host_scaled, loss_in, once, replaced
from steppe.integrations._probing import Probing
from steppe.protocol import Method, checked

try:  # One package under two names.
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]


class SharpCallback(Callback):
    """Gives a LightningModule in automatic optimisation the gradient of a sharpness-aware method.

    ``self.log`` and torchmetrics count the first pass only; whatever else ``training_step`` does happens in both. With
    accumulation each micro-batch has a perturbation of its own (m-sharpness), and one decision of the schedule holds
    for the optimizer's step. The state is in Lightning's checkpoints.

    Args:
        recipe: builds the method from (model, optimizer), such as ``steppe.LookSAM``, or
            ``lambda model, optimizer: steppe.SharpnessAware(model, optimizer, ...)``.
        settings: further arguments of the recipe; ``total_steps``, where it takes one, is the Trainer's unless set.

    Attributes:
        sharp: the :class:`steppe.Method` of the present (or latest) fit.
    """

    sharp: Method

    def __init__(self, recipe: Callable[..., Method], **settings: Any) -> None:
        self.recipe, self.settings = recipe, settings
        self._loaded: dict[str, Any] | None = None
        self._arguments: Any = None  # of the training_step whose backward is still to come,
        self._first: Any = None  # and its loss
        self._whole: Whole | None = None  # where Lightning's forward pass cannot be the first one
        self._changes = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier fit or ``test`` loaded; the checkpoint of this fit is read after this hook."""
        self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the method on the fit's own optimizer, and bring back its state."""
        build = of_this_length(self.recipe, lambda: trainer.estimated_stepping_batches, self.settings)
        self.sharp = checked(build(trainer.strategy.model, trainer.optimizers[0]), "the recipe returned", "Lightning")
        needs = self.sharp.needs
        if needs.passes:
            _refuse(pl_module)
        if self._loaded is not None:
            self.sharp.load_state_dict(self._loaded)
        elif trainer.ckpt_path is not None:
            warnings.warn(f"no state of SharpCallback in {trainer.ckpt_path}: it starts at its step 0", stacklevel=2)
        step, backward = pl_module.training_step, pl_module.backward
        if not needs.passes:  # Lightning's own pass is the only one
            self._changes.enter_context(replaced(pl_module, backward=once(self.sharp, trainer, backward)))
            return
        if needs.look or needs.ahead:
            self._run_whole(trainer, pl_module, self.sharp)
            return
        again = functools.partial(self._second_loss, trainer, pl_module, step)
        methods = {"training_step": self._watched(step), "backward": self._twice(trainer, backward, again)}
        self._changes.enter_context(replaced(pl_module, **methods))

    def _run_whole(self, trainer: Trainer, pl_module: LightningModule, sharp: Method) -> None:
        strategy: Any = trainer.strategy
        self._whole = Whole(
            sharp, pl_module, strategy.training_step, pl_module.backward, functools.partial(host_scaled, trainer)
        )
        self._changes.enter_context(replaced(strategy, training_step=self._whole.training_step))
        self._changes.enter_context(replaced(pl_module, backward=self._whole.backward))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note whether an optimizer step begins."""
        if self._whole is not None:
            self._whole.begins = batch_idx % trainer.accumulate_grad_batches == 0
            self._whole.trains = not trainer.fit_loop._skip_backward

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``training_step`` that leaves behind what two passes need."""

        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            # New containers: what this step pops from its batch must be there in the second pass.
            self._arguments = tree_map(lambda leaf: leaf, (args, kwargs))
            self.sharp.mark()  # type: ignore[attr-defined]
            output = step(*args, **kwargs)
            self._first = loss_in(output)
            return output

        # Lightning looks one wrapper deep for the argument names.
        vars(training_step)["__wrapped__"] = getattr(step, "__wrapped__", step)
        return training_step

    def _twice(self, trainer: Trainer, plain: Callable[..., None], again: Callable[[], Any]) -> Callable[..., None]:
        """``backward`` that runs both passes; gradients of earlier micro-batches are added to, as ever."""

        def backward(scaled: Tensor, *args: Any, **kwargs: Any) -> None:
            losses: list[Callable[[], Any]] = [again, lambda: self._first]  # the last is of the first pass
            hosts: list[Callable[[Any], Any]] = [functools.partial(host_scaled, trainer), lambda loss: scaled]
            self.sharp.backward(lambda: losses.pop()(), backward=lambda loss: plain(hosts.pop()(loss), *args, **kwargs))
            self._arguments = self._first = None

        return backward

    def _second_loss(self, trainer: Trainer, pl_module: LightningModule, step: Callable[..., Any]) -> Any:
        args, kwargs = self._arguments
        with replaced(pl_module, training_step=step, log=lambda *_, **__: None), held_metrics(pl_module):
            return loss_in(trainer.strategy.training_step(*args, **kwargs))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse engines with a backward of their own, before they train without the method."""
        if self._arguments is not None or (self._whole is not None and self._whole.waiting is not None):
            raise RuntimeError(
                f"{type(trainer.strategy).__name__} does not call the module's backward, so SharpCallback would have "
                "no effect: use another strategy, such as 'ddp'"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave module and strategy as they were."""
        self._changes.close()
        self._whole = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave module and strategy as they were."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The method's state, for the checkpoint; whole tensors, as Lightning saves those of the first rank only."""
        state = self.sharp.state_dict() if hasattr(self, "sharp") else {}
        return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state for the fit that is about to start."""
        self._loaded = state_dict


class ProbeCallback(Callback):
    """A :class:`steppe.Probe` beside a :class:`SharpCallback`, which logs what it notes with the Trainer's loggers.

        sharp = SharpCallback(steppe.SAM, rho=0.05)
        trainer = L.Trainer(..., callbacks=[sharp, ProbeCallback(sharp, every=100)])

    Args:
        callback: the one that gives the gradient; it stands before this one.
        settings: of :class:`steppe.Probe`: ``every``, ``loss_of``, ``batches``, ``lanczos``, ``prefix``.

    Attributes:
        probe: of the present (or latest) fit; None before its first step.
    """

    def __init__(self, callback: SharpCallback, **settings: Any) -> None:
        self._trainer: Trainer | None = None
        self._probing = Probing(lambda: callback.sharp, self._write, settings)

    @property
    def probe(self) -> Any:
        """The probe, with its records."""
        return self._probing.probe

    def _write(self, shown: dict[str, float]) -> None:
        if self._trainer is not None:
            for logger in self._trainer.loggers:
                logger.log_metrics(shown, step=self._trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to watch, where the step is to be recorded."""
        self._trainer = trainer
        self._probing.begin()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note what the step's gradient has shown."""
        self._probing.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the method as it was."""
        self._probing.drop()
        self._trainer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the method as it was."""
        self.on_train_end(trainer, pl_module)


def _refuse(module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} has manual optimization; expected automatic: leave SharpCallback out and write "
            "sharp.backward(closure, backward=self.manual_backward) in training_step"
        )
    if "dataloader_iter" in signature(module.training_step).parameters:
        raise ValueError(
            "training_step takes dataloader_iter, which cannot be read twice; expected training_step(batch, batch_idx)"
        )
