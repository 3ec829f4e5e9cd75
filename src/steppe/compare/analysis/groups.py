"""The final runs of a comparison, sorted into one group per method, and the baselines among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steppe.compare.judge import Judge, finite, of_records

Record = Mapping[str, Any]
BySeed = dict[int, float]
BASE = "base"
BASELINES = {
    "base": ("plain", "final"), "early": ("plain", "early"), "averaged": ("plain", "averaged"),
    "lawa": ("plain", "lawa"), "half": ("half", "final"), "half_early": ("half", "early"),
    "double": ("double", "final"), "double_early": ("double", "early"),
}  # fmt: skip
"""Baseline, the simplest first -> the variant of the base, and the form its figures are taken in."""

TRAINED = {"plain": "", "half": ", ½× epochs", "double": ", 2× epochs"}
"""Variants of the base that are trained -> what its name ends in; any other names a baseline that needs no training."""


@dataclass(frozen=True)
class Group:
    """All final runs of one method, one per seed; a baseline beside the base is a group, and a variant, of its own."""

    method: str
    variant: str
    runs: tuple[Record, ...]
    judge: Judge = Judge()

    def by_seed(self, read: Callable[[Record], Any]) -> BySeed:
        """Finite values of one figure, by seed; a run without it is left out."""
        found = {int(run["seed"]): finite(read(run)) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def untrained(self) -> bool:
        """Whether this is a baseline that needs no training."""
        return self.variant not in TRAINED

    @property
    def final(self) -> BySeed:
        """The judging metric on the test set at the end of training."""
        return self.by_seed(lambda run: self.judge.of(run, "test"))

    def figures(self, form: str) -> BySeed:
        """The same in one form: "final", "early" (the best on validation), "averaged" or "lawa" (the latest weights).

        There are none of "lawa" where some runs were kept before there was that mean.
        """
        if form == "lawa" and not all(run.get(form) for run in self.runs):
            return {}
        return self.by_seed(lambda run: self.judge.of(run if form == "final" else run.get(form) or {}, "test"))

    def mean(self, read: Callable[[Record], Any]) -> float | None:
        """Mean of one figure over the seeds, None where no run has it."""
        values = list(self.by_seed(read).values())
        return math.fsum(values) / len(values) if values else None

    @property
    def tunes(self) -> str:
        """The name of the setting that was chosen for the runs."""
        return tuned(self.runs[0])[0]

    @property
    def values(self) -> list[float]:
        """The chosen values of that setting: one, or several where the seeds chose differently; none if untuned."""
        found = (tuned(run)[1] for run in self.runs)
        return sorted({value for value in found if value is not None})

    @property
    def more(self) -> dict[str, Any]:
        """The further settings that were chosen, by name."""
        return dict(self.runs[-1].get("more") or {})

    @property
    def lr(self) -> float | None:
        """The learning rate that was chosen, None where the settings gave it; a study chooses one for all seeds."""
        return finite(self.runs[-1].get("lr"))

    @property
    def epochs(self) -> float | None:
        """How many epochs were trained, where the study chose them; a study chooses one number for all seeds."""
        run = self.runs[-1]
        return run.get("epochs") if "chosen_epochs" in run else None

    @property
    def label(self) -> str:
        """The name a reader sees."""
        return label(self.runs[0])


def label(run: Record) -> str:
    """What a reader calls the method of a run: `SAM`, `base`, `base, 2× epochs`."""
    if run["variant"] not in TRAINED:
        return str(run["variant"])
    name = str(run.get("label") or run["method"])
    return name if run["variant"] == "plain" else name.partition(",")[0] + TRAINED[run["variant"]]


def tuned(run: Record) -> tuple[str, float | None]:
    """The setting that a study chooses for the method of a run ("rho", "mu", "lr"), and its value there."""
    name = str(run.get("tunes") or "rho")
    return name, finite(run.get(name))


def group(records: Iterable[Record]) -> list[Group]:
    """Groups of the final runs, by name; where a run is there twice, the one that finished last counts.

    What needs no training was measured beside the base, and stands as a group of its own.
    """
    newest: dict[tuple[str, str, int], Record] = {}
    for run in sorted(records, key=lambda r: (str(r.get("finished")), str(r.get("run_id")))):
        if run["phase"] == "final":
            newest[run["method"], run["variant"], run["seed"]] = run
    for run in [run for key, run in newest.items() if key[:2] == (BASE, "plain")]:
        for name, figures in (run.get("rows") or {}).items():
            newest[BASE, name, run["seed"]] = _untrained(run, name, figures)
    names = sorted({key[:2] for key in newest})
    judge = of_records(newest.values())
    return [Group(*name, tuple(newest[key] for key in sorted(newest) if key[:2] == name), judge) for name in names]


def _untrained(run: Record, name: str, figures: Mapping[str, float]) -> Record:
    """The record of a baseline that needs no training, as it was measured beside a run of the base."""
    identity = {key: run[key] for key in ("seed", "phase", "metric") if key in run}
    # There is no training that could end early, and nothing to average: in every form it is what it is.
    forms = {"early": {"epoch": 0, **figures}, "averaged": figures, "lawa": figures}
    return {"method": BASE, "variant": name, "rho": None, "passes_per_step": 0.0} | identity | dict(figures) | forms


def baselines(groups: Sequence[Group]) -> dict[str, BySeed]:
    """Figures on the test set by seed of the baselines that are there: `BASELINES`, then the untrained by name."""
    bases = {each.variant: each for each in groups if each.method == BASE}
    found = {name: bases[variant].figures(form) for name, (variant, form) in BASELINES.items() if variant in bases}
    found |= {name: each.final for name, each in bases.items() if name not in TRAINED}
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def best(found: Mapping[str, BySeed], judge: Judge) -> str | None:
    """The baseline with the best mean over the seeds that all have; ties go to the simplest."""
    if not found:
        return None
    common = set.intersection(*(set(by_seed) for by_seed in found.values()))

    def mean(name: str) -> float:
        values = [value for seed, value in found[name].items() if not common or seed in common]
        return judge.sign * math.fsum(values) / len(values)

    return max(found, key=mean)
