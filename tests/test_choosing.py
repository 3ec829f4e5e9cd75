"""docs/choosing.md shows what benchmarks/results holds."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import steppe

ROOT = Path(__file__).parent.parent


def test_the_page_is_that_of_the_file() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "choosing.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kept(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def shown(value, digits=1):
    return f"{value['mean']:.{digits}f} ± {value['ci95']:.{digits}f}".replace("-", "−")


def test_the_sentences_are_those_of_the_files() -> None:
    page = " ".join((ROOT / "docs" / "choosing.md").read_text().split())
    study = kept("study_fashion_noisy")
    noisy = {row["label"]: row for row in study["rows"]}["SAM"]["gain"]
    tuned = {row["arm"]: row for row in kept("front")["tasks"]["fashion-1k-noisy"]["rows"]}["sam"]["gain"]
    percent = {name: 100 * noisy[name] for name in ("mean", "ci95")}
    assert f"SAM is {shown(percent)} points over the base at 60 epochs, stopped early" in page
    assert study["best_baseline"] == "early" and study["spec"]["epochs"] == 60
    assert f"given 10 epochs from the start it is {shown(tuned)}." in page
    digits = {row["arm"]: row for row in kept("front")["tasks"]["digits-noisy"]["rows"]}["sam"]["gain"]
    assert f"wrong labels, which chose its radius too, it loses ({shown(digits)})" in page
    lora = kept("lora_study")["sst2"]["paired"]["sam"]["over"]["base"]
    assert f"LoRA-SAM gained {shown({name: 100 * lora[name] for name in ('mean', 'ci95')})} points on SST-2" in page


def test_the_readme_is_short_and_says_no_more_than_the_page() -> None:
    """One screen and a half; its sentence on what SAM gains is that of the tables."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 80
    tasks, gains = kept("front")["tasks"].values(), []
    for task in tasks:
        lengths = task.get("lengths", [task["base"]["length"], 2 * task["base"]["length"]])
        rows = [row for row in task["rows"] if row["arm"] == "sam" and row["length"] in lengths]
        gains += [row["gain"]["mean"] for row in rows]
    assert max(gains) < 1 and "gains some tenths of a point, or nothing" in " ".join(text.split())


def test_the_first_snippet_is_sam_itself() -> None:
    """What a stranger copies first must not need tuning that it does not show."""
    first = (ROOT / "README.md").read_text().split("```diff")[1].split("```")[0]
    assert "steppe.SAM(model, optimizer, rho=0.05)" in first


def test_a_gain_at_a_length_without_a_baseline_is_not_shown() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text()
    hidden = 0
    for task in kept("front")["tasks"].values():
        lengths = task.get("lengths", [task["base"]["length"], 2 * task["base"]["length"]])
        for row in task["rows"]:
            cell = f"{row['gain']['mean']:+.2f} ± {row['gain']['ci95']:.2f}"
            if row["length"] in lengths:
                assert f"| {cell} |" in page
            else:
                assert f"| {cell} |" not in page
                hidden += 1
    assert page.count("| other length") == hidden > 0


def test_the_default_push_is_the_one_that_harms_least() -> None:
    """Beside the paper's and the natural one, on every task of the study; never more than a point below SAM."""
    assert inspect.signature(steppe.LookSAM).parameters["push"].default == "guarded"
    for cell in kept("look_sam_default")["cells"].values():
        worst = cell["worst"]
        assert worst["guarded"] > worst["natural"] > worst["paper, alpha .7"]
        assert worst["guarded"] > worst["SAM"] - 1


def test_every_gain_has_its_seeds_and_an_interval() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "front.json").read_text())
    rows = [row for task in found["tasks"].values() for row in task["rows"]]
    assert len(rows) >= 20
    for row in rows:
        assert row["gain"]["n"] >= 6 and row["gain"]["ci95"] > 0


def test_the_best_baseline_is_the_hardest() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "front.json").read_text())
    for task in found["tasks"].values():
        best = task["baselines"][task["best_baseline"]]["mean"]
        assert best == max(each["mean"] for each in task["baselines"].values())
