"""A value beside one that broke trainings: when the next smaller one is taken instead, and what is told of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.compare import records as made_up

from steppe.compare.analysis.summary import summarise
from steppe.compare.engine import study
from steppe.compare.engine.cliff import POINTS
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import kept_spec, resolve

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
RADII = [0.1, 0.2, 0.4, 0.8]
Curve = dict[float, tuple[float, ...]]
GOOD: Curve = {0.1: (0.66, 0.67), 0.2: (0.68, 0.69), 0.4: (0.69, 0.697)}
FELL: Curve = GOOD | {0.8: (0.68, 0.12)}
MSE = {"name": "mse", "title": "MSE", "higher": False, "percent": False}


def plan(**flags: Any) -> Plan:
    given = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 2, "rho": RADII, "grow": 0, **flags}
    return Plan(resolve(given), "hash")


def finished(made: Plan, curve: Curve, **more: Any) -> dict[str, dict[str, Any]]:
    """Records of all that is needed, with the validation figures written down for each value and seed."""
    name = more.get("metric", {}).get("name", "accuracy")
    records: dict[str, dict[str, Any]] = {}
    while new := {id_: run for id_, run in made.needed(records).items() if id_ not in records}:
        for id_, run in new.items():
            values = curve.get(run.value or run.lr or 0.0, (0.5,))
            figure = values[run.seed % len(values)]
            records[id_] = {**run.named(), "run_id": id_, f"val_{name}": figure, f"test_{name}": figure, **more}
    return records


def chosen(made: Plan, curve: Curve, **more: Any) -> float | None:
    best = made.best(made.choices[0], finished(made, curve, **more))
    assert best is not None
    return best.value


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({}, 0.2),
        ({0.8: (0.62, 0.61)}, 0.4),  # less, and not broken
        ({0.8: (0.58, 0.69)}, 0.2),  # one of them is
        ({0.2: (0.655, 0.66)}, 0.4),  # the best is clearly better than the next smaller one
        ({0.2: (0.69, 0.1), 0.1: (0.685, 0.69)}, 0.4),  # which broke itself
        ({0.4: (0.83, 0.60), 0.8: (0.6, 0.61)}, 0.2),  # the best broke one itself
        ({0.2: (0.80, 0.60), 0.4: (0.84, 0.58)}, 0.4),  # and so did the smaller one, as good as it is
        ({0.1: (0.70, 0.71)}, 0.1),  # the best lies elsewhere
        ({0.1: (0.70, 0.71), 0.2: (0.1, 0.1)}, 0.1),  # and nothing below it
    ],
)
def test_a_step_back_where_the_next_larger_value_broke_and_the_smaller_is_as_good(change: Curve, value: float) -> None:
    assert chosen(plan(), FELL | change) == value


def test_a_run_that_diverged_is_broken_whatever_its_figure() -> None:
    made = plan()
    records = finished(made, GOOD | {0.8: (0.66, 0.67)})
    assert made.best(made.choices[0], records).value == 0.4  # type: ignore[union-attr]
    records[made.id(Run("sam", 0.8, 1))]["diverged"] = "its training loss is not finite"
    assert made.best(made.choices[0], records).value == 0.2  # type: ignore[union-attr]


def test_a_figure_that_is_not_finite_is_far_below() -> None:
    assert chosen(plan(), FELL | {0.8: (0.68, math.nan)}) == 0.2


def test_where_all_are_lost_there_is_no_cliff() -> None:
    assert chosen(plan(), {value: (math.nan,) for value in RADII}) in RADII


def test_one_seed_knows_no_noise_and_stays() -> None:
    assert chosen(plan(tune_seeds=1), {value: each[1:] for value, each in FELL.items()}) == 0.4


def test_an_error_is_broken_a_quarter_above_the_best() -> None:
    errors: Curve = {0.1: (0.72, 0.74), 0.2: (0.71, 0.73), 0.4: (0.70, 0.72), 0.8: (0.72, 0.87)}
    assert chosen(plan(), errors, metric=MSE) == 0.4
    assert chosen(plan(), errors | {0.8: (0.72, 0.91)}, metric=MSE) == 0.2


def test_it_can_be_left() -> None:
    assert chosen(plan(step_back=False), FELL) == 0.4


def test_the_base_steps_back_with_its_learning_rate() -> None:
    made = plan(lr_grid=RADII)
    assert made.best_base(finished(made, FELL)).lr == 0.2  # type: ignore[union-attr]


def test_other_settings_are_those_of_the_best() -> None:
    """At k = 10 nothing broke: that 0.8 did at k = 5 is no cliff of it."""
    made = plan(methods=["look_sam"], tune=["k=5,10"], rho=[0.4, 0.8])
    records = finished(made, {0.4: (0.69, 0.70), 0.8: (0.68, 0.69)})
    for id_, run in made.needed(records).items():
        if dict(run.more) == {"k": 5}:
            records[id_]["val_accuracy"] = 0.1 if run.value == 0.8 else 0.5
    assert made.best(made.choices[0], records).value == 0.4  # type: ignore[union-attr]
    assert not any("cliff" in record for record in made.records(records))


@pytest.mark.parametrize(
    ("flags", "curve", "said"),
    [
        (
            {},
            FELL,
            "SAM: ρ = 0.4 was best on validation data, but 1 of 2 tuning runs broke at 0.8; "
            "0.2, which is not clearly worse, was taken instead.",
        ),
        (
            {"step_back": False},
            FELL,
            "SAM: the chosen ρ = 0.4 lies beside 0.8, which broke 1 of 2 tuning runs; it may break others.",
        ),
        (
            {"step_back": False},
            FELL | {0.4: (0.83, 0.6)},
            "SAM: the chosen ρ = 0.4 broke 1 of 2 tuning runs, and may break others.",
        ),
    ],
)
def test_it_is_told(flags: dict[str, Any], curve: Curve, said: str) -> None:
    made = plan(**flags)
    summary = summarise(made.records(finished(made, curve)), None, study.shown(made))
    assert said in summary["notes"]
    (row,) = (row for row in summary["rows"] if row["method"] == "sam")
    assert row["values"] == [row["cliff"]["taken"]]


def test_nothing_is_told_where_nothing_broke() -> None:
    summary = summarise(made_up.records(), None, made_up.spec())
    assert not any("broke" in note for note in summary["notes"]) and not any("cliff" in r for r in summary["rows"])


def test_the_report_of_a_study_from_before_shows_what_it_chose() -> None:
    kept = study.shown(plan())
    del kept["step_back"]
    assert kept_spec(json.loads(json.dumps(kept)), Path("x")).step_back is False
    assert kept_spec(study.shown(plan()), Path("x")).step_back is True


def test_in_the_suite_only_radii_beside_a_cliff_broke_final_trainings() -> None:
    """What docs/compare.md says of studies that were made before."""
    beside, elsewhere = list[int](), list[int]()
    for name in ("mnist1d_mlp_one_length", "suite_schedules", "suite_look_sam"):
        for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]:
            points = {point["value"]: point["val_accuracy"] for point in row["tuning"]}
            if row["method"] == "base" or not points:
                continue
            best, above = row["rho"], min((value for value in points if value > row["rho"]), default=row["rho"])
            final = row["by_seed"]["final"].values()
            gone = sum(max(final) - each > POINTS for each in final)
            (beside if points[best] - points[above] > POINTS else elsewhere).append(gone)
    assert len(beside) == 8 and sorted(beside)[-5:] == [0, 1, 2, 2, 2] and not any(elsewhere)
