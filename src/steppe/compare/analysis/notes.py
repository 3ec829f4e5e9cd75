"""The sentences under the table: what a reader must know before believing a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steppe._command.statistics import LEAST
from steppe.compare.analysis.verdict import best_row
from steppe.compare.analysis.wording import (
    BASELINES,
    LENGTH,
    SYMBOLS,
    Words,
    baseline,
    choices,
    count,
    how_many,
    listing,
    selected,
    series,
    with_lengths,
)  # fmt: skip

Row = Mapping[str, Any]
Summary = Mapping[str, Any]
FEW_SEEDS = 5
NEARLY_ALL, LITTLE = 0.8, 0.2


def notes(summary: Summary) -> list[str]:
    """What applies to this comparison, findings first, then what is missing, then how to read the numbers."""
    if summary["best_baseline"] is None:
        return _missing(summary)
    parts: Sequence[Callable[[Summary], list[str]]] = (
        _early, _half, _double, _equal, _untrained, _sam, _worse, _cliffs, _edges, _rates, _few_seeds, _missing,
        _cost, _selection,
    )  # fmt: skip
    return [sentence for part in parts for sentence in part(summary)]


def _early(summary: Summary) -> list[str]:
    """Which case is this: does early stopping alone bring what the method seems to bring?"""
    alone, row = summary["early_alone"], _champion(summary)
    if alone is None or alone["ci95"] is None or row is None or row["delta"]["ci95"] is None or _base_lost(summary):
        return []
    words, name = Words(summary), row["label"]
    amount = words.amount(alone, to="base")
    shown = f"({amount}; {name} at the end of training {words.gain(row['delta'], to='base')})"
    helps, gains = _above(alone), _above(row["delta"])
    part = alone["mean"] / row["delta"]["mean"] if gains else 0.0
    if not gains:
        does = "helps" if helps else "does not clearly help"
        return [f"Early stopping {does} the base here ({amount})."]
    if helps and part >= NEARLY_ALL:
        return [f"Early stopping alone recovers nearly all that {name} seems to win {shown}: stop early first."]
    if helps and part > LITTLE:
        return [f"Early stopping alone recovers {100 * part:.0f} % of what {name} seems to win here {shown}."]
    much = "little" if helps else "nothing"
    return [f"Early stopping alone recovers {much} here {shown}: the gain is not early stopping in disguise."]


def _half(summary: Summary) -> list[str]:
    alone = summary["half_alone"]
    if alone is None or not _above(alone) or _base_lost(summary):
        return []
    shown = f"({Words(summary).amount(alone, to='base')})"
    if with_lengths(summary):
        both = summary["double_alone"] is not None and _above(summary["double_alone"])
        too = ", and so do twice as many" if both else ""
        return [f"Half the epochs that it chose help the base {shown}{too}: {_more_lengths(summary, 0)}."]
    if summary["double_alone"] is not None and _above(summary["double_alone"]):
        return [f"Half the epochs help the base {shown}, and so do twice as many: tune its length first (--epochs)."]
    return [f"Half the epochs help the base {shown}: it overfits; try shorter trainings first."]


def _double(summary: Summary) -> list[str]:
    alone = summary["double_alone"]
    if alone is None or alone["ci95"] is None or _base_lost(summary):
        return []
    shown = f"({Words(summary).amount(alone, to='base')})"
    if _above(alone):
        more = f"; {_more_lengths(summary, -1)}" if with_lengths(summary) else ""
        return [f"Twice the epochs help the base {shown}: it was not trained to its best{more}."]
    if _below(alone) and with_lengths(summary):
        return [f"Twice the epochs that it chose harm the base {shown}: it overfits when trained longer."]
    if _below(alone):
        free = "a shorter training may win a part of a method's gain for nothing (--epochs)"
        return [f"Twice the epochs harm the base {shown}: it overfits when trained longer; {free}."]
    enough = "it was trained long enough, as far as this can tell"
    return [f"Twice the epochs change nothing clear for the base {shown}: {enough}."]


def _more_lengths(summary: Summary, end: int) -> str:
    """What to do where the length that the base chose is not its best, as one of half (0) or twice (-1) that tells."""
    base = next(row for row in summary["rows"] if (row["method"], row["variant"]) == ("base", "plain"))
    chosen, tried = choices(base).get(LENGTH, ([], []))
    if chosen and tried and chosen[0] == tried[end]:
        return f"try {'longer' if end else 'shorter'} ones, too (--epochs-grid)"
    return "more tuning seeds would choose its length more surely (--tune-seeds)"


def _equal(summary: Summary) -> list[str]:
    """Whether the base, given the time that the best method took, would have come as far."""
    rows = [row for row in _methods(summary) if row["equal_cost"] and row["equal_cost"]["ci95"] is not None]
    if not rows:
        return []
    row, words = best_row(rows), Words(summary)
    found = row["equal_cost"]
    there = words.value(found["base"]) + (" %" if words.judge.percent else "")
    return [
        f"Given what {words.named(row)} costs ({found['cost']:.2f}×), the base would have {there} "
        f"({_how(found['cost'], summary)}); {row['label']} has {words.amount(found, to=found['base'])} "
        f"{words.over} that."
    ]


def _how(cost: float, summary: Summary) -> str:
    """Whence it is known what the base would have at a cost."""
    if cost >= 1:
        return "by interpolation to twice its length" if cost <= 2 else "with twice the epochs, its longest"
    if "half" not in summary["baselines"]:
        return "at its own length"
    return "by interpolation to half its length" if cost >= 0.5 else "with half the epochs, its shortest"


def _untrained(summary: Summary) -> list[str]:
    """Where the base does not beat what needs no training, nothing that is said of methods says much."""
    base, judge = summary["baselines"].get("base"), Words(summary).judge
    found = {name: each for name, each in summary["baselines"].items() if name not in BASELINES}
    names = [baseline(name) for name, each in found.items() if base and not judge.better(base["mean"], each["mean"])]
    return [f"The base is no better than {listing(names)}, which needs no training."] if names else []


def _sam(summary: Summary) -> list[str]:
    row = _sam_of(summary["rows"])
    if row is None or not row["gain"]:
        return ["SAM is not in this comparison: no share of its gain can be shown."]
    if row["gain"]["ci95"] is None or row["gain"]["clear"] == 1:
        return []
    against, gain = baseline(summary["best_baseline"]), Words(summary).amount(row["gain"])
    what = "loses to" if row["gain"]["clear"] == -1 else "does not clearly gain on"
    return [f"SAM {what} {against} ({gain}): a share of that would mean nothing and is not shown."]


def _worse(summary: Summary) -> list[str]:
    names = [row["label"] for row in _methods(summary) if row["gain"]["clear"] == -1]
    where = f"{Words(summary).below} {baseline(summary['best_baseline'])}"
    return [f"Clearly {where}: {listing(names)}."] if names else []


def _cliffs(summary: Summary) -> list[str]:
    """What broke trainings; where the base's break, too, it is no radius that does."""
    broken = [
        row for row in summary["rows"] if row.get("cliff") and (row["method"] == "base" or not _base_lost(summary))
    ]
    return [_cliff(row["label"], **row["cliff"]) for row in broken]


