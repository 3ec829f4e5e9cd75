"""Tables of docs/claims.md: one function a result file, record -> lines of Markdown."""

from __future__ import annotations

from typing import Any

from suite_page import best, command, figure
from suite_page import table as gains

from steppe._command.statistics import estimate

ABSENT = "not measured"
Record = dict[str, Any]

NAMES = {
    "base": "LoRA", "base double": "LoRA, twice the steps", "sam": "LoRA-SAM", "obar": "oBAR", "nbar": "nBAR",
    "adamw base": "AdamW", "adamw sam": "SAM (AdamW)", "adamw sl_sam": "SL-SAM (AdamW)", "amsgrad base": "AMSGrad",
    "amsgrad adasam": "AdaSAM", "sgd base": "SGD", "sgd sam": "SAM (SGD)",
}  # fmt: skip
"""How the studies of fine-tuning name their rows, and how a reader does; in the order of the tables."""


def percent(share: float, digits: int = 2) -> str:
    """An accuracy."""
    return f"{100 * share:.{digits}f}"


def interval(value: Record) -> str:
    """Mean ± half the interval."""
    return f"{percent(value['mean'])} ± {percent(value['ci95'])}"


def spread(value: Record) -> str:
    """Median and quartiles of a ratio."""
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def row_of(record: Record, method: str, variant: str = "plain") -> Record | None:
    """The row of a study's method."""
    return next((r for r in record["rows"] if r["method"] == method and r.get("variant", "plain") == variant), None)


def points(value: Record | None) -> str:
    """A difference of accuracies with half its interval, in points."""
    if not value:
        return "–"
    half = "" if value["ci95"] is None else f" ± {percent(value['ci95'])}"
    return f"{100 * value['mean']:+.2f}{half}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def compared(record: Record) -> list[str]:
    """One comparison: its best baseline, its command, and each method's gain over that baseline."""
    hardest = f"{figure(best(record), record)} ({record['best_baseline'].replace('_', ' and ')})"
    return [
        f"`{command(record)}`",
        "",
        f"{best(record)['n']} seeds; best baseline {hardest}; gains in points, **bold** where clear after Holm's "
        "correction over the table.",
        "",
        gains(record),
    ]


def lora(record: Record) -> list[str]:
    """A table for each task, and one for the mean over them."""
    found = []
    for part, study in record.items():
        names = sorted(study["paired"], key=list(NAMES).index)
        rows = [(NAMES[name], *_lora_cells(study["paired"][name], _facts(study, name))) for name in names]
        seeds = study["paired"]["base"]["final"]["n"]
        found += [f"{TASKS[part]}, {seeds} seeds:", "", *table(LORA_HEAD, rows), ""]
    return found[:-1]


TASKS = {
    "across": "mean of both",
    "sst2": "SST-2, 128 labels of each class",
    "trec": "TREC, 128 labels of each class at most",
    "trec20": "TREC, 128 labels of each class at most, 20 % of them wrong",
    "trec40": "TREC, 128 labels of each class at most, 40 % of them wrong",
}
LORA_HEAD = (
    "method", "chosen", "accuracy", "− LoRA", "stopped early", "− LoRA stopped early", "− LoRA with twice the steps",
    "time ÷ LoRA's",
)  # fmt: skip


def _lora_cells(row: Record, facts: tuple[str, str]) -> tuple[str, ...]:
    gains = row.get("over") or {}
    cells = (points(gains.get(name)) for name in ("base", "early", "double"))
    chosen, time = facts
    return chosen, interval(row["final"]), next(cells), interval(row["early"]), *cells, time


def _facts(study: Record, name: str) -> tuple[str, str]:
    """The setting that was chosen, and a step's time beside the base's; nothing for a mean over tasks."""
    row = row_of(study, *name.split(" ")) if "rows" in study else None
    if row is None:
        return "–", "–"
    time = (row.get("time_ratio") or {}).get("median")
    return f"{row['tunes']} {_listed(row['values'])}", "–" if time is None else f"{time:.2f}"


