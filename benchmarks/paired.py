"""Differences between the methods of finished comparisons, paired by seed; what benchmarks/lora_study.py keeps of them.

Figures are test accuracies, name -> form ("final": at the end of training, "early": where validation was best) -> seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steppe._command.files import read_json
from steppe._command.statistics import estimate, paired
from steppe.compare.analysis.groups import BASE, Group, group
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.spec import Spec
from steppe.compare.engine.store import Store

FORMS = ("final", "early")
AGAINST = {"base": ("base", "final"), "early": ("base", "early"), "double": ("base double", "final")}
"""A baseline -> whose figures it is. A method meets the base stopped early stopped early itself."""

Figures = dict[str, dict[str, dict[str, float]]]


def finished(folder: Path) -> list[Group]:
    """The final runs of the comparison in `folder`, by method."""
    shown = read_json(folder / "spec.json")
    plan = Plan(Spec(**{name: shown[name] for name in Spec.model_fields if name in shown}), shown["spec_hash"])
    store, records = Store(folder, plan.spec_hash), dict[str, dict[str, Any]]()
    had = -1
    while len(records) > had:  # the base's rate, then the methods' settings, then their runs become known
        had, records = len(records), store.load(plan.needed(records))
    return group(plan.records(records))


def figures(groups: Iterable[Group]) -> Figures:
    """Accuracies by seed."""
    return {_name(each): {form: _as_json(each.figures(form)) for form in FORMS} for each in groups}


def _name(each: Group) -> str:
    return each.method if each.variant == "plain" else f"{each.method} {each.variant}"


def _as_json(found: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in sorted(found.items())}


def mean_of(several: Sequence[Figures]) -> Figures:
    """The mean over tasks of what all of them have, seed by seed."""
    names = [name for name in several[0] if all(name in each for each in several)]
    return {name: {form: _mean([each[name][form] for each in several]) for form in FORMS} for name in names}


def _mean(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    seeds = set.intersection(*(set(each) for each in several))
    return {seed: sum(each[seed] for each in several) / len(several) for seed in sorted(seeds, key=int)}


def over(found: Figures, name: str, other: str, form: str = "final", other_form: str | None = None) -> Any:
    """Mean and interval of `name` less `other` over the seeds that both have; None where there are none."""
    left, right = found.get(name, {}).get(form, {}), found.get(other, {}).get(other_form or form, {})
    return _shown(paired(_whole(left), _whole(right)))


def _whole(by_seed: Mapping[str, float]) -> dict[int, float]:
    return {int(seed): value for seed, value in by_seed.items()}


def _shown(values: Sequence[float]) -> dict[str, Any] | None:
    found = estimate(values)
    return found and {"mean": found.mean, "ci95": found.ci95, "n": found.n, "p": found.p}


def against_baselines(found: Figures) -> dict[str, dict[str, Any]]:
    """Name -> accuracy in both forms and, of methods, the difference to each of the three baselines."""
    return {
        name: {form: _shown(list(forms[form].values())) for form in FORMS}
        | ({} if name.startswith(BASE) else {"over": _over_all(found, name)})
        for name, forms in found.items()
    }


def _over_all(found: Figures, name: str) -> dict[str, Any]:
    return {to: over(found, name, other, form) for to, (other, form) in AGAINST.items()}
