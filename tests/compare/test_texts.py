"""Studies of texts from their settings to the report."""

import functools
import itertools
import json

import pytest
import torch
from rich.console import Console
from tests.compare import studies, words

from steppe._command.choices import parse
from steppe._command.progress import PlainProgress
from steppe._command.ranks import InStep
from steppe.cli import main
from steppe.compare.data import tasks
from steppe.compare.engine import cost, run, spec, study
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run, describe
from steppe.compare.engine.spec import Spec, resolve
from steppe.lora.bar import BAR
from steppe.optim import AMSGrad


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("texts")
    words.settings(made)  # the model is saved here, which draws a bar that no test wants to read
    return made


def train_anew(folder, method: str, value: float | None, **flags) -> dict:
    return run.train(words.settings(folder, **flags), Run(method, value, 0))


train = functools.cache(train_anew)  # records are only read


# settings


@pytest.mark.parametrize(
    ("flags", "hash_"),
    [
        ({"task": "digits-few"}, "e371321a508e"), ({"task": "digits-noisy", "epochs": 10}, "eeb3ad00a80a"),
        ({"task": "digits-few", "optimizer": "adamw", "lr": 0.1}, "858116cbe614"),
    ],
    ids=["defaults", "noisy", "adamw"],
)  # fmt: skip
def test_the_hash_of_studies_without_texts_is_what_it_was_before_there_were_any(flags, hash_, monkeypatch):
    monkeypatch.setattr(spec.steppe, "__version__", "0")
    assert resolve({"device": "cpu", **flags}).hash() == hash_


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"adapt": "full"}, False), ({"lora_r": 4}, False), ({"max_length": 12}, False), ({"per_class": 9}, False),
        ({"warmup": 0.3}, False), ({"max_steps": 7}, False), ({"sharpness_examples": 9}, False),
        ({"mu": [0.7]}, True), ({"lr_grid": [0.1]}, True), ({"rho": [0.3]}, True),
    ],
)  # fmt: skip
def test_settings_of_texts_count_where_they_decide(folder, change, same):
    assert (words.settings(folder, **change).hash() == words.settings(folder).hash()) is same


def test_texts_have_a_recipe_and_a_learning_rate_for_each_way_to_train(folder):
    lora, full = words.settings(folder), words.settings(folder, adapt="full")
    assert (lora.optimizer, lora.lr_schedule, lora.lr, full.lr) == ("adamw", "linear", 1e-3, 3e-5)
    assert lora.lora().r == 8 and lora.lora().targets == ("query", "value") and full.lora() is None
    assert lora.methods == ["recommended", "sam", "nbar", "look_sam"] and "grst" in full.methods


@pytest.mark.parametrize(("count", "mu"), [(1, [0.5]), (3, [0.2, 0.5, 1.0]), (4, [0.2, 0.5, 1.0, 2.0])])
def test_mu_has_as_many_values_as_rho(count, mu):
    assert Spec(rho=[0.01 * (i + 1) for i in range(count)]).grids["mu"] == mu
    assert Spec(rho=[0.1], mu=[3.0, 4.0]).grids == {"rho": [0.1], "mu": [3.0, 4.0], "sigma": [0.05]}


