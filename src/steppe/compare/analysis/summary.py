"""From the records of a comparison to the numbers of its table.

`summarise` is a pure function of records, measured costs and spec; the order of the records does not matter.
Differences are paired: a method and what it is compared with share their seeds. The rules:

* Eight baselines stand against every method: the base, the base stopped early on validation, with averaged weights
  (exponentially, and the latest few), trained for half and for twice the epochs, and these stopped early; beside them
  what the task can do without training. A gain is measured against the best of them by mean.
* Like is compared with like: when that best baseline is one stopped early, methods are judged by their own
  early-stopped figures, when it is the averaged one by their averaged weights, else by those at the end of training.
  The rule looks at the baselines only.
* A gain is called clear when it survives Holm's correction over all methods compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe._command.statistics import Estimate, as_json, difference, estimate, holm, paired, share
from steppe.compare.analysis import also, amounts, equal, frontier, lost, scripted
from steppe.compare.analysis.groups import BASE, BASELINES, BySeed, Group, Record, baselines, best, group, tuned
from steppe.compare.analysis.notes import notes, unfinished
from steppe.compare.analysis.verdict import verdict
from steppe.compare.analysis.wording import FORMS
from steppe.compare.judge import Judge, finite, of_records

Row = dict[str, Any]
REFERENCE = "sam"
"""The method whose gain the others keep a share of."""


def summarise(records: Iterable[Record], cost: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the table and the report show, ready for JSON.

    Args:
        records: run records of both phases (`tune`, `final`), in any order; an unfinished comparison will do.
        cost: the measured step times and memory, or None when they were not measured.
        spec: the resolved spec of the comparison.

    Returns:
        A dict with `verdict`, `notes`, `rows`, `baselines`, `best_baseline`, `judged` ("final", "early", "averaged" or
        "lawa") and more. Figures are in the judging metric's own unit (shares are fractions), gains so that above zero
        is better, intervals half-widths, None is "not known".
    """
    known = list(records)
    groups, judge = group(known), of_records(known)
    against = _Against(baselines(groups), judge)
    lengths = len(spec.get("epochs_grid") or ()) > 1
    rows = [_row(each, against, lengths) | frontier.measured(each, groups, cost) for each in groups]
    there = {each.method for each in groups if each.variant == "plain"}
    rows += [_missing(name, spec) for name in spec.get("methods") or () if name not in there]
    # By the settings, as the runs at all rates but one may have failed.
    own_rates = spec.get("tune_lr") == "each" and len(spec.get("lr_grid") or ()) > 1
    for row in rows:
        tries = [r for r in known if r["phase"] == "tune" and r["method"] == row["method"]]
        row |= _tuning(row, tries, judge, own_rates=own_rates and any(r.get("lr") for r in tries), lengths=lengths)
    _mark_clear(rows)
    _mark_kept(rows, groups, against)
    lost.count(rows, known)
    axis = frontier.price(rows)
    equal.mark(rows, groups, against.form, judge)
    frontier.mark_front(rows, against.form, axis, judge)
    summary = {
        "schema": 1,
        "task": spec.get("task"),
        "metric": judge.as_dict(),
        "best_baseline": against.name,
        "judged": against.form,
        "baselines": {name: as_json(estimate(list(v.values()))) for name, v in against.all.items()},
        "early_alone": as_json(against.gain_of(against.all.get("early", {}), against.all.get("base", {}))),
        "half_alone": as_json(against.gain_of(against.all.get("half", {}), against.all.get("base", {}))),
        "double_alone": as_json(against.gain_of(against.all.get("double", {}), against.all.get("base", {}))),
        "double_early": _double_early(groups, against),
        "cost_axis": axis,
        "clock": (cost or {}).get("clock"),
        "seeds": sorted({seed for each in groups for seed in each.final}),
        "rows": sorted(rows, key=lambda row: _rank(row, against.form, judge)),
        "spec": dict(spec),
    }
    told = " ".join(filter(None, (verdict(summary), lost.sentence(rows))))
    summary |= {"also": found} if (found := also.summarised(groups, judge)) else {}
    of_data = dict.fromkeys(note for run in known for note in run.get("notes") or ())  # each sentence once
    hints = scripted.notes(known, cost) if spec.get("script") else list(of_data)
    sizes, whole = (amounts.sizes(known, of) for of in ("examples", "groups"))
    summary |= ({"examples": sizes} if sizes else {}) | ({"groups": whole} if whole else {})
    hints += [*amounts.hints(sizes), *amounts.whole(whole, spec.get("group")), *unfinished(summary)]
    summary |= {"hints": hints} if hints else {}
    return {"verdict": told, "notes": [*hints, *notes(summary)]} | summary


