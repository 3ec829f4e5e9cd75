"""The numbers and sentences of a comparison, against hand-computed ones, scipy and its own invariances."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from tests.compare.records import CLEAN, NOISY, Fake, cost, records, run, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.report.table import legend, table

values = st.lists(st.floats(0, 1), min_size=3, max_size=12)


def plain(method: str, accuracies: list[float], early: list[float] | None = None, **more: Any) -> list[dict[str, Any]]:
    """Final runs with exactly these accuracies, seeds 0, 1, …"""
    fake = Fake(method, 0.5, **({"rho": None} if method == "base" else {}))
    made = []
    for seed, accuracy in enumerate(accuracies):
        record = run(method, fake, seed) | {"test_accuracy": accuracy} | more
        record["early"] = {"epoch": 3, "val_accuracy": 0.5, "test_accuracy": (early or accuracies)[seed]}
        made.append(record)
    return made


def double(accuracies: list[float]) -> list[dict[str, Any]]:
    return plain("base", accuracies, variant="double", steps=800)


def row(summary: dict[str, Any], method: str, variant: str = "plain") -> dict[str, Any]:
    return next(r for r in summary["rows"] if (r["method"], r["variant"]) == (method, variant))


# summary


def test_gain_by_hand() -> None:
    runs = plain("base", [0.90, 0.91, 0.92]) + double([0.91, 0.92, 0.93]) + plain("sam", [0.93, 0.95, 0.95])
    summary = summarise(runs, None, {"task": "t"})
    sam = row(summary, "sam")
    assert summary["best_baseline"] == "double" and summary["judged"] == "final"
    assert sam["delta"]["mean"] == pytest.approx(0.1 / 3)
    # differences to the double base: .02, .03, .02; s = .0057735, half-width 4.30265 * s / sqrt(3)
    assert sam["gain"]["mean"] == pytest.approx(0.07 / 3)
    assert sam["gain"]["ci95"] == pytest.approx(4.30265 * 0.0057735 / math.sqrt(3), rel=1e-4)
    assert sam["gain"]["against"] == "double"
    assert sam["kept"] == pytest.approx({"share": 1.0, "low": 1.0, "high": 1.0})


def test_every_interval_can_be_computed_again_from_the_figures_by_seed() -> None:
    runs = plain("base", [0.90, 0.91, 0.92]) + plain("sam", [0.93, 0.95, 0.96], early=[0.94, 0.95, 0.95])
    runs = [run | {"averaged": {"test_accuracy": run["test_accuracy"] + 0.01}} for run in runs]
    sam = row(json.loads(json.dumps(summarise(reversed(runs), None, {"task": "t"}))), "sam")
    assert sam["by_seed"] == {
        "final": {"0": 0.93, "1": 0.95, "2": 0.96},
        "early": {"0": 0.94, "1": 0.95, "2": 0.95},
        "averaged": pytest.approx({"0": 0.94, "1": 0.96, "2": 0.97}),
    }
    low, high = stats.t.interval(0.95, 2, *mean_and_error(list(sam["by_seed"]["final"].values())))
    assert sam["final"]["ci95"] == pytest.approx((high - low) / 2)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(stats.sem(values))


def test_the_share_of_sam_s_gain_is_paired_by_seed() -> None:
    """Half of SAM's gain on each seed is half of it without a doubt; on exchanged seeds it would be doubtful."""
    gains = [0.02, 0.05, 0.03, 0.06]
    runs = plain("base", [0.9] * 4) + plain("sam", [0.9 + g for g in gains])
    runs += plain("rst", [0.9 + g / 2 for g in gains])
    runs += plain("asam", [0.9 + g / 2 + more for g, more in zip(gains, (0.001, -0.001, 0.002, 0.0), strict=True)])
    summary = summarise(runs, None, {"task": "t"})
    assert row(summary, "rst")["kept"] == pytest.approx({"share": 0.5, "low": 0.5, "high": 0.5}, abs=1e-6)
    doubtful = row(summary, "asam")["kept"]
    assert doubtful["low"] < doubtful["share"] < doubtful["high"]


def test_the_longer_base_stopped_early_is_compared_with_the_base_stopped_early() -> None:
    runs = plain("base", [0.7, 0.7, 0.7], [0.80, 0.81, 0.82]) + plain("sam", [0.9, 0.91, 0.92])
    longer = plain("base", [0.6, 0.6, 0.6], [0.83, 0.85, 0.85], variant="double", steps=800)
    summary = summarise(runs + longer, None, {"task": "t"})
    assert summary["double_early"]["mean"] == pytest.approx(0.1 / 3) and summary["double_early"]["n"] == 3
    assert summary["double_alone"]["mean"] == pytest.approx(-0.1)
    assert summary["early_alone"]["mean"] == pytest.approx(0.11)