def test_a_grid_of_many_is_spread_over_the_usual_range():
    found = Spec(rho=[0.01 * (i + 1) for i in range(9)]).grids["mu"]
    assert len(set(found)) == 9 and found == sorted(found) and (found[0], found[-1]) == (0.1, 5.0)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--task text:{data}", "needs a pretrained model; name one with --model hf:FOLDER or hf:ID"),
        ("--task text:{data} --model cnn", "model 'cnn' cannot read task"),
        ("--model hf:{model}", "cannot read task 'mnist1d-10k'"),
        ("--task text:{data} --model hf:{data}", "cannot load a model|no folder here|cannot get the model"),
        ("--task text:nowhere.train --model hf:{model}", "is neither a file nor a folder"),
        ("--task text:{data} --model hf:{model} --image-size 16", "does not take 'image_size'"),
        ("--per-class 5", "task 'mnist1d-10k' does not take 'per_class'"),
        ("--adapt full", "does not take 'adapt'"),
        ("--task text:{data} --model hf:{model} --adapt half", "adapt must be 'lora' or 'full', got 'half'"),
        ("--task text:{data} --model hf:{model} --adapt full --lora-r 4", "lora_r belongs to adapt = 'lora'"),
        ("--task text:{data} --model hf:{model} --lora-targets qurey", "did you mean 'query'?"),
        ("--task text:{data} --model hf:{model} --lora-kind lo", "lora_kind must be 'lora', 'rslora' or 'dora'"),
        ("--task text:{data} --model hf:{model} --per-class 4 --labelled 8", "labelled and per_class are both given"),
        ("--task text:{data} --model hf:{model} --validation 99", "more than the 8 there are; lower --validation"),
        ("--task text:{data} --model hf:{model} --max-length 99", "max_length 99"),
        ("--task text:{data} --model hf:{model} --momentum 0.5", "leave it out with 'adamw'"),
        ("--task text:{data} --model hf:{model} --adapt full --methods nbar", "method 'nbar'"),
        ("--task text:{data} --model hf:{model} --adapt full --methods flat_lora", "the model holds no LoRA layer"),
        ("--epochs 3 --max-steps 9", "epochs and max_steps are both given"),
        ("--lr 0.1 --lr-grid 0.1,0.2", "lr and lr_grid are both given"),
        ("--lr-grid 0.1,0", "lr_grid must be a list of learning rates above 0"),
        ("--mu x", "mu must be a list of numbers above 0, got 'x'"),
        ("--max-steps 0", "max_steps must be a whole number of at least 1"),
        ("--warmup 1", "warmup must be a share"),
        ("--methods sam:lr=0.1", "method 'sam' has no setting 'lr'"),
        ("--methods adasam:lr=fast", "lr = 'fast' is not a number"),
        ("--methods nbar:rho=0.1", "method 'nbar' has no setting 'rho'"),
    ],
)
def test_bad_input_is_one_sentence(folder, flags, hint, capsys):
    typed = flags.format(data=folder / "data" / "words.train.all", model=folder / "model").split()
    assert main(["compare", *typed, "--out", str(folder / "refused")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("steppe: ") and told.count("\n") == 1
    assert any(part in told for part in hint.split("|"))
    assert not (folder / "refused").exists()


# schedule and optimizer


def rates(folder, **flags) -> list[float]:
    settings = words.settings(folder, lr=1.0, **flags)
    task = run.load_task(settings, 0)
    trainer = run.make_trainer(settings, task, Run("base", None, 0), 10)
    stream = itertools.chain.from_iterable(run.batches(task, 4, 0))
    found = []
    for batch in itertools.islice(stream, 10):
        found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.step(batch)
    return found


def test_the_linear_schedule_falls_to_nothing_in_equal_steps(folder):
    assert rates(folder, warmup=0.0) == pytest.approx([1 - t / 10 for t in range(10)])


def test_the_warm_up_rises_in_equal_steps_to_the_whole_rate(folder):
    found = rates(folder, warmup=0.3, lr_schedule="linear")
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 4, *(1 - t / 7 for t in range(7))])
    assert rates(folder, warmup=0.3, lr_schedule="constant")[3:] == [1.0] * 7


def test_adasam_takes_the_studys_amsgrad_or_brings_its_own_at_a_rate_that_can_be_set(folder):
    model = torch.nn.Linear(2, 2)
    for kind, method, lr in (
        ("amsgrad", "adasam", 0.3),
        ("adamw", "adasam", 1e-3),
        ("amsgrad", "adasam:lr=0.02", 0.02),
    ):
        settings = words.settings(folder, optimizer=kind, adapt="full", lr=0.3)
        made = run.make_optimizer(settings, model, parse(method))
        assert isinstance(made, AMSGrad) and made.param_groups[0]["lr"] == lr
        assert parse(method).brings(kind) is (lr != 0.3)
    assert isinstance(run.make_optimizer(words.settings(folder, optimizer="amsgrad"), model, None), AMSGrad)


def test_the_chosen_rate_wins_over_the_studys(folder):
    made = run.make_optimizer(words.settings(folder), torch.nn.Linear(2, 2), parse("sam"), 0.25)
    assert made.param_groups[0]["lr"] == 0.25 and isinstance(made, torch.optim.AdamW)


def test_a_run_keeps_what_its_data_lack(folder):
    cut, copies = train(folder, "base", None, max_length=4)["notes"]
    assert "longer than 4 tokens and cut; --max-length 12 takes them whole" in cut
    assert copies.startswith("12 of the 12 test examples (100 %) have inputs")
    (copies,) = train(folder, "base", None)["notes"]
    assert "test examples" in copies


