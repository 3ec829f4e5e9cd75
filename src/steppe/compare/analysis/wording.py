"""How numbers are written in the terminal, the report and the notes: one place, one unit each.

Shares are fractions in the records and per cent for the reader, their differences points. Figures of other metrics are
written as they are, their differences in per cent of the mean of what they are taken to. Above zero is better, always.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steppe._command.statistics import LEAST
from steppe._words import count as count
from steppe.compare.judge import Judge, of_records

ABSENT = "–"
MINUS = "−"
LONG = 16
MOST, SMALL = 6, 1e-4
"""Decimals of a figure that is no share, at most, unless all are smaller than that: these have powers of ten."""
HUGE = 1e9
"""So large a number has a power of ten, too."""

BASELINES = {
    "base": "the base",
    "early": "the base stopped early",
    "averaged": "the base with averaged weights",
    "lawa": "the base with its latest weights averaged (LAWA)",
    "half": "the base with half the epochs",
    "half_early": "the base with half the epochs, stopped early",
    "double": "the base with twice the epochs",
    "double_early": "the base with twice the epochs, stopped early",
}
"""The honest baselines that are trained, as they are called in a sentence."""

FORMS = {
    "final": "to the end", "early": "stopped early", "averaged": "weights averaged", "lawa": "latest weights averaged",
}  # fmt: skip
"""The form that figures are taken in, as it is called behind a name."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def baseline(name: str) -> str:
    """What a baseline is called in a sentence; one that needs no training by its own name."""
    return BASELINES.get(name, f"“{name}”")


def how_many(count: int, what: str) -> str:
    """`three baselines`."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {what}" if count == 1 else f"{number} {what}s"


def means(summary: Mapping[str, Any]) -> str:
    """What figures with and without an interval are: `Mean ± 95 % interval over 5 seeds`, or over 3 to 5."""
    there = [row["seeds"] for row in summary["rows"] if row["seeds"]] or [len(summary["seeds"])]
    least, most = min(there), max(there)
    if most < 2:
        return "One seed, so no interval" if most else "No run with a result, so nothing to show"
    number = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    if most < LEAST:
        return f"Mean over {number}, too few for an interval"
    few = f" (from {NUMBERS[LEAST]} on)" if least < LEAST else ""
    return f"Mean ± 95 % interval{few} over {number}"


def signed(value: float, digits: int) -> str:
    """A number with its sign; a true minus, and no sign on what rounds to zero."""
    text = sized(abs(value), digits)
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


class Words:
    """How the figures and differences of one comparison are written.

    Attributes:
        judge: the metric.
        unit: that of differences, as over a column; over: the word between an amount and what it is measured against.
        above: what a better figure is beside another; below: what a worse one is.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self.judge = Judge(**summary.get("metric") or {})
        self._baselines, self._best = summary.get("baselines") or {}, summary.get("best_baseline") or ""
        base = next((r for r in summary["rows"] if (r.get("method"), r.get("variant")) == ("base", "plain")), None)
        self._length = (base or {}).get("epochs")
        self._scale, self._digits = self.judge.scale, decimals(summary["rows"], self.judge)
        self._share_digits = self._digits if self.judge.percent else 1
        self.unit, self.over = ("points", "over") if self.judge.percent else ("% better", "than")
        self.above, self.below = ("above", "below") if self.judge.higher else ("better than", "worse than")

    def named(self, row: Mapping[str, Any], *settings: str) -> str:
        """A method in a sentence, with what is to be said of it: its length too where the base's is another.

        `SAM`, `SAM (ρ = 0.1)`, `SAM (ρ = 0.1, 10 epochs)`.
        """
        length = row.get("epochs")
        own = [count(length, "epoch")] if length is not None and length != self._length else []
        said = ", ".join([*filter(None, settings), *own])
        return f"{row['label']} ({said})" if said else str(row["label"])

    def figure(self, figure: Mapping[str, Any] | None) -> str:
        """`95.7 ± 0.4` from {"mean": .957, "ci95": .004}."""
        return _with_interval(figure, self.value, self._scale, self._digits)

    def value(self, value: float | None) -> str:
        """One figure without an interval."""
        return ABSENT if value is None else _fixed(self._scale * value, self._digits)

    def gain(self, figure: Mapping[str, Any] | None, to: str | float = "") -> str:
        """`+1.5 ± 0.4`: a difference, in points or in per cent of a mean.

        Args:
            figure: the difference.
            to: the baseline, or the figure, that it is a difference to; the best baseline by default.
        """
        share = self._share(to)
        if share is None:
            return ABSENT
        return _with_interval(figure, lambda v: signed(share * v, self._share_digits), share, self._share_digits)

    def number(self, difference: float) -> str:
        """One difference to the best baseline, without an interval: `+1.5`."""
        share = self._share()
        return ABSENT if share is None else signed(share * difference, self._share_digits)

    def amount(self, figure: Mapping[str, Any], to: str | float = "") -> str:
        """A difference with its unit, in a sentence: `+1.5 ± 0.4 points`, `6.1 ± 0.8 % lower MSE`; `to`: see `gain`."""
        if self.judge.percent:
            return f"{self.gain(figure)} points"
        way, share = "higher" if (figure["mean"] > 0) == self.judge.higher else "lower", self._share(to)
        if share is None:
            return f"{way} {self.judge.title}"
        sizes = _with_interval(
            {**figure, "mean": abs(figure["mean"])}, lambda v: sized(share * v, self._share_digits),
            share, self._share_digits,
        )  # fmt: skip
        return f"{sizes} % {way} {self.judge.title}"

    def _share(self, to: str | float = "") -> float | None:
        """What a difference is multiplied by for a reader; None where that is no share, as of an error of 0."""
        if self.judge.percent:
            return 100.0
        mean = (self._baselines.get(to or self._best) or {}).get("mean") if isinstance(to, str) else to
        return 100 / abs(mean) if mean else None


