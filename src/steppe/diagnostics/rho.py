"""Which radius to train with, without a sweep: how far the ascent stays linear, checked by a short training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._length import lacking
from steppe._nested import fresh
from steppe._optimizers import Optimizers
from steppe._parts import check, check_count
from steppe._wiring import check_arguments
from steppe._words import an, count
from steppe.ascent import Ascent
from steppe.curves import FollowLR, LossBudget
from steppe.diagnostics._curve import AtRadius, measure
from steppe.diagnostics._picture import new_axes
from steppe.diagnostics._trials import Bench, Trial, downward
from steppe.diagnostics._untouched import same_order, untouched
from steppe.gradient import SharpnessAware
from steppe.protocol import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = str | Ascent | Callable[..., Any]
FEW = 20
"""Steps of a trial below which its outcome is told with a caution."""

ENOUGH = f"trial={FEW}"
"""What the caution asks for, as Python takes it."""

COSINE = 0.8
"""Where the linear regime is taken to end: cos(g, g~) of this."""

SERIES = tuple(round(m * 10.0**e, 10) for e in range(-4, 3) for m in (1.0, 1.5, 2.2, 3.3, 4.7, 6.8))
"""The radii that are tried where none are given: six to a decade."""


@dataclass(frozen=True)
class RhoSearch:
    """What :func:`find_rho` found.

    Attributes:
        rho: the proposed radius, in the method's own units.
        why: one sentence that says why.
        linear: the radius at which the ascent leaves the linear regime, cos(g, g~) = 0.8; the smallest or the largest
            that was looked at where it had left before, or had not yet.
        curve: what was measured on a few batches, by growing radius.
        trials: the short trainings of the check, by growing radius; empty where there were none.
    """

    rho: float
    why: str
    linear: float
    curve: tuple[AtRadius, ...]
    trials: tuple[Trial, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, words, lists and dicts, for JSON."""
        return asdict(self)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Cosine, rise over prediction, and what the trials kept, over rho. Needs matplotlib (``steppe[study]``)."""
        axes = new_axes() if axes is None else axes
        radii = [look.rho for look in self.curve]
        axes.plot(radii, [look.cosine for look in self.curve], label="cos(g, g~)")
        axes.plot(radii, [min(look.rise / look.predicted, 2.0) for look in self.curve], label="rise / predicted")
        if self.trials:
            kept = [max(min(trial.kept, 1.5), -0.5) for trial in self.trials]
            axes.plot([trial.rho for trial in self.trials], kept, "o-", label="learned, beside the base")
        axes.axvline(self.rho, color="black", linewidth=1, label=f"proposed {self.rho:g}")
        axes.set(xscale="log", xlabel="rho")
        axes.legend()
        return axes


def find_rho(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[Any], Tensor],
    batches: Iterable[Any],
    method: Method = "sam",
    *,
    radii: Sequence[float] | None = None,
    looks: int = 4,
    after: int = 0,
    trial: int = 100,
    keep: float = 0.5,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> RhoSearch:
    """Propose a radius for ``method`` on this model and data, as a learning-rate finder proposes a rate.

    1. The curve. On ``looks`` batches, for each radius: the rise L(w + eps) - L(w) beside the predicted <g, eps>
       (rho ||g|| for SAM), cos(g, g~) and ||g~ - g|| / ||g||. The ascent leaves the linear regime where the cosine
       falls to 0.8; the radius below is proposed.
    2. The check. ``trial`` steps of training with the method at that radius: its loss must fall by at least ``keep`` of
       what the base's falls in as many steps. A radius that is too large holds a training on its first plateau; then
       the next smaller ones are tried, until one learns. ``trial=0``: no check.

    Model, optimizer, ``.grad``, statistics and generators are afterwards as before, bit for bit.

    Args:
        model: the model, in the mode in which it is trained.
        optimizer: the base optimizer, at the learning rate it trains with (after a warm-up of the rate).
        loss_of: the scalar loss of a batch.
        batches: a list of batches, or a loader that can start again.
        method: a method's name; an :class:`steppe.Ascent` (its rho is replaced); or a recipe called as
            ``method(model, optimizer, rho=...)``, such as ``steppe.ASAM`` or ``partial(steppe.LookSAM, k=10)``.
        radii: the radii to choose from; six to a decade by default, none where ||eps|| > ||w||.
        looks: batches for the curve, >= 1.
        after: steps that the base trains first, on copies, >= 0: for a method that starts late, whose own count of
            steps begins there.
        trial: steps of each short training, >= 0; a fifth of the whole training is enough, or what takes the base well
            beyond its first plateau.
        keep: share of the base's progress that a radius must keep, in [0, 1].
        tell: told in a line what begins, such as ``print``.
        settings: further arguments of the method, such as ``samples=3`` of SAM's; with an :class:`steppe.Ascent`, of
            :class:`steppe.SharpnessAware`, such as ``look=steppe.Look(samples=3)``.

    Returns:
        The proposal with all that was measured.

    Cost: (1 + radii) x looks passes, and trial x (1 + the method's passes) for the check; memory for two
    more copies of weights and optimizer state.

    Raises:
        ValueError, TypeError: an argument is out of range, the method has no radius (or 0 now, as Tail SAM; or a
            budget of the loss bounds it), a group has its own, or there is no batch.

    Example:
        >>> import torch, steppe
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(8)]
        >>> loss_of = lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> steppe.find_rho(model, optimizer, loss_of, batches, trial=20).rho
        0.47
    """
    optimizers = check_arguments(model, optimizer, 0)
    optimizer = _single(optimizers)
    _check(optimizers, looks, after, trial, keep)
    series = SERIES if radii is None else _sorted(radii)
    build = _builder(method, settings, after, max(trial, 1))
    say = tell or (lambda _: None)
    with same_order(batches), untouched(model, optimizer, loss_of) as copy:
        first = build(model, copy, rho=series[0])  # and what it refuses by itself
        _refuse_idle(first, copy)
        bench = Bench(model, copy, lambda batch: loss_of(fresh(batch)), batches)
        if after:
            say(f"{after} steps of the base first")
        bench.train(islice(bench.stream(), after))
        say(f"along the ascent on {looks} batches")
        beside = _along_the_gradient(first, after)
        curve = measure(bench, lambda rho: build(model, copy, rho=rho), series, looks)
        _refuse_nothing_finite(curve)
        linear = _linear(curve)
        series = tuple(r for r in series if r <= curve[-1].rho)
        start = max((r for r in series if r <= linear * (1 + 1e-9)), default=series[0])
        idle = _idle(first, trial)
        trials = downward(bench, build, series, start, trial, looks, keep, say) if trial and not idle else ()
    found = _verdict(start, linear, curve, trials, trial, keep, idle)
    return replace(found, why=found.why + beside)


def _along_the_gradient(sharp: SharpnessAware, after: int) -> str:
    """What a reader must know of a curve that is not along the method's own direction, which earlier steps leave."""
    if not sharp.ascent.direction.ahead or sharp._making.passes.known_ahead():
        return ""
    return f" {sharp.ascent.direction!r} has nothing to go by at step {after}: the curve is the gradient's."


