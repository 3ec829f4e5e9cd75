"""BAR, balancedness-aware regularisation: what SAM does to the factors of LoRA, without SAM's second pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._draft import Last
from steppe._optimizers import Given
from steppe._parameters import without_sync
from steppe._parts import check, check_choice, check_count
from steppe._rates import check_rates
from steppe._rounding import ROUNDINGS
from steppe._settings import another_method, plain_changes, tell
from steppe._steps import Steps, listeners
from steppe._sync import refuse_uneven
from steppe._wiring import check_arguments
from steppe.curves import Cosine, Linear
from steppe.lora._move import Bundle, bundles
from steppe.lora.balance import balancedness
from steppe.lora.pairs import Pair, Rule, find_pairs

RULES, SCHEDULES, FORMAT = ("nbar", "obar"), ("linear", "cosine", "constant"), 1
_SETTINGS = ("rule", "mu", "schedule", "total_steps", "seed", "rounding")


class BAR:
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
        BAR(rule='nbar', mu=1.0, schedule='constant', total_steps=None, pairs=1, step=0)
    """

    rule: str
    mu: float
    schedule: str
    total_steps: int | None
    seed: int
    rounding: str
    hosts_length = False  # whether the host that runs the training gave total_steps

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
        self._optimizers = check_arguments(model, optimizer, seed)
        self._set(
            {"rule": rule, "mu": mu, "schedule": schedule, "total_steps": total_steps, "seed": seed,
             "rounding": rounding}
        )  # fmt: skip
        self.model, self.optimizer = model, optimizer
        check_rates(self._optimizers, "BAR's move")
        self.pairs: tuple[Pair, ...] = find_pairs(model, pairs, self._optimizers.params())
        self._owners()
        self.last = Last(False)
        self._steps = 0
        self._skipped: Tensor | None = None  # of them, those that a fused optimizer skipped by itself
        self._warned = False
        self._bundles: tuple[Any, list[tuple[int, Bundle]]] = (None, [])
        self._take_over()
        self._hearing: Steps | None = Steps(self, self._optimizers, keep=True)

    # As an object that loops treat like any method's

    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """One plain pass: the same as ``loss.backward()``, for loops that call every method alike.

        Args:
            closure: computes the scalar loss.
            batch: handed to ``closure``, if given.
            micro_batches: the batch in pieces, whose losses add up.
            backward: the host's own backward, such as ``lambda loss: scaler.scale(loss).backward()``.

        Returns:
            The detached loss, 0-dim.
        """
        work = Work.of(closure, batch, micro_batches, backward, without_sync(self.model))
        loss = work.run()
        self.last = Last(False, loss)
        return loss

    @property
    def step(self) -> int:
        """Real optimizer steps so far (reads the device if a fused optimizer skipped steps by itself)."""
        return self._steps - (0 if self._skipped is None else int(self._skipped))

    def balancedness(self) -> dict[str, float]:
        """B = 1/2 (||x||^2 - ||y||^2) of every pair by its name (reads the device)."""
        return dict(zip((p.name for p in self.pairs), balancedness(self.pairs).tolist(), strict=True))

    def remove(self) -> None:
        """Leave the optimizer: from now on its steps are its own."""
        if self._hearing is not None:
            self._hearing.remove()
        self._hearing = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        return self.__dict__ | {"_hearing": self._hearing is not None, "_bundles": (None, [])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is tied to its own optimizer, whose copy has lost all hooks."""
        self.__dict__.update(state)
        self._hearing = Steps(self, self._optimizers, keep=True) if state["_hearing"] else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        """The settings, how many pairs, and the position."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _SETTINGS[:4])
        return f"BAR({shown}, pairs={len(self)}, step={self.step})"

    # The move

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> Any:
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
        assert self._hearing is not None
        t = self._steps - self._hearing.under_way(which)  # the others' pairs of this round were moved at the same t
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
                stacklevel=5,
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
        """The pairs in bundles, made anew when groups were added, exchanged by a load, or the model was moved."""
        groups, first = self._optimizers.param_groups, self.pairs[0].x[0]
        now = (tuple((id(g), len(g["params"])) for g in groups), first.device, first.dtype)
        if self._bundles[0] != now:
            owners = self._owners()
            self._bundles = (now, [(owners[id(b.x[0])], b) for b in bundles(self.pairs, groups)])
        return self._bundles[1]

    def _owners(self) -> dict[int, int]:
        """Which of the optimizers steps a parameter, by its id; a pair whose sides are in two is refused."""
        owners = {
            id(p): i
            for i, group in zip(self._optimizers.owners(), self._optimizers.param_groups, strict=True)
            for p in group["params"]
        }
        for pair in self.pairs:
            if len({owners[id(t)] for t in (*pair.x, *pair.y)}) > 1:
                raise ValueError(
                    f"the sides of pair {pair.name!r} are in two of the optimizers given, so that one may step without "
                    "the other; expected both sides in one of them"
                )
        return owners

    _awaits_step = False  # nothing of a gradient is kept for the step

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        assert self._hearing is not None
        if skipped is True or not self._hearing.stepped(which)[0]:
            return
        self._steps += 1
        if isinstance(skipped, Tensor):
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

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Settings, step and the pairs' names: plain numbers and strings."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {"format": FORMAT, "step": self.step, "pairs": [p.name for p in self.pairs]} | settings

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken: bit for bit, where the settings are the same.

        Settings are those of this object; where one is not the state's, one warning names it with both values. A
        ``total_steps`` that the host gave follows the training's new length without a word.

        Raises:
            ValueError: the state is of another rule or kind, or of other pairs; nothing is changed then.
        """
        keys = {"format", "step", "pairs", *_SETTINGS}
        if not isinstance(state, dict) or set(state) != keys or state["format"] != FORMAT:
            raise ValueError("this is not the state of a steppe.BAR (format 1): pass what its state_dict() returned")
        check_count("step", state["step"], 0)
        names = [p.name for p in self.pairs]
        if list(state["pairs"]) != names:
            raise ValueError(
                f"the state is of {len(state['pairs'])} pairs, this BAR has {len(names)} or others of them: load it "
                "into the model it was saved from"
            )
        _check_settings(state)
        if state["rule"] != self.rule:
            raise another_method("rule", state["rule"], self.rule)
        self._steps, self._skipped = state["step"], None
        own = [name for name in _SETTINGS if not (self.hosts_length and name == "total_steps")]
        tell(plain_changes(state, vars(self), own))

    def _set(self, settings: dict[str, Any]) -> None:
        """Check all settings, then take them."""
        _check_settings(settings)
        for name, value in settings.items():
            setattr(self, name, value)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that do not fit."""
    check_choice("rule", settings["rule"], RULES)
    check_choice("schedule", settings["schedule"], SCHEDULES)
    check_choice("rounding", settings["rounding"], ROUNDINGS)
    check("mu", settings["mu"], 0.0)
    if settings["total_steps"] is not None:
        check_count("total_steps", settings["total_steps"])
    elif settings["schedule"] != "constant":
        raise ValueError(
            f"schedule={settings['schedule']!r} needs total_steps, the optimizer steps of the whole training; "
            "give it, or schedule='constant'"
        )
