"""Which runs stand in a group, and which figures are a baseline's."""

import pytest
from tests.compare.analysis.test_summary import plain, row

from steppe.compare.analysis.summary import summarise


def test_of_a_run_that_is_there_twice_the_later_one_counts():
    old = [run | {"finished": "2025-01-15T10:00:00+00:00"} for run in plain("base", [0.1, 0.1, 0.1])]
    final = row(summarise([*plain("base", [0.90, 0.91, 0.92]), *old], None, {}), "base")["final"]
    assert final["mean"] == pytest.approx(0.91) and final["n"] == 3


@pytest.mark.parametrize("first", [0, 1])
def test_the_mean_of_the_latest_weights_is_a_baseline_where_all_runs_have_it(first):
    runs = plain("base", [0.9, 0.9, 0.9])
    runs = [run | ({"lawa": {"test_accuracy": 0.99}} if run["seed"] >= first else {}) for run in runs]
    assert ("lawa" in summarise(runs, None, {})["baselines"]) is (first == 0)


def test_what_needs_no_training_has_its_figures_in_the_form_that_is_judged():
    """Beside methods that are judged by averaged weights, the row of "the mean" was empty."""
    runs = [run | {"rows": {"the mean": {"test_accuracy": 0.5}}} for run in plain("base", [0.9, 0.91, 0.92])]
    runs = [run | {"lawa": {"test_accuracy": 0.95}} for run in runs]
    summary = summarise(runs, None, {})
    shown = next(each for each in summary["rows"] if each["variant"] == "the mean")
    assert summary["judged"] == "lawa" and all(shown[form]["mean"] == 0.5 for form in ("lawa", "averaged", "final"))
