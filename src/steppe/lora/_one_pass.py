"""What LoRA's methods without a second pass share: one backward, a count of real steps, plain states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._changes import another_method, plain_changes, tell
from steppe._compiled import compiled_again, untraced
from steppe._draft import Last
from steppe._optimizers import Given
from steppe._parameters import parallel, without_sync
from steppe._parts import check_count
from steppe._steps import Steps
from steppe._sync import refuse_uneven
from steppe._wiring import check_arguments
from steppe.lora._layers import Adapters
from steppe.protocol import Needs


class OnePass:
    """A method that acts within the only pass of a step or in the optimizer's step: see :class:`steppe.Method`.

    It follows the adapters of the model: what was added, removed or switched since is looked at again at the next
    :meth:`backward` or step.
    """

    FORMAT: ClassVar[Any]
    SETTINGS: ClassVar[tuple[str, ...]]
    PIECES: ClassVar[tuple[str, str]] = ("layers", "LoRA layers")
    """What it acts on: the key in a state, and the word in a sentence."""

    hosts_length = False  # whether the host that runs the training gave total_steps
    needs = Needs()

    def __init__(self, model: nn.Module, optimizer: Given, settings: dict[str, Any]) -> None:
        self._optimizers = check_arguments(model, optimizer, settings["seed"])
        self._check(settings)
        vars(self).update(settings)
        self.model, self.optimizer, self.last = model, optimizer, Last(False)
        self._count = 0
        self._adapters = Adapters(model)
        self._seen = self._present()
        self._find()
        self._steps: Steps | None = None

    # What a method adds

    @staticmethod
    def _check(settings: Mapping[str, Any]) -> None:
        """Refuse settings that do not fit."""
        raise NotImplementedError

    def _find(self) -> None:
        """Find what it acts on, at first and when adapters or groups have changed."""
        raise NotImplementedError

    def _names(self) -> list[str]:
        """Of what it acts on."""
        raise NotImplementedError

    def _pass(self, work: Work) -> Tensor:
        """The pass, which makes the gradient: within it a method may perturb (:class:`InForward`)."""
        return work.run()

    def _end(self) -> None:
        """After a pass, also a broken one."""

    def _stepped(self) -> None:
        """After a real step of the optimizer, before it is counted."""

    # As an object that loops treat like any method's

    @untraced
    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """Run the one pass of a step and return its loss: ``loss.backward()``, for loops that call every method alike.

        Args:
            closure: computes the scalar loss.
            batch: handed to ``closure``, if given.
            micro_batches: the batch in pieces, whose losses add up; all see the same perturbation.
            backward: the host's own backward, such as ``lambda loss: scaler.scale(loss).backward()``.

        Returns:
            The detached loss, 0-dim (at the perturbed weights, where the method perturbs the model).
        """
        refuse_uneven(self.model)
        work = Work.of(compiled_again(closure), batch, micro_batches, backward, without_sync(parallel(self.model)))
        self._refresh()
        try:
            loss = self._pass(work)
        finally:
            self._end()
        self.last = Last(False, loss)
        return loss

    @property
    def step(self) -> int:
        """Real optimizer steps so far."""
        return self._count

    def remove(self) -> None:
        """Leave model and optimizer: from now on they are as they were before."""
        if self._steps is not None:
            self._steps.remove()
        self._steps = None

    def _listen(self) -> None:
        """Hear of real steps; the optimizer keeps this object alive."""
        self._steps = Steps(self, self._optimizers, keep=True)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        return self.__dict__ | {"_steps": self._steps is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is tied to its own optimizer, whose copy has lost all hooks."""
        self.__dict__.update(state)
        if state["_steps"]:
            self._listen()
        else:
            self._steps = None

    def __repr__(self) -> str:
        """The settings, how many pieces it acts on, and the position."""
        shown = [f"{name}={getattr(self, name)!r}" for name in self.SETTINGS if name != "rounding"]
        return f"{type(self).__name__}({', '.join(shown)}, {self.PIECES[0]}={len(self._names())}, step={self.step})"

    # Adapters that come and go

    def _present(self) -> Any:
        groups = [(id(g), len(g["params"])) for g in self._optimizers.param_groups]
        return self._adapters.marks(), groups

    def _refresh(self) -> None:
        if self._present() != self._seen:
            self._adapters = Adapters(self.model)
            self._find()
            self._seen = self._present()
        self._adapters.refuse_merged(self._optimizers.params)

    # Real steps

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> Any:
        self._refresh()

    _awaits_step = False  # nothing of a gradient is kept for the step

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        assert self._steps is not None
        if not bool(skipped) and self._steps.stepped(which)[0]:
            self._stepped()
            self._count += 1

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Settings, step and the names of what it acts on: plain data, beside the model's and the optimizer's."""
        return {"format": self.FORMAT, "step": self.step, self.PIECES[0]: self._names()} | self._settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken: bit for bit, where the settings are the same.

        Settings are those of this object; where one is not the state's, one warning names it with both values. A
        ``total_steps`` that the host gave follows the training's new length without a word.

        Raises:
            ValueError: the state is of another method or kind, or of other pieces; nothing is changed then.
        """
        key, word = self.PIECES
        if not isinstance(state, dict) or set(state) != set(self.state_dict()) or state["format"] != self.FORMAT:
            kind = f"a steppe.{type(self).__name__} (format 1)"
            raise ValueError(f"this is not the state of {kind}: pass what its state_dict() returned")
        check_count("step", state["step"], 0)
        if list(state[key]) != self._names():
            raise ValueError(
                f"the state is of {len(state[key])} {word}, the model has {len(self._names())} or others of them: load "
                "it into the model it was saved from"
            )
        self._check(state)
        if "rule" in self.SETTINGS and state["rule"] != vars(self)["rule"]:
            raise another_method("rule", state["rule"], vars(self)["rule"])
        self._take(state)
        own = [name for name in self.SETTINGS if not (self.hosts_length and name == "total_steps")]
        tell(plain_changes(state, self._settings(), own))

    def _take(self, state: dict[str, Any]) -> None:
        """Position and memory from a state that has been checked."""
        self._count = state["step"]

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SETTINGS}
