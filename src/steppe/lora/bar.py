"""BAR, balancedness-aware regularisation: what SAM does to the factors of LoRA, without SAM's second pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steppe._length import check_length
from steppe._optimizers import Given
from steppe._parts import check, check_choice
from steppe._rates import check_rates
from steppe._rounding import ROUNDINGS
from steppe._steps import listeners
from steppe._sync import refuse_uneven
from steppe._wiring import refusing_unknown
from steppe.curves import Cosine, Linear
from steppe.lora._move import Bundle, bundles
from steppe.lora._one_pass import OnePass
from steppe.lora.balance import balancedness
from steppe.lora.pairs import Pair, Rule, find_pairs
from steppe.protocol import Needs

RULES, SCHEDULES = ("nbar", "obar"), ("linear", "cosine", "constant")


class BAR(OnePass):
    """Balancedness-aware regularisation of factor pairs, as a pre-hook of the optimizer's step.

    Once for each pair (x, y), after the backward and before the optimizer's own step, with a = alpha_t eta_t, eta_t
    the present learning rate of the pair's parameter group and norms over whole sides:

        nbar:  ||g_x|| >= ||g_y||  ->  x *= 1 + a, y *= 1 - a;  else  x *= 1 - a, y *= 1 + a
        obar:  ||x|| >= ||y||      ->  x *= 1 - a, y *= 1 + a;  else  x *= 1 + a, y *= 1 - a

    The model's output changes by a factor 1 - a^2 on each product. Only the sign of a comparison enters, so the loss
    scale and clipping change nothing, nor which factor is called x. A pair without a gradient, or with zero, infinite
    or NaN ones alone, stays. A step that is skipped (GradScaler) moves nothing and does not count.

        bar = steppe.BAR(model, optimizer, mu=0.5, total_steps=1000)  # says how many pairs: print(bar)
        ...                                                           # train as ever: loss.backward(); optimizer.step()

    Args:
        model: holds the pairs. Build BAR when the model is as it is trained: adapters added, sharded, compiled.
        optimizer: any, or a list of several; it steps as ever and keeps BAR alive. Both sides of a pair belong to one
            optimizer, and move at its step. Where the sides of a pair are in groups of different
            learning rates (LoRA+), the smaller one counts for both, so that their product stays. With optimizers that
            find the rate themselves (lr = 1) choose ``mu`` as their rate would be.
        rule: "nbar" compares the gradients, "obar" the factors.
        mu: alpha at the start, at least 0; 0.2 to 2 in the paper (0.05 on QQP, 0.1 to 0.3 for GPT-2). 0 is the base.
        schedule: alpha over T = ``total_steps``: "linear" mu (1 - t/T), "cosine" mu (1 + cos(pi t/T))/2, 0 after T;
            "constant" mu.
        total_steps: optimizer steps of the whole training; needed by "linear" and "cosine".
        pairs: None: LoRA's factors (PEFT's layers, every active adapter); else see
            :func:`steppe.lora.pairs.find_pairs`.
        seed: of the stochastic rounding.
        rounding: of bf16 and fp16 factors. At usual rates a is far below one unit in the last place, so "nearest"
            moves nothing at all; "stochastic" rounds up or down at random, drawn from (seed, step), so that the mean
            is right.

    Cost: 1 pass and no buffer; two norms per pair and one product per factor, all on the device.

    Raises:
        TypeError, ValueError: the arguments do not fit, or there is no pair.

    Source: Li, Zhang, He, NeurIPS 2024, arXiv 2410.14802.

    Example:
        >>> import torch, steppe
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> bar = steppe.BAR(model, optimizer, mu=1.0, schedule="constant", pairs={"0.weight": "1.weight"})
        >>> bar
        BAR(rule='nbar', mu=1.0, schedule='constant', total_steps=None, seed=0, pairs=1, step=0)
    """

    FORMAT, PIECES = 1, ("pairs", "pairs")
    SETTINGS = ("rule", "mu", "schedule", "total_steps", "seed", "rounding")

    rule: str
    mu: float
    schedule: str
    total_steps: int | None
    seed: int
    rounding: str

    @refusing_unknown
    def __init__(
        self,
        model: nn.Module,
        optimizer: Given,
        *,
        rule: str = "nbar",
        mu: float = 0.5,
        schedule: str = "linear",
        total_steps: int | None = None,
        pairs: Rule | None = None,
        seed: int = 0,
        rounding: str = "stochastic",
    ) -> None:
        self._rule = list(pairs) if isinstance(pairs, Iterator) else pairs
        self._skipped: Tensor | None = None  # of the steps counted, those that a fused optimizer skipped by itself
        self._warned = False
        given = (rule, mu, schedule, total_steps, seed, rounding)
        super().__init__(model, optimizer, dict(zip(self.SETTINGS, given, strict=True)))
        self._take_over()
        self._listen()

    def _find(self) -> None:
        check_rates(self._optimizers, "BAR's move")
        pairs = find_pairs(self.model, self._rule, self._optimizers.params())
        self._owners(pairs)
        self.pairs: tuple[Pair, ...] = pairs
        self._bundles: tuple[Any, list[tuple[int, Bundle]]] | None = None

    def _names(self) -> list[str]:
        return [pair.name for pair in self.pairs]

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """A learning rate that leaves a = alpha * lr below 1."""
        return Needs(rate_below=1 / self.mu if self.mu else None)

    @property
    def step(self) -> int:
        """Real optimizer steps so far (reads the device if a fused optimizer skipped steps by itself)."""
        return self._count - (0 if self._skipped is None else int(self._skipped))

    def balancedness(self) -> dict[str, float]:
        """B = 1/2 (||x||^2 - ||y||^2) of every pair by its name (reads the device)."""
        return dict(zip((p.name for p in self.pairs), balancedness(self.pairs).tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        return super().__getstate__() | {"_bundles": None}

    def __len__(self) -> int:
        return len(self.pairs)

    def __bool__(self) -> bool:
        return True

    # The move

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> Any:
        super()._before_step(which, args, kwargs)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._move(which)
            return None
        # Hosts such as Lightning run the backward inside the step.
        watched = self._watched(which, closure)
        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": watched})

    def _watched(self, which: int, closure: Callable[[], Any]) -> Callable[[], Any]:
        moved = False

        def run() -> Any:
            nonlocal moved
            loss = closure()
            if not moved:
                self._move(which)
            moved = True
            return loss

        return run

    @torch.no_grad()
    def _move(self, which: int) -> None:
        refuse_uneven(self.model)
        assert self._steps is not None
        t = self._count - self._steps.under_way(which)  # the others' pairs of this round were moved at the same t
        alpha, found = self._alpha(t), self._optimizers.steppers[which].attribute("found_inf")
        mine = [bundle for owner, bundle in self._grouped() if owner == which]
        moving = [b for b in (bundle.with_gradients() for bundle in mine) if b is not None]
        if mine:
            self._warn_if_idle(moving)
        for bundle in moving:
            a = alpha * bundle.rate()
            if not isinstance(a, Tensor) and not 0 < a < 1:
                if a == 0:
                    continue
                raise ValueError(
                    f"a = alpha * lr = {a:g} at step {self.step}; expected less than 1: lower mu or the learning rate"
                )
            # A fused optimizer under a GradScaler is called after an overflow too, and looks by itself.
            kept = a if found is None else a * (found == 0).reshape(())
            bundle.move(self.rule, kept, self.rounding, self.seed, t)

    def _warn_if_idle(self, trained: list[Bundle]) -> None:
        if not trained and not self._warned:
            self._warned = True
            warnings.warn(
                f"BAR: none of the {len(self)} pairs has a gradient at step {self.step}: build BAR after the model is "
                "wrapped or sharded and its adapters are active",
                stacklevel=6,
            )

    def _alpha(self, t: int) -> float | Tensor:
        if self.schedule == "constant":
            return self.mu
        assert self.total_steps is not None
        if self._skipped is None:
            curve = Linear if self.schedule == "linear" else Cosine
            return curve(self.mu, 0.0, self.total_steps)(t)
        left = 1 - ((t - self._skipped) / self.total_steps).clamp(max=1.0)
        return self.mu * (left if self.schedule == "linear" else (1 - torch.cos(math.pi * left)) / 2)

    def _grouped(self) -> list[tuple[int, Bundle]]:
        """The pairs in bundles, made anew when they were found anew or the model was moved."""
        first = self.pairs[0].x[0]
        now = (first.device, first.dtype)
        if self._bundles is None or self._bundles[0] != now:
            owners, made = self._owners(self.pairs), bundles(self.pairs, self._optimizers.param_groups)
            self._bundles = (now, [(owners[b.x[0]], b) for b in made])
        return self._bundles[1]

    def _owners(self, pairs: tuple[Pair, ...]) -> dict[Tensor, int]:
        """Which of the optimizers steps a parameter; a pair whose sides are in two is refused."""
        groups = zip(self._optimizers.owners(), self._optimizers.param_groups, strict=True)
        owners = {p: i for i, group in groups for p in group["params"]}
        for pair in pairs:
            if len({owners[t] for t in (*pair.x, *pair.y)}) > 1:
                raise ValueError(
                    f"the sides of pair {pair.name!r} are in two of the optimizers given, so that one may step without "
                    "the other; expected both sides in one of them"
                )
        return owners

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        before = self._count
        super()._after_step(which, skipped is True)
        if isinstance(skipped, Tensor) and self._count > before:  # it waits on the device until somebody asks
            none = (skipped != 0).reshape(()).to(torch.int64)
            self._skipped = none if self._skipped is None else self._skipped + none

    def _take_over(self) -> None:
        """An older BAR of the same pairs goes (a cell run again, a second training); one of some of them is refused."""
        for older in listeners(self._optimizers, BAR):
            mine, theirs = ({id(t) for p in b.pairs for t in (*p.x, *p.y)} for b in (self, older))
            if theirs <= mine:
                older.remove()
            elif theirs & mine:
                raise ValueError("another BAR balances some of these pairs already: call its remove() first")

    def _take(self, state: dict[str, Any]) -> None:
        super()._take(state)
        self._skipped = None

    @staticmethod
    def _check(settings: Mapping[str, Any]) -> None:
        check_choice("rule", settings["rule"], RULES)
        check_choice("schedule", settings["schedule"], SCHEDULES)
        check_choice("rounding", settings["rounding"], ROUNDINGS)
        check("mu", settings["mu"], 0.0)
        check_length(settings["schedule"], settings["total_steps"])