def _cliff(label: str, tunes: str, best: float, beside: float, broke: int, of: int, taken: float) -> str:
    """What was chosen beside a value that broke trainings, or in spite of that."""
    symbol, runs = SYMBOLS.get(tunes, tunes), f"{broke} of {of} tuning runs"
    if taken != best:
        return (
            f"{label}: {symbol} = {best:g} was best on validation data, but {runs} broke at {beside:g}; "
            f"{taken:g}, which is not clearly worse, was taken instead."
        )
    if beside == best:
        return f"{label}: the chosen {symbol} = {best:g} broke {runs}, and may break others."
    return f"{label}: the chosen {symbol} = {best:g} lies beside {beside:g}, which broke {runs}; it may break others."


def _edges(summary: Summary) -> list[str]:
    names = dict.fromkeys([*SYMBOLS, *(name for row in summary["rows"] for name in choices(row))])
    return [sentence for name in names for sentence in _edges_of(name, summary["rows"])]


def _edges_of(name: str, rows: Sequence[Row]) -> list[str]:
    upper, lower, symbol = [], [], SYMBOLS.get(name, name)
    for row in rows:
        values, grid = choices(row).get(name, ([], []))
        if len(grid) > 1 and all(isinstance(value, int | float) for value in grid):
            low, high, label = values[0], values[-1], "the base" if row["method"] == "base" else row["label"]
            upper += [f"{label} ({_told(name, high)})"] if high >= grid[-1] else []
            lower += [f"{label} ({_told(name, low)})"] if low <= grid[0] else []
    words = ("longest", "longer"), ("shortest", "shorter")
    words = words if name == LENGTH else (("largest", "larger"), ("smallest", "smaller"))
    return [
        f"The chosen {symbol} is the {most} tried for {listing(names)}: a {more} one may do better."
        for names, (most, more) in zip((upper, lower), words, strict=True)
        if names
    ]


