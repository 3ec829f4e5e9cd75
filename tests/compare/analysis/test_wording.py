"""What a comparison says of itself in sentences, notes and numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.compare.analysis.test_summary import double, plain
from tests.compare.records import CLEAN, NOISY, cost, records, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import Words, signed, typeset
from steppe.compare.analysis.wording import plain as plainly_fixed


def test_sentences_say_what_is_there() -> None:
    noisy = summarise(records(NOISY), cost(NOISY), spec(NOISY))
    assert "points over the base with twice the epochs, stopped early, for 2.03× the base's" in noisy["verdict"]
    two = summarise(records(seeds=range(2)), cost(), spec(seeds=2))["verdict"]
    assert two.endswith(", and two seeds give no interval.")
    same = {name: replace(fake, grid=()) for name, fake in CLEAN.items()}
    alone = summarise(records(same), cost(), spec())
    assert any("choice favours the baseline, so gains err on the low side." in note for note in alone["notes"])
    assert not any("validation data alone" in note for note in alone["notes"])
    assert any("change nothing clear for the base (" in n and n.endswith("can tell.") for n in alone["notes"])


@pytest.mark.parametrize(("averaged", "told"), [(0.95, True), (0.2, False)])
def test_averages_of_the_longer_base_are_said_to_be_no_baseline(averaged: float, told: bool) -> None:
    runs = plain("base", [0.9, 0.91, 0.92]) + plain("sam", [0.93, 0.95, 0.95])
    runs += [run | {"averaged": {"test_accuracy": averaged}} for run in double([0.91, 0.92, 0.93])]
    said = "With averaged weights the base with twice the epochs has 95.0, which is shown but is no baseline."
    assert any(said in note for note in summarise(runs, None, {})["notes"]) == told


def test_numbers_in_words() -> None:
    assert signed(-0.04, 1) == "0.0" and signed(-1.25, 2) == "−1.25" and signed(3, 1) == "+3.0"
    words = Words({"rows": []})
    assert words.gain({"mean": 0.0152, "ci95": 0.004}) == "+1.5 ± 0.4"
    assert words.gain(None) == "–"
    assert words.figure({"mean": -1e-6, "ci95": 1e-7}) == "0.0 ± 0.0" and plainly_fixed(-0.001) == "0.00"
    assert typeset("G-RST's 1.0 ± 0.1") == "G\u2011RST’s 1.0\u00a0±\u00a00.1"
    assert typeset("'a b' ('c') of SAM's 'd'.") == "‘a b’ (‘c’) of SAM’s ‘d’."


def test_huge_numbers_have_a_power_of_ten() -> None:
    mse = {"name": "mse", "title": "MSE", "higher": False, "percent": False}
    figures = [{"final": {"mean": 0.512, "ci95": 0.02}}, {"final": {"mean": 1.2334e52, "ci95": 4e51}}]
    words = Words({"rows": figures, "metric": mse, "baselines": {"base": {"mean": 0.5}}, "best_baseline": "base"})
    assert words.figure(figures[1]["final"]) == "1.233e+52 ± 4.000e+51"
    assert words.figure(figures[0]["final"]) == "0.512 ± 0.020" and words.value(123456789.0) == "123456789.000"
    assert words.gain({"mean": -1e52, "ci95": None}) == "−2.000e+54" and plainly_fixed(-1.2e10) == "−1.200e+10"
    assert words.amount({"mean": -1e52, "ci95": None}) == "2.000e+54 % higher MSE"


def test_what_tasks_say_of_their_data_stands_once_under_the_table() -> None:
    runs = [run | {"notes": ["Some are cut."]} for run in records()]
    summary = summarise(runs, cost(), spec())
    assert summary["hints"] == ["Some are cut."] and summary["notes"].count("Some are cut.") == 1
    assert "hints" not in summarise(records(), cost(), spec())