# plan


def tuned_plan(**flags) -> Plan:
    fixed = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 3, "lr_grid": [0.1, 0.2], "grow": 0}
    made = resolve(fixed | flags)
    return Plan(made, made.hash())


def done(plan: Plan, records: dict, accuracy) -> dict:
    return {id_: {"val_accuracy": accuracy(each)} for id_, each in plan.needed(records).items()} | records


def test_first_the_base_chooses_its_rate_then_the_methods_train_at_it():
    plan = tuned_plan()
    assert {(each.method, each.lr, each.seed) for each in plan.needed({}).values()} == {
        ("base", lr, seed) for lr in (0.1, 0.2) for seed in (0, 1)
    }  # fmt: skip
    records = done(plan, {}, lambda each: each.lr)
    assert plan.best_base(records).lr == 0.2
    new = [each for id_, each in plan.needed(records).items() if id_ not in records]
    assert {each.lr for each in new} == {0.2}
    assert sorted((each.method, each.variant, each.seed) for each in new if each.method == "base") == [
        ("base", "double", 0), ("base", "double", 1), ("base", "double", 2),
        ("base", "half", 0), ("base", "half", 1), ("base", "half", 2), ("base", "plain", 2),
    ]  # fmt: skip
    for _ in range(2):
        records = done(plan, records, lambda each: each.lr)
    assert len(records) == plan.total() == (4 + 1) + 3 + 3 + (6 + 1)
    assert plan.best(plan.choices[0], records).lr == 0.2


def test_one_rate_is_taken_as_it_is_and_a_failed_base_ends_the_study():
    plan = tuned_plan(lr_grid=[0.3])
    assert plan.base_tune_runs() == [] and {each.lr for each in plan.needed({}).values()} == {0.3}
    plan = tuned_plan()
    assert plan.best_base({}, failed=set(plan.needed({}))) is None
    assert set(plan.needed({}, set(plan.needed({})))) == set(plan.needed({}))


def test_a_method_with_its_own_optimizer_is_not_told_the_bases_rate():
    plan = tuned_plan(methods=["adasam", "sam"], rho=[0.1])
    records = done(plan, {}, lambda each: each.lr or 0)
    adasam, sam = (plan.best(choice, records) for choice in plan.choices)
    assert (adasam.lr, sam.lr) == (None, 0.2)


def test_runs_say_what_was_tuned():
    bar, sam, base = Run("nbar", 0.5, 1, lr=0.01), Run("sam", 0.1, 1), Run("base", None, 1)
    assert bar._tuned() == {"rho": None, "tunes": "mu", "mu": 0.5, "lr": 0.01} and bar.rho is None
    assert sam._tuned() == {"rho": 0.1} and base._tuned() == {"rho": None}
    assert Run("base", None, 1, lr=0.01)._tuned() == {"rho": None, "tunes": "lr", "lr": 0.01}
    assert describe(bar) == "nBAR mu=0.5 lr=0.01 seed 1"
    assert bar.id("x").startswith("nbar-mu0.5-lr0.01-seed1-")


# runs


def test_bar_is_trained_in_one_pass_and_the_probe_follows_the_pairs(folder):
    record = train(folder, "nbar", 2.0, lr=0.05)
    assert record["passes_per_step"] == 1.0 and record["ascended_share"] == 0.0
    assert (record["rho"], record["tunes"], record["mu"]) == (None, "mu", 2.0)
    balance = record["balancedness"]
    assert balance["epoch"] == [0, 0.5, 1] and balance["share"][0] == 1.0 and len(balance["share"]) == 3
    assert balance["share"] != train(folder, "obar", 2.0, lr=0.05)["balancedness"]["share"]


@pytest.mark.parametrize(("method", "tunes", "value"), [("flat_lora", "sigma", 0.5), ("bi_lora", "rho", 0.1)])
def test_the_other_methods_of_lora_by_name(folder, method, tunes, value):
    record = train(folder, method, value, lr=0.05)
    assert record["passes_per_step"] == 1.0 and record.get("tunes", "rho") == tunes and record[tunes] == value
    assert record["curve"] != train(folder, "base", None, lr=0.05)["curve"]


