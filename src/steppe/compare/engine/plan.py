"""Which runs a study needs, as a pure function of its settings and of the runs that are done.

Tune runs: every method with every value of its grid (rho; mu where it has no radius), on the tune seeds. The value with
the best mean validation figure (ties: the smaller), or the next smaller one where that lies at a cliff, is then run on
all seeds. A final run equal to a tune run is that run: nothing runs twice. Where learning rates are to be tried
(`lr_grid`), the base chooses among them first, in the same way, and all methods train at the one that suits the base
best; or, with `tune_lr = "each"`, each method tries every value at every rate. Where numbers of epochs are
(`epochs_grid`), the base and each method choose their own, together with what they choose anyway.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from steppe._command.choices import BASE, Choice, parse_all
from steppe._command.files import read_json
from steppe.compare.analysis.lost import lost
from steppe.compare.engine import cliff, search, tune
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, kept_spec
from steppe.compare.judge import of_records

Records = Mapping[str, dict[str, Any]]
"""Records of finished runs by run id."""

NONE: Records = {}


@dataclass(frozen=True)
class Plan:
    """The runs of a study, as far as they are known; `spec.hash()` reads files, and is therefore worked out once."""

    spec: Spec
    spec_hash: str

    @property
    def choices(self) -> list[Choice]:
        """The methods, checked."""
        return parse_all(self.spec.methods)

    def id(self, run: Run) -> str:
        """The id of `run` in this study."""
        if run not in self._ids:
            self._ids[run] = run.trained.id(self.spec_hash)
        return self._ids[run]

    @cached_property
    def _ids(self) -> dict[Run, str]:
        return {}

    @cached_property
    def _built(self) -> dict[Run, bool]:
        return {}

    def base_tune_runs(self, records: Records = NONE, failed: Collection[str] = ()) -> list[Run]:
        """All learning rates on the tune seeds; none where there is nothing to choose."""
        return self._tune_runs(self._bases(), records, failed)

    def tune_runs(self, choice: Choice, base: Run, records: Records = NONE, failed: Collection[str] = ()) -> list[Run]:
        """All values on the tune seeds, at the learning rate of `base` or at each; none where there is one to try."""
        return self._tune_runs(self._starts(choice, base), records, failed)

    def _tune_runs(self, starts: Sequence[Run], records: Records, failed: Collection[str]) -> list[Run]:
        return self._tries(self._explored(starts, records, failed)[0]) if len(starts) > 1 else []

    def _bases(self) -> list[Run]:
        """The base at every learning rate and length to try."""
        rates: Sequence[float | None] = self.spec.lr_grid or [None]
        every = itertools.product(rates, self._lengths)
        return [Run(BASE, None, self.spec.seeds[0], lr=lr, epochs=epochs) for lr, epochs in every]

    @property
    def _lengths(self) -> Sequence[int | None]:
        """The numbers of epochs to try; None is what the settings say."""
        return self.spec.epochs_grid or [None]

    def _starts(self, choice: Choice, base: Run) -> list[Run]:
        """The method at every value to try."""
        rates: Sequence[float | None] = (self.spec.tune_lr == "each" and self.spec.lr_grid) or [base.lr]
        rates = [None] if choice.brings(self.spec.optimizer) else rates
        more = tune.grid_of(choice, self.spec.tune or ())
        values = more.pop(choice.method.tunes, None) or choice.grid(self.spec.grids)
        every = itertools.product(values, rates, tune.points(more), self._lengths)
        return [Run(choice.text, value, base.seed, lr=lr, more=each, epochs=n) for value, lr, each, n in every]

    def ends(self, choice: Choice) -> list[Run]:
        """One run of the method for each value of each further setting, to see that it can be built so."""
        starts = self._starts(choice, self._bases()[0])
        rest = [each for each in starts[1:] if each.more != starts[0].more]
        return list({each.more: each for each in [*reversed(rest), starts[0]]}.values())

    def _tries(self, starts: Sequence[Run]) -> list[Run]:
        return [replace(each, seed=seed) for seed in self.spec.tune_seeds for each in starts]

    @cached_property
    def _least(self) -> int:
        """How many settings each side tries at least: as many as the largest of the grids has."""
        sizes = [len(self._starts(choice, self._bases()[0])) for choice in self.choices]
        return max(*sizes, len(self._bases()))

    def _explored(
        self, starts: Sequence[Run], records: Records, failed: Collection[str]
    ) -> tuple[list[Run], Run | None]:
        """What is tried, and the best of it once that is settled."""
        tried = list(starts)
        while (best := self._best(tried, records, failed)) is not None:
            grows = len(starts) > 1 and self.spec.grow > 0
            new = self._next(tried, max(len(starts), self._least), best, records) if grows else None
            if new is None:
                return tried, best
            tried.append(new)
        return tried, None

    def _next(self, tried: Sequence[Run], least: int, best: Run, records: Records) -> Run | None:
        """One more: beyond the edge while the best, alone, lies there, else within, until all sides have as many."""
        rank = {start: _validation(each) for start in tried if (each := self._records_of(start, records))}
        alone = sum(value >= rank[best] for value in rank.values()) == 1
        can = partial(self._can, tried)
        if alone and len(tried) < least + self.spec.grow and (new := search.beyond(tried, best, can)):
            return new
        return search.between(tried, best, rank) if len(tried) < least else None

    def _can(self, tried: Sequence[Run], run: Run) -> bool:
        """Whether the method can be built so, and few enough lengths beyond the longest asked for were tried before.

        Each takes so much longer that to try as many settings as others do is no reason for it.
        """
        longest = max(self.spec.epochs_grid or [0])
        longer = {each.epochs for each in (*tried, run) if (each.epochs or 0) > longest}
        return self._buildable(run) and len(longer) <= self.spec.grow

    def _buildable(self, run: Run) -> bool:
        if run not in self._built:
            more = {run.tunes: run.value} | dict(run.more)
            self._built[run] = run.choice is None or run.choice.takes(more)
        return self._built[run]

    def _records_of(self, start: Run, records: Records) -> list[dict[str, Any]]:
        """The records of what was tried at one point; empty while one is missing."""
        runs = self._tries([start])
        done = all(self.id(run) in records for run in runs)
        return [run.seen(records[self.id(run)]) for run in runs] if done else []

    def base_runs(self, best: Run) -> list[Run]:
        """The base, and where they can be had the base given twice the epochs, and half, on every seed."""
        return [replace(best, seed=seed, variant=each) for each in self.spec.variants for seed in self.spec.seeds]

    def final_runs(self, best: Run) -> list[Run]:
        """The method at its chosen value on every seed."""
        return [replace(best, seed=seed) for seed in self.spec.seeds]

    def best_base(self, records: Records, failed: Collection[str] = ()) -> Run | None:
        """The base at its chosen learning rate, on the first seed; None while it is not known."""
        return self._chosen(self._bases(), records, failed)

    def best(self, choice: Choice, records: Records, failed: Collection[str] = ()) -> Run | None:
        """The method at its chosen value, on the first seed; None while it, or the base's rate, is not known."""
        base = self.best_base(records, failed)
        return self._chosen(self._starts(choice, base), records, failed) if base else None

    def _chosen(self, starts: Sequence[Run], records: Records, failed: Collection[str]) -> Run | None:
        """The best of what is tried, or what is taken instead as it lies at a cliff."""
        tried, best = self._explored(starts, records, failed)
        seen = self._cliff(tried, best, records)
        return seen.below if seen and seen.below and self.spec.step_back else best

    def _cliff(self, tried: Sequence[Run], best: Run | None, records: Records) -> cliff.Cliff | None:
        """The cliff that the best of what is tried lies at, if it does."""
        if best is None or len(tried) == 1:
            return None
        line = search.along(tried, best, "lr" if best.choice is None else "value")
        return cliff.find(line, best, {each: self._records_of(each, records) for each in line})

    def _best(self, starts: Sequence[Run], records: Records, failed: Collection[str]) -> Run | None:
        """The winner on validation, of what did not diverge; None while tune runs are missing or if all failed."""
        if len(starts) == 1:
            return starts[0]
        tries = {start: [self.id(run) for run in self._tries([start])] for start in starts}
        if any(id_ not in records and id_ not in failed for ids in tries.values() for id_ in ids):
            return None
        whole = {start: found for start in tries if (found := self._records_of(start, records))}
        sound = [start for start, found in whole.items() if not any(map(lost, found))]
        return max(
            sound or list(whole), key=lambda start: (_validation(whole[start]), *_smallness(start)), default=None
        )

    def _roles(self, records: Records, failed: Collection[str]) -> list[tuple[str, Run]]:
        """Every run known to be needed by now, as what: tune runs, and finals of what is chosen; baselines last."""
        roles = [("tune", run) for run in self.base_tune_runs(records, failed)]
        base = self.best_base(records, failed)
        if base is None:
            return roles
        roles += [("tune", run) for choice in self.choices for run in self.tune_runs(choice, base, records, failed)]
        for choice in self.choices:
            best = self.best(choice, records, failed)
            roles += [("final", run) for run in self.final_runs(best)] if best else []
        return roles + [("final", run) for run in self.base_runs(base)]

    def needed(self, records: Records, failed: Collection[str] = ()) -> dict[str, Run]:
        """Every training known to be needed by now, done or not, by id."""
        return {self.id(run): run.trained for _, run in self._roles(records, failed)}

    def tuning(self, records: Records, failed: Collection[str] = ()) -> set[str]:
        """The ids of the runs that choose something."""
        return {self.id(run) for phase, run in self._roles(records, failed) if phase == "tune"}

    def total(self, records: Records = NONE, failed: Collection[str] = ()) -> int:
        """How many runs there will be in the end, by what is known now: if none fails and no grid grows any more."""
        return sum(self.trainings(records, failed).values())

    def trainings(self, records: Records = NONE, failed: Collection[str] = ()) -> dict[Run, int]:
        """The same of the base, of each method, and of the base at its other lengths, by a run of each and its epochs.

        While a length is not chosen yet, the middle one of those to try stands for it.
        """
        base = self.best_base(records, failed) or _middle(self._bases())
        there = {choice.text for choice in self.choices}
        alone = [choice for choice in self.choices if not (choice.averaged and choice.trained in there)]
        starts = [self._bases(), *(self._starts(choice, base) for choice in alone)]
        seeds = len(self.spec.seeds)
        again = len(set(self.spec.seeds) & set(self.spec.tune_seeds))
        found = Counter[Run]()
        for side in starts:
            tried, best = self._explored(side, records, failed) if len(side) > 1 else ([], side[0])
            for each in tried:
                found[replace(side[0], epochs=each.epochs)] += len(self.spec.tune_seeds)
            final = (best or _middle(side)).epochs
            found[replace(side[0], epochs=final)] += seeds - (again if tried else 0)
        first = replace(starts[0][0], epochs=base.epochs)
        return found | Counter({replace(first, variant=name): seeds for name in self.spec.variants if name != "plain"})

    def records(self, records: Records, failed: Collection[str] = ()) -> list[dict[str, Any]]:
        """The records of this study in a fixed order, once per role: as tune run, as final run."""
        sides = self._sides(records, failed)
        grid = {replace(each, seed=0) for starts in sides for each in starts}
        cliffs = dict(each for starts in sides for each in self._cliffs(starts, records, failed))
        return [
            run.seen(records[self.id(run)]) | {"phase": phase}
            | ({"grown": True} if phase == "tune" and replace(run, seed=0) not in grid else {})
            | ({"cliff": cliffs[run]} if phase == "tune" and run in cliffs else {})
            for phase, run in self._roles(records, failed) if self.id(run) in records
        ]  # fmt: skip

    def _sides(self, records: Records, failed: Collection[str]) -> list[list[Run]]:
        """What was asked to be tried by the base, and by each method, without what grew from it."""
        base = self.best_base(records, failed)
        return [self._bases(), *(self._starts(choice, base) for choice in self.choices if base)]

    def _cliffs(
        self, starts: Sequence[Run], records: Records, failed: Collection[str]
    ) -> Iterator[tuple[Run, dict[str, Any]]]:
        """The tune runs at the best value, with what is to be told of the cliff that it lies at."""
        tried, best = self._explored(starts, records, failed)
        seen = self._cliff(tried, best, records)
        if best is None or seen is None:
            return
        taken = seen.below if self.spec.step_back else None
        for run in self._tries([best]):
            yield run, {
                "tunes": best.tunes, "best": _number(best), "beside": _number(seen.beside), "broke": seen.broke,
                "of": seen.of, "taken": _number(taken or best),
            }  # fmt: skip


