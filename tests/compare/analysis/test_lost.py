"""Runs that diverged or learned nothing choose nothing, and are named wherever their figures stand."""

import json
import math

import pytest
from rich.console import Console
from tests.compare import records as made_up
from tests.compare import tiny
from tests.compare.engine.test_plan import finish, plan

from steppe.compare.analysis import lost
from steppe.compare.analysis.summary import summarise
from steppe.compare.engine import run, study
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.report import page
from steppe.compare.report.table import table

LABELS = [(1, "base, 2× epochs"), (2, "SAM")]
TEN = {"guessing": math.log(10), "chance": 0.1, "of": 800}


@pytest.mark.parametrize(
    ("losses", "accuracy", "more", "why"),
    [
        ([2.3, 0.1], 0.9, TEN, None),
        ([2.3, 2.3], 0.1, TEN,
         "its validation accuracy of 10.0 % is not clearly above guessing (10.0 %, with 800 examples)"),
        ([2.3, 0.1], 0.12, TEN, "its validation accuracy of 12.0 %"),
        ([2.3, 0.1], 0.13, TEN, None),
        ([2.3, math.nan], 0.9, TEN, "its training loss is not finite"),
        ([2.3, 9.0], 0.9, TEN, "its training loss rose from 2.3 to 9"),
        ([0.01, 3.0], 0.9, TEN, None),
        ([0.7, 0.1], 0.6, {"guessing": math.log(2), "chance": 0.5, "of": 30}, None),
        ([0.7, 0.69], 0.6, {"guessing": math.log(2), "chance": 0.5, "of": 30}, "its validation accuracy of 60.0 %"),
        ([0.2, 0.02], 0.96, {"guessing": 0.2, "chance": 0.95, "of": 400}, "its validation accuracy of 96.0 %"),
        ([0.2, 0.02], 0.96, {"guessing": 0.2, "chance": 0.95, "of": 400, "judges": False}, None),
        ([0.2, 0.2], 0.96, {"guessing": 0.2, "chance": 0.95, "of": 400, "judges": False}, "its validation accuracy"),
        ([0.7, 0.69], 1.0, {"guessing": math.log(2), "chance": 0.5, "of": 2}, None),
        ([0.7, 0.69], 0.5, {"guessing": math.log(2), "chance": 0.5, "of": 2}, None),
        ([0.7, 0.69], 0.5, {"guessing": math.log(2), "chance": 0.5, "of": 5}, "its validation accuracy of 50.0 %"),
        ([0.5, 0.4], 0.0, {}, None),
        ([0.5, 1.4], 0.0, {}, "its training loss rose from 0.5 to 1.4"),
    ],
)  # fmt: skip
def test_what_counts_as_lost(losses, accuracy, more, why):
    found = lost.why(losses, accuracy=accuracy, **more)
    assert found is None if why is None else found.startswith(why)


def test_records_of_older_versions_tell_it_by_their_loss():
    assert lost.lost({"curve": {"train_loss": [0.5, None]}}) == "its training loss is not finite"
    assert lost.lost({"curve": {"train_loss": [0.5, 0.1]}}) is None and lost.lost({}) is None
    assert lost.lost({"diverged": None, "curve": {"train_loss": [None]}}) is None


def test_a_diverged_run_chooses_neither_radius_nor_rate():
    made = plan(lr_grid=[0.01, 0.1])
    records = finish(made, {}, lambda run: 0.9 if run.lr == 0.1 else 0.5)
    assert made.best_base(records).lr == 0.1
    records[made.id(Run("base", None, 1, lr=0.1))]["diverged"] = "its training loss is not finite"
    assert made.best_base(records).lr == 0.01
    records |= finish(made, records, lambda run: run.value or 0.5)
    sam = made.choices[0]
    assert made.best(sam, records).value == 0.2
    records[made.id(Run("sam", 0.2, 0, lr=0.01))]["diverged"] = "why"
    assert made.best(sam, records).value == 0.1


def test_it_is_in_the_record_of_a_run():
    def spec(**more):
        return resolve({"task": "tests.compare.tiny:task", **more})

    assert run.train(spec(), Run("sam", 0.1, 0))["diverged"] is None
    assert "its training loss" in run.train(spec(lr=1e4), Run("base", None, 0))["diverged"]


def test_an_accuracy_at_chance_is_lost_by_itself_where_it_judges(monkeypatch):
    monkeypatch.setattr(lost, "MANY", 30)
    task, learned = tiny.task(0), ([0.7, 0.02], {"val_accuracy": 0.5})
    assert run._lost(task, *learned) and run._lost(task.judged_by("f1"), *learned) is None


def test_it_is_told_in_verdict_table_report_and_json(tmp_path):
    records = made_up.records(made_up.NOISY)
    for record in records:
        if record["method"] == "grst" and record["phase"] == "final" and record["seed"] < 2:
            record["diverged"] = "its training loss is not finite"
    summary = json.loads(json.dumps(summarise(records, None, made_up.spec(made_up.NOISY))))
    rows = {row["method"]: row["diverged"] for row in summary["rows"] if row["variant"] == "plain"}
    assert rows == {"base": 0, "sam": 0, "grst": 2}
    said = "† Diverged or no better than guessing: 2 of 5 runs of G-RST; what is said of these means nothing."
    assert summary["verdict"].endswith(said)
    console = Console(width=120, record=True, file=(tmp_path / "shown").open("w"))
    console.print(table(summary, 120))
    shown = console.export_text()
    assert "G-RST †" in shown and "SAM †" not in shown
    html = page.html(summary, records, None).replace("\u2011", "-").replace("&nbsp;", " ").replace("\xa0", " ")
    assert "G-RST †" in html and "2 of 5 runs of G-RST" in html


def test_labels_with_commas_stand_between_semicolons():
    rows = [{"diverged": gone, "seeds": 2, "failed": 0, "label": label} for gone, label in LABELS]
    assert "guessing: 1 of 2 runs of base, 2× epochs; 2 of 2 runs of SAM; what" in lost.sentence(rows)
    plain = [rows[1], rows[0] | {"label": "GSAM"}]
    assert "guessing: 2 of 2 runs of SAM, 1 of 2 runs of GSAM; what" in lost.sentence(plain)


def test_nothing_is_said_where_nothing_is_lost():
    summary = summarise(made_up.records(made_up.NOISY), None, made_up.spec(made_up.NOISY))
    assert "iverged" not in summary["verdict"]


def test_data_that_are_not_finite_are_refused_before_anything_runs(tmp_path):
    spec = resolve({"task": "tests.compare.tiny:spoilt", "out": str(tmp_path / "out")})
    with pytest.raises(
        ValueError, match=r"the val part of tiny holds values that are not finite in 1 of 30 examples, .* number 7"
    ):
        study.check(spec)
    assert not (tmp_path / "out").exists()