class _Against:
    """What the methods are measured against: the best baseline, and figures of the same form."""

    def __init__(self, found: Mapping[str, BySeed], judge: Judge) -> None:
        self.all, self.judge = dict(found), judge
        self.name = best(found, judge)
        self.form = BASELINES.get(self.name or "", ("", "final"))[1]

    def better(self, one: BySeed, other: BySeed) -> list[float]:
        """How much better one is than the other, seed by seed; above zero is better, whatever the direction."""
        return [self.judge.sign * each for each in paired(one, other)]

    def gain_of(self, one: BySeed, other: BySeed) -> Estimate | None:
        """The estimate of that."""
        return difference(self.better(one, other))

    def gain(self, each: Group, form: str) -> dict[str, Any] | None:
        """The estimate of how much better a method is than the best baseline; baselines have none."""
        if each.method == BASE or self.name is None:
            return None
        found = self.gain_of(each.figures(form), self.all[self.name])
        return as_json(found, p=found.p, against=self.name, of=form) if found else None


def _row(each: Group, against: _Against, lengths: bool) -> Row:
    delta = against.gain_of(each.final, against.all.get("base", {}))
    plain_base = (each.method, each.variant) == (BASE, "plain")
    return {
        "method": each.method,
        "variant": each.variant,
        "label": each.label,
        "rho": each.values[0] if len(each.values) == 1 and each.tunes == "rho" else None,
        "tunes": each.tunes,
        "values": each.values,
        "lr": each.lr,
        "more": each.more,
        **({"epochs": each.epochs} if lengths and each.epochs is not None else {}),
        **{form: as_json(estimate(list(each.figures(form).values()))) for form in FORMS},
        "delta": None if plain_base else as_json(delta, against="base"),
        "gain": against.gain(each, against.form),
        "gain_final": against.gain(each, "final"),
        "kept": None,
        "sharpness": _sharpness(each),
        "balancedness": as_json(estimate(list(each.by_seed(_balancedness).values()))),
        "by_seed": {form: _plain(found) for form in FORMS if (found := each.figures(form))},
        "seeds": len(each.final),
        "failed": len(each.runs) - len(each.final),
    }


def _plain(values: BySeed) -> dict[str, float]:
    """Seeds as JSON's keys, in order: from these every interval of the row can be computed again."""
    return {str(seed): values[seed] for seed in sorted(values)}


def _missing(name: str, spec: Mapping[str, Any]) -> Row:
    """The row of a method that was asked for and has no finished run."""
    figures = "rho lr final early averaged lawa delta gain gain_final kept sharpness balancedness passes time_ratio"
    absent: Row = dict.fromkeys([*figures.split(), "memory_ratio"]) | {"by_seed": {"final": {}, "early": {}}}
    identity = {"method": name, "variant": "plain", "label": (spec.get("labels") or {}).get(name, name)}
    return {**identity, **absent, "tunes": "rho", "values": [], "more": {}, "length": 1.0, "seeds": 0, "failed": 0}


def _sharpness(each: Group) -> dict[str, Any] | None:
    values = each.by_seed(lambda run: (run.get("sharpness") or {}).get("value"))
    found = as_json(estimate(list(values.values())))
    rho = each.mean(lambda run: (run.get("sharpness") or {}).get("rho"))
    return found and found | {"rho": rho}