@settings(max_examples=20, deadline=None)
@given(st.randoms())
def test_order_does_not_matter(shuffle: random.Random) -> None:
    made = records(NOISY, range(3))
    mixed = list(made)
    shuffle.shuffle(mixed)
    assert summarise(mixed, cost(NOISY), spec(NOISY)) == summarise(made, cost(NOISY), spec(NOISY))


@settings(max_examples=30, deadline=None)
@given(values)
def test_identical_methods_differ_by_nothing(accuracies: list[float]) -> None:
    runs = plain("base", accuracies) + plain("sam", accuracies) + plain("rst", accuracies)
    summary = summarise(runs, None, {"task": "t"})
    for method in ("sam", "rst"):
        figures = row(summary, method)
        assert figures["delta"]["mean"] == figures["delta"]["ci95"] == figures["gain"]["mean"] == 0
        assert figures["gain"]["clear"] == 0 and figures["kept"] is None
    assert summary["verdict"].startswith("No method pays here")


@settings(max_examples=30, deadline=None)
@given(values, st.floats(-0.2, 0.2))
def test_a_shift_of_all_accuracies_changes_no_difference(accuracies: list[float], shift: float) -> None:
    noise = np.random.default_rng(len(accuracies)).normal(0.02, 0.01, len(accuracies))
    better = [a + n for a, n in zip(accuracies, noise, strict=True)]

    def gain(by: float) -> Any:
        runs = plain("base", [a + by for a in accuracies]) + plain("sam", [a + by for a in better])
        return row(summarise(runs, None, {}), "sam")["gain"]

    here, there = gain(0.0), gain(shift)
    assert there["mean"] == pytest.approx(here["mean"], abs=1e-9)
    assert there["ci95"] == pytest.approx(here["ci95"], abs=1e-9)


def test_clean_labels() -> None:
    summary = summarise(records(), cost(), spec())
    assert summary["verdict"].startswith("ASAM (ρ = 2) pays here: +1.9")
    assert "G-RST" in summary["verdict"]
    assert "Early stopping alone recovers nothing" in summary["notes"][0]
    assert any("largest tried for SAM-ON (0.5)" in note for note in summary["notes"])
    assert 0.9 < row(summary, "grst")["kept"]["share"] < 1.1
    json.dumps(summary, allow_nan=False)


def test_noisy_labels_compare_like_with_like() -> None:
    summary = summarise(records(NOISY), cost(NOISY), spec(NOISY))
    assert (summary["best_baseline"], summary["judged"]) == ("double_early", "early")
    sam = row(summary, "sam")
    assert sam["gain"]["of"] == "early" and sam["gain"]["mean"] > 0 > sam["gain_final"]["mean"]
    assert "itself stopped early" in summary["verdict"]
    assert "recovers nearly all that SAM seems to win" in summary["notes"][0]


def test_too_few_seeds_to_tell_say_how_many_it_takes() -> None:
    better = plain("base", [0.90, 0.92, 0.94]) + plain("sam", [0.915, 0.925, 0.94])  # .67 of deviation .76
    verdict = summarise(better, None, {"task": "t"})["verdict"]
    assert verdict.startswith("Not settled with 3 seeds: sam gains +0.7 ± 1.9 points over the base")
    assert verdict.endswith("from none takes 5 to 51 seeds, as far as 3 can tell how much they differ.")
    base = [0.90, 0.92, 0.94, 0.91, 0.93, 0.95, 0.90, 0.92]
    many = [b + g for b, g in zip(base, [0.015, 0.005, -0.01, 0.02, 0.005, -0.005, 0.01, 0.005], strict=True)]
    runs = plain("base", base) + plain("sam", many)
    assert "takes 10 to 32 seeds, as far as 8 can" in summarise(runs, None, {"task": "t"})["verdict"]
    others = [run for i in range(4) for run in plain(f"m{i}", base)]
    assert "takes 16 to 54 seeds" in summarise(runs + others, None, {"task": "t"})["verdict"], "corrected, as what pays"


def test_what_loses_and_what_pays_are_told_by_one_rule() -> None:
    """SAM's own interval leaves out zero on either side; among eight methods that may come by chance."""
    base = [0.90, 0.91, 0.92, 0.93]
    for sign, own in ((1, "pays here"), (-1, "loses to the base")):
        sam = plain("sam", [b + sign * g for b, g in zip(base, [0.011, 0.009, 0.004, 0.016], strict=True)])
        runs, others = plain("base", base) + sam, [run for i in range(7) for run in plain(f"m{i}", base)]
        alone, among = (summarise(each, None, {}) for each in (runs, runs + others))
        assert own in " ".join([alone["verdict"], *alone["notes"]])
        assert any("mean that the 95 % interval of the paired gain leaves out zero;" in note for note in alone["notes"])
        assert not any("sam pays" in each or "loses to" in each for each in [among["verdict"], *among["notes"]])
        assert any("SAM does not clearly gain on the base" in note for note in among["notes"])
        assert any("not zero at 5 % after Holm's correction for 8 methods;" in note for note in among["notes"])
        assert all(each["kept"] is None for each in among["rows"])