def _verdict(
    start: float,
    linear: float,
    curve: tuple[AtRadius, ...],
    trials: tuple[Trial, ...],
    steps: int,
    keep: float,
    idle: str = "",
) -> RhoSearch:
    bend, below = _bend(linear, curve), curve[0].cosine >= COSINE
    if not trials:
        nothing = f"the base learned nothing in {count(steps, 'step')} to measure trials by"
        reason = f"; {idle or nothing}" if steps else ""
        return RhoSearch(start, f"{bend}{reason}.", linear, curve)
    best = trials[0]
    if best.kept < keep:
        why = f"even rho = {best.rho:g} keeps less than {keep:.0%} of what the base learns in {steps} steps."
        return RhoSearch(best.rho, why + _caution(steps), linear, curve, trials)
    shares = ", ".join(f"{max(t.kept, 0):.0%} at {t.rho:g}" for t in trials[:2])
    learns = f"of what the base learns in {count(steps, 'step')}, {shares}"
    return RhoSearch(
        best.rho, f"{bend}; {_chosen(best.rho, start, below)}: {learns}.{_caution(steps)}", linear, curve, trials
    )


def _bend(linear: float, curve: tuple[AtRadius, ...]) -> str:
    """Where the ascent leaves the linear regime, as far as that was seen."""
    first, last = curve[0], curve[-1]
    if first.cosine < COSINE:
        there = f"cos(g, g~) = {first.cosine:.3g}"
        return f"the ascent is beyond the linear regime at rho = {first.rho:g}, the smallest looked at: {there}"
    if last.cosine >= COSINE:
        return f"the ascent is linear up to rho = {linear:.3g}, the last looked at: cos(g, g~) = {last.cosine:.3g}"
    return f"the ascent leaves the linear regime at rho = {linear:.3g}, where cos(g, g~) falls to {COSINE:g}"


def _chosen(best: float, start: float, below: bool) -> str:
    if best == start:
        return f"rho = {best:g} is the {'largest below' if below else 'smallest'}, and learns"
    return f"rho = {best:g} is the largest that learns, below the {start:g} that would follow from it"


def _caution(steps: int) -> str:
    """What a reader must know of trials that are too short to tell learning from noise."""
    return "" if steps >= FEW else f" So few steps tell little: take this for a guess, or give {ENOUGH} or more."


def _linear(curve: tuple[AtRadius, ...]) -> float:
    """Where the cosine falls to COSINE, between two radii by the logarithm; the last radius where it never does."""
    for before, look in zip((curve[0], *curve), curve, strict=False):
        if look.cosine < COSINE:
            if before is look or before.cosine <= look.cosine:
                return look.rho
            share = (before.cosine - COSINE) / (before.cosine - look.cosine)
            return before.rho * math.exp(share * math.log(look.rho / before.rho))
    return curve[-1].rho