def _balancedness(run: Record) -> float | None:
    """Mean |B| of the adapters at the end, relative to its start."""
    shares = (run.get("balancedness") or {}).get("share")
    return shares[-1] if shares else None


def _tuning(row: Row, runs: Sequence[Record], judge: Judge, own_rates: bool, lengths: bool) -> Row:
    """The grid a method was tuned on: mean validation figure at each value, rate and length where it tried several."""
    if row["variant"] != "plain":
        return {"tuning": []}
    grid: dict[tuple[Any, ...], dict[str, float]] = {}
    several = row["method"] != BASE and own_rates
    grown = set()
    for run in runs:
        (_, value), figure, more = tuned(run), judge.of(run, "val"), run.get("more") or {}
        epochs = run.get("chosen_epochs") if lengths else None
        if (value is not None or more or epochs) and figure is not None:
            point = value, finite(run.get("lr")) if several else None, tuple(more.items()), epochs
            grid.setdefault(point, {})[str(run.get("run_id"))] = figure
            grown |= {point} if run.get("grown") else set()
    points = [
        {"value": value, f"val_{judge.name}": sum(sorted(found.values())) / len(found), "runs": len(found)}
        | ({"lr": lr} if several else {})
        | ({"more": dict(more)} if more else {})
        | ({"epochs": epochs} if epochs else {})
        | ({"grown": True} if (value, lr, more, epochs) in grown else {})
        for (value, lr, more, epochs), found in sorted(grid.items(), key=_in_order)
    ]
    cliff = next((dict(run["cliff"]) for run in runs if run.get("cliff")), None)  # that the best value lies at
    return {"tuning": points} | ({"cliff": cliff} if cliff else {})


def _in_order(item: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    value, lr, more, epochs = item[0]
    return value or 0.0, lr or 0.0, tuple((name, str(type(each)), each) for name, each in more), epochs or 0


def _double_early(groups: Sequence[Group], against: _Against) -> dict[str, Any] | None:
    """How much better the base with both more epochs and stopped early is than the base stopped early."""
    early = {each.variant: each.figures("early") for each in groups if each.method == BASE}
    return as_json(against.gain_of(early.get("double", {}), early.get("plain", {})))


def _mark_kept(rows: Sequence[Row], groups: Sequence[Group], against: _Against) -> None:
    """Write the share of SAM's gain that each method keeps; None where SAM's gain is not clear."""
    sam = next((each for each in groups if each.method == REFERENCE), None)
    clear = any(row["method"] == REFERENCE and row["gain"] and row["gain"]["clear"] == 1 for row in rows)
    if sam is None or against.name is None or not clear:
        return
    yardstick = against.all[against.name]
    for each in groups:
        row = next(r for r in rows if (r["method"], r["variant"]) == (each.method, each.variant))
        seeds = each.figures(against.form).keys() & sam.figures(against.form).keys() & yardstick.keys()
        common = {seed: yardstick[seed] for seed in seeds}
        part, whole = (against.better(g.figures(against.form), common) for g in (each, sam))
        found = share(part, whole) if each.method != BASE else None
        row["kept"] = found and dict(zip(("share", "low", "high"), found, strict=True))


def _mark_clear(rows: Sequence[Row]) -> None:
    """Write `clear` into each gain: +1 surely above zero, −1 surely below, 0 neither (Holm, all methods)."""
    gains = {row["method"]: row["gain"] for row in rows if row["gain"]}
    sure = holm({name: gain["p"] for name, gain in gains.items() if gain["p"] is not None})
    for name, gain in gains.items():
        gain["clear"] = (1 if gain["mean"] > 0 else -1) if name in sure else 0


def _rank(row: Row, form: str, judge: Judge) -> tuple[bool, bool, float, str]:
    """Baselines first, then the methods from the best down, then those without a figure."""
    figure = row[form]
    is_method = row["method"] != BASE
    rank = judge.rank(figure["mean"]) if figure and is_method else 0.0
    order = {"plain": "", "half": " 1", "double": " 2"}.get(row["variant"], f" 3 {row['variant']}")
    return is_method, figure is None, -rank, row["method"] + order