def full(record: Record) -> list[str]:
    """The methods on their base optimizers, and the differences that the claims are about."""
    studies = {part: study for part, study in record.items() if part != "across"}
    rows = [
        (NAMES[f"{part} {name}"], *_full_cells(study, name, row))
        for part, study in studies.items()
        for name, row in study["paired"].items()
        if name != "base double"
    ]
    pairs = [
        (f"{NAMES[each['of']]} − {NAMES[each['to']]}", points(each["over"]))
        for each in record["across"]["differences"]
    ]  # fmt: skip
    longer = record["across"].get("sl_sam_longer")
    if longer:
        name, over = f"SL-SAM (AdamW), {longer['steps']} steps", longer["over"]
        cells = (interval(longer["accuracy"][form]) for form in ("final", "early"))
        rows.append((name, f"lr {longer['lr']:g}", *cells, points(over["base"]), "2.00", "–"))
        pairs.append((f"{name} − SAM (AdamW)", points(over["sam"])))
    seeds = next(iter(studies.values()))["paired"]["base"]["final"]["n"]
    head = ("method", "chosen", "accuracy", "stopped early", "− its base", "passes", "time ÷ its base's")
    return [f"{seeds} seeds:", "", *table(head, rows), "", *table(("difference", "points"), pairs)]


def _full_cells(study: Record, name: str, row: Record) -> tuple[str, ...]:
    chosen, time = _facts(study, name)
    own = row_of(study, *name.split(" "))
    passes = "–" if own is None else f"{own['passes']:.2f}"
    gain = points((row.get("over") or {}).get("base"))
    return chosen, interval(row["final"]), interval(row["early"]), gain, passes, time


def batches(record: Record) -> list[str]:
    """Steps until the loss is a share of the first one, by batch, and the figure of the loss."""
    reached = record["steps_to_share_of_first_loss"]
    shares = list(next(iter(reached.values())))
    rows = [(batch, *("–" if at is None else f"{at:g}" for at in row.values())) for batch, row in reached.items()]
    settings = record["settings"]
    return [
        f"MiniLM trained whole on SST-2, {settings['seeds']} seeds, rho {settings['rho']:g}, lr {settings['lr']}; "
        "steps (median over seeds, looked at eight times) until the training loss is a share of the first one:",
        "",
        *table(("batch", *(f"to {float(share):.0%}" for share in shares)), rows),
        "",
        "![Training loss against steps](../benchmarks/results/adasam_speedup.svg)",
    ]


def large(record: Record) -> list[str]:
    """Methods by batch."""
    batches = sorted({row["batch"] for row in record["rows"]})
    labels = list(dict.fromkeys(row["label"] for row in record["rows"]))
    cells = {(row["label"], row["batch"]): row for row in record["rows"]}
    rows = [(label, *(_large_cell(cells.get((label, batch))) for batch in batches)) for label in labels]
    size = record["size"]
    facts = f"{size['images']:,} images, {size['epochs']} epochs, {record['parameters']:,} weights."
    steps = {row["batch"]: row["steps"] for row in record["rows"]}
    return [facts, "", *table(("", *(f"{batch:,} ({steps[batch]} steps)" for batch in batches)), rows)]


def _large_cell(row: Record | None) -> str:
    if row is None:
        return ABSENT
    deviation = "" if row["deviation"] is None else f" ({percent(row['deviation'], 1)})"
    return f"{percent(row['test'], 1)}{deviation}"


def finder(record: Record) -> list[str]:
    """The radius found beside the best of the sweep."""
    rows = []
    for name, case in record.items():
        if not isinstance(case, dict) or "sweep" not in case:
            continue
        rows.append((
            name.replace("_", " "), f"`{case['method']}`", _metric(case["base"]),
            f"{_metric(case['best'])} at {case['best']['rho']:g}", _found(case["finder"]), _kept(case),
            f"{case['finder']['in_trainings']:.2f}",
        ))  # fmt: skip
    head = ("task", "method", "base", "best of the sweep", "search", "of the best gain", "passes ÷ a training's")
    return table(head, rows)


def _found(row: Record) -> str:
    rho = row["rho"] if isinstance(row["rho"], list) else [row["rho"]]
    above = f"{-row['short_of_best']:+.3f}" if _is_error(row) else f"{100 * -row['short_of_best']:+.2f}"
    return f"{_metric(row)} at {_listed(sorted(set(rho)))} ({above})"


def _kept(case: Record) -> str:
    """The share of the sweep's best gain, where that is clear of zero over the seeds."""
    sign = case["base"].get("sign", 1)
    pairs = zip(case["best"]["tests"], case["base"]["tests"], strict=True)
    won = estimate([sign * (best - base) for best, base in pairs])
    if won is None or not won.above_zero:
        return "–"
    return f"{sign * (case['finder']['test'] - case['base']['test']) / won.mean:.0%}"


def _metric(row: Record) -> str:
    """An accuracy in per cent, an error as it is."""
    return f"{row['test']:.3f}" if _is_error(row) else percent(row["test"])


def _is_error(row: Record) -> bool:
    return row.get("sign", 1) < 0  # files from before there were forecasts know accuracies alone


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
