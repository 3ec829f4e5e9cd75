"""`--tune-lr each`: every method chooses a learning rate of its own, together with its radius."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tests.compare.records import CLEAN, cost, records, spec
from tests.compare.report.test_page import Page

from steppe.compare.analysis.groups import Group
from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import chosen
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.report import page as report
from steppe.compare.report.table import table

TINY = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 3, "grow": 0}
TINY |= {"lr_grid": [0.1, 0.2], "rho": [0.05, 0.3]}
METHODS = {name: CLEAN[name] for name in ("base", "sam", "grst")}
RATES = (0.02, 0.04)
SPEC = spec(METHODS) | {"tune_lr": "each", "lr_grid": list(RATES)}


def planned(**more: Any) -> Plan:
    made = resolve({**TINY, "tune_lr": "each", **more})
    return Plan(made, made.hash())


def finished(plan: Plan, accuracy: Any) -> dict[str, dict[str, Any]]:
    """Records of everything that is needed, as it becomes known."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(3):
        found = {id_: {"val_accuracy": accuracy(run)} for id_, run in plan.needed(found).items()}
    return found


# The plan


def test_every_value_is_tried_at_every_rate() -> None:
    plan = planned()
    base = Run("base", None, 0, lr=0.1)
    tried = [(run.value, run.lr, run.seed) for run in plan.tune_runs(plan.choices[0], base)]
    assert sorted(tried) == [(rho, lr, seed) for rho in (0.05, 0.3) for lr in (0.1, 0.2) for seed in (0, 1)]


def test_base_and_method_may_choose_differently() -> None:
    plan = planned()
    found = finished(plan, lambda run: run.lr if run.method == "base" else 1 - run.lr - run.value)
    assert plan.best_base(found).lr == 0.2
    best = plan.best(plan.choices[0], found)
    assert (best.value, best.lr) == (0.05, 0.1)
    assert len(found) == plan.total() == (2 * 2 + 1) + 3 + 3 + (4 * 2 + 1)
    finals = [run for run in plan.needed(found).values() if run.method == "sam" and run.seed == 2]
    assert [(run.value, run.lr) for run in finals] == [(0.05, 0.1)]


def test_ties_go_to_the_smaller_value_then_to_the_smaller_rate() -> None:
    plan = planned(lr_grid=[0.2, 0.1], rho=[0.3, 0.05])
    best = plan.best(plan.choices[0], finished(plan, lambda run: 0.5))
    assert (best.value, best.lr) == (0.05, 0.1)
    best = plan.best(plan.choices[0], finished(plan, lambda run: 0.5 + (run.lr == 0.2)))
    assert (best.value, best.lr) == (0.05, 0.2)


def test_without_it_methods_train_at_the_bases_rate() -> None:
    plan = planned(tune_lr="base")
    base = Run("base", None, 0, lr=0.2)
    assert {run.lr for run in plan.tune_runs(plan.choices[0], base)} == {0.2}


def test_an_optimizer_of_its_own_keeps_its_rate() -> None:
    plan = planned(methods=["adasam"])
    assert {run.lr for run in plan.tune_runs(plan.choices[0], Run("base", None, 0, lr=0.2))} == {None}


