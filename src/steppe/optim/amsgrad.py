"""AMSGrad without bias correction: the base optimizer of AdaSAM, in the paper's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe._algebra import as_real
from steppe._parts import check


class AMSGrad(Optimizer):
    """AMSGrad as AdaSAM's paper writes it (Sun et al., arXiv 2303.00565).

    With d the gradient (g~ under :func:`steppe.AdaSAM`), elementwise:
    m <- beta_1 m + (1 - beta_1) d;  v <- beta_2 v + (1 - beta_2) d^2;  v^ <- max(v^, v);  w <- w - lr m / sqrt(v^).

    m and v start at 0, v^ at eps^2, so sqrt(v^) >= eps and nothing is added in the denominator. There is NO bias
    correction: this is not ``torch.optim.Adam(amsgrad=True)``, which corrects and adds eps.

    Args:
        params: parameters or groups, as for any torch optimizer.
        lr: the step size (gamma in the paper), at least 0.
        betas: (beta_1, beta_2), each in [0, 1).
        eps: the floor of sqrt(v^), above 0.
        weight_decay: decoupled, w <- w (1 - lr weight_decay) before the step; 0 as in the paper.

    Cost: three parameter-sized buffers.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import torch, steppe
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> w.grad = torch.tensor([2.0])
        >>> steppe.optim.AMSGrad([w], lr=0.1, betas=(0.5, 0.75)).step()      # m = 1, v = 1, w = 1 - .1
        >>> w.data
        tensor([0.9000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _check(lr, betas, eps, weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a closure, if given, is evaluated first, with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        (beta_1, beta_2), grads = group["betas"], [as_real(p.grad) for p in params]
        states = [self._state_of(p, group["eps"]) for p in params]
        params = [as_real(p) for p in params]
        m, v, top = ([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        torch._foreach_lerp_(m, grads, 1 - beta_1)
        torch._foreach_mul_(v, beta_2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta_2)
        torch._foreach_maximum_(top, v)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        update = torch._foreach_div(m, torch._foreach_sqrt(top))
        torch._foreach_mul_(update, group["lr"])
        torch._foreach_sub_(params, update)

    def _state_of(self, param: Tensor, eps: float) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            param = as_real(param)  # as torch's Adam: a complex number is a pair of real ones
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
            floor = max(eps**2, torch.finfo(param.dtype).tiny)  # eps^2 may be below the dtype's range
            state["max_exp_avg_sq"] = torch.full_like(param, floor)
        return state


def _check(lr: float | Tensor, betas: Any, eps: float, weight_decay: float) -> None:
    check("lr", float(lr), 0.0)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas={betas!r} was given; expected two numbers in [0, 1)")
    for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        check(name, beta, 0.0, 1.0)
        if beta == 1:
            raise ValueError(f"{name}=1 was given; expected a number below 1, as the average would never move")
    check("eps", eps, 0.0)
    if eps == 0:
        raise ValueError("eps=0 was given; expected a number above 0, as it is the floor of the denominator")
    check("weight_decay", weight_decay, 0.0)
