"""What `steppe compare` does when nothing is said: its task, its settings, and that README tells what came of it."""

import json
import runpy
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression

from steppe._command.statistics import estimate
from steppe.compare.data import tasks
from steppe.compare.data.linear import DECAY
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.rows import untrained
from steppe.compare.engine.run import load_task, make_trainer
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve

ROOT = Path(__file__).parents[2]
OF_THE_PLACE = {"out", "device", "jobs"}


def kept():
    return json.loads((ROOT / "benchmarks" / "results" / "default.json").read_text())


def test_the_default_is_mnist1d_with_a_grid_of_rates():
    spec = resolve({})
    assert (spec.task, spec.optimizer) == ("mnist1d-10k", "adamw") and len(spec.lr_grid) == 3
    assert spec.lr in spec.lr_grid, "what does not tune takes one of the same"
    task = load_task(spec, 0)
    assert [len(part) for part in (task.train, task.val, task.test)] == [spec.labelled, 10_000, 10_000]
    assert make_trainer(spec, task, Run("base", None, 0, lr=0.01), 10).model(task.val.x[:2]).shape == (2, 10)


def test_a_linear_model_stands_among_its_baselines():
    """Fitted to the training part alone, as scikit-learn fits it: the network has twice as much."""
    task = load_task(resolve({}), 0)
    (found,) = untrained(task).values()
    z = task.train.x.flatten(1).numpy()
    scale = z.mean(0), z.std(0, ddof=1)
    peer = LogisticRegression(C=1 / (DECAY * len(z)), max_iter=500).fit((z - scale[0]) / scale[1], task.train.y)
    score = peer.score((task.test.x.flatten(1).numpy() - scale[0]) / scale[1], task.test.y)
    assert found["test_accuracy"] == pytest.approx(score, abs=0.003) and 0.3 < score < 0.36


def test_the_picture_is_that_of_the_result():
    made = runpy.run_path(str(ROOT / "docs" / "default_picture.py"))
    text = (ROOT / "docs" / "default.svg").read_text()
    assert text == made["drawn"](kept()["summary"]) and len(text) < 8000
    assert "docs/default.svg" in (ROOT / "README.md").read_text()


def test_it_is_small_enough_for_two_minutes():
    """Trainings in units of the base's (6 s on a slow core), a look at four samples taken for 1.6."""
    spec = resolve({})
    made = Plan(spec, "hash")
    assert [choice.text for choice in made.choices] == ["recommended:ramp=0.1"]
    seeds, again = len(spec.seeds), len(spec.tune_seeds)
    tried = (len(spec.lr_grid) + spec.grow) * again
    units = tried + 3 * seeds - again + 1.6 * ((len(spec.rho) + spec.grow) * again + seeds - again)
    assert units < 35 and spec.epochs == 80


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr": 0.02}, {"lr": 0.02, "lr_grid": None}),
        ({"lr_grid": [0.1, 0.2]}, {"lr_grid": [0.1, 0.2]}),
        ({"optimizer": "sgd"}, {"lr": 0.05, "lr_grid": None}),
        ({"optimizer": "adamw"}, {"lr_grid": [0.003, 0.01, 0.03]}),
        ({"optimizer": "sgd", "lr": 0.3}, {"lr": 0.3, "lr_grid": None}),
        ({"optimizer": "sgd", "lr_grid": [0.1]}, {"lr_grid": [0.1]}),
        ({"methods": ["rst"], "rho": [0.3], "seeds": 2}, {"methods": ["rst"], "rho": [0.3], "seeds": [0, 1]}),
        ({"methods": ["sam"]}, {"rho": None, "grow": 2, "epochs": 80}),
        ({"methods": ["recommended:ramp=0.1"]}, {"rho": [1.6, 3.2], "grow": 0}),
        ({"task": "digits-noisy", "methods": ["sam"]}, {"rho": None, "grow": 2}),
        ({"task": "digits-few", "optimizer": "adamw"}, {"lr": 1e-3}),
        ({"task": "digits-few"}, {"lr": 0.1, "lr_grid": None, "grow": 2}),
    ],
)
def test_what_a_user_gives_sets_aside_what_a_recipe_says_instead(given, expected):
    spec = resolve(given)
    assert {key: getattr(spec, key) for key in expected} == expected


def test_a_recipe_that_tunes_each_methods_rate_gives_that_up_with_the_grid(monkeypatch):
    row = tasks.BUILT_IN["mnist1d-10k"]
    made = tasks.BuiltIn(row.read, {**row.recipe, "tune_lr": "each"})
    monkeypatch.setitem(tasks.BUILT_IN, "mnist1d-10k", made)
    assert resolve({}).tune_lr == "each" and resolve({"lr": 0.02}).tune_lr == "base"


def test_the_result_is_of_the_settings_there_are():
    """Another recipe is another study: run it again, and README tells what came of that."""
    found, spec = kept()["summary"]["spec"], resolve({}).model_dump()
    known = {key: found.get(key, Spec.model_fields[key].default) for key in spec}  # some settings came later
    assert {key for key in spec.keys() - OF_THE_PLACE if known[key] != spec[key]} == set()


def test_its_intervals_follow_from_its_seeds():
    summary = kept()["summary"]
    for row in summary["rows"]:
        again = estimate(list(row["by_seed"]["final"].values()))
        assert row["final"]["mean"] == pytest.approx(again.mean, abs=1e-12)
        assert row["final"]["ci95"] == pytest.approx(again.ci95, abs=1e-12)


def test_readme_quotes_it():
    readme = " ".join((ROOT / "README.md").read_text().split())
    summary = kept()["summary"]
    (row,) = [row for row in summary["rows"] if row["method"] != "base"]
    gain = f"{100 * row['gain']['mean']:+.1f} ± {100 * row['gain']['ci95']:.1f} points"
    assert f"has {gain} over the best baseline, twice the epochs, at {row['passes']:.2f} passes" in readme
    assert f"{row['time_ratio']['median']:.2f} times the time of the base" in readme
    assert f"on steps of {kept()['base_step_ms']:.1f} ms" in readme
    assert summary["best_baseline"] == "double" and row["gain"]["clear"] == 1 and row["passes"] <= 1.1
    assert summary["verdict"] in (ROOT / "docs" / "compare.md").read_text()


@pytest.mark.parametrize("given", [{"lr_grid": [0.1]}, {"methods": ["sam"]}, {"seeds": 2}])
def test_what_a_study_tunes_is_no_other_study(given):
    """The settings beside it, and with them the hash of a run, stay the recipe's."""
    assert resolve({"task": "digits-few", **given}).hash() == resolve({"task": "digits-few"}).hash()
    assert resolve({"task": "digits-few", "max_steps": 9}).epochs == 100


def test_the_page_quotes_the_other_processor():
    rows = json.loads((ROOT / "benchmarks" / "results" / "default_elsewhere.json").read_text())["summary"]["rows"]
    gain = next(row["gain"] for row in rows if row["gain"])
    text = " ".join((ROOT / "docs" / "compare.md").read_text().split())
    shown = f"+{100 * gain['mean']:.1f} ± {100 * gain['ci95']:.1f}"
    assert f"which rounds otherwise and so makes other trainings of the same seeds, had {shown} (" in text
