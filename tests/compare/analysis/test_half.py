"""The base with half the epochs as a baseline like the others: judged, named, priced, and told of where it wins."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.compare.analysis.test_summary import double, plain, row
from tests.compare.records import cost

from steppe.compare.analysis.summary import summarise
from steppe.compare.report import page
from steppe.compare.report.charts import WIDE, against_cost, named_points
from steppe.compare.report.table import table

ASKED = {"half": True, "methods": ["sam"]}


def half(accuracies: list[float], early: list[float] | None = None) -> list[dict[str, Any]]:
    return plain("base", accuracies, early, variant="half", steps=200)


def made(*, shorter: list[float], longer: list[float], early: list[float] | None = None) -> list[dict[str, Any]]:
    """Of a base that has 90, 91 and 92 %."""
    runs = plain("base", [0.90, 0.91, 0.92]) + half(shorter, early) + double(longer)
    return runs + plain("sam", [0.94, 0.95, 0.97])


def study(**given: list[float]) -> dict[str, Any]:
    return summarise(made(**given), cost(), ASKED)


OVERFITS = {"shorter": [0.920, 0.931, 0.939], "longer": [0.890, 0.901, 0.909]}


def test_where_it_wins_gains_are_over_it() -> None:
    summary = study(**OVERFITS)
    sam = row(summary, "sam")
    assert (summary["best_baseline"], summary["judged"], sam["gain"]["against"]) == ("half", "final", "half")
    assert sam["gain"]["mean"] == pytest.approx((0.020 + 0.019 + 0.031) / 3)
    assert "points over the base with half the epochs for" in summary["verdict"]
    assert summary["half_alone"]["mean"] == pytest.approx((0.020 + 0.021 + 0.019) / 3)


def test_it_is_told_where_it_clearly_helps() -> None:
    notes = study(**OVERFITS)["notes"]
    assert "Half the epochs help the base (+2.0 ± 0.2 points): it overfits; try shorter trainings first." in notes
    (harm,) = [note for note in notes if note.startswith("Twice the epochs harm the base")]
    assert harm.endswith("a shorter training may win a part of a method's gain for nothing (--epochs).")
    both = study(shorter=OVERFITS["shorter"], longer=OVERFITS["shorter"])["notes"]
    assert any("and so do twice as many: tune its length first" in note for note in both)
    assert not any("it overfits" in note for note in both)
    for shorter in ([0.89, 0.90, 0.91], [0.89, 0.93, 0.93]):
        told = study(shorter=shorter, longer=[0.91, 0.92, 0.93])["notes"]
        assert not any(note.startswith("Half the epochs") for note in told)


def test_stopped_early_it_is_one_more() -> None:
    summary = study(**OVERFITS, early=[0.93, 0.94, 0.945])
    assert (summary["best_baseline"], summary["judged"]) == ("half_early", "early")
    assert "over the base with half the epochs, stopped early" in summary["verdict"]
    text = page.html(summary, made(**OVERFITS, early=[0.93, 0.94, 0.945]), None)
    (best,) = re.findall(r'<span class="best">(.*?)</span>', text)
    assert best.startswith("93.8")


def test_far_below_the_others_it_does_not_make_them_one_spot() -> None:
    summary = study(shorter=[0.40, 0.41, 0.42], longer=[0.92, 0.93, 0.94])
    picture = against_cost(summary, named_points(summary), WIDE)
    below = {mark["told"].partition(":")[0] for mark in picture["marks"] if mark["below"]}
    assert below == {"base, ½× epochs", "base, ½× epochs, stopped early"} and picture["y"].low > 80


def test_it_costs_half_and_stands_between_the_base_and_the_longer_one() -> None:
    summary = study(**OVERFITS)
    found = row(summary, "base", "half")
    assert found["length"] == found["cost"] == found["time_ratio"]["median"] == 0.5 and found["pareto"]
    labels = [each["label"] for each in summary["rows"]]
    assert labels == ["base", "base, ½× epochs", "base, 2× epochs", "sam"]
    assert list(table(summary, 120).columns[0].cells)[1].plain == "base, ½× epochs"
    runs = [each | {"steps": None} for each in half([0.9, 0.9, 0.9])] + plain("base", [0.9, 0.9, 0.9])
    assert row(summarise(runs, None, ASKED), "base", "half")["length"] == 0.5, "as far as is known"


def test_at_equal_cost_only_the_longer_base_counts() -> None:
    with_, without = study(**OVERFITS), plain("base", [0.90, 0.91, 0.92]) + double(OVERFITS["longer"])
    alone = summarise(without + plain("sam", [0.94, 0.95, 0.97]), cost(), {})
    assert row(with_, "sam")["equal_cost"] == row(alone, "sam")["equal_cost"] is not None


def test_only_where_it_was_asked_for_is_it_missed() -> None:
    runs = plain("base", [0.90, 0.91, 0.92]) + double([0.91, 0.92, 0.93]) + plain("sam", [0.93, 0.95, 0.95])
    told = {asked: " ".join(summarise(runs, None, {"half": asked})["notes"]) for asked in (True, False)}
    assert "the base with half the epochs" in told[True] and "half" not in told[False]
    assert "half" not in " ".join(summarise(runs, None, {})["notes"]), "in a study from before there was any"


def test_its_averaged_weights_are_said_to_be_no_baseline() -> None:
    runs = plain("base", [0.9, 0.91, 0.92]) + plain("sam", [0.93, 0.95, 0.95])
    runs += [each | {"averaged": {"test_accuracy": 0.95}} for each in half([0.91, 0.92, 0.93])]
    said = "With averaged weights the base with half the epochs has 95.0, which is shown but is no baseline."
    assert any(said in note for note in summarise(runs, None, ASKED)["notes"])
