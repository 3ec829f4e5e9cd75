"""Whether every run of a study can be made: asked before anything starts."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steppe._command.choices import BASE
from steppe._command.pool import SaidError
from steppe._command.ranks import check_divides
from steppe._optimizers import Optimizers
from steppe.compare.data import also, tasks
from steppe.compare.engine import rehearsal, rows, run, tune
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.script import Enough, arguments, builder, follow, printed
from steppe.compare.script.results import Figures
from steppe.compare.script.sharpen import Build, Sharpen
from steppe.compare.script.source import ScriptError, load

TRIED = 2
"""Backwards after which a first trial of a script has shown that it can."""


def check_methods(plan: Plan) -> None:
    """Refuse settings to try that no method has, and averages of weights that nobody averages."""
    spec = plan.spec
    tune.check(spec.tune or (), plan.choices)
    alone = "several processes keep" if spec.parallel else "methods of a script keep" if spec.script else None
    averaged = next((each.text for each in plan.choices if each.averaged), None)
    if alone and averaged:
        raise ValueError(f"method {averaged!r}: {alone} no averaged weights; leave out average")


def check_task(plan: Plan) -> None:
    """Read the data, build the model and each method at each end of its values."""
    spec = plan.spec
    task = run.load_task(spec, spec.seeds[0])
    also.check(task, spec.also or [])
    rehearsal.check_targets(task)
    rows.check_rows(task)
    model = run.fresh(spec, task, spec.seeds[0])
    rehearsal.check_model(spec.model, model, task)
    if tasks.is_function(spec.model):
        rehearsal.check_anew(spec.model, model, run.fresh(spec, task, spec.seeds[0]))
    check_divides(len(task.train), spec.batch_size)
    for choice in plan.choices:
        for each in plan.ends(choice):
            try:
                run.make_trainer(spec, task, each, total_steps=100)
            except (TypeError, ValueError) as error:
                raise ValueError(f"method {choice.text!r}: {error}") from error


def check_script(plan: Plan) -> None:
    """Start the script twice, on the first seed: run the base's first steps, then build every method on its model.

    By then the weights that were trained must be others, or those again that they were.
    """
    spec = plan.spec
    for choice in plan.choices:
        if choice.method.optimizer is not None:
            raise ValueError(
                f"method {choice.text!r} brings an optimizer of its own, and a script makes its own; leave it out, "
                "or make that optimizer in the script and compare sam"
            )
    base = Run(BASE, None, spec.seeds[0], lr=spec.lr_grid[0] if spec.lr_grid else None)
    trained = list[Tensor]()
    _start(plan, base, _short(partial(_noted, trained, builder(base))))
    left = {id(weight): _state(weight) for weight in trained}
    least = replace(base, variant=spec.variants[-1])  # half as long, where it may be
    _start(plan, least, Sharpen(partial(_every, plan, left)))


def _start(plan: Plan, base: Run, sharpen: Sharpen) -> None:
    script = load(str(plan.spec.script))
    figures = Figures(script, sharpen, plan.spec.metric)
    with contextlib.suppress(Enough), printed(plan.spec, base):
        try:
            follow(figures, arguments(script, plan.spec, base))
        except SaidError as error:
            raise ValueError(str(error)) from error


def _noted(trained: list[Tensor], build: Build, model: Any, optimizer: Any, total_steps: Any) -> Any:
    """What `build` makes; the weights that the optimizer steps are noted, and stay alive: no others can look alike."""
    trained += Optimizers(optimizer).params()
    return build(model, optimizer, total_steps)


def _state(weight: Tensor) -> tuple[int, int]:
    """Another after whatever was written to a weight."""
    return weight.data_ptr(), weight._version


def _every(plan: Plan, left: dict[int, tuple[int, int]], model: Any, optimizer: Any, total_steps: Any) -> Any:
    """All methods on one model, and no training."""
    if any(left.get(id(weight)) == _state(weight) for weight in Optimizers(optimizer).params()):
        raise ScriptError(
            "the weights are still those that an earlier call of the function has trained, and every run would go on "
            "where another ended; make the model inside of the function, or give it its first weights there"
        )
    for each in (end for choice in plan.choices for end in plan.ends(choice)):
        made = builder(each)(model, optimizer, total_steps)
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


def as_here(plan: Plan) -> Plan:
    """The plan for a machine that only checks: the one that starts a study on others may have no GPU."""
    spec = plan.spec if torch.cuda.is_available() else plan.spec.model_copy(update={"device": "cpu"})
    return Plan(spec, plan.spec_hash)
