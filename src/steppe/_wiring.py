"""How SharpnessAware is tied to a model and an optimizer: checks and one warning."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from steppe._optimizers import Optimizers
from steppe._parts import Part, check
from steppe._rates import check_rates
from steppe._words import an
from steppe.ascent import Ascent, Direction, Scale
from steppe.combine import Combine
from steppe.curves import FollowLR
from steppe.views import Look, check_recorded

if TYPE_CHECKING:
    from steppe._present import Now
    from steppe._sync import Averaging

P = TypeVar("P", bound=Part)
Made = TypeVar("Made", bound=Callable[..., Any])


def part_or_default(name: str, value: P | None, kind: type[P], default: Callable[[], P]) -> P:
    """The part that was given, or the default one."""
    if value is None:
        return default()
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} was given; expected a steppe {kind.__name__} part such as {default()!r}")
    return value


def check_arguments(model: Any, optimizer: Any, seed: Any) -> Optimizers:
    """Refuse what cannot work, before anything is built; what was given as the optimizer, seen as one."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {an(type(model).__name__)}; expected a torch.nn.Module (the model itself, not its parameters) "
            "and an optimizer that is already built, such as SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))"
        )
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(
            "model is sharded by FullyShardedDataParallel (FSDP1), whose flat shards hide the norms; expected "
            "fully_shard (FSDP2)"
        )
    if isinstance(optimizer, type) or (callable(optimizer) and not isinstance(optimizer, Optimizer)):
        raise TypeError(
            f"optimizer is {getattr(optimizer, '__name__', optimizer)!r}, which makes one; expected a "
            "torch.optim.Optimizer that is already built, with its own settings, such as "
            "torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} was given; expected a whole number")
    found = Optimizers(optimizer)
    _refuse_second_order(found)
    return found


class HasScale(Protocol):
    """A GradScaler, of torch or of anybody's."""

    def get_scale(self) -> float:
        """The loss scale at present."""


def scale_of(given: Scale | HasScale) -> Scale:
    """A loss scale that was given as a number, a 0-dim tensor or a GradScaler."""
    if isinstance(given, Tensor):
        return given.detach().reshape(())
    scale: Any = given.get_scale() if hasattr(given, "get_scale") else given
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not 0 < scale < math.inf:
        raise ValueError(
            f"scale={given!r} was given; expected the loss scale that .grad carries: a finite number above 0, or the "
            "GradScaler itself; 1 where nothing was scaled or the scale was taken off"
        )
    return float(scale)


CORRECTION = "WSAM's correction"
_LOOKS = [field.name for field in dataclasses.fields(Look)]
_SECOND_ORDER = ("adahessian", "sophiah")
_SETTINGS = (
    "ascent", "look", "schedule", "combine", "select", "hardest", "seed", "same_dropout", "sync", "rounding", "backup",
    "measure", "rho", "k", "alpha", "gamma", "p", "sigma", "decay", "eta", "beta", "total_steps", "start", "stop",
)  # fmt: skip


def refuse_unknown(settings: Mapping[str, Any], known: Sequence[str] = _SETTINGS) -> None:
    """Refuse a setting that nobody has, in the user's words; the recipes hand on what they do not know themselves."""
    for name in settings:
        near = difflib.get_close_matches(name, known, n=1)
        if name in _LOOKS and "look" in known:
            hint = f"it is one of a look: look=steppe.Look({name}={settings[name]!r})"
        elif name in ("lr", "momentum", "weight_decay", "betas"):
            hint = "it belongs to the optimizer, which is built before: torch.optim.SGD(model.parameters(), lr=0.1)"
        elif name == "adaptive":
            hint = "that is a method of its own here: steppe.ASAM(model, optimizer, rho=0.5)"
        elif name in known:
            hint = "other methods have it; expected it left out"
        else:
            hint = f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(known[:12])}"
        raise TypeError(f"{name}={settings[name]!r} was given, which is no setting of this method; {hint}")


def refusing_unknown(made: Made) -> Made:
    """What is made from these settings alone and hands none on: others are refused in the same words."""
    named = inspect.signature(made).parameters
    known = [name for name, each in named.items() if each.kind is each.KEYWORD_ONLY]

    @functools.wraps(made)
    def checked(*args: Any, **settings: Any) -> Any:
        refuse_unknown({name: each for name, each in settings.items() if name not in named}, known)
        return made(*args, **settings)

    return checked  # type: ignore[return-value]


