"""A method beside the base at equal cost."""

import math
from dataclasses import replace

import pytest
from tests.compare.records import CLEAN, cost, records, spec

from steppe.compare.analysis.equal import base_at
from steppe.compare.analysis.summary import summarise

METHODS = {name: CLEAN[name] for name in ("base", "sam", "grst")}


@pytest.mark.parametrize(("price", "share"), [(0.5, 0.0), (1.0, 0.0), (math.sqrt(2), 0.5), (2.0, 1.0), (3.0, 1.0)])
def test_the_base_between_its_lengths(price, share):
    found = base_at(price, {0: 0.5, 1: 0.6, 2: 0.1}, {0: 0.7, 1: 0.5})
    assert found == pytest.approx({0: 0.5 + 0.2 * share, 1: 0.6 - 0.1 * share}, abs=1e-12)


@pytest.mark.parametrize(("price", "share"), [(0.25, 1.0), (0.5, 1.0), (math.sqrt(0.5), 0.5), (1.0, 0.0)])
def test_the_base_below_its_length(price, share):
    found = base_at(price, {0: 0.5, 1: 0.6}, {0: 0.7, 1: 0.8}, {0: 0.4, 1: 0.7})
    assert found == pytest.approx({0: 0.5 - 0.1 * share, 1: 0.6 + 0.1 * share}, abs=1e-12)


@pytest.mark.parametrize(
    ("price", "half", "how"),
    [(0.8, True, "by interpolation to half its length"), (0.4, True, "with half the epochs, its shortest"),
     (0.8, False, "at its own length"), (1.2, True, "by interpolation to twice its length")],
)  # fmt: skip
def test_the_note_says_whence(price, half, how):
    methods = METHODS | {"sam": replace(METHODS["sam"], time=price)}
    runs = records(methods)
    plain = [run for run in runs if (run["method"], run["variant"]) == ("base", "plain") and half]
    short = [run | {"variant": "half", "steps": run["steps"] // 2, "run_id": f"half-{run['seed']}"} for run in plain]
    told = summarise(runs + short, cost(methods), spec(methods))["notes"]
    assert any(note.startswith("Given what SAM costs (") and f"({how}); SAM has" in note for note in told), told


def test_each_method_has_its_gain_over_that():
    runs = records(METHODS)
    summary = summarise(runs, cost(METHODS), spec(METHODS))
    rows = {(row["method"], row["variant"]): row for row in summary["rows"]}
    figures = {key: row["by_seed"]["final"] for key, row in rows.items()}
    row = rows["grst", "plain"]
    share = math.log2(row["cost"])
    assert 0 < share < 1 and row["equal_cost"]["cost"] == row["cost"]
    b, d, own = figures["base", "plain"], figures["base", "double"], figures["grst", "plain"]
    expected = [own[s] - (b[s] + (d[s] - b[s]) * share) for s in own]
    assert row["equal_cost"]["mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-12)
    assert rows["base", "plain"]["equal_cost"] is None and rows["base", "double"]["equal_cost"] is None
    assert any(note.startswith("Given what SAM costs (2.03×), the base would have") for note in summary["notes"])


def test_nothing_is_said_without_the_longer_base():
    runs = [run for run in records(METHODS) if run["variant"] != "double"]
    summary = summarise(runs, cost(METHODS), spec(METHODS))
    assert all(row["equal_cost"] is None for row in summary["rows"])
    assert not any(note.startswith("Given what") for note in summary["notes"])
