import json
import math

import pytest

from steppe._command.devices import usable_cores
from steppe.compare.engine.plan import Plan, _validation
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve
from steppe.methods import METHODS


def plan(**flags) -> Plan:
    spec = resolve({"task": "tests.compare.tiny:task", "methods": ["sam", "asam"], "seeds": 3, "grow": 0, **flags})
    return Plan(spec, spec.hash())


def finish(made: Plan, records: dict, accuracy) -> dict:
    """Records for everything needed now."""
    new = {id_: {"val_accuracy": accuracy(run), "run_id": id_} for id_, run in made.needed(records).items()}
    return {**new, **records}


def test_first_the_tune_runs_and_the_baselines():
    made = plan()
    needed = list(made.needed({}).values())
    assert sum(run.method == "base" for run in needed) == 9
    assert {run.seed for run in needed if run.method == "sam"} == {0, 1}
    assert {run.value for run in needed if run.method == "sam"} == {0.05, 0.1, 0.2}


def test_then_the_best_radius_on_all_seeds_without_running_anything_twice():
    made = plan()
    records = finish(made, {}, lambda run: 0.9 if run.value in (0.1, 0.2 * METHODS["asam"].rho_factor) else 0.8)
    sam, asam = made.choices
    assert made.best(sam, records).value == 0.1
    assert made.best(asam, records).value == 0.2 * METHODS["asam"].rho_factor
    new = [run for id_, run in made.needed(records).items() if id_ not in records]
    assert [(run.method, run.seed) for run in new] == [("sam", 2), ("asam", 2)]
    everything = finish(made, records, lambda run: 0.9)
    assert len(everything) == made.total() == 2 * 6 + 2 + 9


def test_ties_go_to_the_smaller_radius():
    made = plan()
    assert made.best(made.choices[0], finish(made, {}, lambda run: 0.9)).value == 0.05


def test_a_run_without_a_figure_makes_its_value_the_last():
    """Also of an error, of which less is better."""
    metric = {"name": "mse", "title": "MSE", "higher": False, "percent": False}
    found = [{"metric": metric, "val_mse": each} for each in (1.0, None)]
    assert _validation(found) == -math.inf < _validation(found[:1])


def test_nothing_is_chosen_while_a_tune_run_is_missing():
    made = plan()
    records = finish(made, {}, lambda run: 0.9)
    records.pop(made.id(Run("sam", 0.2, 1)))
    assert made.best(made.choices[0], records) is None


def test_a_radius_with_a_failed_run_is_out_and_a_method_without_any_has_no_final_run():
    made = plan()
    records = finish(made, {}, lambda run: 0.9 - run.value if run.value else 0.9)
    lost = made.id(Run("sam", 0.05, 0))
    records.pop(lost)
    assert made.best(made.choices[0], records, {lost}).value == 0.1
    sam_runs = {id_: run for id_, run in made.needed({}).items() if run.method == "sam"}
    others = {id_: record for id_, record in records.items() if id_ not in sam_runs}
    assert made.best(made.choices[0], others, set(sam_runs)) is None
    assert not [run for id_, run in made.needed(others, set(sam_runs)).items() if run.method == "sam" and run.seed == 2]


def test_one_radius_needs_no_tuning():
    made = plan(methods=["sam:rho=0.3", "asam"], rho=[0.1])
    assert made.total() == 3 + 3 + 9 == len(made.needed({}))
    assert made.best(made.choices[0], {}).value == 0.3


def test_records_appear_once_per_role():
    made = plan(methods=["sam"])
    records = finish(made, {}, lambda run: 0.9)
    records = finish(made, records, lambda run: 0.9)
    roles = made.records(records)
    assert sum(record["phase"] == "tune" for record in roles) == 6
    assert sum(record["phase"] == "final" for record in roles) == 3 + 9


def test_ids_are_file_names_and_depend_on_all_that_decides_the_result():
    made = plan()
    runs = [
        Run("sam", 0.1, 0),
        Run("sam", 0.2, 0),
        Run("sam", 0.1, 1),
        Run("base", None, 0),
        Run("base", None, 0, "double"),
        Run("base", None, 0, lr=0.1),
        Run("base", None, 0, lr=0.1 + 1e-9),
        Run("sam", 0.1, 0, more=(("alpha", 0.1),)),
        Run("sam", 0.1, 0, more=(("alpha", 0.1 + 1e-9),)),
    ]
    ids = [made.id(run) for run in runs]
    assert len(set(ids)) == len(ids)
    assert made.id(Run("look_sam:k=5,push=natural", 0.1, 0)).startswith("look_sam-k=5-push=natural-rho0.1-seed0-")


BESIDE = {
    "methods", "seeds", "tune_seeds", "rho", "mu", "lr_grid", "epochs_grid", "tune_lr", "tune", "grow", "step_back",
    "half", "jobs", "out", "shard", "on", "log",
}  # fmt: skip
READ = {"task": "digits-few", "model": "linear", "script": "tests/compare/script/loops.py:epochs"}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that are no setting's
@pytest.mark.parametrize("name", Spec.model_fields)
def test_only_what_decides_a_run_is_in_the_hash(name):
    spec = plan().spec
    other = spec.model_copy(update={name: READ.get(name, "another")})
    assert (other.hash() == spec.hash()) is (name in BESIDE)


@pytest.mark.parametrize("change", [{"noise": 0.1}, {"labelled": 100}, {"validation": 100}])
def test_what_decides_the_examples_is_in_the_hash(change):
    assert plan(task="digits-few", **change).spec_hash != plan(task="digits-few").spec_hash


def test_flags_win_over_the_file_and_the_file_over_the_task(tmp_path):
    config = tmp_path / "study.toml"
    config.write_text(
        'task = "tests.compare.tiny:task"\nepochs = 9\nlr = 0.3\nmethods = ["sam", "rst:p=0.3"]\nseeds = [4, 7]\n'
    )
    spec = resolve({"epochs": 2, "lr": None}, config)
    assert (spec.epochs, spec.lr, spec.batch_size, spec.model) == (2, 0.3, 10, "mlp")
    assert spec.seeds == [4, 7] and spec.methods == ["sam", "rst:p=0.3"]
    assert spec.out == "results/tests-compare-tiny-task"


def test_the_settings_survive_json():
    spec = resolve({})
    assert Spec.model_validate(json.loads(json.dumps(spec.model_dump()))) == spec


def test_defaults():
    spec = resolve({})
    assert spec.task == "mnist1d-10k" and spec.seeds == list(range(5)) and spec.out == "results/mnist1d-10k"
    assert resolve({"task": "mnist1d"}).seeds == list(range(12))
    assert resolve({"task": "digits-few"}).seeds == [0, 1, 2, 3, 4]
    assert spec.workers == usable_cores() or spec.device != "cpu"
    assert resolve({"jobs": 3}).workers == 3
    assert resolve({"task": "tests.compare.tiny:task"}).methods == ["recommended", "sam", "grst", "look_sam"]
    script = {"script": "tests/compare/script/loops.py:epochs"}  # whose methods may have a closure alone
    assert resolve(script).methods == ["sam", "grst", "look_sam"]
    assert resolve(script | {"methods": "recommended"}).methods == ["recommended"]
