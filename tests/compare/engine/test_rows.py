"""Baselines that need no training: measured beside the base, judged among the baselines, at no cost."""

import json

import pytest
import torch
from tests.compare.records import records, spec

from steppe.compare import Split, Task
from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import Words
from steppe.compare.engine import run, study
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.report import page
from steppe.compare.report.table import table


def task(seed: int) -> Task:
    """What is to be found is the first input; no network of so few steps comes near saying just that."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=rng)
    parts = [Split(x[i : i + 20], x[i : i + 20, 0] + 0.1) for i in (0, 20, 40)]
    recipe = {"model": "mlp", "epochs": 2, "batch_size": 10, "lr": 0.01}
    rows = {"first input": lambda x: x[:, 0], "nothing": lambda x: torch.zeros(len(x))}
    return Task("rows", *parts, recipe=recipe, loss="mse", rows=rows)


def misfit(seed: int) -> Task:
    made = task(seed)
    return Task("rows", made.train, made.val, made.test, recipe=made.recipe, loss="mse", rows={"all": lambda x: x})


def settings(**flags):
    return resolve({"task": "tests.compare.engine.test_rows:task", "methods": ["sam"], "seeds": 2, "rho": 0.1, **flags})


def test_they_are_measured_beside_the_base_and_there_alone():
    found = run.train(settings(), Run("base", None, 0))["rows"]
    assert found["first input"]["test_mse"] == pytest.approx(0.01) and found["first input"]["val_mse"] < 0.02
    assert found["nothing"]["test_mse"] == pytest.approx(float(task(0).test.y.square().mean()))
    for other in (Run("base", None, 0, variant="double"), Run("sam", 0.1, 0)):
        assert "rows" not in run.train(settings(), other)


def test_a_whole_study_judges_against_the_best_of_them(tmp_path):
    plan = study.check(settings(out=str(tmp_path)))
    done = {id_: run.train(plan.spec, each) for id_, each in plan.needed({}).items()}
    made = plan.records(done)
    summary = json.loads(json.dumps(summarise(made, None, study.shown(plan))))
    assert summary["best_baseline"] == "first input" and summary["judged"] == "final"
    rows = {row["label"]: row for row in summary["rows"]}
    assert [row["label"] for row in summary["rows"]][-3:] == ["first input", "nothing", "SAM"]
    free = rows["first input"]
    assert free["final"] == {"mean": pytest.approx(0.01), "ci95": None, "n": 2}
    assert (free["cost"], free["passes"], free["gain"], free["pareto"]) == (0.0, 0.0, None, True)
    assert rows["SAM"]["gain"]["against"] == "first input" and rows["SAM"]["gain"]["mean"] < 0
    assert "“first input”" in summary["verdict"]
    assert any("The base is no better than “first input”" in note for note in summary["notes"])
    text = page.html(summary, made, None)
    assert "ten baselines" in text and "<dt>“nothing”</dt>" in text


def with_rows(**rows: float) -> list[dict]:
    made = records()
    for record in made:
        if (record["method"], record["variant"], record["phase"]) == ("base", "plain", "final"):
            record["rows"] = {name: {"val_accuracy": value, "test_accuracy": value} for name, value in rows.items()}
    return made


def test_a_weak_one_changes_nothing_that_is_said_of_the_others():
    plain, more = summarise(records(), None, spec()), summarise(with_rows(commonest=0.11), None, spec())
    assert more["verdict"] == plain["verdict"] and more["notes"] == plain["notes"]
    names = [row["label"] for row in more["rows"]]
    assert names[:3] == ["base", "base, 2× epochs", "commonest"]
    others = [row for row in more["rows"] if row["label"] != "commonest"]
    for one, other in zip(others, plain["rows"], strict=True):
        assert one == other
    assert Words(more).figure(more["rows"][2]["final"]).startswith("11.0")
    assert "commonest" in page.html(more, with_rows(commonest=0.11), None)
    assert table(more).row_count == table(plain).row_count + 1


def test_where_a_stopped_base_judges_they_are_as_good_as_at_the_end():
    made = with_rows(commonest=0.11)
    for record in made:
        record["early"]["test_accuracy"] += 0.05
    summary = summarise(made, None, spec())
    row = next(row for row in summary["rows"] if row["label"] == "commonest")
    assert summary["judged"] == "early" and row["early"] == row["final"]


def test_a_row_that_fails_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"row 'all' of the task fails on two examples: .*shape \(2, 3\)"):
        study.check(settings(task="tests.compare.engine.test_rows:misfit", out=str(tmp_path)))


@pytest.mark.parametrize("name", ["base", "double", " "])
def test_a_row_bears_no_name_of_another_baseline(name):
    made = task(0)
    with pytest.raises(ValueError, match="cannot be called so; the baselines are base"):
        Task("rows", made.train, made.val, made.test, loss="mse", rows={name: lambda x: x[:, 0]})
