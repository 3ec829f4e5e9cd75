"""Runs that diverged or learned nothing choose nothing, and are named wherever their figures stand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tests.compare import records as made_up
from tests.compare import tiny
from tests.compare.engine.test_plan import finish, plan

from steppe.compare import Split, Task
from steppe.compare.analysis import lost
from steppe.compare.analysis.summary import summarise
from steppe.compare.data import chance
from steppe.compare.engine import run, study
from steppe.compare.engine.measure import metrics
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.report import page
from steppe.compare.report.table import table

TRAINED = {"method": "sam", "variant": "plain", "passes": 2.0}
LABELS = [(1, "base, 2× epochs"), (2, "SAM")]
TEN = {"guessing": math.log(10), "most": 40.0, "others": 720}
NO_MORE = "it tells no more of the validation labels than guessing does (accuracy"


@pytest.mark.parametrize(
    ("losses", "beyond", "more", "why"),
    [
        ([2.3, 0.1], 30.0, TEN, None),
        ([2.3, 2.3], 0.0, TEN | {"accuracy": 0.1}, f"{NO_MORE} 10.0 %)"),
        ([2.3, 0.1], 1.9, TEN, NO_MORE),
        ([2.3, 0.1], 2.1, TEN, None),
        ([2.3, math.nan], 30.0, TEN, "its training loss is not finite"),
        ([2.3, 9.0], 30.0, TEN, "its training loss rose from 2.3 to 9"),
        ([0.01, 3.0], 30.0, TEN, None),
        ([0.7, 0.1], 1.0, {"guessing": math.log(2), "most": 5.0, "others": 15}, None),
        ([0.7, 0.69], 1.0, {"guessing": math.log(2), "most": 5.0, "others": 15}, NO_MORE),
        ([0.1, 0.05], 1.0, {"guessing": 0.1, "most": 14.0, "others": 4}, None),
        ([0.1, 0.1], 0.0, {"guessing": 0.1, "most": 14.0, "others": 4}, NO_MORE),
        ([0.7, 0.69], 0.0, {"guessing": math.log(2), "most": 1.0, "others": 1}, None),
        ([0.5, 0.4], 0.0, {}, None),
        ([0.5, 1.4], 0.0, {}, "its training loss rose from 0.5 to 1.4"),
    ],
)  # fmt: skip
def test_what_counts_as_lost(losses, beyond, more, why):
    found = lost.why(losses, beyond=beyond, **more)
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


RARE = torch.arange(200) < 4
"""Two in a hundred."""


def rare(right: int, wrong: int, sure: float = 5.0, judge: str = "accuracy", rest: float = 0.0):
    """What is said of who finds `right` of four rare examples and takes `wrong` others for such."""
    part = Split(torch.zeros(200, 1), RARE.long())
    task = Task("rare", part, part, part, 2, metrics=(judge, *{"accuracy", "nll"} - {judge}))
    scores = torch.tensor([sure, 0.0]).repeat(200, 1)
    scores[[*range(right), *range(4, 4 + wrong)]] = torch.tensor([0.0, sure])
    scores[:4, 1] += rest
    model = Said(scores)
    record = run._beyond(model, task) | {"val_accuracy": metrics(model, part, task.measured, 2)["accuracy"]}
    return run._lost(task, [0.1, 0.05], record), record


class Said(torch.nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores


def test_who_finds_half_of_a_rare_class_is_better_than_guessing():
    """Right 99 times in a hundred, where who always says no is 98 times: twice the errors, and was no difference."""
    why, record = rare(2, 0)
    assert record["val_accuracy"] == 0.99 and why is None and record["beyond_chance"] > 5
    assert rare(2, 4)[0] is None, "right less often than who says no, and better"


def test_four_rare_examples_confirm_nothing_by_themselves_and_many_do(monkeypatch):
    assert rare(0, 0)[0] is None and rare(0, 3)[0] is None
    monkeypatch.setattr(lost, "MANY", 4)
    for judge in ("accuracy", "balanced_accuracy", "f1"):
        assert rare(0, 0, judge=judge)[0] == f"{NO_MORE} 98.0 %)"
        assert rare(0, 0, judge=judge, rest=4.0)[0] == f"{NO_MORE} 98.0 %)", "it answers as before"
    for judge in ("auroc", "nll"):
        assert rare(0, 0, judge=judge)[0] and rare(0, 0, judge=judge, rest=4.0)[0] is None, "it ranks them first"


@pytest.mark.parametrize("answers", [True, False])
def test_beyond_chance_is_by_all_orders_of_the_labels(answers):
    rng = torch.Generator().manual_seed(0)
    for classes in (2, 4):
        labels, scores = torch.randint(0, classes, (30,), generator=rng), torch.randn(30, classes, generator=rng)
        given = (
            torch.nn.functional.one_hot(scores.argmax(1), classes).double() if answers else scores.double().softmax(1)
        )
        orders = torch.stack([labels[torch.randperm(30, generator=rng)] for _ in range(20_000)])
        fits = given.T[orders, torch.arange(30)].sum(1)
        wanted = (given[torch.arange(30), labels].sum() - fits.mean()) / fits.std()
        metric = chance.beyond(labels, "accuracy" if answers else "nll")
        meter = metric.start(classes)
        for piece in torch.arange(30).split(7):
            meter.update(scores[piece], labels[piece])
        assert meter.compute() == pytest.approx(float(wanted), abs=0.05)


def test_what_right_answers_have_is_counted_in_pieces(monkeypatch):
    """Of 60,000 labels in 1,000 classes, all at once were nearly two gigabytes, for every run."""
    labels, whole = torch.arange(2_500) % 7, chance._Beyond(torch.arange(2_500) % 7, 7, answers=True)
    whole.update(torch.nn.functional.one_hot(labels), labels)
    sizes, update = list[int](), chance._Beyond.update
    monkeypatch.setattr(chance._Beyond, "update", lambda self, x, y: (sizes.append(len(y)), update(self, x, y))[1])
    assert chance.most(labels) == pytest.approx(whole.compute()) and sizes == [1000, 1000, 500]


def test_labels_of_a_loss_of_ones_own_and_numbers():
    task, model = tiny.task(0), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    assert "beyond_chance" in run._beyond(model, task) and run._beyond(model, replace(task, classes=0)) == {}
    own = replace(task, loss=torch.nn.functional.multi_margin_loss, metrics=("nll",))
    assert run._beyond(model, own) == {} and run._lost(own, [0.5, 0.6], {}) is None


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


def test_nothing_follows_from_a_base_that_learned_nothing():
    """That it was trained long enough, say, or that a radius broke trainings that break without."""
    records = made_up.records(made_up.NOISY)
    cliff = {"tunes": "rho", "best": 0.2, "beside": 0.2, "broke": 2, "of": 2, "taken": 0.2}
    for record in records:
        record |= {"cliff": cliff} if (record["method"], record["phase"]) == ("grst", "tune") else {}

    def said() -> str:
        return " ".join(summarise(records, None, made_up.spec(made_up.NOISY))["notes"])

    before = said()
    for record in records:
        record |= {"diverged": "why"} if record["method"] == "base" else {}
    for sentence in ("Early stopping alone", "Twice the epochs", "broke 2 of 2 tuning runs"):
        assert sentence in before and sentence not in said()


def test_labels_with_commas_stand_between_semicolons():
    rows = [{"diverged": gone, "seeds": 2, "failed": 0, "label": label} | TRAINED for gone, label in LABELS]
    assert "guessing: 1 of 2 runs of base, 2× epochs; 2 of 2 runs of SAM; what" in lost.sentence(rows)
    plain = [rows[1], rows[0] | {"label": "GSAM"}]
    assert "guessing: 2 of 2 runs of SAM, 1 of 2 runs of GSAM; what" in lost.sentence(plain)


def test_a_base_too_short_to_learn_is_a_weak_baseline():
    """What was said of it was said to mean nothing, where it means that so few epochs are too few."""
    names = {"half": "base, ½× epochs", "plain": "base", "double": "base, 2× epochs"}
    rows = [
        {"diverged": 0, "seeds": 3, "failed": 0, "label": label, "passes": 1.0, "method": "base", "variant": variant}
        for variant, label in names.items()
    ]
    rows[0]["diverged"] = 2
    assert lost.sentence(rows) == (
        "† Too short to learn: 2 of 3 runs of base, ½× epochs, which is a weak baseline and no more."
    )
    rows[2]["diverged"] = 1
    assert lost.sentence(rows).startswith("† Diverged or no better than guessing: 1 of 3 runs of base, 2× epochs; what")
    rows[1]["diverged"] = 1
    assert "Too short" not in lost.sentence(rows) and "2 of 3 runs of base, ½× epochs" in lost.sentence(rows)


def test_where_all_are_lost_one_sentence_says_so():
    records = made_up.records(made_up.NOISY)
    for record in records:
        record["diverged"] = "why"
        if record["method"] == "base" and record["variant"] == "plain":
            record["rows"] = {"commonest class": {"val_accuracy": 0.5, "test_accuracy": 0.5}}
    summary = summarise(records, None, made_up.spec(made_up.NOISY))
    assert any(row["label"] == "commonest class" for row in summary["rows"])
    assert summary["verdict"].endswith(
        "† All runs diverged or ended no better than guessing: nothing follows from these figures."
    )


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
