"""Bi-LoRA: a second pair of factors climbs the loss while the first descends, both in one backward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

from steppe._algebra import norm, scale_
from steppe._batch import Work
from steppe._optimizers import Given
from steppe._parameters import parallel
from steppe._parts import check, check_choice, check_count
from steppe._rates import check_rates
from steppe._rounding import generator
from steppe._sync import average_all
from steppe._wiring import refusing_unknown
from steppe.lora._in_forward import InForward
from steppe.lora._layers import Layer, active

RULES = ("adam", "sgd")


class BiLoRA(InForward):
    """An auxiliary LoRA as the perturbation: it ascends on the gradient that the main one descends on.

    With main factors (A_1, B_1), which the optimizer trains, and auxiliary ones (A_2, B_2) of every LoRA layer:

        W = W_0 + s B_1 A_1 + B_2 A_2,    max over ||B_2 A_2||_F <= rho, min over A_1, B_1

    After one backward at W the optimizer steps A_1, B_1 down, and with its step A_2, B_2 go up (at the rate eta_2):

        B_2 += eta_2 grad_W A_2^T,  A_2 += eta_2 B_2^T grad_W;  then both times sqrt(rho / c) where
        c = sqrt(sum over layers of ||B_2 A_2||_F^2) exceeds rho

    The auxiliary factors live here and not in the model: a checkpoint or an adapter saved from the model holds the main
    ones alone, and ``model.eval()`` shows those alone. A step that is skipped (GradScaler) moves neither.

        bi = steppe.BiLoRA(model, optimizer, rho=0.05)
        ...                                   # train as ever: loss.backward(); optimizer.step(); optimizer.zero_grad()

    Args:
        model: with PEFT's LoRA layers on linear layers, of quantised weights too.
        optimizer: any, or a list of several, of the main factors; it keeps this object alive. Where it climbs
            (``maximize``), the auxiliary factors descend.
        rho: radius, Frobenius norm over all layers' B_2 A_2, at least 0; 0.05 and 0.1 in the paper (searched from 0.005
            to 0.5). 0 is LoRA.
        lr: eta_2 > 0; None: the present rate of the main factors, as in the paper.
        rank: of the auxiliary factors; None: that of the main ones (the paper advises 8).
        rule: of the ascent. "sgd": the equation above. "adam": Adam's step along it, as main factors are stepped with
            AdamW in the paper [recalled: the paper does not name the auxiliary one's].
        seed: of A_2's start, uniform as LoRA's A; B_2 starts at 0 [recalled].

    With a GradScaler call :meth:`backward` with ``backward=lambda loss: scaler.scale(loss).backward()``: it knows the
    scale of the auxiliary gradients, which the scaler does not unscale. A division within that function is taken back
    too (``accelerator.backward`` while accumulating): the auxiliary gradients are then sums over the micro-batches, not
    means, which rule="adam" does not notice. DistributedDataParallel: averaged over ranks.

    Cost: 1 pass, with two thin products more per layer; buffers of the auxiliary factors (three times with "adam").

    Raises:
        TypeError, ValueError: there is no LoRA layer that the optimizer trains, or a setting is out of range.

    Source: Liu et al., ICLR 2026, arXiv 2508.19564, equations 7 to 10 and Algorithm 1.
    """

    FORMAT = "BiLoRA 1"
    SETTINGS = ("rho", "lr", "rank", "rule", "seed")
    HOOKS = ("_add",)

    rho: float
    lr: float | None
    rank: int | None
    rule: str
    seed: int

    @refusing_unknown
    def __init__(
        self,
        model: nn.Module,
        optimizer: Given,
        *,
        rho: float = 0.05,
        lr: float | None = None,
        rank: int | None = None,
        rule: str = "adam",
        seed: int = 0,
    ) -> None:
        self._of: list[Any] = []
        super().__init__(model, optimizer, {"rho": rho, "lr": lr, "rank": rank, "rule": rule, "seed": seed})

    def _fit(self, layers: tuple[Layer, ...]) -> None:
        if self.lr is None:
            check_rates(self._optimizers, "the auxiliary factors' ascent (lr=None)")
        here = [(layer.name, layer.base, tuple(active(layer.module))) for layer in layers]
        if not self._of:
            self._of, self.auxiliary = here, [_start(layer, self.rank, self.seed) for layer in layers]
            self._ascent = self._make_ascent()
        elif here != self._of:
            raise RuntimeError(
                "adapters were added, removed or switched since this BiLoRA was built, so that its auxiliary factors "
                "climb beside others; expected the same ones, or a new BiLoRA, which takes the place of this one"
            )

    @torch.no_grad()
    def perturbation_norm(self) -> Tensor:
        """C = ||B_2 A_2||_F over all layers, 0-dim, on the device."""
        squares = [((b.T @ b) * (a @ a.T)).sum() for a, b in self.auxiliary]
        return torch.stack([s.to(squares[0].device) for s in squares]).sum().clamp(min=0).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Settings, step, auxiliary factors and their moments: plain data, beside the model's and the optimizer's."""
        factors = {
            e.name: [a.detach().clone(), b.detach().clone()]
            for e, (a, b) in zip(self.layers, self.auxiliary, strict=True)
        }
        return super().state_dict() | {"auxiliary": factors, "ascent": self._ascent.state_dict()}

    @torch.no_grad()
    def _take(self, state: dict[str, Any]) -> None:
        saved = [state["auxiliary"][layer.name] for layer in self.layers]
        for layer, (a, b), (mine, own) in zip(self.layers, saved, self.auxiliary, strict=True):
            if a.shape != mine.shape or b.shape != own.shape:
                raise ValueError(
                    f"the state's auxiliary factors of {layer.name} have shapes {tuple(a.shape)} and {tuple(b.shape)}; "
                    f"expected {tuple(mine.shape)} and {tuple(own.shape)}: construct with the same rank"
                )
        for (a, b), (mine, own) in zip(saved, self.auxiliary, strict=True):
            mine.copy_(a)
            own.copy_(b)
        self._ascent.load_state_dict(state["ascent"])
        super()._take(state)

    # The ascent

    def _add(self, index: int, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        layer, (a, b) = self.layers[index], self.auxiliary[index]
        if not self.rho or not self._active(layer):
            return None
        if not _begun(layer):
            a.grad = b.grad = None
        if a.device != args[0].device:
            raise RuntimeError(
                f"LoRA layer {layer.name} is on {args[0].device} and its auxiliary factors on {a.device}; expected "
                "BiLoRA to be built after the model was moved"
            )
        return output + F.linear(F.linear(args[0].to(a.dtype), a), b).to(output.dtype)

    def _pass(self, work: Work) -> Tensor:
        earlier = [p.grad if _begun(e) else None for e, ps in zip(self.layers, self.auxiliary, strict=True) for p in ps]
        factors = [p for pair in self.auxiliary for p in pair]
        for p in factors:
            p.grad = None
        loss = super()._pass(work)
        if work.backward is not None:
            scale_([p.grad for p in factors if p.grad is not None], 1 / work.scale)
        for p, grad in zip(factors, earlier, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        return loss

    @torch.no_grad()
    def _stepped(self) -> None:
        grads = [p.grad for pair in self.auxiliary for p in pair if p.grad is not None]
        if not grads:
            return
        wrapper = parallel(self.model)
        if wrapper is not None:
            average_all(grads, wrapper.process_group)
        elif dist.is_initialized() and dist.get_world_size() > 1:  # wrapped later, as the Trainer does
            average_all(grads, None)
        finite = norm(grads).isfinite()
        for grad in grads:  # one inf would stay in Adam's moments for good
            grad.copy_(torch.where(finite.to(grad.device), grad, 0.0))
        main = {id(p): g for g in self._optimizers.param_groups for p in g["params"]}
        climbs = self._climbing()
        for group, layer in zip(self._ascent.param_groups, self.layers, strict=True):
            group["lr"], group["maximize"] = self._rate(layer, main), not climbs[layer.name]
        self._ascent.step()
        self._ascent.zero_grad()
        self._clip()

    def _clip(self) -> None:
        length = self.perturbation_norm()
        factor = torch.where(length > self.rho, (self.rho / length.clamp(min=1e-30)).sqrt(), 1.0)
        scale_([p.detach() for pair in self.auxiliary for p in pair], factor)

    def _rate(self, layer: Layer, main: dict[int, dict[str, Any]]) -> float:
        if self.lr is not None:
            return self.lr
        return next(float(main[id(t)]["lr"]) for a, b, _ in layer.factors() for t in (a, b) if id(t) in main)

    def _climbing(self) -> dict[str, bool]:
        """Of each layer, whether its main factors are stepped up the gradient."""
        climbing = zip(self._optimizers.param_groups, self._optimizers.climbing(), strict=True)
        up = {id(p) for g, climbs in climbing if climbs for p in g["params"]}
        return {layer.name: any(id(t) in up for a, b, _ in layer.factors() for t in (a, b)) for layer in self.layers}

    @staticmethod
    def _check(settings: Mapping[str, Any]) -> None:
        check("rho", settings["rho"], 0.0)
        if settings["lr"] is not None:
            check("lr", settings["lr"], 0.0)
        if settings["rank"] is not None:
            check_count("rank", settings["rank"])
        check_choice("rule", settings["rule"], RULES)

    def _make_ascent(self) -> Optimizer:
        groups = [{"params": list(pair), "lr": 0.0} for pair in self.auxiliary]
        if self.rule == "sgd":
            return torch.optim.SGD(groups, lr=0.0, maximize=True)
        return torch.optim.Adam(groups, lr=0.0, maximize=True)


def _begun(layer: Layer) -> bool:
    """Whether a backward of the present step was there before: what a step that was skipped left is dropped."""
    return any(t.grad is not None for a, b, _ in layer.factors() for t in (a, b))


def _start(layer: Layer, rank: int | None, seed: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A_2 and B_2 in fp32 at least: the one random, the other 0, so that training begins at the model as it is."""
    first = next(layer.factors())[0]
    (m, n), r = layer.shape, rank or first.shape[0]
    a = torch.empty(r, n, device=first.device, dtype=torch.promote_types(first.dtype, torch.float32))
    a.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator(a.device, f"bi_lora:{layer.name}", seed, 0))
    return nn.Parameter(a), nn.Parameter(a.new_zeros(m, r))