def test_runs_are_shared_with_a_study_in_which_the_base_chose() -> None:
    """A rate decides a run, not who chose it: raising --tune-lr later repeats nothing."""
    plain, each = planned(tune_lr="base"), planned()
    assert finished(plain, lambda run: run.lr).keys() < finished(each, lambda run: run.lr).keys()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"lr_grid": None}, "tune_lr = 'each' has nothing to choose from; give learning rates too, as lr_grid"),
        ({"tune_lr": "all"}, "tune_lr must be 'base' or 'each'"),
    ],
)
def test_bad_input(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        planned(**more)


# What a reader sees


def made() -> list[dict[str, Any]]:
    """Records of a study in which the base and G-RST chose 0.04 and SAM 0.02; each radius was better there."""
    chose, found = {"base": 0.04, "sam": 0.02, "grst": 0.04}, []
    for run in records(METHODS):
        best = chose[run["method"]]
        run |= {"tunes": "lr"} if run["method"] == "base" else {}
        found.append(run | {"lr": best})
        if run["phase"] == "tune":
            for lr in set(RATES) - {best}:
                worse = {"lr": lr, "run_id": f"{run['run_id']}-{lr}", "val_accuracy": run["val_accuracy"] - 0.1}
                found.append(run | worse)
    base = next(run for run in found if run["method"] == "base" and run["variant"] == "plain")
    tune = ({"phase": "tune", "run_id": f"tune-{lr}", "lr": lr, "val_accuracy": 0.9 + lr} for lr in RATES)
    return found + [base | each for each in tune]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(made(), cost(METHODS), SPEC)


def row(summary: dict[str, Any], method: str) -> dict[str, Any]:
    return next(each for each in summary["rows"] if (each["method"], each["variant"]) == (method, "plain"))


def test_each_row_says_its_rate(summary: dict[str, Any]) -> None:
    assert chosen(row(summary, "sam")) == "0.2, lr 0.02" and chosen(row(summary, "grst")).endswith(", lr 0.04")
    assert chosen(row(summary, "sam"), " =") == "ρ = 0.2, lr = 0.02"
    assert chosen(row(summary, "base")) == "lr 0.04"


def test_the_rate_is_exact_so_that_it_is_found_among_those_tried() -> None:
    """The mean of three times 0.2 is not 0.2."""
    assert Group("sam", "plain", tuple({"lr": 0.2, "seed": seed} for seed in range(3))).lr == 0.2


def test_values_are_not_averaged_over_rates(summary: dict[str, Any]) -> None:
    tuning = row(summary, "sam")["tuning"]
    assert len({(point["value"], point["lr"]) for point in tuning}) == len(tuning) == 2 * len(CLEAN["sam"].grid)
    at = {(point["value"], point["lr"]): point["val_accuracy"] for point in tuning}
    for rho in CLEAN["sam"].grid:
        assert at[rho, 0.02] - at[rho, 0.04] == pytest.approx(0.1)


def test_a_method_whose_final_runs_all_failed_has_no_rate() -> None:
    tried = [run for run in made() if run["method"] != "sam" or run["phase"] == "tune"]
    summary = summarise(tried, cost(METHODS), SPEC)
    assert chosen(row(summary, "sam")) == "–" and len(row(summary, "sam")["tuning"]) == 8
    assert not Page(report.html(summary, tried, cost(METHODS))).errors


def test_a_rate_is_shown_also_where_all_runs_at_the_others_failed() -> None:
    left = [run for run in made() if run["method"] != "sam" or run["lr"] == 0.02]
    summary = summarise(left, cost(METHODS), SPEC)
    assert chosen(row(summary, "sam")) == "0.2, lr 0.02" and "lr = 0.02" in summary["verdict"]


def test_the_base_s_choice_is_no_rate_of_their_own() -> None:
    same = [run | {"lr": 0.04} for run in records(METHODS)]
    assert chosen(row(summarise(same, cost(METHODS), SPEC | {"tune_lr": "base"}), "sam")) == "0.2"


def test_notes_name_an_edge_of_the_rates(summary: dict[str, Any]) -> None:
    told = " ".join(summary["notes"])
    assert "The chosen lr is the smallest tried for SAM (0.02)" in told
    assert "The chosen lr is the largest tried for" in told
    assert "ρ and lr were chosen on validation data alone (up to 8 settings for a method, 2 for the base)." in told


def test_table_and_report_show_them(summary: dict[str, Any]) -> None:
    console = Console(file=StringIO(), width=160)
    console.print(table(summary, 160))
    assert "0.2, lr 0.02" in console.file.getvalue()
    page = Page(report.html(summary, made(), cost(METHODS)))
    text = " ".join(" ".join(page.text).split())
    assert not page.errors and not page.open
    assert "ρ and lr tried" in text and "0.2, lr 0.02:" in text and "0.2, lr 0.04:" in text
    marked = report.html(summary, made(), cost(METHODS)).split('class="chosen">')[1:]
    assert sum(piece.startswith("0.2, lr 0.02:") for piece in marked) == 1, "one pair is the chosen one"
