"""A ``torch.optim.Optimizer`` around a SharpnessAware object, for hosts and habits that want ``step(closure)``.

Your own loop needs none of this: ``sharp.backward(...)`` and the plain optimizer are shorter, and work with GradScaler.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe.gradient import SharpnessAware


class SharpOptimizer(Optimizer):
    """The optimizer of ``sharp``, whose ``step(closure)`` takes sharpness-aware steps.

    Groups, state and defaults ARE those of ``sharp.optimizer``, so learning-rate schedulers, ``zero_grad`` and
    ``add_param_group`` work on either of the two; use one of them with GradScaler throughout.

        optimizer = SharpOptimizer(steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05))
        optimizer.step(closure)     # the closure: zero_grad, forward, backward, return the loss

    Args:
        sharp: what any recipe returns, such as ``steppe.LookSAM(model, optimizer)``.

    Attributes:
        sharp: the same object (``sharp.last`` tells what the latest step did).
        base_optimizer: ``sharp.optimizer``, under davda54/sam's name.

    Cost: what the method costs; the closure is evaluated twice on a step that ascends, else once.

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

    def __init__(self, sharp: SharpnessAware) -> None:
        _check(sharp)
        self.sharp = sharp
        self._handed: list[tuple[Tensor, Tensor | None]] | None = None
        self._cleared = False
        super().__setstate__({})  # the hooks of an Optimizer, without parameters of its own

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer inside."""
        return self.sharp.optimizer

    # Properties, because the base binds new objects when it loads a state.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self.sharp.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.sharp.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults."""
        return self.sharp.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        self.sharp.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._cleared = True
        self.sharp.optimizer.zero_grad(set_to_none)

    # Steps

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of the base optimizer, with the sharpness-aware gradient of ``closure``.

        Args:
            closure: by torch's contract: clears the gradients, computes the loss, runs its backward, returns it.
                None: the base optimizer's step with the gradients as they are.

        Returns:
            The detached loss at the unperturbed weights; None without a closure.

        Raises:
            RuntimeError: gradients were there already and the closure did not clear them.
        """
        loss = None
        if closure is None:
            self._put_back()
        else:
            self._handed = None
            with torch.enable_grad(), self._without_gradients() as probe:
                loss = self.sharp.backward(self._checking(closure, probe), backward=lambda loss: None)
        self.sharp.optimizer.step()
        return loss

    def first_step(self, zero_grad: bool = False) -> bool:
        """After your own first backward: perturb the weights, if this step of the method does (drop-in use).

        The gradient is put away in any case, so ``zero_grad`` makes no difference; it is there for old loops.

        Returns:
            Whether a second pass is of use. One that is run in vain changes nothing but the time it takes.
        """
        self._handed = None
        if self.sharp.ascend():
            return True
        self._handed = self._gradients()
        self.sharp.optimizer.zero_grad(set_to_none=True)
        return False

    def second_step(self, zero_grad: bool = False) -> None:
        """After the second backward: weights back, base optimizer's step, and ``zero_grad`` if wanted."""
        if self._handed is None:
            self.sharp.restore()
        self.step()
        if zero_grad:
            self.zero_grad()

    def _gradients(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(p, p.grad) for group in self.param_groups for p in group["params"]]

    def _put_back(self) -> None:
        """The gradient of a step without an ascent, which waited for a second pass."""
        for param, grad in self._handed or ():
            param.grad = grad
        self._handed = None

    @contextmanager
    def _without_gradients(self) -> Iterator[Tensor | None]:
        """Take stale gradients away, as the closure will; on an error leave them as they were."""
        earlier = self._gradients()
        self.sharp.optimizer.zero_grad(set_to_none=True)
        try:
            yield next((p for p, grad in earlier if grad is not None), None)
        except BaseException:
            for param, grad in earlier:
                param.grad = grad
            raise

    def _checking(self, closure: Callable[[], Any], probe: Tensor | None) -> Callable[[], Any]:
        """The closure as a function of the loss alone; its first call shows on ``probe`` whether it clears."""

        def run() -> Any:
            nonlocal probe
            if probe is None:
                return _loss(closure())
            param, probe, self._cleared = probe, None, False
            param.grad = mark = torch.zeros_like(param)
            loss = closure()
            if param.grad is mark and not self._cleared:
                raise RuntimeError(
                    "gradients were there before step(closure), and the closure did not clear them: begin the closure "
                    "with optimizer.zero_grad() and run no backward outside of it; to accumulate, use sharp.backward"
                )
            return _loss(loss)

        return run

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state with ``sharp``'s beside it, under "sharp"."""
        return self.sharp.optimizer.state_dict() | {"sharp": self.sharp.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; a base optimizer's own state is taken too, with a warning.

        Raises:
            ValueError: either part does not fit; then nothing is changed.
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
            self.sharp.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "sharp"})
        except BaseException:
            self.sharp.load_state_dict(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a SharpOptimizer cannot be copied or pickled, as it belongs to one model: "
            "save its state_dict(), or build a new one around the copied model"
        )


def _check(sharp: Any) -> None:
    if not isinstance(sharp, SharpnessAware):
        raise TypeError(
            f"SharpOptimizer was given a {type(sharp).__name__}; expected a steppe object, such as "
            "SharpOptimizer(steppe.SAM(model, optimizer))"
        )
    closure = inspect.signature(sharp.optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(sharp.optimizer).__name__} needs a closure of its own; expected a base optimizer that steps "
            "without one, such as SGD or AdamW"
        )


def _loss(value: Any) -> Any:
    """What a closure returned, as a loss whose backward has been run already."""
    loss = torch.tensor(float(value)) if isinstance(value, (int, float)) else value
    return loss.detach().requires_grad_() if isinstance(loss, Tensor) else loss
