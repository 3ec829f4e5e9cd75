"""The network of a comparison's task, a batch of its examples and its loss, as what a benchmark trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from steppe.bench.subject import DTYPES, Problem, Subject, moved
from steppe.compare.data.losses import mean_of
from steppe.compare.data.options import DataOptions
from steppe.compare.engine import rehearsal, run
from steppe.compare.engine.spec import Spec, resolve

_NO_DATA = ("model", "validation", "noise", "per_class", "season")  # a flag beside these, or nothing a step sees
DATA = [each.name for each in fields(DataOptions) if each.name not in _NO_DATA]
"""Settings of a comparison that say which examples there are; they are flags of the benchmark too."""

_COMMON = ("model", "batch_size", "device", "dtype")


@dataclass(frozen=True)
class Tasked:
    """What `steppe compare --task` trains with the same settings."""

    spec: Spec
    dtype: str

    @property
    def device(self) -> str:
        """Where it is trained."""
        return self.spec.device

    @property
    def name(self) -> str:
        """The task as it was given."""
        return self.spec.task

    def as_dict(self) -> dict[str, Any]:
        """Settings for the record."""
        data = {name: getattr(self.spec, name) for name in DATA if getattr(self.spec, name) is not None}
        return data | {
            "model": self.spec.model, "batch_size": self.spec.batch_size, "device": self.device, "dtype": self.dtype
        }  # fmt: skip

    def make(self) -> Problem:
        """The same weights and the same batch, the first of seed 0, at every call."""
        with torch.random.fork_rng():
            task = run.load_task(self.spec, 0)
            model = run.fresh(self.spec, task, 0)
            rehearsal.check_model(self.spec.model, model, task)
        if len(task.train) < self.spec.batch_size:
            raise ValueError(
                f"batch_size is {self.spec.batch_size} and {task.name} has {len(task.train)} training examples; "
                "give a smaller one"
            )
        batch = next(next(run.batches(task, self.spec.batch_size, 0)))
        dtype = DTYPES[self.dtype]

        def loss_of(model: nn.Module, batch: Any) -> Tensor:
            return mean_of(task.loss, model(batch[0]), batch[1])

        return Problem(model.to(dtype=dtype).train(), moved(batch, self.device, dtype), loss_of)


def chosen(flags: Mapping[str, Any]) -> Subject | Tasked:
    """What the flags ask for: a task's network on its data, or a model on made-up inputs."""
    given = {name: value for name, value in flags.items() if value is not None}
    own = [each.name for each in fields(Subject)]
    if "task" not in given:
        if alone := next((name for name in given if name in DATA), None):
            raise ValueError(f"--{alone.replace('_', '-')} is for --task, which is not given; leave it out")
        return Subject(**{name: given[name] for name in own if name in given})
    if beside := next((name for name in given if name in own and name not in _COMMON), None):
        raise ValueError(f"--{beside} is for --model without a task, and --task brings its own inputs; leave it out")
    dtype = Subject(dtype=given.get("dtype", "float32")).dtype
    settings = {name: given[name] for name in [*DATA, "model", "batch_size"] if name in given}
    return Tasked(resolve(settings | {"device": given.get("device", "cpu")}), dtype)