def test_no_mu_is_the_base_and_no_radius_too(folder):
    base = train(folder, "base", None)
    for method in ("nbar:mu=0", "sam:rho=0", "flat_lora:sigma=0", "bi_lora:rho=0"):
        record = train(folder, method, 0.0)
        assert (record["curve"], record["balancedness"]) == (base["curve"], base["balancedness"])


def test_steps_instead_of_epochs(folder):
    record = train(folder, "base", None, max_steps=7, eval_every=2)
    assert record["steps"] == 7 and record["epochs"] == pytest.approx(7 / 6, abs=1e-3)
    assert record["curve"]["epoch"] == [0.333, 0.667, 1, 1.167]
    double = run.train(words.settings(folder, max_steps=7), Run("base", None, 0, "double"))
    assert double["steps"] == 14


def test_a_run_is_the_same_whether_the_model_was_read_before_it_or_not(folder):
    first = train(folder, "sam", 0.1)
    train_anew(folder, "base", None, noise=0.3)
    torch.rand(10)
    again = train_anew(folder, "sam", 0.1)
    assert all(first[key] == again[key] for key in ("curve", "test_accuracy", "sharpness", "balancedness"))


@pytest.mark.parametrize("method", ["look_sam", "sam_adamw", "adasam", "sl_sam"])
def test_methods_of_the_table_fine_tune_whole_models(folder, method):
    record = train(folder, method, 0.05, adapt="full", max_steps=3)
    assert 0 <= record["test_accuracy"] <= 1 and "balancedness" not in record


def test_early_stopping_brings_back_what_was_trained(folder):
    record = train(folder, "base", None, max_steps=12, eval_every=2, lr=0.05)
    at = record["curve"]["val_accuracy"].index(max(record["curve"]["val_accuracy"]))
    assert record["early"]["test_accuracy"] == record["curve"]["test_accuracy"][at]


def test_the_sharpness_of_some_texts_is_measured_on_those(folder):
    one, other = (train(folder, "base", None, sharpness_examples=count)["sharpness"] for count in (4, 24))
    assert one != other and one["rho"] == other["rho"]


def test_cost_is_measured_with_bar_beside_the_base(folder, monkeypatch):
    studies.few_turns(monkeypatch)
    found = cost.measure(words.settings(folder), [Run("nbar", 0.5, 0), Run("sam", 0.1, 0)], {"nbar": 0.0, "sam": 1.0})
    assert found["methods"]["nbar"]["passes"] == 1.0
    assert found["methods"]["nbar"]["time_ratio"]["median"] < found["methods"]["sam"]["time_ratio"]["median"]
    assert 0.9 < found["methods"]["nbar"]["memory_ratio"] < 1.1


# the whole


def test_a_study_of_texts_from_settings_to_report(folder, monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda *_: {"methods": {}})  # the test before measures it
    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    settings = words.settings(
        folder, methods=["sam", "nbar"], seeds=1, tune_seeds=1, rho=[0.1, 0.2], lr_grid=[0.001, 0.01], jobs=1
    )
    outcome = study.compare(study.check(settings), PlainProgress(Console(quiet=True)))
    assert not outcome.failed
    rows = {(row["method"], row["variant"]): row for row in outcome.summary["rows"]}
    assert rows["nbar", "plain"]["tunes"] == "mu" and rows["nbar", "plain"]["rho"] is None
    assert [point["value"] for point in rows["nbar", "plain"]["tuning"]] == [0.5, 1.0]
    assert rows["base", "plain"]["tunes"] == "lr" and rows["base", "plain"]["values"][0] in (0.001, 0.01)
    assert len(rows["base", "plain"]["tuning"]) == 2 and rows["base", "double"]["tuning"] == []
    assert 0 < rows["nbar", "plain"]["balancedness"]["mean"] < 1
    page = outcome.report.read_text()
    assert "ρ, μ and lr" in page
    runs = list((folder / "out" / "runs").glob("*.json"))
    assert len(runs) == Plan(settings, settings.hash()).total()
    assert all(json.loads(path.read_text())["spec_hash"] == settings.hash() for path in runs)


def test_a_bar_is_built_from_its_mu(folder):
    settings = words.settings(folder)
    trainer = run.make_trainer(settings, run.load_task(settings, 0), Run("obar:schedule=cosine", 0.7, 0), 6)
    assert isinstance(trainer.sharp, BAR) and tasks.is_function(settings.task) is False
