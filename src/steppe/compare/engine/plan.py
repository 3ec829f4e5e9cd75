"""Which runs a study needs, as a pure function of its settings and of the runs that are done.

Tune runs: every method with every value of its grid (rho; mu where it has no radius), on the tune seeds. The value with
the best mean validation figure (ties: the smaller) is then run on all seeds. A final run equal to a tune run is that
run: nothing runs twice. Where learning rates are to be tried (`lr_grid`), the base chooses among them first, in the
same way, and all methods train at the one that suits the base best; or, with `tune_lr = "each"`, each method tries
every value at every rate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steppe._command.choices import Choice, parse, parse_all
from steppe._command.rows import divided, fingerprint
from steppe.compare.analysis.lost import lost
from steppe.compare.engine.spec import Spec, short_hash
from steppe.compare.judge import of_records

Records = Mapping[str, dict[str, Any]]
"""Records of finished runs by run id."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: as typed; "base" without any.
        value: of the setting that is tuned: rho, or mu; None for the base.
        seed: of everything that is random.
        variant: "double" has twice the steps.
        lr: learning rate, where the study chose it; None is the one in its settings.
    """

    method: str
    value: float | None
    seed: int
    variant: str = "plain"
    lr: float | None = None

    @property
    def label(self) -> str:
        """What tables and progress lines call it."""
        if self.method == "base":
            return "base" if self.variant == "plain" else "base, 2× epochs"
        return parse(self.method).label

    @property
    def tunes(self) -> str:
        """The name of the setting that `value` is of; empty where a method of the user's own has none to tune."""
        return "lr" if self.method == "base" else parse(self.method).method.tunes

    @property
    def rho(self) -> float | None:
        """The radius, None where there is none."""
        return self.value if self.tunes == "rho" else None

    def steps(self, spec: Spec, per_epoch: int) -> int:
        """How many optimizer steps it trains, where `per_epoch` make an epoch."""
        return spec.steps(per_epoch) * (2 if self.variant == "double" else 1)

    def tuned(self) -> dict[str, Any]:
        """What the record says about settings that the study chose: a radius under `rho`, others by name."""
        chosen: dict[str, Any] = {"rho": self.rho} | ({} if self.lr is None else {"lr": self.lr})
        if self.tunes in ("", "rho") or (self.method == "base" and self.lr is None):
            return chosen
        return {self.tunes: self.value, "tunes": self.tunes} | chosen

    def id(self, spec_hash: str) -> str:
        """A readable name that ends in a hash of everything that decides the result."""
        chosen: list[Any] = [] if self.lr is None else [self.lr]
        chosen += [own] if (own := fingerprint(divided(self.method)[0])) else []
        decisive = short_hash([spec_hash, self.method, self.variant, self.value, self.seed, *chosen])
        method = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.method)
        value = "" if self.value is None else f"-{self.tunes}{self.value:g}"
        lr = "" if self.lr is None else f"-lr{self.lr:g}"
        double = "-double" if self.variant == "double" else ""
        return f"{method}{double}{value}{lr}-seed{self.seed}-{decisive}"