def _refuse_second_order(optimizers: Optimizers) -> None:
    """AdaHessian and Sophia-H take a Hessian of the gradient's graph, which two passes do not leave."""
    for inner in (layer for s in optimizers.steppers for layer in s.layers):
        if getattr(inner, "is_second_order", False) is True or type(inner).__name__.lower() in _SECOND_ORDER:
            raise TypeError(
                f"optimizer is {an(type(inner).__name__)}, which wants loss.backward(create_graph=True) and takes a "
                "Hessian of that graph; the weights move between the passes, so expected an optimizer that needs "
                "gradients alone"
            )


def check_passes(direction: Direction, look: Look | None, hardest: float | None) -> None:
    """Refuse passes that cannot go together."""
    if look is not None and direction.ahead:
        raise ValueError(
            f"look={look!r} was given with {direction!r}; expected no look, as this direction needs no pass to find it"
        )
    check_recorded(look)
    if hardest is None:
        return
    check("hardest", hardest, 0.0, 1.0)
    if hardest == 0:
        raise ValueError("hardest=0 was given; expected a share above 0 of the samples, or None")
    if (look is not None and look.chosen is None) or direction.ahead:
        raise ValueError(
            f"hardest={hardest!r} was given with look={look!r} and {direction!r}; expected no look, or one with "
            "chosen='hardest', and a direction that has a pass, which knows the losses of all samples"
        )


def check_optimizers(optimizers: Optimizers, ascent: Ascent, combine: Combine, by_sample: bool) -> None:
    """Refuse optimizers that cannot serve the parts of a method; ``by_sample``: a pass is on the hardest samples."""
    for stepper in optimizers.steppers:
        ascent.direction.check(stepper.optimizer)
    if combine.corrects:
        check_rates(optimizers, CORRECTION, exact=True)
    if isinstance(ascent.rho, FollowLR):
        check_rates(optimizers, f"the radius of {ascent.rho!r}")
    climbing = optimizers.climbing()
    if by_sample and any(climbing) and not all(climbing):
        raise ValueError(
            "a pass on the hardest samples was asked for with maximize=True in some groups and not in others, so that "
            "no sample is the hardest for all; expected the same in every group"
        )


def check_phases(now: Now, averaging: Averaging, model: nn.Module, empty: bool, marked: bool, corrects: bool) -> None:
    """Refuse an ``ascend()`` that asks for something of a pass that the host runs, or that comes at the wrong time.

    Args:
        now: the parts.
        averaging: between processes.
        model: whose masks may be drawn again.
        empty: nothing is in ``.grad``.
        marked: ``mark()`` was called before the pass.
        corrects: an earlier micro-batch of the step has left a correction.
    """
    before = now.ascent.direction.ahead and empty
    if now.select is not None:
        raise RuntimeError(
            "ascend() cannot switch parameters off in a pass that it does not run: use backward(), or select=None"
        )
    if before and (now.combine.needs_clean(now.step) or now.schedule.needs_gradient):
        raise RuntimeError(
            f"ascend() was called before the forward pass, but {now.schedule} with {now.combine} reads the "
            "gradient at the weights; call it after the ordinary backward"
        )
    if not marked and now.same_dropout and not before:
        warn_of_fresh_masks(model)
    if now.look is not None or now.hardest is not None or averaging.puts_off:
        raise RuntimeError(
            "ascend() cannot slice a batch, cast or put off the averaging of a pass that it does not run: "
            "use backward(loss_of, batch), or neither look nor hardest, and sync='global'"
        )
    if corrects:
        raise RuntimeError(
            f"ascend(same_step=True) was called with {now.combine}, whose correction stays in proportion to the "
            "gradient that the optimizer is handed, and that of the earlier micro-batch was put aside; expected "
            "backward() for each micro-batch, or one ascend() after the backward passes of all"
        )
    if empty and not before:
        raise RuntimeError(
            "ascend() found nothing in .grad of the model's parameters; expected it after loss.backward() and "
            "before zero_grad(), on the very model that was given"
        )


def warn_of_fresh_masks(model: nn.Module) -> None:
    """Say once that the masks of a pass that was not marked cannot be repeated."""
    if any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in model.modules()):
        warnings.warn(
            "ascend() without mark(): the second pass draws fresh dropout masks; call sharp.mark() before the first "
            "forward, or construct with same_dropout=False",
            stacklevel=6,
        )