def _told(name: str, value: float) -> str:
    return count(int(value), "epoch") if name == LENGTH else f"{value:g}"


def _rates(summary: Summary) -> list[str]:
    """Whether methods trained for other lengths at a rate that suits the base's: what SAM gains may hide behind it."""
    spec = summary["spec"]
    if not with_lengths(summary) or spec.get("tune_lr") == "each" or len(spec.get("lr_grid") or ()) < 2:
        return []
    base = next(row for row in summary["rows"] if (row["method"], row["variant"]) == ("base", "plain"))
    others = [row for row in _methods(summary) if row.get("epochs") not in (None, base["epochs"])]
    if not others:
        return []
    names = listing([f"{row['label']} ({count(row['epochs'], 'epoch')})" for row in others])
    return [
        f"{names} trained at the learning rate that the base chose for {count(base['epochs'], 'epoch')}; another may "
        "suit another length (--tune-lr each)."
    ]


def _few_seeds(summary: Summary) -> list[str]:
    count = len(summary["seeds"])
    if 0 < count < LEAST:
        return [f"{how_many(count, 'seed').capitalize()}: no interval can be given; use five or more."]
    if LEAST <= count < FEW_SEEDS:
        return [f"Only {count} seeds: the intervals are wide; use five or more."]
    return []


def unfinished(summary: Summary) -> list[str]:
    """Whose runs are not all there, those with as many seeds in one sentence."""
    asked = summary["spec"].get("seeds")
    expected = len(asked) if isinstance(asked, list) else len(summary["seeds"])
    alike: dict[str, list[str]] = {}
    for row in summary["rows"]:
        if row["seeds"] < expected:
            alike.setdefault(_so_far(row, expected), []).append(row["label"])
    return [f"{series(labels)}: {what}" for what, labels in alike.items()]


def _so_far(row: Row, expected: int) -> str:
    if row["seeds"] == 0:
        return "no run with a result yet."
    lost = f"{row['failed']} ended without a finite figure"
    why = lost if row["failed"] else "the others failed or are not finished"
    return f"{row['seeds']} of {expected} seeds ({why}); the mean is over these."


def _missing(summary: Summary) -> list[str]:
    asked = [name for name in BASELINES if summary["spec"].get("half") or not name.startswith("half")]
    absent = [name for name in asked if name not in summary["baselines"]]
    if not absent or len(absent) == len(asked):
        return []
    names = listing([BASELINES[name] for name in absent])
    return [f"Not in this comparison: {names}; gains are against the rest."]