def test_nothing_pays() -> None:
    same = {"base": CLEAN["base"], "sam": Fake("SAM", 0.94), "rst": Fake("RST", 0.9398)}
    summary = summarise(records(same, range(6), spread=0.01), cost(same), spec(same, 6))
    assert "No method pays here" in summary["verdict"]
    assert row(summary, "rst")["kept"] is None
    assert any("does not clearly gain on" in note for note in summary["notes"])


def test_a_method_with_too_few_seeds_is_not_said_to_be_below() -> None:
    runs = plain("base", [0.90, 0.91, 0.92]) + plain("sam", [0.89, 0.90, 0.905]) + plain("asam", [0.97, 0.96])
    assert "none with seeds enough to tell is above the base; sam" in summarise(runs, None, {})["verdict"]


def test_one_lucky_interval_among_many_does_not_pay() -> None:
    base = [0.90, 0.91, 0.92, 0.93]
    runs = plain("base", base)
    for i in range(8):
        wobble = [0.01, -0.01, 0.01, -0.01] if i else [0.011, 0.009, 0.004, 0.016]
        runs += plain(f"m{i}", [b + w for b, w in zip(base, wobble, strict=True)])
    summary = summarise(runs, None, {})
    lucky = row(summary, "m0")["gain"]
    assert lucky["mean"] - lucky["ci95"] > 0 and lucky["clear"] == 0
    assert summary["verdict"].startswith("Not settled: m0")


def test_worse_methods_are_named() -> None:
    runs = plain("base", [0.90, 0.91, 0.92, 0.93]) + plain("sam", [0.80, 0.812, 0.82, 0.83])
    summary = summarise(runs, None, {})
    assert row(summary, "sam")["gain"]["clear"] == -1
    assert any(note == "Clearly below the base: sam." for note in summary["notes"])


def test_a_single_seed_that_differs_in_nothing() -> None:
    summary = summarise(plain("base", [0.9]) + plain("sam", [0.9]), None, {})
    assert summary["verdict"] == "One seed cannot tell: sam equals the base, and another seed may say otherwise."


def test_no_run_with_a_result() -> None:
    assert legend(summarise([], None, spec(seeds=1))).startswith("No run with a result, so nothing to show.")


@pytest.mark.parametrize("seeds", [4, 5])
def test_few_seeds_are_noted(seeds: int) -> None:
    notes = summarise(records(seeds=range(seeds)), cost(), spec(seeds=seeds))["notes"]
    assert any("Only 4 seeds" in note for note in notes) == (seeds == 4)


def test_missing_seeds_and_failed_runs() -> None:
    made = [r for r in records() if (r["method"], r["seed"]) != ("gsam", 4)]
    for record in made:
        if (record["method"], record["seed"], record["phase"]) == ("fsam", 1, "final"):
            record["test_accuracy"] = None
    summary = summarise(made, cost(), spec())
    gsam, fsam = row(summary, "gsam"), row(summary, "fsam")
    assert gsam["seeds"] == gsam["gain"]["n"] == 4
    assert (fsam["seeds"], fsam["failed"], fsam["gain"]["n"]) == (4, 1, 4)
    assert any(note.startswith("F-SAM: 4 of 5 seeds (1 ended without") for note in summary["notes"])
    assert any(note.startswith("GSAM: 4 of 5 seeds (the others") for note in summary["notes"])


def test_an_unfinished_study_says_so_under_the_table() -> None:
    def kept(run: dict[str, Any]) -> bool:
        late = run["method"] == "base" and run["seed"] > (0 if run["variant"] == "double" else 1)
        return run["phase"] == "tune" or not (late or (run["method"] in ("sam", "gsam") and run["seed"] > 3))

    summary = summarise([run for run in records() if kept(run)], None, spec())
    others = "(the others failed or are not finished); the mean is over these."
    assert summary["hints"] == [
        f"base: 2 of 5 seeds {others}", f"base, 2× epochs: 1 of 5 seeds {others}",
        *[note for note in summary["hints"] if "SAM" in note],
    ]  # fmt: skip
    assert any(f"{names}: 4 of 5 seeds {others}" in summary["hints"] for names in ("SAM, GSAM", "GSAM, SAM"))
    assert all(summary["notes"].count(hint) == 1 for hint in summary["hints"])
    assert legend(summary).startswith("Mean ± 95 % interval (from three on) over 1 to 5 seeds. ")


