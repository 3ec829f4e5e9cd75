"""The verdict in one sentence: which method pays here, or that none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe._command.statistics import Estimate, values_to_tell
from steppe.compare.analysis.wording import Words, baseline, chosen, how_many

Row = Mapping[str, Any]
MOST_SEEDS = 100
"""A gain that takes more seeds than this to see is no gain to speak of."""

FRUGAL_SHARE, FRUGAL_COST = 0.8, 0.9
"""A cheaper method is named beside the best if it has this share of its gain for this share of its cost."""


def verdict(summary: Mapping[str, Any]) -> str:
    """One honest sentence about a summary that has its rows, baselines and gains."""
    rows = [row for row in summary["rows"] if row["gain"]]
    if summary["best_baseline"] is None:
        return "Nothing to judge by yet: no run of the base has finished."
    if not rows:
        return "Nothing to compare yet: no method has finished beside the base."
    words, against = Words(summary), baseline(summary["best_baseline"])
    top = best_row(rows)
    if top["gain"]["ci95"] is None:
        return _single(top, against, words)
    if top["gain"]["clear"] != 1:
        return _none(top, rows, against, words)
    return _pays(top, rows, against, words, summary["cost_axis"]) + "."


def best_row(rows: Sequence[Row]) -> Row:
    """The row with the largest gain, among those with a clear one if there are any."""
    clear = [row for row in rows if row["gain"]["clear"] == 1]
    known = [row for row in rows if row["gain"]["ci95"] is not None]
    return max(clear or known or rows, key=lambda row: float(row["gain"]["mean"]))


def _single(top: Row, against: str, words: Words) -> str:
    seeds = how_many(top["gain"]["n"], "seed").capitalize()
    why = "another seed may say otherwise" if top["gain"]["n"] == 1 else f"{seeds.lower()} give no interval"
    what = f"has {words.amount(top['gain'])} {words.over} {against}" if top["gain"]["mean"] else f"equals {against}"
    return f"{seeds} cannot tell: {words.named(top)} {what}, and {why}."


def _none(top: Row, rows: Sequence[Row], against: str, words: Words) -> str:
    gain, count = top["gain"], len(rows)
    shown = words.amount(gain)
    if gain["mean"] <= 0:
        above = any(row["gain"]["mean"] > 0 for row in rows)
        none = "none with seeds enough to tell" if above else "none"
        return f"No method pays here: {none} is {words.above} {against}; {words.named(top)} comes nearest with {shown}."
    if gain["mean"] - gain["ci95"] > 0:
        return (
            f"Not settled: {words.named(top)} has {shown} {words.over} {against}, but among {count} methods "
            "one such interval may come by chance; more seeds would tell."
        )
    which = f"the best, {words.named(top)}, gains" if count > 1 else f"{words.named(top)} gains"
    found = Estimate(gain["mean"], gain["ci95"], gain["n"], None)
    about, low, high = values_to_tell(found, sum(row["gain"]["ci95"] is not None for row in rows), MOST_SEEDS)
    if about > MOST_SEEDS:
        return f"No method pays here: {which} {shown} {words.over} {against}, which is not clear of zero."
    wanted = f"{max(low, gain['n'] + 1)} to {high if high <= MOST_SEEDS else f'more than {MOST_SEEDS}'}"
    return (
        f"Not settled with {gain['n']} seeds: {which} {shown} {words.over} {against}; to tell a gain of that size "
        f"from none takes {wanted} seeds, as far as {gain['n']} can tell how much they differ."
    )


def _pays(top: Row, rows: Sequence[Row], against: str, words: Words, axis: str | None) -> str:
    early = ", itself stopped early," if top["gain"]["of"] == "early" else ""
    text = f"{_named(top, words)}{early} pays here: {words.amount(top['gain'])} {words.over} {against}"
    unit = "the base's training time" if axis == "time" else "the base's passes"
    text += f"{',' * (',' in against)} for {top['cost']:.2f}× {unit}" if top["cost"] else ""
    frugal = _frugal(top, rows)
    if frugal is None:
        return text
    gained = words.number(frugal["gain"]["mean"])
    gained += "" if words.judge.percent else " %"
    return f"{text}; {_named(frugal, words)} brings {gained} for {frugal['cost']:.2f}×"


def _frugal(top: Row, rows: Sequence[Row]) -> Row | None:
    """The cheapest method with a clear gain that is nearly the best one's, if it is cheaper than the best."""
    gain, cost = FRUGAL_SHARE * top["gain"]["mean"], FRUGAL_COST * (top["cost"] or 0.0)
    clear = [row for row in rows if row["gain"]["clear"] == 1 and row["gain"]["mean"] >= gain]
    cheap = [row for row in clear if row["cost"] and row["cost"] <= cost]
    return min(cheap, key=lambda row: float(row["cost"]), default=None)


def _named(row: Row, words: Words) -> str:
    return words.named(row, chosen(row, " =") if row["values"] else "")