def describe(run: Run) -> str:
    """A run in a few words: `SAM rho=0.2 seed 1`."""
    value = "" if run.value is None or f"{run.tunes}=" in run.method else f" {run.tunes}={run.value:g}"
    lr = "" if run.lr is None else f" lr={run.lr:g}"
    return f"{run.label}{value}{lr} seed {run.seed}"


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

    def base_tune_runs(self) -> list[Run]:
        """All learning rates on the tune seeds; none where there is nothing to choose."""
        return self._tries(self._bases()) if len(self._bases()) > 1 else []

    def tune_runs(self, choice: Choice, base: Run) -> list[Run]:
        """All values on the tune seeds, at the learning rate of `base` or at each; none where there is one to try."""
        return self._tries(self._starts(choice, base)) if len(self._starts(choice, base)) > 1 else []

    def _bases(self) -> list[Run]:
        """The base at every learning rate to try."""
        rates: Sequence[float | None] = self.spec.lr_grid or [None]
        return [Run("base", None, self.spec.seeds[0], lr=lr) for lr in rates]

    def _starts(self, choice: Choice, base: Run) -> list[Run]:
        """The method at every value to try."""
        rates: Sequence[float | None] = (self.spec.tune_lr == "each" and self.spec.lr_grid) or [base.lr]
        rates = [None] if choice.brings(self.spec.optimizer) else rates
        return [Run(choice.text, value, base.seed, lr=lr) for value in choice.grid(self.spec.grids) for lr in rates]

    def _tries(self, starts: Sequence[Run]) -> list[Run]:
        return [replace(each, seed=seed) for seed in self.spec.tune_seeds for each in starts]

    def base_runs(self, best: Run) -> list[Run]:
        """The base, and where it can be had the base given twice the epochs before it, on every seed."""
        return [replace(best, seed=seed, variant=each) for each in self.spec.variants for seed in self.spec.seeds]

    def final_runs(self, best: Run) -> list[Run]:
        """The method at its chosen value on every seed."""
        return [replace(best, seed=seed) for seed in self.spec.seeds]

    def best_base(self, records: Records, failed: Collection[str] = ()) -> Run | None:
        """The base at its chosen learning rate, on the first seed; None while it is not known."""
        return self._best(self._bases(), records, failed)

    def best(self, choice: Choice, records: Records, failed: Collection[str] = ()) -> Run | None:
        """The method at its chosen value, on the first seed; None while it, or the base's rate, is not known."""
        base = self.best_base(records, failed)
        return self._best(self._starts(choice, base), records, failed) if base else None

    def _best(self, starts: Sequence[Run], records: Records, failed: Collection[str]) -> Run | None:
        """The winner on validation, of what did not diverge; None while tune runs are missing or if all failed."""
        if len(starts) == 1:
            return starts[0]
        tries = {start: [self.id(run) for run in self._tries([start])] for start in starts}
        if any(id_ not in records and id_ not in failed for ids in tries.values() for id_ in ids):
            return None
        whole = [start for start, ids in tries.items() if all(id_ in records for id_ in ids)]
        sound = [start for start in whole if not any(lost(records[id_]) for id_ in tries[start])]
        return max(
            sound or whole, key=lambda start: (_validation(tries[start], records), *_smallness(start)), default=None
        )

    def _roles(self, records: Records, failed: Collection[str]) -> list[tuple[str, Run]]:
        """Every run known to be needed by now, as what: tune runs, and finals of what is chosen; baselines last."""
        roles = [("tune", run) for run in self.base_tune_runs()]
        base = self.best_base(records, failed)
        if base is None:
            return roles
        roles += [("tune", run) for choice in self.choices for run in self.tune_runs(choice, base)]
        for choice in self.choices:
            best = self.best(choice, records, failed)
            roles += [("final", run) for run in self.final_runs(best)] if best else []
        return roles + [("final", run) for run in self.base_runs(base)]

    def needed(self, records: Records, failed: Collection[str] = ()) -> dict[str, Run]:
        """Every run known to be needed by now, done or not, by id."""
        return {self.id(run): run for _, run in self._roles(records, failed)}

    def tuning(self, records: Records, failed: Collection[str] = ()) -> set[str]:
        """The ids of the runs that choose something."""
        return {self.id(run) for phase, run in self._roles(records, failed) if phase == "tune"}

    def total(self) -> int:
        """How many runs there will be in the end, if none fails."""
        seeds, longer = len(self.spec.seeds), len(self.spec.variants) - 1
        repeated = len(set(self.spec.seeds) & set(self.spec.tune_seeds))
        tried = [self.base_tune_runs(), *(self.tune_runs(choice, self._bases()[0]) for choice in self.choices)]
        return longer * seeds + sum(len(runs) + seeds - (repeated if runs else 0) for runs in tried)

    def records(self, records: Records, failed: Collection[str] = ()) -> list[dict[str, Any]]:
        """The records of this study in a fixed order, once per role: as tune run, as final run."""
        roles = [(phase, self.id(run)) for phase, run in self._roles(records, failed)]
        return [records[id_] | {"phase": phase} for phase, id_ in roles if id_ in records]


def _validation(ids: Sequence[str], records: Records) -> float:
    """Mean validation figure at the end of some runs, larger for better; a run that diverged makes it the last."""
    judge = of_records(records[id_] for id_ in ids)
    values = [judge.of(records[id_], "val") for id_ in ids]
    return judge.rank(math.nan if None in values else round(sum(v for v in values if v is not None) / len(ids), 9))


def _smallness(run: Run) -> tuple[float, float]:
    """Larger for smaller values of what is being tried in a run, and among equal ones for smaller learning rates."""
    return -(run.value or 0.0), -(run.lr or 0.0)
