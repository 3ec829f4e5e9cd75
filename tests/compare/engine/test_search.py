"""What is tried beyond the grids that were given, further settings, and averaged weights of any method."""

import json
import math

import pytest
from tests.compare import studies

from steppe._command.choices import parse
from steppe.compare.engine import study, tune
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run, describe
from steppe.compare.engine.spec import resolve

TINY = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 2, "rho": [0.1, 0.2], "tune_seeds": [0, 1]}


def plan(**flags):
    spec = resolve(TINY | flags)
    return Plan(spec, "hash")


def finished(made, accuracy):
    """Records of all that is needed, wave by wave, until nothing new is; and how many waves that took."""
    records, waves = {}, 0
    while new := {id_: run for id_, run in made.needed(records).items() if id_ not in records}:
        records |= {id_: {"val_accuracy": accuracy(run), "phase": "", "method": run.method} for id_, run in new.items()}
        waves += 1
    return records, waves


def tried(made, records, name="sam"):
    runs = made.needed(records).values()
    return sorted({(run.value, *(value for _, value in run.more)) for run in runs if run.method == name})


def near(best):
    """Better the nearer to a radius, by ratio."""
    return lambda run: 0.5 if run.value is None else 0.9 - 0.1 * abs(math.log(run.value / best))


def test_a_small_figure_chooses_as_a_large_one():
    made = plan(grow=5)
    records, _ = finished(made, lambda run: 1e-12 * near(0.4)(run))
    assert made.best(made.choices[0], records).value == 0.4


@pytest.mark.parametrize(
    ("best", "grow", "radii", "chosen"),
    [
        (0.75, 2, [0.1, 0.2, 0.4, 0.8], 0.8),  # up, and up again; the budget ends there
        (5.0, 2, [0.1, 0.2, 0.4, 0.8], 0.8),
        (0.4, 5, [0.1, 0.2, 0.4, 0.8], 0.4),  # one step too far shows that the best lies within
        (0.05, 2, [0.025, 0.05, 0.1, 0.2], 0.05),
        (0.03, 1, [0.05, 0.1, 0.2], 0.05),
        (0.75, 0, [0.1, 0.2], 0.2),
    ],
)
def test_a_grid_grows_while_the_best_lies_at_its_edge(best, grow, radii, chosen):
    made = plan(grow=grow)
    records, _ = finished(made, near(best))
    assert [value for (value,) in tried(made, records)] == radii
    assert made.best(made.choices[0], records).value == chosen
    assert made.total(records) == len(records)
    added = [(r["phase"], r.get("grown", False)) for r in made.records(records)]
    assert added.count(("tune", True)) == 2 * (len(radii) - 2) and ("final", True) not in added


def test_a_tie_at_the_edge_is_no_reason_to_go_on():
    made = plan(grow=3)
    records, _ = finished(made, lambda run: 0.9)
    assert tried(made, records) == [(0.1,), (0.2,)] and made.best(made.choices[0], records).value == 0.1


def test_nor_is_a_value_whose_run_failed_tried_again():
    made = plan(grow=3)
    records, _ = finished(made, near(0.4))
    failed = {id_ for id_, run in made.needed(records).items() if run.value == 0.4}
    rest = {id_: each for id_, each in records.items() if id_ not in failed}
    assert made.best(made.choices[0], rest, failed).value == 0.2
    assert {run.value for run in made.needed(rest, failed).values()} == {None, 0.1, 0.2, 0.4}


def test_the_base_grows_its_grid_of_rates_in_the_same_way():
    made = plan(lr_grid=[0.1, 0.2], grow=1)
    records, _ = finished(made, lambda run: 0.5 + run.lr if run.method == "base" else 0.5)
    assert made.best_base(records).lr == 0.4
    assert {run.lr for run in made.needed(records).values() if run.method == "sam"} == {0.4}


