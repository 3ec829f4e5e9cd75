"""Which runs a study needs, as a pure function of its settings and of the runs that are done.

Tune runs: every method with every rho of its grid, on the tune seeds. The rho with the best mean validation accuracy
(ties: the smaller) is then run on all seeds. A final run equal to a tune run is that run: nothing runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from steppe.study.choices import Choice, parse, parse_all
from steppe.study.spec import Spec, short_hash

Records = Mapping[str, dict[str, Any]]
"""Records of finished runs by run id."""


@dataclass(frozen=True)
class Run:
    """One training: `method` as typed ("base" without), its radius, its seed; variant "double" has twice the epochs."""

    method: str
    rho: float | None
    seed: int
    variant: str = "plain"

    @property
    def label(self) -> str:
        """What tables and progress lines call it."""
        if self.method == "base":
            return "base" if self.variant == "plain" else "base, 2× epochs"
        return parse(self.method).label

    def epochs(self, spec: Spec) -> int:
        """How many epochs it trains."""
        return spec.epochs * (2 if self.variant == "double" else 1)

    def id(self, spec_hash: str) -> str:
        """A readable name that ends in a hash of everything that decides the result."""
        decisive = short_hash([spec_hash, self.method, self.variant, self.rho, self.seed])
        method = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.method)
        rho = "" if self.rho is None else f"-rho{self.rho:g}"
        double = "-double" if self.variant == "double" else ""
        return f"{method}{double}{rho}-seed{self.seed}-{decisive}"


@dataclass(frozen=True)
class Plan:
    """The runs of a study, as far as they are known.

    Args:
        spec: the settings.
        spec_hash: `spec.hash()`, which reads files and is therefore worked out once.
    """

    spec: Spec
    spec_hash: str

    @property
    def choices(self) -> list[Choice]:
        """The methods, checked."""
        return parse_all(self.spec.methods)

    def id(self, run: Run) -> str:
        """The id of `run` in this study."""
        return run.id(self.spec_hash)

    def tuned(self, choice: Choice) -> bool:
        """Whether there is a radius to choose."""
        return len(choice.grid(self.spec.rho)) > 1

    def tune_runs(self, choice: Choice) -> list[Run]:
        """All radii on the tune seeds; none where there is only one radius."""
        if not self.tuned(choice):
            return []
        grid = choice.grid(self.spec.rho)
        return [Run(choice.text, rho, seed) for seed in self.spec.tune_seeds for rho in grid]

    def base_runs(self) -> list[Run]:
        """The base and the base given twice the epochs, on every seed, the longer ones first."""
        return [Run("base", None, seed, variant) for variant in ("double", "plain") for seed in self.spec.seeds]

    def final_runs(self, choice: Choice, rho: float) -> list[Run]:
        """The chosen radius on every seed."""
        return [Run(choice.text, rho, seed) for seed in self.spec.seeds]

    def chosen_rho(self, choice: Choice, records: Records, failed: Collection[str] = ()) -> float | None:
        """The winning radius, or None while tune runs are missing (or every radius had a run that failed)."""
        grid = choice.grid(self.spec.rho)
        if not self.tuned(choice):
            return grid[0]
        runs = self.tune_runs(choice)
        if any(self.id(run) not in records and self.id(run) not in failed for run in runs):
            return None
        whole = [rho for rho in grid if all(self.id(run) in records for run in runs if run.rho == rho)]
        return max(whole, key=lambda rho: (self._validation(choice, rho, records), -rho), default=None)

    def _validation(self, choice: Choice, rho: float, records: Records) -> float:
        """Mean validation accuracy at the end of the tune runs of one radius, over the tune seeds."""
        ids = [self.id(run) for run in self.tune_runs(choice) if run.rho == rho]
        return round(sum(records[id_]["val_accuracy"] for id_ in ids) / len(ids), 9)

    def needed(self, records: Records, failed: Collection[str] = ()) -> dict[str, Run]:
        """Every run known to be needed by now, done or not, by id: tune runs, finals of tuned methods, baselines."""
        runs = [run for choice in self.choices for run in self.tune_runs(choice)]
        for choice in self.choices:
            rho = self.chosen_rho(choice, records, failed)
            runs += self.final_runs(choice, rho) if rho is not None else []
        return {self.id(run): run for run in runs + self.base_runs()}

    def total(self) -> int:
        """How many runs there will be in the end, if none fails."""
        repeated = len(set(self.spec.seeds) & set(self.spec.tune_seeds))
        finals = {True: len(self.spec.seeds) - repeated, False: len(self.spec.seeds)}
        methods = sum(len(self.tune_runs(choice)) + finals[self.tuned(choice)] for choice in self.choices)
        return methods + len(self.base_runs())

    def records(self, records: Records, failed: Collection[str] = ()) -> list[dict[str, Any]]:
        """The records of this study in a fixed order, once per role: as tune run, as final run."""
        roles = [("tune", run) for choice in self.choices for run in self.tune_runs(choice)]
        finals = self.base_runs()
        for choice in self.choices:
            rho = self.chosen_rho(choice, records, failed)
            finals += self.final_runs(choice, rho) if rho is not None else []
        roles += [("final", run) for run in finals]
        return [records[self.id(run)] | {"phase": phase} for phase, run in roles if self.id(run) in records]
