"""benchmarks/front.py and its summary on made-up runs: which baselines are tried, which counts, what is kept."""

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import front
    import front_summary

    monkeypatch.setattr(front, "TASKS", {"toy": {"task": "digits-few"}})
    yield front, front_summary
    for name in ("front", "front_summary"):
        sys.modules.pop(name, None)


def put(folder, arm, runs):
    """Runs as front.py keeps them: (length, knob, seed) -> (validation, test, test stopped early)."""
    lines = [
        json.dumps({"length": length, "knob": knob, "seed": seed, "val": val, "test": test, "early_test": early,
                    "passes": 1.5})
        for (length, knob, seed), (val, test, early) in runs.items()
    ]  # fmt: skip
    (folder / f"toy__{arm}.jsonl").write_text("\n".join(lines))


def test_the_tasks_own_settings_and_every_length_are_among_the_baselines_once(scripts):
    front, _ = scripts
    assert front.baselines(0.5, 2.0) == {
        "tuned": (0.5, 2.0), "twice": (1.0, 2.0), "own settings": (1.0, 1.0), "length 2": (2.0, 2.0)
    }  # fmt: skip
    assert front.baselines(1.0, 1.0) == {"tuned": (1.0, 1.0), "twice": (2.0, 1.0), "length 0.5": (0.5, 1.0)}
    assert front.baselines(2.0, 1.0)["twice"] == (4.0, 1.0)


def test_the_base_twice_as_long_and_stopped_early_counts_and_figures_are_kept_by_seed(scripts, tmp_path):
    front, summary = scripts
    levels = {(0.5, 1.0): 0.9, (1.0, 1.0): 0.91, (2.0, 1.0): 0.92}
    base = {
        (*config, seed): (1 - config[0] / 10, level + seed / 1000, level + seed / 1000 + (config[0] == 1) * 0.06 - 0.01)
        for config, level in levels.items() for seed in range(6)
    }  # fmt: skip
    base |= {(0.5, knob, seed): (0.1, 0.2, 0.2) for knob in (0.25, 0.5, 2.0) for seed in (0, 1)}
    put(tmp_path, "base", base)
    put(tmp_path, "sam", {(2.0, 0.1, seed): (0.5, 0.97 + (seed % 2) / 100, 0.9) for seed in range(6)})
    found = summary.table(tmp_path, "toy", {("toy", "base"): (0.5, 1.0), ("toy", "sam"): (2.0, 0.1)})
    assert found["best_baseline"] == "twice, stopped early"
    assert found["baselines"]["twice, stopped early"]["seeds"] == pytest.approx([96 + seed / 10 for seed in range(6)])
    (sam,) = found["rows"]
    gains = [97 + seed % 2 - 96 - seed / 10 for seed in range(6)]
    assert sam["gain"]["seeds"] == pytest.approx(gains) and sam["gain"]["mean"] == pytest.approx(fmean(gains))
    assert front.kept_choices({"tasks": {"toy": found}}) == {("toy", "base"): (0.5, 1.0), ("toy", "sam"): (2.0, 0.1)}
    assert summary.table(tmp_path, "toy", None)["base"] == {"length": 0.5, "lr_factor": 1.0}, "the search itself"


def test_without_all_runs_of_the_base_there_is_no_table(scripts, tmp_path):
    _, summary = scripts
    put(tmp_path, "base", {(0.5, 1.0, seed): (0.9, 0.9, 0.9) for seed in range(6)})
    assert summary.table(tmp_path, "toy", {("toy", "base"): (0.5, 1.0)}) is None
