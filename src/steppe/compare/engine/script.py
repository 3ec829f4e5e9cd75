"""One run of a training script: its method handed to it, what it returns or yields made a record like any other's."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from steppe._command.choices import Choice, parse
from steppe._command.devices import take_share
from steppe._command.pool import SaidError, Tell
from steppe._command.provenance import made_with
from steppe._length import lacking
from steppe.compare.analysis import lost
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import SCHEMA, Spec
from steppe.compare.script.plain import Plain
from steppe.compare.script.results import Looks, PlacedError
from steppe.compare.script.settings import UNHEARD, check_methods
from steppe.compare.script.sharpen import Build, Sharpen
from steppe.compare.script.source import Script, ScriptError, load, said

T = TypeVar("T")
LENGTHS = {"plain": 1, "double": 2}
"""Variant of the base -> the script's `length`: the factor by which it trains longer."""

TRIED = 2
"""Backwards after which a first trial of a script has shown that it can."""


class FirstFailedError(ValueError):
    """The first run of a study failed: the others are the same code, and would too."""


class Enough(BaseException):  # noqa: N818 - not an error, and caught by no `except Exception` of a script
    """Ends a script that is not to go on."""


def train(spec: Spec, run: Run, tell: Tell = lambda share: None) -> dict[str, Any]:
    """Run the script once, from its first line to the record.

    Raises:
        SaidError: the script failed, or does not do what is expected; says where.
    """
    script, start = load(str(spec.script)), time.perf_counter()
    take_share(spec.device)
    sharpen = Sharpen(builder(spec, run), tell, averaging=True)
    looks = Looks(script, sharpen, spec.metric)
    with _printed(spec, run):
        follow(looks, arguments(script, spec, run))
        averaged = _said(looks, looks.averaged)
    return (
        _record(spec, run, looks)
        | averaged
        | {
            "seconds": time.perf_counter() - start,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "provenance": made_with(spec.device) | {"schema": SCHEMA},
        }
    )


def follow(looks: Looks, given: dict[str, Any]) -> None:
    """Call the function and take down what comes of it; an error is said with its place.

    Raises:
        SaidError: the function, or what it gives, failed.
    """
    everywhere(given["seed"])
    _said(looks, lambda: looks.follow(looks.script.function(sharpen=looks.sharpen, **given)))


def _said(looks: Looks, work: Callable[[], T]) -> T:
    """What some work of the script's gives; its errors bear their place."""
    script = looks.script
    try:
        return work()
    except PlacedError as error:
        raise SaidError(str(error)) from error
    except ScriptError as error:
        raise SaidError(f"{script.place(error)}: {error}") from error
    except Exception as error:
        raise SaidError(f"{script.place(error)}: {said(error)}") from error


def everywhere(seed: int) -> None:
    """Seed the global generators of torch, Python and NumPy, for scripts that leave them alone."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def arguments(script: Script, spec: Spec, run: Run) -> dict[str, Any]:
    """What the function is called with, beside `sharpen`."""
    own: dict[str, Any] = {"length": LENGTHS[run.variant], "device": spec.device}
    own |= {} if run.lr is None else {"lr": run.lr}
    return {"seed": run.seed} | (spec.settings or {}) | {name: each for name, each in own.items() if script.takes(name)}


def builder(spec: Spec, run: Run) -> Build:
    """What makes the run's method on the script's model and optimizer."""
    if run.method == "base":
        return lambda model, optimizer, total_steps: Plain(model, optimizer, seed=run.seed)
    return partial(_built, parse(run.method), run.value, run.seed, more=dict(run.more))


def _built(
    choice: Choice, value: Any, seed: int, model: Any, optimizer: Any, total_steps: Any,
    more: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    try:
        return choice.build(model, optimizer, value=value, seed=seed, total_steps=total_steps, more=more)
    except (TypeError, ValueError) as error:
        lacks = total_steps is None and lacking(choice.method.recipe, 1, choice.arguments)
        hint = "; give sharpen the length: sharpen(model, optimizer, total_steps=...)" if lacks else ""
        raise ScriptError(f"method {choice.text!r}: {error}{hint}") from error


def _record(spec: Spec, run: Run, looks: Looks) -> dict[str, Any]:
    sharpen = looks.sharpen
    return {
        "method": run.method, "label": run.label, "variant": run.variant, "seed": run.seed, **run.tuned(),
        "settings": parse(run.method).settings if run.method != "base" else {},
        "metric": looks.judge.as_dict(), **looks.figures[-1], "averaged": None, "lawa": None, "early": looks.early(),
        "sharpness": None, "slice": None, "curve": looks.curve(),
        "epochs": len(looks.figures), "steps": sharpen.steps, "backwards": sharpen.calls,
        "passes_per_step": sharpen.passes_per_step, "ascended_share": sharpen.ascended_share,
        "step_seconds": sharpen.clock.medians(), "diverged": _lost(looks),
    }  # fmt: skip


def _lost(looks: Looks) -> str | None:
    """In what the run diverged."""
    losses = [loss for loss in looks.losses if loss is not None]
    why = lost.why(losses) if losses else None
    gone = looks.judge.of(looks.figures[-1], "val") is None
    return why or (f"its validation {looks.judge.title} is not finite" if gone else None)


@contextlib.contextmanager
def _printed(spec: Spec, run: Run) -> Iterator[None]:
    """What a script prints goes to a file of its run, or nowhere where there is no folder to write to."""
    path = Path(spec.out) / "printed" / f"{run.id('')}.txt"
    with contextlib.ExitStack() as open_:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open_.enter_context(path.open("w", buffering=1, encoding="utf-8"))
        except OSError:
            file = open_.enter_context(open(os.devnull, "w", encoding="utf-8"))
        open_.enter_context(contextlib.redirect_stdout(file))
        open_.enter_context(contextlib.redirect_stderr(file))
        yield


def shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the settings of a comparison those that a script listens to."""
    return {name: each for name, each in settings.items() if name == "task" or name not in UNHEARD}


# Before anything is trained


def check(plan: Plan) -> None:
    """Start the script twice, on the first seed: build every method on its model, then run the base's first backwards.

    Raises:
        ValueError: one sentence about the first thing that cannot be, with its place in the script.
    """
    spec = plan.spec
    check_methods(spec.methods)
    script = load(str(spec.script))
    base = Run("base", None, spec.seeds[0], lr=spec.lr_grid[0] if spec.lr_grid else None)
    for sharpen in (Sharpen(partial(_every, plan)), _short(builder(spec, base))):
        looks = Looks(script, sharpen, spec.metric)
        with contextlib.suppress(Enough), _printed(spec, base):
            try:
                follow(looks, arguments(script, spec, base))
            except SaidError as error:
                raise ValueError(str(error)) from error


def _every(plan: Plan, model: Any, optimizer: Any, total_steps: Any) -> Any:
    """All methods on one model, and no training."""
    for choice, run in [(each, run) for each in plan.choices for run in plan.ends(each)]:
        made = _built(choice, run.value, run.seed, model, optimizer, total_steps, more=dict(run.more))
        if hasattr(made, "remove"):
            made.remove()
    raise Enough


def _short(build: Build) -> Sharpen:
    """A `sharpen` that ends the script after a few backwards."""

    def before() -> None:
        if sharpen.calls >= TRIED:
            raise Enough

    sharpen = Sharpen(build, before=before)
    return sharpen
