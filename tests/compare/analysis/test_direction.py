"""Every gain is positive where the method is better, whichever way its metric points."""

import pytest
from tests.compare.records import Fake, records

from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import Words
from steppe.compare.judge import Judge, of_records
from steppe.compare.report.page import html
from steppe.compare.report.table import columns, legend

MSE = Judge("mse", "MSE", higher=False, percent=False)


def as_errors(made: list[dict]) -> list[dict]:
    """The same study told as an error: 1 - accuracy, lower is better."""
    for record in made:
        record["metric"] = MSE.as_dict()
        for place in (record, record["early"], record["curve"]):
            for part in ("val", "test"):
                value = place.pop(f"{part}_accuracy", None)
                if value is not None:
                    place[f"{part}_mse"] = [1 - v for v in value] if isinstance(value, list) else 1 - value
    return made


@pytest.fixture(scope="module")
def both() -> tuple[dict, dict]:
    return summarise(records(), None, {}), summarise(as_errors(records()), None, {})


def test_an_error_gives_the_same_gains_order_and_choice_as_the_accuracy_that_it_is_of(both):
    accuracy, error = both
    assert accuracy["best_baseline"] == error["best_baseline"] and accuracy["judged"] == error["judged"]
    for one, other in zip(accuracy["rows"], error["rows"], strict=True):
        assert one["method"] == other["method"] and one["pareto"] == other["pareto"]
        assert other["final"]["mean"] == pytest.approx(1 - one["final"]["mean"])
        for key in ("gain", "gain_final", "delta"):
            assert (one[key] is None) == (other[key] is None)
            if one[key]:
                assert other[key]["mean"] == pytest.approx(one[key]["mean"])
                assert other[key]["ci95"] == pytest.approx(one[key]["ci95"])
        if one["kept"]:
            assert other["kept"]["share"] == pytest.approx(one["kept"]["share"])
    for key in ("early_alone", "double_alone", "double_early"):
        assert error[key]["mean"] == pytest.approx(accuracy[key]["mean"])


def test_the_verdict_says_lower_in_the_metrics_own_unit(both):
    _, error = both
    assert "% lower MSE than" in error["verdict"] and "points" not in error["verdict"]
    top = max((row for row in error["rows"] if row["gain"]), key=lambda row: row["gain"]["mean"])
    base = error["baselines"][error["best_baseline"]]["mean"]
    assert f"{100 * top['gain']['mean'] / base:.1f}" in Words(error).amount(top["gain"])


def test_an_error_is_not_better_by_being_above():
    worse = {"base": Fake("base", 0.9), "sam": Fake("SAM", 0.8)}
    said = {key: summarise(made, None, {}) for key, made in (("a", records(worse)), ("e", as_errors(records(worse))))}
    assert ": none is above the base" in said["a"]["verdict"] and "Clearly below the" in " ".join(said["a"]["notes"])
    assert ": none is better than the base" in said["e"]["verdict"]
    assert "Clearly worse than the" in " ".join(said["e"]["notes"]) and "below" not in " ".join(said["e"]["notes"])


def test_a_loss_is_called_higher(both):
    worse = {"mean": -0.01, "ci95": 0.002}
    assert "% higher MSE" in Words(both[1]).amount(worse)
    assert Words(both[0]).amount(worse) == "−1.0 ± 0.2 points"


def test_the_report_draws_it(both):
    page = html(both[1], as_errors(records()), None)
    assert "lower is better" in page and "test MSE" in page and "accuracy" not in page.split("</style>")[1]


def test_the_unit_of_an_error_changes_neither_verdict_nor_gain(both):
    """A relative error of 1e-10 is one that somebody wants to lower, too."""
    made = as_errors(records())
    for record in made:
        for place in (record, record["early"]):
            place |= {key: 1e-10 * value for key, value in place.items() if key.endswith("_mse")}
    small = summarise(made, None, {})
    assert small["verdict"] == both[1]["verdict"]
    assert [row["gain"] and row["gain"]["clear"] for row in small["rows"]] == [
        row["gain"] and row["gain"]["clear"] for row in both[1]["rows"]
    ]
    assert Words(small).figure({"mean": 4.3e-12, "ci95": 2.1e-13}) == "4.30e−12 ± 2.10e−13"


def test_runs_of_several_metrics_are_no_study():
    made = records()
    with pytest.raises(ValueError, match="judged by different metrics"):
        of_records([*made, *as_errors(records())])


@pytest.mark.parametrize(
    ("judge", "gains", "deltas", "alone"),
    [
        # the base .5 and .6 stopped early, the best; methods .7 and .4: + .1 and - .2 of .6, + .2 and - .1 of .5
        (Judge("accuracy", "score", True, False), ("+16.7", "−33.3"), ("+40.0", "−20.0"), "20.0 ± 0.0 % higher score"),
        # errors, the base .5 and .4, methods .3 and .6: .1 and - .2 of .4, .2 and - .1 of .5
        (MSE, ("+25.0", "−50.0"), ("+40.0", "−20.0"), "20.0 ± 0.0 % lower MSE"),
    ],
)
def test_a_difference_to_the_base_is_in_per_cent_of_the_base_not_of_the_best_baseline(judge, gains, deltas, alone):
    fakes = {"base": Fake("base", 0.5, 0.6, grid=()), "sam": Fake("SAM", 0.7), "asam": Fake("ASAM", 0.4)}
    made = records(fakes, spread=1e-6)
    made = as_errors(made) if judge is MSE else [record | {"metric": judge.as_dict()} for record in made]
    summary = summarise(made, None, {})
    rows = [row for row in summary["rows"] if row["gain"]]
    shown = {column.header: [column.cell(row) for row in rows] for column in columns(summary)}
    assert [cell.split()[0] for cell in shown["gain\n% better"]] == list(gains)
    assert [cell.split()[0] for cell in shown["− base\n% better"]] == list(deltas)
    page = html(summary, made, None)
    assert all(f"<td>{cell}</td>" in page for cell in shown["− base\n% better"])
    assert any(alone in note for note in summary["notes"]), "early stopping alone, of the base's own mean"
    for said in (legend(summary, 200), page.replace("’", "'")):
        assert "in per cent of the base's" in said
    assert "− base" not in legend(summary, 60), "a column that has no room is not explained"


def test_the_legend_names_the_metric_where_its_own_column_has_no_room():
    """Judged by averaged weights on a narrow terminal, the table said "latest aver." and never of what."""
    runs = [run for run in as_errors(records()) if run["phase"] == "final"]
    best = {"lawa": {f"test_{runs[0]['metric']['name']}": 0.001}}
    summary = summarise([run | best for run in runs], None, {})
    assert summary["judged"] == "lawa" and "figures: MSE, latest weights averaged; gain" in legend(summary, 60)
    assert "figures:" not in legend(summary, 200)


def test_nothing_is_a_share_of_an_error_of_zero():
    """The last value of a series that stands still errs by 0; of SAM's 0.002 it was said that it is 0.2 % higher."""
    made = as_errors(records({"base": Fake("base", 1.0, 1.0, grid=()), "sam": Fake("SAM", 0.998)}, spread=0))
    summary = summarise(made, None, {})
    words, row = Words(summary), next(row for row in summary["rows"] if row["gain"])
    assert row["gain"]["mean"] == pytest.approx(-0.002) and words.gain(row["gain"]) == words.number(-0.002) == "–"
    assert words.amount(row["gain"]) == "higher MSE" and "0.2" not in summary["verdict"]
    assert "higher MSE" in summary["verdict"] and html(summary, made, None)
