"""Whether every run of a study can be made: asked before anything starts."""

from __future__ import annotations

import torch

from steppe._command.ranks import check_shares
from steppe.compare.data import also
from steppe.compare.engine import rehearsal, rows, run, tune
from steppe.compare.engine.plan import Plan


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
    rehearsal.check_model(spec.model, run.fresh(spec, task, spec.seeds[0]), task)
    check_shares(len(task.train), spec.batch_size)
    for choice in plan.choices:
        for each in plan.ends(choice):
            try:
                run.make_trainer(spec, task, each, total_steps=100)
            except (TypeError, ValueError) as error:
                raise ValueError(f"method {choice.text!r}: {error}") from error


def as_here(plan: Plan) -> Plan:
    """The plan for a machine that only checks: the one that starts a study on others may have no GPU."""
    spec = plan.spec if torch.cuda.is_available() else plan.spec.model_copy(update={"device": "cpu"})
    return Plan(spec, plan.spec_hash)
