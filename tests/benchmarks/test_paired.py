"""Paired differences of finished comparisons, by hand on small numbers and on a comparison that trains in a blink."""

import json
import math
import sys
from pathlib import Path

import pytest
from tests.compare import studies

from steppe.cli import main
from steppe.compare.analysis.groups import Group
from steppe.compare.engine import study

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import lora_study  # noqa: E402
import paired  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))


def forms(final, early=None):
    """Accuracies of seeds 0, 1, ..."""
    return {
        form: {str(seed): value for seed, value in enumerate(values)}
        for form, values in (("final", final), ("early", early or final))
    }


FOUND = {
    "base": forms([0.5, 0.7], [0.6, 0.7]),
    "base double": forms([0.9, 0.5]),
    "nbar": forms([0.6, 0.9], [0.8, 0.8]),
}


def test_a_method_meets_each_baseline_on_its_own_ground():
    rows = paired.against_baselines(FOUND)
    assert "over" not in rows["base"] and "over" not in rows["base double"]
    means = {name: value["mean"] for name, value in rows["nbar"]["over"].items()}
    assert means == pytest.approx({"base": 0.15, "early": 0.15, "double": 0.05})
    assert rows["base"]["final"]["mean"] == pytest.approx(0.6) and rows["base"]["early"]["mean"] == pytest.approx(0.65)


def test_the_interval_is_students_of_the_differences():
    found = {"base": forms([0.5, 0.7, 0.6]), "nbar": forms([0.6, 0.9, 0.9])}
    gain = paired.over(found, "nbar", "base")  # differences 0.1, 0.2, 0.3: t(2) = 4.303, s / sqrt(3) = 0.0577
    assert gain["ci95"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4) and gain["n"] == 3
    assert gain["p"] == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-6)


def test_only_seeds_that_both_have_count():
    more = FOUND | {"sam": {"final": {"1": 0.8, "7": 0.1}, "early": {}}}
    assert paired.over(more, "sam", "base") == {"mean": pytest.approx(0.1), "ci95": None, "n": 1, "p": None}
    assert paired.over(more, "sam", "base", "early") is None
    assert paired.over(more, "none", "base") is None


def test_the_mean_over_tasks_is_seed_by_seed_and_of_what_all_have():
    other = {"base": forms([0.1, 0.3, 0.9]), "nbar": forms([0.2, 0.5])}
    found = paired.mean_of([FOUND, other])
    assert set(found) == {"base", "nbar"}
    assert found["base"]["final"] == pytest.approx({"0": 0.3, "1": 0.5})
    assert found["nbar"]["early"] == pytest.approx({"0": 0.5, "1": 0.65})


def test_names_tell_the_longer_base_apart():
    run = {"seed": 3, "test_accuracy": 0.5, "early": {"test_accuracy": 0.25}}
    found = paired.figures([Group("base", variant, (run,)) for variant in ("plain", "double")])
    assert found == dict.fromkeys(("base", "base double"), {"final": {"3": 0.5}, "early": {"3": 0.25}})


def test_across_lora_is_the_mean_over_both_tasks():
    parts = {name: {"figures": FOUND} for name in ("sst2", "trec")}
    found = lora_study.across("lora", parts)
    assert found == {"figures": paired.mean_of([FOUND, FOUND]), "paired": paired.against_baselines(FOUND)}


def test_across_whole_models_adasam_meets_all_others_and_sl_sam_meets_sam():
    parts = {
        "adamw": {"figures": {"base": forms([0.5, 0.6]), "sam": forms([0.6, 0.8]), "sl_sam": forms([0.5, 0.9])}},
        "amsgrad": {"figures": {"base": forms([0.4, 0.5]), "base double": forms([0, 0]), "adasam": forms([0.7, 0.7])}},
    }  # fmt: skip
    found = {(each["of"], each["to"]): each["over"]["mean"] for each in lora_study.across("full", parts)["differences"]}
    assert found == pytest.approx({
        ("amsgrad adasam", "adamw base"): 0.15, ("amsgrad adasam", "adamw sam"): 0.0,
        ("amsgrad adasam", "adamw sl_sam"): 0.0, ("amsgrad adasam", "amsgrad base"): 0.25,
        ("adamw sl_sam", "adamw sam"): 0.0,
    })  # fmt: skip


def test_a_comparison_is_read_back_as_its_summary_says(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "Pool", studies.Here)
    monkeypatch.setattr(study.cost, "measure", lambda *_: {"methods": {}})
    out = tmp_path / "out"
    words = "compare --task tests.compare.tiny:task --methods sam --rho 0.05,0.1 --seeds 3 --tune-seeds 1 --jobs 1"
    assert main([*words.split(), "--lr-grid", "0.01,0.1", "--out", str(out)]) == 0
    rows = paired.against_baselines(paired.figures(paired.finished(out)))
    said = {(r["method"], r["variant"]): r for r in json.loads((out / "summary.json").read_text())["rows"]}
    assert set(rows) == {"base", "base double", "base half", "sam"}
    for name, row in rows.items():
        method, _, variant = name.partition(" ")
        accuracy = said[method, variant or "plain"]["final"]
        assert row["final"]["mean"] == accuracy["mean"] and row["final"]["n"] == accuracy["n"] == 3
    assert rows["sam"]["over"]["base"]["mean"] == said["sam", "plain"]["delta"]["mean"]