def _builder(method: Any, settings: dict[str, Any], after: int, steps: int) -> Callable[..., SharpnessAware]:
    """The method, of which so many steps have been, as a function of (model, optimizer, rho=...)."""
    if isinstance(method, Ascent):
        recipe: Callable[..., Any] = partial(_of_ascent, method, settings)
    elif isinstance(method, str):
        named = _named(method)
        recipe = partial(named, **lacking(named, after + steps, settings) | settings)
    elif callable(method):
        recipe = partial(method, **settings)
    else:
        raise TypeError(f"method={method!r} was given; expected a method's name, an Ascent or a recipe")
    return partial(_built, recipe, after)


def _named(method: str) -> Callable[..., Any]:
    from steppe.methods import get  # here: the methods are built on the same core, and may come to use this
    from steppe.recommended import recommended

    if method == "recommended":
        return recommended
    row = get(method)
    if row.lora:
        raise ValueError(f"method {method!r} has no radius to find by ascents: it acts on LoRA's factors alone")
    return row.recipe


def _of_ascent(
    ascent: Ascent, settings: dict[str, Any], model: nn.Module, optimizer: Optimizer, rho: float
) -> SharpnessAware:
    return SharpnessAware(model, optimizer, ascent=replace(ascent, rho=rho), **settings)


def _built(
    recipe: Callable[..., Any], after: int, model: nn.Module, optimizer: Optimizer, rho: float
) -> SharpnessAware:
    sharp: SharpnessAware = checked(recipe(model, optimizer, rho=rho), "the recipe returned", "the search")
    if not hasattr(sharp, "ascent"):
        raise TypeError(
            f"the recipe returned {an(type(sharp).__name__)}, which does not perturb the model's own weights; expected "
            "a SharpnessAware, which has a radius"
        )
    sharp.step = after
    return sharp


def _refuse_idle(sharp: SharpnessAware, optimizer: Optimizer) -> None:
    rho = sharp.ascent.rho
    if isinstance(rho, LossBudget):
        raise ValueError(
            f"the method's radius follows a budget of the loss ({rho!r}), which bounds it whatever rho is; expected a "
            "method with a radius of its own: give sigma yourself, or search with method='sam'"
        )
    if any(sharp.ascent.radius(sharp.step, g) for g in optimizer.param_groups if g.get("perturb", True)):
        return
    if isinstance(rho, FollowLR):
        where, hint = "the optimizer's present learning rate", "search with method='sam'"
    else:
        where, hint = f"step {sharp.step}", "search without its ramp, or after=... steps at which it is over"
    raise ValueError(
        f"the method has radius 0 at {where} ({rho!r}), where no rho can be told from another; expected one that "
        f"perturbs now: {hint}"
    )


def _refuse_nothing_finite(curve: tuple[AtRadius, ...]) -> None:
    if not math.isfinite(curve[0].rise) or not math.isfinite(curve[0].moved):
        raise ValueError(
            f"the loss or its gradient is NaN or inf on the batches that were looked at, at w or at rho = "
            f"{curve[0].rho:g}; expected finite ones: look for NaN or inf in the weights and in the batches"
        )


def _idle(sharp: SharpnessAware, steps: int) -> str:
    """Why trials of so many steps would tell nothing of the method: they would be the base's."""
    if sharp.schedule.needs_gradient:
        return ""
    there = range(sharp.step, sharp.step + steps)
    if any(sharp.schedule.decide(t, sharp.seed, lambda: Tensor(), {})[0] for t in there):
        return ""
    return (
        f"there were no trials, as the method ascends in none of {count(steps, 'step')} from step {sharp.step} on "
        f"({sharp.schedule!r}): give after=... where it has begun, or more steps"
    )


def _single(optimizers: Optimizers) -> Optimizer:
    if len(optimizers.steppers) > 1:
        raise ValueError(
            f"{optimizers.name} were given; expected one optimizer for the search: let it try the radius with one "
            "optimizer of all parameters, or give rho yourself"
        )
    return optimizers.steppers[0].optimizer


def _check(optimizers: Optimizers, looks: int, after: int, trial: int, keep: float) -> None:
    check_count("looks", looks)
    check_count("after", after, 0)
    check_count("trial", trial, 0)
    check("keep", keep, 0.0, 1.0)
    own = [g["rho"] for g in optimizers.asking if g.get("rho")]
    if own:
        raise ValueError(f"an optimizer group has rho={own[0]!r}, which wins over any that is found; take it out first")


def _sorted(radii: Sequence[float]) -> tuple[float, ...]:
    for rho in radii:
        check("radii", rho, 0.0)
    found = tuple(sorted({float(r) for r in radii if r > 0}))
    if not found:
        raise ValueError(f"radii={radii!r} was given; expected at least one number above 0")
    return found