def plan_of(folder: Path) -> Plan:
    """The study that a folder shows, as its files say."""
    found = read_json(folder / "spec.json")
    if not isinstance(found, dict) or "spec_hash" not in found:
        raise ValueError(f"{folder} holds no comparison; give the --out of one, such as results/digits-few")
    return Plan(kept_spec(found, folder), found["spec_hash"])


def _validation(found: Sequence[Mapping[str, Any]]) -> float:
    """Mean validation figure at the end of some runs, larger for better; a run that diverged makes it the last."""
    judge = of_records(found)
    values = [judge.of(record, "val") for record in found]
    mean = math.nan if None in values else sum(v for v in values if v is not None) / len(found)
    return judge.rank(float(f"{mean:.9g}"))  # equal is what differs by rounding alone


def _number(run: Run) -> float | None:
    """What is tried in a run: of a method its value, of the base its learning rate."""
    return run.lr if run.choice is None else run.value


def _smallness(run: Run) -> tuple[float, ...]:
    """Larger for fewer epochs, of as many for smaller values of what is tried, and of equal ones for smaller rates."""
    return -(run.epochs or 0), -(run.value or 0.0), -(run.lr or 0.0)


def _middle(starts: Sequence[Run]) -> Run:
    """The first of them at a middling length."""
    lengths = sorted({each.epochs or 0 for each in starts})
    return replace(starts[0], epochs=lengths[len(lengths) // 2] or None)