def _cost(summary: Summary) -> list[str]:
    if summary["cost_axis"] != "passes":
        return []
    untimed = [row["label"] for row in summary["rows"] if row["final"] and row["passes"] != 0 and not row["time_ratio"]]
    return [f"Step times were not measured for {listing(untimed)}: cost is counted in passes."]


def _selection(summary: Summary) -> list[str]:
    rows = _methods(summary)
    if not rows or all(row["gain"]["ci95"] is None for row in rows):
        return []
    against = baseline(summary["best_baseline"])
    found = [
        f"Gains are against {against}, the best of the baselines by its mean on the test set. That choice "
        f"favours the baseline, so gains err on the low side{_chosen(summary['rows'])}.{_longer(summary)}"
    ]
    tested = sum(row["gain"]["ci95"] is not None for row in rows)
    found.append(
        f"“Pays”, “loses” and “clear” mean that {_clear(tested)}; what is said of the base is by its own interval."
    )
    if len(rows) > 1:
        best, lucky = best_row(rows), f" The best of {len(rows)} is partly lucky: expect a little less of"
        found[-1] += f"{lucky} {best['label']} on new seeds." if best["gain"]["clear"] == 1 else ""
    return [*found, "Intervals (95 %, t) are over seeds, with the same test set throughout."]


def _clear(tested: int) -> str:
    if tested == 1:
        return "the 95 % interval of the paired gain leaves out zero"
    return f"the paired gain is not zero at 5 % after Holm's correction for {tested} methods"


def _chosen(rows: Sequence[Row]) -> str:
    """How settings were chosen, where there were several values to choose among."""
    names = selected(rows)
    are = "were" if " and " in names else "was"
    return f"; {names} {are} chosen on validation data alone{_tries(rows)}" if names else ""


def _longer(summary: Summary) -> str:
    """Averaged weights of the base at other lengths are no baseline; who sees them ahead of the best wants to know."""
    rows = {row["variant"]: row for row in summary["rows"] if row["method"] == "base"}
    return "".join(_averaged(rows[each], BASELINES[each], summary) for each in ("half", "double") if each in rows)


def _averaged(row: Row, name: str, summary: Summary) -> str:
    words, best = Words(summary), summary["baselines"][summary["best_baseline"]]["mean"]
    figures = [row[form]["mean"] for form in ("averaged", "lawa") if row.get(form)]
    ahead = [figure for figure in figures if words.judge.better(figure, best)]
    if not ahead:
        return ""
    shown = listing([words.value(figure) for figure in ahead])
    return f" With averaged weights {name} has {shown}, which is shown but is no baseline."


def _tries(rows: Sequence[Row]) -> str:
    """How often each tried, where the methods tried rates or lengths of their own and so more often than the base."""
    if not any({"lr", "epochs"} & point.keys() for row in rows for point in row["tuning"]):
        return ""
    base = max(len(row["tuning"]) for row in rows if row["method"] == "base")
    return f" (up to {max(len(row['tuning']) for row in rows)} settings for a method, {base} for the base)"


def _base_lost(summary: Summary) -> bool:
    """Whether runs of the base diverged or learned nothing, so that nothing follows from what becomes of it."""
    return any(row["diverged"] for row in summary["rows"] if (row["method"], row["variant"]) == ("base", "plain"))


def _champion(summary: Summary) -> Row | None:
    """SAM if it is there, else the method with the largest difference to the base."""
    rows = [row for row in _methods(summary) if row["delta"]]
    return _sam_of(rows) or max(rows, key=lambda row: float(row["delta"]["mean"]), default=None)


def _methods(summary: Summary) -> list[Row]:
    return [row for row in summary["rows"] if row["gain"]]


def _sam_of(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["method"] == "sam"), None)


def _above(figure: Mapping[str, Any]) -> bool:
    return figure["ci95"] is not None and bool(figure["mean"] - figure["ci95"] > 0)


def _below(figure: Mapping[str, Any]) -> bool:
    return figure["ci95"] is not None and bool(figure["mean"] + figure["ci95"] < 0)