def _with_interval(figure: Mapping[str, Any] | None, write: Any, scale: float, digits: int) -> str:
    if not figure or figure.get("mean") is None:
        return ABSENT
    text = str(write(figure["mean"]))
    return text if figure.get("ci95") is None else f"{text} ± {_fixed(scale * figure['ci95'], digits)}"


def _fixed(value: float, digits: int) -> str:
    """A number with fixed decimals; with a power of ten where these would be many: `9.14e−09`."""
    return (sized(value, digits) if digits <= MOST else f"{value:.2e}").replace("-", MINUS)


def told(record: Mapping[str, Any]) -> str:
    """What a finished run came to, in a line of progress: `validation accuracy 95.3 %, 2.1 s`."""
    judge = of_records([record])
    value, seconds = judge.of(record, "val"), f"{record['seconds']:.1f} s"
    if value is None:
        return f"diverged, {seconds}"
    shown = f"{100 * value:.1f} %" if judge.percent else f"{value:.4g}"
    return f"validation {judge.title} {shown}, {seconds}"


def times(value: float | None) -> str:
    """`1.98×`: a ratio to the base."""
    return ABSENT if value is None else f"{value:.2f}×"


def plain(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals, or a dash."""
    return ABSENT if value is None else sized(value, digits).replace("-", MINUS)


def sized(value: float, digits: int) -> str:
    """A number with fixed decimals, no minus where these are zeros; a power of ten where it is huge: `1.233e+52`."""
    if abs(value) >= HUGE:
        return f"{value:.3e}"
    text = f"{value:.{digits}f}"
    return text if float(text) else text.lstrip("-")


def short(value: float | None) -> str:
    """Up to three significant figures: `0.2`."""
    if value is None:
        return ABSENT
    return f"{value:.3g}".replace("-", MINUS)


def figures(value: float | None) -> str:
    """Three significant figures, trailing zeros kept: `0.0370`."""
    return ABSENT if value is None else f"{value:#.3g}".rstrip(".").replace("-", MINUS)


def share(kept: Mapping[str, Any] | None) -> str:
    """`97 %` from {"share": .97}."""
    return ABSENT if not kept else f"{100 * kept['share']:.0f} %".replace("-", MINUS)


SYMBOLS = {"rho": "ρ", "mu": "μ", "sigma": "σ", "lr": "lr"}
"""What is chosen on validation data -> how it is written."""
LENGTH = "length"
"""What a reader is told was chosen where numbers of epochs were tried."""


def choices(row: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """What was chosen for a method: the setting's name -> the chosen values, and all that were tried, in order."""
    points = row.get("tuning") or []
    tried = sorted({point["value"] for point in points if point["value"] is not None})
    found: dict[str, tuple[list[Any], list[Any]]] = {row["tunes"]: (list(row.get("values") or []), tried)}
    for name, value in (row.get("more") or {}).items():
        found[name] = [value], sorted({point["more"][name] for point in points if name in point.get("more", {})})
    if rates := sorted({point["lr"] for point in points if "lr" in point}):
        found["lr"] = [row["lr"]] if row["lr"] else [], rates  # none where every final run failed
    if "epochs" in row:
        found[LENGTH] = [row["epochs"]], sorted({point["epochs"] for point in points if "epochs" in point})
    return {name: each for name, each in found.items() if each[0]}


def chosen(row: Mapping[str, Any], equals: str = "") -> str:
    """The chosen rho, `0.2`; or what the method has instead, `μ 0.5`; a range where the seeds chose differently.

    All but the length, see `epochs`.

    Args:
        row: of a summary.
        equals: " =" for `ρ = 0.2`, in a sentence.
    """
    said = []
    for name, (values, _) in choices(row).items():
        if name == LENGTH:
            continue
        text = plainly(values[0]) if len(values) == 1 else f"{min(values):g}…{max(values):g}"
        said.append(text if name == "rho" and not equals else f"{SYMBOLS.get(name, name)}{equals} {text}")
    return ", ".join(said) or ABSENT


def tried(point: Mapping[str, Any]) -> str:
    """The settings of a point of a row's `tuning`: `0.1, lr 0.02, k 5, 10 epochs (added)`."""
    said = [] if point["value"] is None else [f"{point['value']:g}"]
    said += [f"lr {point['lr']:g}"] if "lr" in point else []
    said += [f"{name} {value}" for name, value in (point.get("more") or {}).items()]
    said += [count(point["epochs"], "epoch")] if "epochs" in point else []
    return ", ".join(said) + (" (added)" if point.get("grown") else "")


def was_chosen(point: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a point of a row's `tuning` is what its final runs have."""
    there = point["value"] is None or point["value"] in row["values"]
    alike = (point.get("more") or {}) == (row.get("more") or {})
    return there and alike and all(point[each] == row.get(each) for each in ("lr", "epochs") if each in point)


def epochs(row: Mapping[str, Any]) -> str:
    """How many epochs a row was trained, where that was chosen: `20`, `2.5`."""
    return plainly(row["epochs"]) if "epochs" in row else ABSENT


def with_lengths(summary: Mapping[str, Any]) -> bool:
    """Whether lengths were chosen."""
    return any("epochs" in row for row in summary["rows"])


def symbols(rows: Sequence[Mapping[str, Any]]) -> str:
    """All that was chosen in a comparison: `ρ`, `ρ and μ`."""
    return _symbols([name for row in rows for name in choices(row)]) or "ρ"


def selected(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same of what was chosen among several values; empty where there was one of each."""
    return _symbols([name for row in rows for name, (_, tried) in choices(row).items() if len(tried) > 1])


def _symbols(used: Sequence[str]) -> str:
    known = [symbol for name, symbol in SYMBOLS.items() if name in used]
    return listing([*known, *dict.fromkeys(name for name in used if name not in SYMBOLS)])


def plainly(value: Any) -> str:
    """A setting's value as a user types it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def decimals(rows: Sequence[Mapping[str, Any]], judge: Judge) -> int:
    """One decimal in per cent, or two where the typical interval is narrower than 0.1 points.

    Of other figures as many as show two digits of the typical interval; three digits of a figure without one. More than
    `MOST` where all figures are so small that nothing would be seen of them. Those that are huge say nothing of others.
    """
    rows = [r for r in rows if r["final"] and abs(r["final"]["mean"]) < HUGE]
    widths = sorted(r["final"]["ci95"] for r in rows if r["final"]["ci95"])
    typical = widths[len(widths) // 2] if widths else None
    if judge.percent:
        return 2 if typical and typical < 0.001 else 1
    sizes = [abs(r["final"]["mean"]) for r in rows if r["final"]["mean"]]
    telling = typical * 10 if typical else min(sizes, default=1.0)
    digits = max(2 - math.floor(math.log10(telling)), 0)
    return digits if sizes and max(sizes) < SMALL else min(digits, MOST)


def broken(label: str) -> str:
    """A long label with its settings on a line of their own."""
    return label.replace(" (", "\n(", 1) if len(label) > LONG else label


def typeset(sentence: str) -> str:
    """A sentence for a page: curly quotes, and no line break within `1.5 ± 0.4 points`, `40 %` or `G-RST`."""
    sentence = re.sub(r"(?<![^\s(])'(?=\S)", "‘", sentence).replace("'", "’")
    for apart in (" ± ", " points", "ρ = ", " %"):
        sentence = sentence.replace(apart, apart.replace(" ", "\u00a0"))
    return re.sub(r"(?<=\w)-(?=\w)", "\u2011", sentence)


def listing(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def series(parts: Sequence[str]) -> str:
    """Parts in a row, with semicolons where one has a comma in it: `a, b, or so; c`."""
    return ("; " if any("," in part for part in parts) else ", ").join(parts)
