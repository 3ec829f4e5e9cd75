"""`--epochs-grid`: the base, and every method, chooses how long it trains, together with what it chooses anyway."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from steppe._command.pool import Workers
from steppe._command.progress import PlainProgress
from steppe._command.ranks import InStep
from steppe.cli import main
from steppe.compare import rho
from steppe.compare.engine import cost as costs
from steppe.compare.engine import foretold, plan, run, study
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run, describe
from steppe.compare.engine.spec import Spec, resolve

TINY = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 3, "rho": [0.05, 0.3], "grow": 0}


def settings(**more: Any) -> Spec:
    return resolve({**TINY, "epochs_grid": [2, 4, 8], **more})


def planned(**more: Any) -> Plan:
    return Plan(settings(**more), "0f3a9c")


def finished(made: Plan, accuracy: Any) -> dict[str, dict[str, Any]]:
    """Records of everything that is needed, as it becomes known."""
    found: dict[str, dict[str, Any]] = {}
    while new := {id_: each for id_, each in made.needed(found).items() if id_ not in found}:
        found |= {id_: {"val_accuracy": accuracy(each)} for id_, each in new.items()}
    return found


def tried(made: Plan, found: dict[str, Any], method: str) -> set[tuple[Any, ...]]:
    runs = [each for each in made.needed(found).values() if each.method == method and each.variant == "plain"]
    return {(each.value, each.lr, each.epochs) for each in runs}


# The plan


def test_base_and_method_choose_their_lengths_with_all_that_they_choose() -> None:
    made = planned(lr_grid=[0.1, 0.2])
    found = finished(made, lambda r: (r.epochs if r.method == "base" else -r.epochs) / 100 + r.lr)
    assert tried(made, found, "base") == {(None, lr, n) for lr in (0.1, 0.2) for n in (2, 4, 8)}
    assert tried(made, found, "sam") == {(rho, 0.2, n) for rho in (0.05, 0.3) for n in (2, 4, 8)}
    base, best = made.best_base(found), made.best(made.choices[0], found)
    assert base and best and (base.lr, base.epochs) == (0.2, 8) and (best.value, best.epochs) == (0.05, 2)
    assert len(found) == made.total(found) == 6 * 2 + 1 + 6 * 2 + 1 + 3 + 3


def test_half_and_double_are_of_the_length_that_the_base_chose() -> None:
    made = planned()
    found = finished(made, lambda r: 0.9 if r.epochs == 4 else 0.8)
    bases = {each.variant: each.steps(made.spec, 5) for each in made.needed(found).values() if each.epochs == 4}
    assert bases == {"plain": 20, "half": 10, "double": 40}


def test_own_rates_and_lengths_together() -> None:
    made = planned(lr_grid=[0.2, 0.1], rho=[0.3, 0.05], epochs_grid=[8, 4, 2], tune_lr="each")
    found = finished(made, lambda r: 0.5)
    assert tried(made, found, "sam") == {(rho, lr, n) for rho in (0.05, 0.3) for lr in (0.1, 0.2) for n in (2, 4, 8)}
    best = made.best(made.choices[0], found)
    assert best and (best.epochs, best.value, best.lr) == (2, 0.05, 0.1), "of what is equal the shortest, then smallest"


def test_a_method_with_an_optimizer_of_its_own_has_lengths_too() -> None:
    made = planned(methods=["adasam"], lr_grid=[0.1])
    assert {(each.lr, each.epochs) for each in made.tune_runs(made.choices[0], Run("base", None, 0, lr=0.1))} == {
        (None, 2), (None, 4), (None, 8)
    }  # fmt: skip


def test_lengths_grow_beyond_the_edge_as_whole_numbers() -> None:
    made = planned(grow=2, epochs_grid=[2, 3], rho=[0.1])
    found = finished(made, lambda r: min(r.epochs, 5) / 10)
    assert tried(made, found, "base") == {(None, None, n) for n in (2, 3, 4, 5)}, "9 / 2 is 4, 16 / 3 is 5"
    grown = finished(made, lambda r: 1 - r.epochs / 100)
    assert tried(made, grown, "base") == {(None, None, n) for n in (1, 2, 3)}, "less than one epoch is none"


def test_the_base_tries_as_many_settings_as_a_method() -> None:
    made = planned(grow=1)
    found = finished(made, lambda r: 0.9 if r.epochs == 4 else 0.8)
    assert len(tried(made, found, "base")) == len(tried(made, found, "sam")) == 6
    assert {n for _, _, n in tried(made, found, "base")} == {2, 3, 4, 5, 6, 8}


def test_as_many_settings_are_no_reason_for_ever_longer_trainings() -> None:
    """Half-way to the neighbour they go on, once as many lengths as `grow` says lie beyond those asked for."""
    made = planned(grow=2, rho=[0.02, 0.05, 0.1, 0.2], epochs_grid=[2, 4])
    found = finished(made, lambda r: (0.1 - (r.value or 0)) ** 2 + r.epochs / 100)
    lengths = {n for _, _, n in tried(made, found, "base")}
    assert lengths >= {2, 4, 8, 16} and max(lengths) == 16 and len(lengths) == 8
    assert max(n for _, _, n in tried(made, found, "sam")) <= 16


def test_a_cliff_is_looked_for_at_the_same_length() -> None:
    """At 8 epochs 0.3 broke; 0.05 is best there, and nothing smaller. That it is better than 0.05 at 2 says nothing."""
    made = planned(rho=[0.05, 0.1, 0.3], methods=["sam"])

    def accuracy(r: Run) -> float:
        return {(0.05, 8): 0.89, (0.1, 8): 0.9, (0.3, 8): 0.1}.get((r.value or 0, r.epochs or 0), 0.7) + 0.01 * r.seed

    best = made.best(made.choices[0], finished(made, accuracy))
    assert best and (best.value, best.epochs) == (0.05, 8), "a step back in the radius, none in the length"


def test_one_number_of_epochs_sets_the_length() -> None:
    made = planned(epochs_grid=4, rho=[0.1])
    assert made.spec.epochs_grid == [4] and not made.base_tune_runs()
    assert {each.epochs for each in made.needed({}).values()} == {4} and len(made.needed({})) == made.total() == 12


def test_ids_without_a_grid_are_what_they_were_and_with_one_tell_the_length() -> None:
    ids = {
        "sam-rho0.1-seed0-8ecba168f06e": Run("sam", 0.1, 0),
        "base-double-lr0.05-seed3-5fd1710069bc": Run("base", None, 3, "double", 0.05),
        "base-half-seed3-ef15d38c996e": Run("base", None, 3, "half"),
        "sam-rho0.2-lr0.1-alpha0.3-seed1-2df19048610f": Run("sam", 0.2, 1, lr=0.1, more=(("alpha", 0.3),)),
    }
    assert {each.id("0f3a9c"): each for each in ids.values()} == ids
    own = [Run("sam", 0.1, 0, epochs=10), Run("sam", 0.1, 0, lr=10), Run("sam", 0.1, 0, more=(("epochs", 10),))]
    assert len({each.id("0f3a9c")[-12:] for each in (*own, *ids.values())}) == 7
    assert own[0].id("0f3a9c").startswith("sam-rho0.1-epochs10-seed0-")
    assert settings().hash() == settings(epochs_grid=None).hash() == settings(epochs_grid=[7]).hash()


def test_a_run_says_its_length() -> None:
    said = [describe(Run("base", None, 0, variant, epochs=8)) for variant in ("plain", "half", "double")]
    assert said == ["base epochs=8 seed 0", "base, ½× 8 epochs seed 0", "base, 2× 8 epochs seed 0"]
    assert describe(Run("base", None, 0, "half")) == "base, ½× epochs seed 0"


def test_values_are_added_without_a_run_again() -> None:
    few, more = planned(epochs_grid=[2, 4]), planned(epochs_grid=[2, 4, 8])
    assert finished(few, lambda r: 0.5).keys() < finished(more, lambda r: 0.5).keys()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"max_steps": 100}, "max_steps and epochs_grid are both given; give one of them"),
        ({"epochs": 3}, "epochs and epochs_grid are both given"),
        ({"epochs_grid": [2.5]}, "epochs_grid must be a list of whole numbers of at least 1"),
        ({"epochs_grid": [2, 2]}, "epochs_grid: 2 is there twice"),
        ({"task": None, "script": f"{Path(__file__).parent}/script/loops.py:epochs"}, "leave 'epochs_grid' out"),
    ],
)
def test_bad_input(more: dict[str, Any], sentence: str) -> None:
    given = {name: each for name, each in ({**TINY, "epochs_grid": [2, 4]} | more).items() if each is not None}
    with pytest.raises(ValueError, match=sentence):
        resolve(given)


def test_what_is_given_sets_the_recipe_s_word_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"max_steps": 7}
    monkeypatch.setattr("steppe.compare.data.tasks.recipe_of", lambda *_: dict(recipe))
    assert resolve({"epochs_grid": [2, 4]}).max_steps is None and resolve({}).max_steps == 7
    recipe = {"epochs_grid": [2, 4]}
    assert resolve({"epochs": 3}).epochs_grid is None and resolve({"max_steps": 3}).epochs_grid is None
    recipe = {"epochs_grid": [2, 4], "max_steps": 7}
    with pytest.raises(ValueError, match="both max_steps and epochs_grid"):
        resolve({})


def test_a_radius_is_searched_for_one_length() -> None:
    made = planned()
    with pytest.raises(ValueError, match="epochs_grid: a radius is searched for a training of one length"):
        rho.prepared(made.spec, made.choices[0], 0)
    assert main(["rho", "sam", "--task", "tests.compare.tiny:task", "--epochs-grid", "2,4"]) == 2


# The runs


def test_a_run_trains_its_own_length_and_is_looked_at_about_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    given, make = [], run.make_trainer
    monkeypatch.setattr(run, "make_trainer", lambda *a, **k: given.append(a[3]) or make(*a, **k))
    record = run.train(settings(), replace(Run("sam", 0.1, 0), epochs=20))
    assert (record["epochs"], record["steps"], record["chosen_epochs"]) == (20, 80, 20) and given == [80]
    assert record["curve"]["epoch"] == list(range(2, 21, 2))
    half = run.train(settings(), Run("base", None, 0, "half", epochs=20))
    assert (half["epochs"], half["chosen_epochs"], half["curve"]["epoch"]) == (10, 20, [2, 4, 6, 8, 10])
    assert run.train(settings(eval_every=10), Run("base", None, 0, epochs=20))["curve"]["epoch"] == [10, 20]


def test_cost_is_measured_over_the_schedule_of_each_method_s_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    given, make, ends, forward = {}, costs.make_trainer, [], costs.forward
    monkeypatch.setattr(
        costs, "make_trainer", lambda s, t, r, n, **k: given.setdefault(r.method, n) and make(s, t, r, n, **k)
    )
    monkeypatch.setattr(costs, "forward", lambda trainer, step: ends.append(step) or forward(trainer, step))
    monkeypatch.setattr(costs, "_blocks", lambda turn: 2)
    runs = [Run("sam", 0.1, 0, epochs=10), Run("late_sam", 0.1, 0, epochs=30)]
    monkeypatch.setattr(
        costs, "peak_memory", lambda spec, task, run, steps: given.setdefault(f"{run.method} held", steps)
    )
    costs.measure(settings(), runs, {"sam": 1.0, "late_sam": 0.25})
    assert given == {"base": 40, "sam": 40, "late_sam": 120, "base held": 40, "sam held": 40, "late_sam held": 120}
    assert ends[:3] == [0, 0, 0] and ends[3:] == [20, 20, 100]


def test_the_time_of_a_study_counts_each_run_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretold, "taken", lambda device, work: (1.0, work()))
    monkeypatch.setattr(foretold, "_example", lambda *_: 0.0)
    made = planned(jobs=1)
    assert made.trainings() == {
        Run("base", None, 0, epochs=2): 2, Run("base", None, 0, epochs=4): 2 + 1, Run("base", None, 0, epochs=8): 2,
        Run("sam", 0.05, 0, epochs=2): 4, Run("sam", 0.05, 0, epochs=4): 4 + 1, Run("sam", 0.05, 0, epochs=8): 4,
        Run("base", None, 0, "double", epochs=4): 3, Run("base", None, 0, "half", epochs=4): 3,
    }  # fmt: skip
    epochs = 2 * 6 + 4 * 8 + 8 * 6 + 8 * 3 + 2 * 3
    assert foretold.seconds(made) == pytest.approx(4 * epochs)


def test_the_time_left_weighs_runs_by_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done in this process; the last run of all is the longest."""
    monkeypatch.setattr(study, "Pool", _InStep)
    monkeypatch.setattr(costs, "measure", lambda *_: {"methods": {}})
    told: list[Any] = []

    class Told(PlainProgress):
        def expect(self, total: int, work: Any = None) -> None:
            super().expect(total, work)
            told.append((total, *work))

    made = study.check(settings(epochs_grid=[1, 3], rho=[0.1], seeds=1, tune_seeds=1, jobs=1, out=str(tmp_path)))
    study.compare(made, Told(Console(quiet=True)))
    kept = [json.loads(path.read_text())["epochs"] for path in (tmp_path / "runs").glob("*.json")]
    half = sum(each % 1 for each in kept)  # of three epochs one and a half, which here is one
    assert told[0][1:] == (2 * (1 + 3) + 2 * 3 + 1, 0) and told[-1][0] == len(kept)
    assert told[-1][1] == told[-1][2] == sum(kept) - half