def test_every_side_tries_as_many_settings_as_the_largest_grid_has():
    """Two radii at three alphas make six: SAM and the base fill up to six, GSAM goes one beyond its edge as it may."""
    made = plan(methods=["sam", "gsam"], tune=["gsam:alpha=0.1,0.2,0.4"], lr_grid=[0.1, 0.2], grow=1)

    def accuracy(run):
        if run.method == "base":
            return 0.9 - abs(math.log(run.lr / 0.15))
        return near(0.15)(run) - (abs(dict(run.more).get("alpha", 0.2) - 0.2))

    records, _ = finished(made, accuracy)
    sides = {name: set() for name in ("base", "sam", "gsam")}
    for run in made.needed(records).values():
        if run.variant == "plain":
            sides[run.method].add((run.value, run.lr, run.more))
    assert {name: len(each) for name, each in sides.items()} == {"base": 6, "sam": 6, "gsam": 7}
    assert 0.141 in {value for value, _, _ in sides["sam"]}  # sqrt(0.1 * 0.2)
    assert made.best(made.choices[1], records).more == (("alpha", 0.2),)


def test_further_settings_are_tried_together_with_the_radius():
    made = plan(methods=["look_sam"], tune=["k=5,10"], grow=0)
    records, _ = finished(made, lambda run: near(0.2)(run) + 0.01 * dict(run.more).get("k", 0))
    assert tried(made, records, "look_sam") == [(0.1, 5), (0.1, 10), (0.2, 5), (0.2, 10)]
    best = made.best(made.choices[0], records)
    assert (best.value, best.more) == (0.2, (("k", 10),))
    assert describe(best) == "LookSAM rho=0.2 k=10 seed 0" and "-k10-" in best.id("hash")
    assert best.id("hash") != Run("look_sam", 0.2, 0).id("hash")


def test_they_grow_as_far_as_the_method_can_be_built():
    """p = 0.25, 0.5 goes on to 1; a probability of 2 is none."""
    made = plan(methods=["rst"], tune=["rst:p=0.25,0.5"], rho=[0.1], grow=5)
    records, _ = finished(made, lambda run: dict(run.more).get("p", 0.0) / 2)
    assert tried(made, records, "rst") == [(0.1, 0.25), (0.1, 0.5), (0.1, 1.0)]
    made = plan(methods=["look_sam"], tune=["k=2,4"], rho=[0.1], grow=5)
    records, _ = finished(made, lambda run: 1 / dict(run.more).get("k", 9))
    assert tried(made, records, "look_sam") == [(0.1, 1), (0.1, 2), (0.1, 4)]  # a whole number stays one


def test_words_are_tried_and_not_grown():
    made = plan(methods=["look_sam"], tune=["look_sam:push=natural,guarded"], grow=2)
    records, _ = finished(made, lambda run: 0.9 if dict(run.more).get("push") == "guarded" else 0.1)
    assert made.best(made.choices[0], records).more == (("push", "guarded"),)


def test_a_methods_own_radii_in_its_own_unit():
    made = plan(methods=["sam", "asam"], tune=["asam:rho=0.7,1.4"], grow=0)
    records, _ = finished(made, lambda run: 0.9)
    assert tried(made, records, "asam") == [(0.7,), (1.4,)] and tried(made, records) == [(0.1,), (0.2,)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("alpha=0.1,0.3", ["alpha=0.1,0.3"]),
        ("look_sam:k=5,10,alpha=0.1,gsam:alpha=1,2", ["look_sam:k=5,10", "look_sam:alpha=0.1", "gsam:alpha=1,2"]),
        ("my.py:MySAM:k=5,10 p=.5", ["my.py:MySAM:k=5,10", "my.py:MySAM:p=.5"]),
    ],
)
def test_how_they_are_written(text, pieces):
    assert tune.split(text) == pieces


