"""A ``torch.optim.Optimizer`` around a SharpnessAware object, for hosts and habits that want ``step(closure)``.

Your own loop needs none of this: ``sharp.backward(...)`` and the plain optimizer are shorter, and work with GradScaler.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe.protocol import checked


class SharpOptimizer(Optimizer):
    """The optimizer of ``sharp``, whose ``step(closure)`` takes sharpness-aware steps.

    Groups, state and defaults ARE those of ``sharp.optimizer``, so learning-rate schedulers, ``zero_grad`` and
    ``add_param_group`` work on either of the two; use one of them with GradScaler throughout. Cost: the method's.

    Args:
        sharp: what any recipe returns, such as ``steppe.LookSAM(model, optimizer)``; an attribute of the same name.

    Example:
        >>> import torch, steppe
        >>> from steppe.integrations.closure import SharpOptimizer
        >>> w = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(w.weight)
        >>> optimizer = SharpOptimizer(steppe.SAM(w, torch.optim.SGD(w.parameters(), lr=0.01), rho=0.5))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w(torch.tensor([[3.0, 4.0]])).square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure)
        tensor(24.5000)
        >>> w.weight.data  # 1 - 0.01 * [28.5, 38]
        tensor([[0.7150, 0.6200]])
    """

    def __init__(self, sharp: Any) -> None:
        self.sharp = checked(sharp, "SharpOptimizer was given", "SharpOptimizer")
        for optimizer in self._each:
            _check_closure(optimizer)
        self._waiting: list[tuple[Tensor, Tensor | None]] = []
        self._cleared = False
        self._accumulates = False  # a wrapper inside withheld the latest step, and keeps its gradients for a later one
        super().__setstate__({})  # the hooks of an Optimizer, without parameters of its own

    # Properties, because the base binds new objects when it loads a state.
    base_optimizer = property(lambda self: self.sharp.optimizer, doc="What the method was given: one or several.")
    param_groups = property(lambda self: [g for o in self._each for g in o.param_groups] if self._several else
                            self.base_optimizer.param_groups)  # fmt: skip
    state = property(lambda self: self.base_optimizer.state if not self._several else
                     {p: s for o in self._each for p, s in o.state.items()})  # fmt: skip
    defaults = property(lambda self: self._each[0].defaults)

    @property
    def _several(self) -> bool:
        return isinstance(self.base_optimizer, (list, tuple))

    @property
    def _each(self) -> Sequence[Optimizer]:
        """What was given, as a sequence: each is stepped, saved and loaded as it is, wrappers and all."""
        return self.base_optimizer if self._several else (self.base_optimizer,)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if self._several:
            raise ValueError("several optimizers are inside; expected add_param_group of the one that is to step it")
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._cleared = True
        for optimizer in self._each:
            optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of the base optimizer, with the sharpness-aware gradient of ``closure``.

        Args:
            closure: by torch's contract: clears the gradients, computes the loss, runs its backward, returns it;
                evaluated twice on a step that ascends. None: a plain step with the gradients as they are.

        Returns:
            The detached loss at the unperturbed weights; None without a closure.

        Raises:
            RuntimeError: gradients were there already and the closure did not clear them.
        """
        loss = None
        if closure is not None:
            stale = None
            if not self._accumulates:
                stale = next((p for p, grad in self._gradients() if grad is not None), None)
                self._clear()
            with torch.enable_grad():
                loss = self.sharp.backward(self._loss_of(closure, stale), backward=lambda loss: None)
        else:
            for param, grad in self._waiting:
                param.grad = grad
        self._waiting, before = [], self.sharp.step
        for optimizer in self._each:
            optimizer.step()
        self._accumulates = self.sharp.step == before and self._keeps_gradients()
        return loss

    def first_step(self, zero_grad: bool = False) -> bool:
        """After your own first backward: perturb the weights, if this step of the method does (drop-in use).

        The gradient is put away in any case: ``zero_grad`` is there for old loops and makes no difference.

        Returns:
            Whether a second pass is of use; one that is run in vain changes nothing.
        """
        self._waiting = []
        if not self.sharp.needs.passes or not self.sharp.ascend():
            self._waiting = self._gradients()
            self._clear()
        return not self._waiting

    def second_step(self, zero_grad: bool = False) -> None:
        """After the second backward: weights back, base optimizer's step, and ``zero_grad`` if wanted."""
        if not self._waiting:
            self.sharp.restore()
        self.step()
        if zero_grad:
            self.zero_grad()

    def _keeps_gradients(self) -> bool:
        """Whether what is inside refuses to clear gradients now: accelerate's wrapper between accumulated steps."""
        if any(o is s.optimizer for o in self._each for s in self.sharp._optimizers.steppers):
            return False
        for optimizer in self._each:
            optimizer.zero_grad(set_to_none=True)
        return any(grad is not None for _, grad in self._gradients())

    def _clear(self) -> None:
        """Clear the gradients, also where a wrapper inside would keep them."""
        for param, _ in self._gradients():
            param.grad = None

    def _gradients(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(p, p.grad) for group in self.param_groups for p in group["params"]]

    def _loss_of(self, closure: Callable[[], Any], stale: Tensor | None) -> Callable[[], Any]:
        """The closure as a function of the loss; a mark on a parameter that had a gradient shows whether it clears."""

        def run() -> Any:
            nonlocal stale
            param, stale, self._cleared, mark = stale, None, False, None
            earlier = [(p, grad) for p, grad in self._gradients() if grad is not None] if self._accumulates else []
            for p, _ in earlier:
                p.grad = None
            if param is not None:
                param.grad = mark = torch.zeros_like(param)
            value = closure()
            for p, grad in earlier:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
            if param is not None and param.grad is mark and not self._cleared:
                raise RuntimeError(
                    "gradients were there before step(closure), and the closure did not clear them: begin the closure "
                    "with optimizer.zero_grad() and run no backward outside of it; to accumulate, use sharp.backward"
                )
            loss = torch.tensor(float(value)) if isinstance(value, (int, float)) else value
            return loss.detach().requires_grad_() if isinstance(loss, Tensor) else loss  # its backward has been run

        return run

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state with ``sharp``'s beside it, under "sharp"."""
        own = {"sharp": self.sharp.state_dict()}
        if self._several:
            return {"optimizers": [o.state_dict() for o in self._each]} | own
        return self.base_optimizer.state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken (ValueError and no change where it does not fit).

        A base optimizer's own state is taken too, with a warning.
        """
        before = self.sharp.state_dict()
        if "sharp" in state_dict:
            self.sharp.load_state_dict(state_dict["sharp"])
        else:
            warnings.warn(
                "this optimizer state holds no 'sharp' entry: the schedule and memory stay as they are; load "
                "sharp.load_state_dict(...) yourself if you saved it apart",
                stacklevel=2,
            )
        try:
            self._load({k: v for k, v in state_dict.items() if k != "sharp"})
        except BaseException:
            self.sharp.load_state_dict(before)
            raise

    def _load(self, state: dict[str, Any]) -> None:
        if not self._several:
            self.base_optimizer.load_state_dict(state)
            return
        states = state.get("optimizers", [])
        if len(states) != len(self._each):
            raise ValueError(f"the state is of {len(states)} optimizers, here are {len(self._each)} of them")
        before = [o.state_dict() for o in self._each]
        try:
            for optimizer, saved in zip(self._each, states, strict=True):
                optimizer.load_state_dict(saved)
        except BaseException:
            for optimizer, saved in zip(self._each, before, strict=True):
                optimizer.load_state_dict(saved)
            raise

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a SharpOptimizer cannot be copied or pickled, as it belongs to one model: "
            "save its state_dict(), or build a new one around the copied model"
        )


def _check_closure(optimizer: Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} needs a closure of its own; expected a base optimizer that steps "
            "without one, such as SGD or AdamW"
        )
