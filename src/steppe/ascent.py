"""How to perturb: direction x metric x scope x subset x rho.

With v the direction (the gradient, or the gradient less its average), T the metric and ||.|| over the scope,
the perturbation is  eps = rho T^2 v / ||T v||.  Norms are Euclidean; a zero gradient gives a zero perturbation.
Gradients come as dicts from parameter name to tensor and belong to the part that is handed them: it may write on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from steppe._algebra import add_scaled_, as_real, cloned, joined, multiply_, norm_each, ratio, scale_, scale_each_, wide
from steppe._kinds import is_bias
from steppe._parts import Part, check, check_choice, check_value, moved, value_at
from steppe.curves import FollowLR, LossBudget

Grads = dict[str, Tensor]
Memory = dict[str, Any]
Scale = Tensor | float
SCOPES = ("global", "tensor", "group", "trust", "paper", "none")


class Direction(Part):
    """Base of directions: which vector the perturbation points along."""

    ahead: ClassVar[bool] = False  # True: :meth:`vector` knows it before any pass of the step (steppe.ahead)
    unitless: ClassVar[bool] = False  # True: made of a gradient, but of a length that is not the gradient's
    sees_complex: ClassVar[bool] = False  # True: is handed complex tensors as they are; else as pairs of real numbers

    def __call__(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> tuple[Grads, Memory]:
        """The direction (may overwrite ``grads``) and the memory to keep after a real step.

        Args:
            grads: name -> gradient.
            memory: what the last real step left.
            scale: the loss scale that ``grads`` carry; what is remembered must not.
        """
        raise NotImplementedError

    def vector(self, params: Grads, optimizer: Any, memory: Memory, step: int, seed: int) -> Grads:
        """Where it is known ahead: new tensors, name -> v; empty where nothing is known yet, at the first step.

        Args:
            params: name -> parameter.
            optimizer: one or several, whose ``state.get(parameter)`` is looked up.
            memory: what the last real step left.
            step: the number of real steps.
            seed: of what is random.
        """
        raise NotImplementedError

    @property
    def follows(self) -> bool:
        """Whether :meth:`after` keeps anything of the gradients that the steps take."""
        return False

    def after(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> Memory:
        """The memory to keep of the gradient that a real step takes; ``scale``: the loss scale that it carries."""
        return {}

    def check(self, optimizer: Any) -> None:
        """Refuse an optimizer that cannot serve."""

    def blank(self, params: Grads) -> Memory:
        """The memory that means the same as none: what a sharded checkpoint is loaded into."""
        return {}

    @property
    def remembers(self) -> bool:
        """Whether gradients are kept from step to step."""
        return bool(self.blank({"w": torch.zeros(1)}))


@dataclass(frozen=True)
class Gradient(Direction):
    """The gradient itself, v = g."""

    def __call__(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> tuple[Grads, Memory]:
        """The gradient, and no memory."""
        return grads, {}


@dataclass(frozen=True)
class Friendly(Direction):
    """The gradient less its running average (F-SAM): m <- decay m + (1 - decay) g, then v = g - sigma m.

    ``sigma = 0`` is the gradient itself. m starts at 0 and moves on steps that ascend. Memory: one gradient-sized
    buffer.
    """

    sigma: float = 1.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Check the ranges."""
        check("sigma", self.sigma, 0.0)
        check("decay", self.decay, 0.0, 1.0)

    def __call__(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> tuple[Grads, Memory]:
        """The gradient less sigma times the new average."""
        if self.sigma == 0:
            return grads, {}
        old = memory.get("average", {})
        fresh = dict(zip(grads, cloned(list(grads.values())), strict=True))
        scale_(fresh.values(), (1 - self.decay) / scale)
        known = [k for k in fresh if k in old]
        add_scaled_([fresh[k] for k in known], [old[k] for k in known], self.decay)
        new = dict(old) | fresh
        add_scaled_(list(grads.values()), [new[k] for k in grads], -self.sigma * scale)
        return grads, {"average": new}

    def blank(self, params: Grads) -> Memory:
        """An average of zeros, unless sigma = 0."""
        return {"average": {k: torch.zeros_like(p) for k, p in params.items()}} if self.sigma else {}


class Metric(Part):
    """Base of metrics: the diagonal T in which the radius is measured."""

    def __call__(self, weights: Grads) -> list[Tensor] | None:
        """T for every tensor, or None for the identity."""
        raise NotImplementedError


@dataclass(frozen=True)
class Identity(Metric):
    """T = 1: the radius is a Euclidean length."""

    def __call__(self, weights: Grads) -> list[Tensor] | None:
        """None, the identity."""
        return None


@dataclass(frozen=True)
class Adaptive(Metric):
    """T = |w| + eta, elementwise (ASAM); T = 1 for biases, as in the authors' code.

    A bias is told by its own name in its layer: ``bias``, ``..._bias`` (attention's ``in_proj_bias``), and the RNNs'
    ``bias_ih...`` and ``bias_hh...``; the tensors behind a parametrised or pruned bias are biases too. Attention's
    ``bias_k`` and ``bias_v``, a key and a value, are not, nor are scales of normalisation layers.
    ``eta`` must be positive for weights that start at zero (LoRA's B) to move at all.
    """

    eta: float = 0.01

    def __post_init__(self) -> None:
        """Check the range."""
        check("eta", self.eta, 0.0)

    def __call__(self, weights: Grads) -> list[Tensor] | None:
        """One new tensor per weight."""
        return [torch.ones_like(w) if is_bias(name) else w.abs().add_(self.eta) for name, w in weights.items()]


@moved(
    samples="SharpnessAware(look=steppe.Look(samples={}))",
    view="SharpnessAware(look=steppe.Look(view={}))",
    autocast="SharpnessAware(look=steppe.Look(autocast={}))",
    hardest="SharpnessAware(hardest={})",
)
@dataclass(frozen=True)
class Ascent(Part):
    """The perturbation  eps = rho T^2 v / ||T v||  and where it applies.

    Args:
        rho: radius in the metric's norm (rho >= 0): a number, a curve of t, :class:`steppe.curves.FollowLR`, or
            :class:`steppe.curves.LossBudget`. An optimizer group's own ``rho`` wins over it.
        direction: v: :class:`Gradient`, :class:`Friendly`, or one that saves the pass that looks for it,
            :class:`steppe.Momentum`, :class:`steppe.Previous` or :class:`steppe.Noise`; :class:`steppe.Spectral`.
        metric: T: :class:`Identity` or :class:`Adaptive`.
        scope: over what the norm is taken. ``"global"`` the whole perturbed vector; ``"tensor"`` each tensor by itself;
            ``"group"`` each optimizer group; ``"trust"`` each tensor, with radius rho ||w_l||; ``"paper"`` LookSAM's
            layer-wise form rho (||w_l|| / ||T v_l||) T^2 v_l / ||T v|| (in units of the unscaled loss); ``"none"``
            no norm at all, eps = rho T^2 v (of a gradient: in units of the unscaled loss).
            A tensor of zero weights counts as ||w_l|| = 1 ("trust"), as trust ratio 1 ("paper").
        subset: ``"all"`` parameters, ``"norm"`` scales and shifts of normalisation layers (torch's own, and classes
            with the word "Norm" in their name that own no matrix), or a function ``(name, parameter) -> bool``.
        beta: share of the weights that are perturbed, in (0, 1]: each by itself with chance beta, drawn from
            (seed, step), its eps divided by beta, so that the mean is eps and the length some rho / sqrt(beta)
            (ESAM's stochastic weight perturbation; 0.5 or 0.6 there). 1 is all of them. For whole tensors, which
            also saves backward work, see ``SharpnessAware(select=...)``.

    Cost: no buffer for the identity beyond the gradient it overwrites; one temporary tensor list for ``Adaptive``.
    """

    rho: float | Callable[[int], float] | FollowLR | LossBudget = 0.05
    direction: Direction = field(default_factory=Gradient)
    metric: Metric = field(default_factory=Identity)
    scope: str = "global"
    subset: str | Callable[[str, Tensor], bool] = "all"
    beta: float = field(default=1.0, kw_only=True)
    _types: ClassVar[tuple[tuple[str, type], ...]] = (("direction", Direction), ("metric", Metric))

    def __post_init__(self) -> None:
        """Check types and ranges."""
        if isinstance(self.rho, LossBudget) and (self.direction.ahead or self.direction.unitless):
            raise ValueError(
                f"rho={self.rho!r} was given with {self.direction!r}; expected a direction made of this step's "
                "gradient, along which it is known how fast the loss rises"
            )
        if not isinstance(self.rho, (FollowLR, LossBudget)):
            check_value("rho", self.rho, 0.0, why="rho is the radius of the perturbation, 0.05 is usual for SAM")
        for name, kind in self._types:
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name}={getattr(self, name)!r} was given; expected a steppe {kind.__name__} such as "
                    f"{'Gradient()' if kind is Direction else 'Identity()'}"
                )
        check_choice("scope", self.scope, SCOPES)
        if not callable(self.subset):
            check_choice("subset", self.subset, ("all", "norm"))
        check("beta", self.beta, 0.0, 1.0)
        if self.beta == 0:
            raise ValueError("beta=0 was given; expected a number above 0, as no weight would move")

    @property
    def joins(self) -> bool:
        """Whether it makes of tensors that are joined to one what it makes of each: one factor, and nothing else."""
        one = self.scope in ("global", "none") and self.beta == 1 and type(self.metric) is Identity
        made = type(self.direction).__call__
        if isinstance(self.direction, Friendly) and self.direction.sigma == 0:
            return one and made is Friendly.__call__
        return one and made is Gradient.__call__

    @property
    def reads_scale(self) -> bool:
        """Whether the loss scale that a gradient carries matters: one that is remembered, or not divided by itself."""
        units = self.scope in ("paper", "none") or isinstance(self.rho, LossBudget)
        of_loss = not self.direction.ahead and not self.direction.unitless
        return of_loss and (units or self.direction.remembers)

    def radius(self, t: int, group: dict[str, Any] | None) -> float:
        """The radius at step ``t`` for a parameter group: its own ``rho``, else this part's."""
        if group is not None and group.get("rho") is not None:
            return float(group["rho"]) if self.budget(t) != 0 else 0.0
        if isinstance(self.rho, FollowLR):
            return self.rho.at(group or {"lr": self.rho.lr_max})
        return self.rho.at(t) if isinstance(self.rho, LossBudget) else float(value_at("rho", self.rho, t))

    def budget(self, t: int) -> float | None:
        """The first-order rise of the loss that step ``t`` may take; None: any."""
        return self.rho.budget(t) if isinstance(self.rho, LossBudget) else None

    def perturbation(
        self,
        weights: Grads,
        grads: Grads,
        rho: dict[str, float],
        groups: dict[str, int],
        memory: Memory,
        scale: Scale = 1.0,
        budget: float | None = None,
        pairs: Collection[str] = (),
        norms: list[Tensor] | None = None,
    ) -> tuple[Grads, Memory]:
        """The perturbation of every named weight, in the storage of ``grads``, and the direction's new memory.

        Args:
            weights: name -> parameter value, only read.
            grads: name -> gradient, same names and order; overwritten.
            rho: name -> radius.
            groups: name -> number of its optimizer group (for ``scope="group"``).
            memory: the direction's memory.
            scale: the loss scale that ``grads`` carry.
            budget: what :meth:`budget` said for this step.
            pairs: names of those that are complex numbers, as pairs of real ones.
            norms: of the gradients, where they are known already.
        """
        scale = 1.0 if self.direction.ahead else scale
        if pairs and self.direction.sees_complex:
            grads = grads | {name: torch.view_as_complex(grads[name]) for name in pairs}
        vector, memory = self.direction(grads, memory, scale)
        if pairs:
            vector = {name: as_real(v) for name, v in vector.items()}
        scale = 1.0 if self.direction.unitless else scale
        tensors, metric = list(vector.values()), self.metric(weights)
        if metric is not None:
            multiply_(tensors, metric)
        each = norms if metric is None and type(self.direction) is Gradient else None
        factors = self._factors(list(weights.values()), tensors, list(rho.values()), list(groups.values()), scale, each)
        if budget is not None:
            factors = _within(budget, factors, tensors, scale)
        if metric is not None:
            multiply_(tensors, metric)
        scale_each_(tensors, factors) if isinstance(factors, list) else scale_(tensors, factors)
        return vector, memory

    def along(self, vector: list[Tensor], rho: float, scale: Scale = 1.0, budget: float | None = None) -> list[Tensor]:
        """The same, in place, where it :attr:`joins`: of a vector in pieces of any length, of one radius.

        The norms of other pieces are others in the last bits: none are taken from a look, so that eps is the same.
        """
        scale = 1.0 if self.direction.ahead or self.direction.unitless else scale
        factor = rho / scale if self.scope == "none" else ratio(rho, joined(norm_each(vector)))
        if budget is None:
            scale_(vector, factor)
        else:
            scale_each_(vector, _within(budget, factor, vector, scale))
        return vector

    def _factors(
        self, weights: list[Tensor], tv: list[Tensor], rho: list[float], groups: list[int], scale: Scale,
        each: list[Tensor] | None,
    ) -> Any:  # fmt: skip
        if self.scope == "none":
            if len(set(rho)) == 1:
                return rho[0] / scale
            return [
                torch.full((), r, dtype=wide(v.dtype), device=v.device) / scale for r, v in zip(rho, tv, strict=True)
            ]
        each = each or norm_each(tv)
        if self.scope == "tensor":
            return [ratio(r, n) for r, n in zip(rho, each, strict=True)]
        if self.scope in ("trust", "paper"):
            return self._layerwise(weights, each, rho, scale)
        if self.scope == "group":
            whole = {g: joined([n for n, h in zip(each, groups, strict=True) if h == g]) for g in set(groups)}
            return [ratio(r, whole[g]) for r, g in zip(rho, groups, strict=True)]
        total = joined(each)
        return ratio(rho[0], total) if len(set(rho)) == 1 else [ratio(r, total) for r in rho]

    def _layerwise(self, weights: list[Tensor], each: list[Tensor], rho: list[float], scale: Scale) -> list[Tensor]:
        sizes = norm_each(weights)
        if self.scope == "trust":
            sizes = [torch.where(w > 0, w, torch.ones_like(w)) for w in sizes]
            return [ratio(r * w, n) for r, w, n in zip(rho, sizes, each, strict=True)]
        total = joined(each)
        trusts = [torch.where(w > 0, ratio(w, n) * scale, torch.ones_like(n)) for w, n in zip(sizes, each, strict=True)]
        return [ratio(r, total) * trust.to(total.device) for r, trust in zip(rho, trusts, strict=True)]


def _within(budget: float, factors: Any, tv: list[Tensor], scale: Scale) -> Any:
    """The factors of eps, made smaller until <v, eps>, a sum of factor ||T v_l||^2, is within the budget."""
    squares = [n.square() for n in norm_each(tv)]
    there = factors if isinstance(factors, list) else [factors] * len(squares)
    each = [f.to(s.device) if isinstance(f, Tensor) else f for f, s in zip(there, squares, strict=True)]
    rise = joined([(f * s).sqrt() for f, s in zip(each, squares, strict=True)]).square() / scale
    shorter = (budget / rise).clamp(max=1.0)
    return [f * shorter.to(s.device) for f, s in zip(each, squares, strict=True)]
