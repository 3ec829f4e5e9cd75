"""The runs of a comparison, trained again: a study keeps figures, and a run depends on settings and seed alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steppe._command.choices import BASE, parse
from steppe._command.progress import Counted
from steppe.compare.data.examples import Split, Task
from steppe.compare.data.losses import mean_of
from steppe.compare.engine import measure, run
from steppe.compare.engine.plan import Plan, plan_of
from steppe.compare.engine.runs import Run, describe
from steppe.compare.engine.spec import Spec, steps_per_epoch
from steppe.compare.engine.store import Store
from steppe.compare.judge import of_records
from steppe.look.request import Request
from steppe.look.subjects import Subject, Subjects


def of_study(folder: Path, request: Request, shown: Counted) -> Subjects:
    """Base and method of one seed, trained again and found to be what the study has on record."""
    plan = _plan(folder)
    records = Store(folder, plan.spec_hash).known(plan.needed)
    base, chosen = _chosen(plan, records, request)
    task = run.load_task(plan.spec, base.seed)
    spread = _spread(task, request)
    subjects = [_subject(plan, records, each, task, spread, shown) for each in (base, chosen)]
    return Subjects(tuple(subjects), dict(subjects[0].model.state_dict()))


def _plan(folder: Path) -> Plan:
    plan = plan_of(folder)
    if plan.spec.script is not None:
        raise ValueError(
            f"{folder} compares a script, whose models are its own; look at one by module:function, or in the script "
            "by steppe.diagnostics"
        )
    if plan.spec.hash() != plan.spec_hash:
        raise ValueError(
            f"{folder}: data or code are not those of the study any more, so that its runs cannot be trained again; "
            "run steppe compare anew, or look at a model of your own by module:function"
        )
    return plan


def _chosen(plan: Plan, records: dict[str, dict[str, Any]], request: Request) -> tuple[Run, Run]:
    """The base's run and the method's, both finished."""
    final = {id_: each for id_, each in plan.needed(records).items() if id_ in records}
    count = {record["run_id"] for record in plan.records(records) if record["phase"] == "final"}
    final = {id_: each for id_, each in final.items() if id_ not in plan.tuning(records) or id_ in count}
    seed = plan.spec.seeds[0] if request.seed is None else request.seed
    here = [each for each in final.values() if each.seed == seed and each.variant == "plain"]
    base = next((each for each in here if each.method == BASE), None)
    methods = [each for each in here if each.method != BASE]
    if request.method is not None:
        wanted = parse(request.method).text
        methods = [each for each in methods if each.method == wanted]
    if base is None or not methods:
        had = sorted({each.method for each in final.values()} - {BASE})
        seeds = sorted({each.seed for each in final.values()})
        raise ValueError(
            f"the study has no finished run of {request.method or 'a method'} and the base with seed {seed}; it has "
            f"{', '.join(had) or 'no method'} with seeds {', '.join(map(str, seeds)) or 'none'}"
        )
    judge = of_records(records.values())
    best = max(methods, key=lambda each: judge.rank(judge.of(records[plan.id(each)], "val")))
    return base, best


def _subject(
    plan: Plan, records: dict[str, dict[str, Any]], each: Run, task: Task, spread: list[Split], shown: Counted
) -> Subject:
    record = records[plan.id(each)]
    shown.begin(f"training {describe(each)} again ({record['seconds']:.0f} s the first time)")
    model = _trained(plan.spec, each, task, shown)
    judge = of_records([record])
    found = measure.metrics(model, task.val, task.measured[:1], task.outputs)[judge.name]
    if found != judge.of(record, "val"):
        raise ValueError(
            f"{describe(each)}: trained again its validation {judge.name} is {found:.6g} and not "
            f"{judge.of(record, 'val')}; look with the kind of machine and the versions that it was made with"
        )
    return Subject(each.label, model.eval(), lambda part: mean_of(task.loss, model(part.x), part.y), list(spread))


def _trained(spec: Spec, each: Run, task: Task, shown: Counted) -> nn.Module:
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    steps = each.steps(spec, per_epoch)
    trainer = run.make_trainer(spec, task, each, steps)
    stream = itertools.chain.from_iterable(run.batches(task, spec.batch_size, each.seed))
    step = shown.counting(trainer.step, f"of {steps} steps")
    for batch in itertools.islice(stream, steps):
        step(batch)
    return trainer.whole()


def _spread(task: Task, request: Request) -> list[Split]:
    """Training examples evenly spread, in batches of one size."""
    count = min(len(task.train), request.examples)
    size = min(request.batch, count)
    index = torch.linspace(0, len(task.train) - 1, count - count % size, device=task.train.y.device).long()
    return [task.train.take(part) for part in index.split(size)]