@pytest.mark.parametrize(
    ("methods", "texts", "sentence"),
    [
        ("sam", ["5,10"], "names no setting; write setting=value,value"),
        ("look_sam", ["k="], "'k=' has no values"),
        ("look_sam", ["k=5", "k=10"], "'k' is there twice"),
        ("sam", ["look_sam:k=5,10"], "'look_sam' is not among the methods"),
        ("sam", ["rho=0.1,0.2"], "rho has a flag of its own, --rho; or name the method, as sam:rho=..."),
        ("look_sam:k=5", ["look_sam:k=5,10"], "'k' is fixed in the method 'look_sam:k=5'"),
        ("sam", ["alhpa=1,2"], "none of the methods has a setting 'alhpa' that is open"),
        ("look_sam", ["look_sam:k=5,x"], "method 'look_sam': k = 'x' is not a whole number"),
    ],
)
def test_what_nobody_would_listen_to_is_refused(methods, texts, sentence):
    with pytest.raises(ValueError) as refused:
        tune.check(texts, [parse(methods)])
    assert sentence in str(refused.value)


def test_a_value_with_which_a_method_cannot_be_built_is_refused_before_anything_runs(tmp_path):
    spec = resolve(TINY | {"methods": ["rst"], "tune": ["p=0.5,1.5"], "out": str(tmp_path)})
    with pytest.raises(ValueError, match="method 'rst': .*1.5"):
        study.check(spec)


def test_averaged_weights_of_a_method_are_its_trainings_own(tmp_path):
    """No run more than without; its figures are those of the average, at the end and early."""
    methods = "sam:rho=0.1,sam:average=ema,rho=0.1,sam:average=lawa,rho=0.1,rst:average=ema"
    ended = studies.complete(tmp_path, "--methods", methods, "--metric", "nll", "--json", "--epochs", "4")
    assert ended.returncode == 0, ended.stderr
    rows = {row["method"]: row for row in json.loads(ended.stdout)["rows"]}
    sam, ema = rows["sam:rho=0.1"], rows["sam:average=ema,rho=0.1"]
    assert ema["label"] == "SAM (average=ema, rho=0.1)" and ema["final"] == ema["early"] == sam["averaged"]
    assert sam["by_seed"]["final"] != ema["by_seed"]["final"] and ema["passes"] == 2.0 and ema["time_ratio"]
    lawa = rows["sam:average=lawa,rho=0.1"]
    assert lawa["final"] == sam["lawa"]
    assert lawa["averaged"] == lawa["early"] == lawa["lawa"] and ema["lawa"] == ema["final"], "in every form its own"
    assert lawa["by_seed"]["final"] not in (sam["by_seed"]["final"], ema["by_seed"]["final"])
    assert sam["sharpness"] and ema["sharpness"] is None, "that is of the last weights"
    runs = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert sum(run["method"] == "sam:rho=0.1" for run in runs) == 3 and {r["method"] for r in runs} == {
        "base", "sam:rho=0.1", "rst",
    }  # fmt: skip
    chosen = rows["rst:average=ema"]["rho"]
    figures = {rho: [r["averaged"]["val_nll"] for r in runs if r["rho"] == rho and r["method"] == "rst" and
                     r["seed"] < 2] for rho in (0.1, 0.2)}  # fmt: skip
    assert chosen == min((0.1, 0.2), key=lambda rho: sum(figures[rho]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sam:average=swa", "average = 'swa' is not 'ema', .* or 'lawa'"),
        ("sam:average=lawa", "judged by `steppe compare` alone"),
    ],
)
def test_where_an_average_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(text).with_the_mean("the benchmark")


def test_what_was_tried_and_chosen_is_told(tmp_path):
    """In the JSON with what was added, in the table, and in the report."""
    more = ["--methods", "rst", "--tune", "p=0.25,0.5", "--rho", "0.1", "--grow", "1", "--metric", "nll"]
    ended = studies.complete(tmp_path, *more, "--epochs", "4")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    row = next(row for row in summary["rows"] if row["method"] == "rst")
    tried = {point["more"]["p"]: (point["val_nll"], point.get("grown", False)) for point in row["tuning"]}
    assert {p for p, (_, grown) in tried.items() if not grown} == {0.25, 0.5}
    assert [p for p, (_, grown) in tried.items() if grown] in ([1.0], [0.125])
    best = min(tried, key=lambda p: tried[p][0])
    assert row["more"] == {"p": best} and row["rho"] == 0.1
    assert f"p {best:g}" in ended.stdout
    page = (tmp_path / "report.html").read_text()
    assert f"0.1, p {best}" in page and "(added)" in page
