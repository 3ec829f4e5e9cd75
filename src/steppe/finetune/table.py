"""What a fine-tuning's terminal shows: the figures of one run, the comparison of the example, the list of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steppe._command.tables import table

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def summary(result: Mapping[str, Any]) -> RenderableType:
    """One run: what was measured, what it cost, where it lies."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")
    for name, text in _lines(result):
        shown.add_row(name, Text(text))
    return shown


def _lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, model, method, seconds = result["data"], result["model"], result["method"], result["seconds"]
    test = "held out of the training data" if data["held_out"] else "of the test data"
    cut, test_cut = (_cut(data[name], data["max_length"]) for name in ("cut", "test_cut"))
    resumed = f", resumed at step {result['resumed_at']}" if result["resumed_at"] else ""
    steps = f"{_counted(result['steps'], 'step')}{resumed}"
    trained = (
        f"{model['trained']:,} of {model['parameters']:,} parameters ({model['trained'] / model['parameters']:.2%})"
    )
    return [
        ("method", method["label"] + (f" on {_counted(method['pairs'], 'pair')}" if method["pairs"] else "")),
        ("trained", trained),
        ("examples", f"{data['train']:,}{cut}"),
        *_validation(result),
        ("result", f"{_figures(result['metrics'])} on {_counted(data['test'], 'example')} {test}{test_cut}"),
        *([("diverged", f"{why}, so the result means nothing")] if (why := result.get("why_diverged")) else []),
        *_classes(result),
        *([("balance", _balance(method["balancedness"]))] if method["balancedness"] else []),
        ("time", f"{seconds['training']:.1f} s for {steps}, median {_step(seconds['step'])}"),
        ("memory", f"{_bytes(result['memory']['peak_bytes'])} at most ({result['memory']['of']})"),
        ("saved", f"{result['saved']}, with {result['settings']['out']}/result.json beside it"),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _cut(count: int, length: int) -> str:
    return f", {count:,} of them cut to {length} tokens" if count else ""


_MANY = 12
"""Classes that a terminal still lists."""


def _classes(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What one answer for all comes to, and each class by itself."""
    if result["majority"] is None:
        return []
    guess, rows = result["majority"], result["per_class"]
    said = f"always answering {guess['class']!r}, the commonest, has {100 * guess['accuracy']:.2f} %"
    if result["at_chance"]:
        said += f": with {_counted(result['data']['test'], 'test example')} the result is not clear of that"
    each = "; ".join(f"{r['class']} {100 * r['recall']:.1f} % of {r['examples']:,}" for r in rows)
    return [("beside it", said), *([("each class", each)] if len(rows) <= _MANY else [])]


def _validation(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not result["validation"]:
        return []
    best, examples = result["best"], result["data"]["validation"]
    chosen = f"; step {best['step']} was best by its {best['metric']}" if best else ""
    return [("validation", f"{_figures(result['validation'])} on {_counted(examples, 'further example')}{chosen}")]


def _figures(metrics: Mapping[str, float]) -> str:
    if "accuracy" in metrics:
        return f"accuracy {100 * metrics['accuracy']:.2f} %, loss {metrics['loss']:.4f}"
    return f"loss per token {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}"


def _balance(found: Mapping[str, Mapping[str, float]]) -> str:
    begin, end = (sum(map(abs, found[when].values())) / max(len(found[when]), 1) for when in ("begin", "end"))
    return f"mean |B| of the pairs from {begin:.4g} to {end:.4g}"


def _step(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _bytes(count: float) -> str:
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1.0, "bytes"))
    return f"{count / size:.3g} {unit}"


_HEADERS = ("\nmethod", "accuracy\n%", "− LoRA\npoints", "time\n÷ LoRA", "passes\n/step", "mean\n|B|")
_SPACE = 3


def comparison(record: Mapping[str, Any], width: int = 100) -> RenderableType:
    """The example: a row for each method; where the width does not suffice, the last columns of the table go."""
    rows = [
        (
            row["label"], _points(row["accuracy"]), _points(row["gain"], signed=True), f"{row['time']:.2f}",
            f"{row['passes']:.2f}", f"{row['balancedness']:.3f}",
        )
        for row in record["rows"]
    ]  # fmt: skip
    columns = [[*header.split("\n"), *cells] for header, cells in zip(_HEADERS, zip(*rows, strict=True), strict=True)]
    wide = list(itertools.accumulate(_SPACE + max(map(len, column)) for column in columns))
    fit = max(1, sum(reach - 1 <= width for reach in wide))
    shown = table(_HEADERS[:fit], ruled=True, no_wrap=True)
    for row in rows:
        shown.add_row(*row[:fit])
    return Group(shown, Text(record["legend"], style="dim"), Text(""), Text(record["verdict"]), Text(record["next"]))


def _points(found: Mapping[str, float] | None, signed: bool = False) -> str:
    if found is None:
        return ""
    value = f"{100 * found['mean']:+.2f}" if signed else f"{100 * found['mean']:.2f}"
    return value if found["ci95"] is None else f"{value} ± {100 * found['ci95']:.2f}"


def recipes(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The recipes with their papers."""
    shown = table(("recipe", "what", "paper"), left=3)
    shown.columns[0].no_wrap = True
    for name, about in found.items():
        shown.add_row(name, about["title"], about["paper"])
    return shown
