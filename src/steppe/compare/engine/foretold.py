"""About how long all runs of a study take here, told before the first: every method trains a few steps, timed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from steppe._command.devices import threads
from steppe._command.meter import taken
from steppe.compare.data.examples import Task
from steppe.compare.engine import measure, run
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, steps_per_epoch

BUDGET = 4.0
"""Seconds for the steps of all methods together, unless the fewest of each take longer."""
WARM_UP, FEWEST, MOST = 2, 2, 24
"""Steps before the clock counts, and the fewest and most after it; a method's schedule is as long as these."""
_GRADIENT = 5
"""Forward passes that the sharpness at the end takes beside the points of its slice: two losses, a gradient."""


def seconds(plan: Plan) -> float:
    """About how long all runs of a study take here, side by side as they will be; 0.0: not known.

    Nothing is foretold of runs that several processes share, nor of scripts.
    """
    spec = plan.spec
    if spec.parallel is not None or spec.script is not None:
        return 0.0
    task = run.load_task(spec, spec.seeds[0])
    trainings = plan.trainings()
    try:
        with threads(1):  # as the workers have it
            alike = {replace(start, epochs=None): start for start in trainings}  # a step takes as long at any length
            look, budget = _example(spec, task), BUDGET / len(alike)
            steps = {key: _step(spec, task, start, budget) for key, start in alike.items()}
            each = [
                count * _run(spec, task, start, look, steps[replace(start, epochs=None)])
                for start, count in trainings.items()
            ]
    except Exception:
        return 0.0  # the runs will say it, each with its own name
    return sum(each) / spec.workers


def _run(spec: Spec, task: Task, start: Run, look: float, step: float) -> float:
    """Seconds of a whole run, where a step takes `step` of them, and one example is judged in `look`."""
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    steps, val, test = start.steps(spec, per_epoch), len(task.val), len(task.test)
    looks = math.ceil(steps / start.every(spec, per_epoch)) * (val + min(test, spec.test_curve))
    ends = 3 * val + 4 * test  # the last weights, two averages, and those stopped early on the test part alone
    slope = (measure.SLICE_POINTS + _GRADIENT) * min(spec.sharpness_examples or len(task.train), len(task.train))
    return steps * step + look * (looks + ends + slope)


def _step(spec: Spec, task: Task, start: Run, budget: float) -> float:
    """Seconds of a step, with the average of the weights that every run keeps along."""
    trainer = run.make_trainer(spec, task, start, WARM_UP + MOST)
    trainer.average = run.exponential(spec, trainer.model, MOST)
    stream = itertools.chain.from_iterable(run.batches(task, spec.batch_size, start.seed))
    for _ in range(WARM_UP):
        trainer.step(next(stream))
    times = list[float]()
    while len(times) < FEWEST or (sum(times) < budget and len(times) < MOST):
        times.append(taken(spec.device, lambda: trainer.step(next(stream)))[0])
    return sum(times) / len(times)


def _example(spec: Spec, task: Task) -> float:
    """Seconds to judge by one example."""
    model, some = run.fresh(spec, task, spec.seeds[0]), next(measure.chunks(task.val))
    both = [taken(spec.device, lambda: measure.metrics(model, some, task.measured, task.outputs))[0] for _ in range(2)]
    return min(both) / len(some)
