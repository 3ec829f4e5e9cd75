"""One run of a training script: its method handed to it, what it returns or yields made a record like any other's."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from steppe._command.choices import Choice
from steppe._command.devices import take_gpu
from steppe._command.pool import SaidError, Tell
from steppe._command.provenance import ended, made_with
from steppe._length import lacking
from steppe.compare.analysis import lost
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import SCHEMA, Spec
from steppe.compare.script.plain import Plain
from steppe.compare.script.results import Figures, PlacedError
from steppe.compare.script.settings import unheard
from steppe.compare.script.sharpen import Build, Sharpen
from steppe.compare.script.source import Script, ScriptError, load, said

T = TypeVar("T")
LENGTHS = {"plain": 1, "double": 2, "half": 0.5}
"""Variant of the base -> the script's `length`: the factor by which it trains longer, whole numbers where it can be."""


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
    take_gpu(spec.device)
    sharpen = Sharpen(builder(run), tell, averaging=True)
    figures = Figures(script, sharpen, spec.metric)
    with printed(spec, run):
        follow(figures, arguments(script, spec, run))
        averaged = _said(figures, figures.averaged)
    provenance = made_with(spec.device) | {"schema": SCHEMA}
    return {**_record(run, figures), **averaged, **ended(start), "provenance": provenance}


def follow(figures: Figures, given: dict[str, Any]) -> None:
    """Call the function and take down what comes of it; an error is said with its place.

    Raises:
        SaidError: the function, or what it gives, failed.
    """
    everywhere(given["seed"])
    _said(figures, lambda: figures.follow(figures.script.function(sharpen=figures.sharpen, **given)))


def _said(figures: Figures, work: Callable[[], T]) -> T:
    """What some work of the script's gives; its errors bear their place."""
    script = figures.script
    try:
        return work()
    except PlacedError as error:
        raise SaidError(str(error)) from error
    except ScriptError as error:
        raise SaidError(f"{script.place(error)}: {error}") from error
    except (Exception, SystemExit) as error:  # a script that exits must not take the study with it
        hint = "; a command line that it reads is steppe's, settings come by --settings" * isinstance(error, SystemExit)
        raise SaidError(f"{script.place(error)}: {said(error)}{hint}") from error


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


def builder(run: Run) -> Build:
    """What makes the run's method on the script's model and optimizer."""
    if run.choice is None:
        return lambda model, optimizer, total_steps: Plain(model, optimizer, seed=run.seed)
    return partial(_built, run, run.choice)


def _built(run: Run, choice: Choice, model: Any, optimizer: Any, total_steps: Any) -> Any:
    more = dict(run.more)
    try:
        return choice.build(model, optimizer, value=run.value, seed=run.seed, total_steps=total_steps, more=more)
    except (TypeError, ValueError) as error:
        lacks = total_steps is None and lacking(choice.method.recipe, 1, choice.arguments)
        hint = "; give sharpen the length: sharpen(model, optimizer, total_steps=...)" if lacks else ""
        raise ScriptError(f"method {choice.text!r}: {error}{hint}") from error


def _record(run: Run, figures: Figures) -> dict[str, Any]:
    sharpen = figures.sharpen
    return {
        **run.named(), "metric": figures.judge.as_dict(), **figures.noted[-1], "averaged": None, "lawa": None,
        "early": figures.early(), "sharpness": None, "slice": None, "curve": figures.curve(),
        "epochs": len(figures.noted), "steps": sharpen.steps, "backwards": sharpen.calls,
        "passes_per_step": sharpen.passes_per_step, "ascended_share": sharpen.ascended_share,
        "step_seconds": sharpen.clock.medians(), "diverged": _lost(figures),
    }  # fmt: skip


def _lost(figures: Figures) -> str | None:
    """In what the run diverged."""
    losses = [loss for loss in figures.losses if loss is not None]
    why = lost.why(losses) if losses else None
    gone = figures.judge.of(figures.noted[-1], "val") is None
    return why or (f"its validation {figures.judge.title} is not finite" if gone else None)


@contextlib.contextmanager
def printed(spec: Spec, run: Run) -> Iterator[None]:
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
    idle = unheard(load(str(settings["script"]))) - {"task"}
    return {name: each for name, each in settings.items() if name not in idle}