class _InStep(InStep, Workers):
    def __init__(self, size: int) -> None:
        super().__init__()


def test_a_method_at_half_the_base_s_length_costs_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained for real; what is best on validation is said here. The report is made anew from the folder, too."""
    monkeypatch.setattr(study, "Pool", _InStep)
    for name, count in (("WARM_UP", 1), ("BLOCK", 4), ("LEAST", 4), ("MOST", 4), ("MEMORY_STEPS", 1)):
        monkeypatch.setattr(costs, name, count)

    def validation(found: Any) -> float:
        return float(found[0]["chosen_epochs"] * (1 if found[0]["method"] == "base" else -1))

    monkeypatch.setattr(plan, "_validation", validation)
    made = study.check(settings(epochs_grid=[1, 2], rho=[0.1], seeds=2, tune_seeds=1, jobs=1, out=str(tmp_path)))
    outcome = study.compare(made, PlainProgress(Console(quiet=True)))
    rows = {(row["method"], row["variant"]): row for row in outcome.summary["rows"]}
    kept = json.loads((tmp_path / "cost.json").read_text())
    step = kept["methods"]["sam"]["time_ratio"]["median"]
    sam = rows["sam", "plain"]
    assert (sam["epochs"], sam["length"], sam["passes"]) == (1, 0.5, 2.0)
    assert sam["cost"] == sam["time_ratio"]["median"] == pytest.approx(0.5 * step)
    assert [(rows["base", each]["epochs"], rows["base", each]["cost"]) for each in ("half", "plain", "double")] == [
        (1, 0.5), (2, 1.0), (4, 2.0)
    ]  # fmt: skip
    assert [(point["epochs"], point["runs"]) for point in sam["tuning"]] == [(1, 1), (2, 1)]
    assert study.rewrite(tmp_path).summary["rows"] == outcome.summary["rows"]
    (tmp_path / "cost.json").unlink()
    by_passes = {row["method"]: row["cost"] for row in study.rewrite(tmp_path).summary["rows"]}
    assert by_passes["sam"] == 0.5 * 2.0, "half as many steps of two passes"


def test_values_added_in_the_same_folder_run_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Pool", _InStep)
    monkeypatch.setattr(costs, "measure", lambda *_: {"methods": {}})
    kept: list[dict[str, str]] = []
    for grid, now in (([1, 2], "2026-01-01"), ([1, 2, 3], "2026-01-02")):
        monkeypatch.setattr(study, "finished", lambda now=now: now)
        monkeypatch.setattr("steppe._command.provenance.finished", lambda now=now: now)
        given = settings(epochs_grid=grid, rho=[0.1], seeds=1, tune_seeds=1, jobs=1, out=str(tmp_path))
        shown = PlainProgress(Console(file=(said := StringIO()), width=200))
        monkeypatch.setattr(shown, "skip", (skipped := list[float]()).append)
        study.compare(study.check(given), shown)
        kept.append({path.name: path.read_text() for path in (tmp_path / "runs").glob("*.json")})
    assert kept[0].items() <= kept[1].items() and len(kept[1]) > len(kept[0])
    assert all("epochs3" in name for name in kept[1].keys() - kept[0].keys())
    lines = said.getvalue().splitlines()
    before = [line for line in lines if "(done before)" in line]
    assert len(before) >= 2 and len(skipped) == len(before) and all(skipped)
    assert "another process" not in said.getvalue()