def test_method_without_runs_keeps_its_row() -> None:
    made = [r for r in records() if r["method"] != "sam"]
    summary = summarise(made, cost(), spec())
    assert row(summary, "sam")["final"] is None and row(summary, "sam")["label"] == "SAM"
    assert summary["rows"][-1]["method"] == "sam"
    assert any(note == "SAM: no run with a result yet." for note in summary["notes"])
    assert all(r["kept"] is None for r in summary["rows"])


@pytest.mark.parametrize("method", ["base", "nothing"])
def test_without_base_or_without_anything(method: str) -> None:
    made = [r for r in records() if r["method"] != "base"] if method == "base" else []
    summary = summarise(made, None, spec())
    assert summary["verdict"] == "Nothing to judge by yet: no run of the base has finished."
    Console(width=100, file=open("/dev/null", "w")).print(table(summary))


def test_base_alone() -> None:
    summary = summarise([r for r in records() if r["method"] == "base"], None, {"task": "t"})
    assert summary["verdict"].startswith("Nothing to compare yet")


def test_missing_double_is_noted() -> None:
    summary = summarise([r for r in records() if r["variant"] == "plain"], cost(), spec())
    absent = "Not in this comparison: the base with averaged weights, the base with its latest weights averaged (LAWA)"
    assert any(absent in note for note in summary["notes"])


def test_best_baseline_is_chosen_over_common_seeds() -> None:
    # the double base has only the easy seed; over the common seed the base is ahead
    runs = plain("base", [0.95, 0.80]) + double([0.94]) + plain("sam", [0.96, 0.82])
    assert summarise(runs, None, {})["best_baseline"] == "base"
    equal = plain("base", [0.9, 0.8]) + double([0.9, 0.8])
    assert summarise(equal, None, {})["best_baseline"] == "base", "the simplest of equal ones"


def test_rho_per_seed() -> None:
    runs = plain("base", [0.9, 0.91]) + plain("sam", [0.92, 0.93])
    runs[-1]["rho"] = 0.1
    sam = row(summarise(runs, None, {}), "sam")
    assert sam["rho"] is None and sam["values"] == [0.1, 0.2]


# cost and front


def test_cost_falls_back_to_passes() -> None:
    measured = cost()
    del measured["methods"]["gsam"]
    summary = summarise(records(), measured, spec())
    assert summary["cost_axis"] == "passes"
    assert row(summary, "base", "double")["cost"] == pytest.approx(2.0)
    assert any("not measured for GSAM" in note for note in summary["notes"])
    assert summarise(records(), None, spec())["cost_axis"] == "passes"


def test_front() -> None:
    summary = summarise(records(), cost(), spec())
    assert summary["cost_axis"] == "time"
    front = {r["label"] for r in summary["rows"] if r["pareto"]}
    assert front == {"base", "LookSAM (push=natural)", "G-RST", "ASAM"}


def test_twice_the_epochs_cost_twice() -> None:
    figures = row(summarise(records(), cost(), spec()), "base", "double")
    assert figures["passes"] == 1.0 and figures["length"] == 2.0 and figures["time_ratio"]["median"] == 2.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 3), st.floats(0.5, 1)), min_size=1, max_size=8, unique=True))
def test_no_point_of_the_front_is_beaten(points_: list[tuple[float, float]]) -> None:
    runs = plain("base", [0.5, 0.5])
    for i, (passes, accuracy) in enumerate(points_):
        runs += plain(f"m{i}", [accuracy] * 2, passes_per_step=passes)
    rows = [(r["cost"], -r["final"]["mean"], r["pareto"]) for r in summarise(runs, None, {})["rows"]]
    front = sorted((c, a) for c, a, on in rows if on)
    assert front and all(c < d and a > b for (c, a), (d, b) in zip(front, front[1:], strict=False))
    assert all(any(c <= d and a <= b for c, a in front) for d, b, _ in rows)


@pytest.mark.parametrize(("seeds", "said"), [(1, "One seed"), (2, "Two seeds")])
def test_too_few_seeds_have_no_interval(seeds: int, said: str) -> None:
    summary = summarise(records(seeds=range(seeds)), cost(), spec(seeds=seeds))
    assert all(r["final"]["ci95"] is None for r in summary["rows"])
    assert all(r["gain"]["ci95"] is None and r["gain"]["clear"] == 0 for r in summary["rows"] if r["gain"])
    assert summary["verdict"].startswith(f"{said} cannot tell: ")
    assert f"{said}: no interval can be given; use five or more." in summary["notes"]
    assert "95 %" not in legend(summary)
