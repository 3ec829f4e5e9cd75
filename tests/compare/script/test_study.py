"""Whole comparisons of scripts, as a user starts them; what a worker does is done in this process."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tests.compare import studies
from tests.compare.script import loops

from steppe.cli import main
from steppe.compare.engine import study, turns

LOOPS = Path(loops.__file__)


def compared(out: Path, name: str, *more: str, script: Path = LOOPS) -> tuple[int, str, str]:
    fixed = f"compare --script {script}:{name} --methods sam --seeds 2 --tune-seeds 1 --rho 0.1 --jobs 1 --out {out}"
    fixed += " --grow 0"
    said, aside = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(aside), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Pool", studies.Here)
        code = main([*fixed.split(), *more])
    return code, said.getvalue(), aside.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    code, said, aside = compared(out, "epochs", "--rho", "0.1,0.2", "--settings", "count=10")
    assert code == 0, aside
    assert "Report: " in said and "] SAM rho=0.2 seed 0" in aside
    return out


def test_it_leaves_what_any_comparison_leaves(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["baselines"]) == {"base", "early", "half", "half_early", "double", "double_early"}
    assert [row["label"] for row in summary["rows"]] == ["base", "base, ½× epochs", "base, 2× epochs", "SAM"]
    assert [row["passes"] for row in summary["rows"]][:3] == [1.0] * 3 and summary["rows"][1]["cost"] == 0.5
    sam = summary["rows"][-1]
    assert all(row["memory_ratio"] is None for row in summary["rows"]), "not measured, of the base neither"
    assert sam["passes"] == 2.0 and len(sam["tuning"]) >= 2 and sam["memory_ratio"] is None
    assert sam["time_ratio"]["median"] > 1 and summary["clock"] == "processor", "measured in turns"
    assert "averaged weights" in next(note for note in summary["notes"] if note.startswith("Not in this comparison"))
    assert summary["task"].endswith("loops.py:epochs") and "epochs" not in summary["spec"]
    page = (whole / "report.html").read_text()
    assert "loops.py:epochs" in page and "weight_decay" not in page


def test_cost_is_measured_in_turns(whole):
    cost = json.loads((whole / "cost.json").read_text())
    assert cost["methods"]["sam"]["time_ratio"]["median"] > 1 and cost["clock"] == "processor"
    assert cost["measured"] == "turns" and cost["turns"] >= 20 and cost["methods"]["sam"]["passes"] == 2.0


def test_the_same_command_again_runs_nothing_and_a_lost_run_is_made_again(whole):
    before = studies.finished(whole)
    code, said, aside = compared(whole, "epochs", "--rho", "0.1,0.2", "--settings", "count=10")
    assert code == 0 and studies.finished(whole) == before and "] SAM" not in aside
    kept = studies.results(whole)["runs"]
    lost = next(name for name in before if name.startswith("sam"))
    (whole / "runs" / lost).unlink()
    assert compared(whole, "epochs", "--rho", "0.1,0.2", "--settings", "count=10")[0] == 0
    again = studies.results(whole)["runs"]
    assert {k: v for k, v in again[lost].items() if k != "step_seconds"} == {
        k: v for k, v in kept[lost].items() if k != "step_seconds"
    }


def test_a_script_without_length_or_yields_has_fewer_baselines(tmp_path):
    code, _, aside = compared(tmp_path, "once", "--metric", "loss:lower")
    assert code == 0 and "[4/4]" in aside, aside
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["baselines"]) == {"base"} and summary["metric"]["higher"] is False
    assert any("a run of the script has 4 steps only" in note for note in summary["notes"]), summary["notes"]


def test_a_model_outside_of_the_function_is_not_timed_in_turns(tmp_path):
    code, _, aside = compared(tmp_path, "one_model")
    assert code == 0, aside
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["measured"] == "runs" and cost["methods"]["sam"]["time_ratio"]["median"] > 0
    notes = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert any("processor time in the real runs" in n and "outside of the function" in n for n in notes)
    assert any("--metric loss:lower" in n for n in notes), "the figure has no name"


def test_seeds_that_change_nothing_are_noticed(tmp_path):
    code, said, _ = compared(tmp_path, "of_their_own")
    assert code == 0 and "· Seeds 0 and 1 of the base gave the same figures" in " ".join(said.split())
    notes = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert notes[0].startswith("Seeds 0 and 1 of the base gave the same figures to the last digit")


def test_backwards_beside_the_method_are_noticed(tmp_path):
    assert compared(tmp_path, "half_beside")[0] == 0
    notes = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert notes[0].startswith("Of 6 optimizer steps of SAM 3 had a backward through what sharpen gave")


def test_a_mistake_is_found_before_anything_is_trained(tmp_path):
    wrong = LOOPS.with_name("wrong.py")
    code, _, aside = compared(tmp_path, "never_called", script=wrong)
    assert code == 2 and "sharpen was never called" in aside.splitlines()[-1] and not studies.finished(tmp_path)


def test_a_mistake_that_shows_at_the_end_stops_at_the_first_run(tmp_path):
    wrong = LOOPS.with_name("wrong.py")
    code, _, aside = compared(tmp_path, "no_val", script=wrong)
    assert code == 2 and aside.count("yielded no 'val'") == 2, aside
    assert aside.splitlines()[-1].endswith("nothing more is run")


def test_what_the_runs_say_of_a_step_is_weighted_by_its_kinds():
    def made(method, seed, plain, ascended):
        times = {"plain": plain, "ascended": ascended}
        return {"method": method, "variant": "plain", "seed": seed, "steps": 9, "step_seconds": times}

    records = [made("base", 0, 1.0, None), made("base", 1, 2.0, None)]
    records += [made("rst", 0, 1.5, 3.0), made("rst", 1, 2.0, 5.0)]
    (each,) = [turns.Run("rst", 0.1, 0)]
    found = turns._from_runs([each], {"rst": 0.25}, turns.of_runs(records), "why")
    ratio = found["methods"]["rst"]["time_ratio"]
    assert ratio["median"] == pytest.approx((1.875 / 1 + 2.75 / 2) / 2) and found["measured"] == "runs"
