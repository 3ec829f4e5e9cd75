import json
import signal
from pathlib import Path

import pytest
from rich.console import Console
from tests.compare import studies

from steppe._command import progress
from steppe._command.ranks import InStep
from steppe.cli import main
from steppe.compare.engine import study
from steppe.compare.engine.spec import resolve


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A comparison that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    done = studies.complete(out)
    assert done.returncode == 0, done.stderr
    assert "Report: " in done.stdout and "[19/19]" in done.stderr
    return out


def test_a_comparison_leaves_its_files(whole):
    assert {path.name for path in whole.iterdir()} == {"runs", "spec.json", "cost.json", "summary.json", "report.html"}
    assert len(studies.finished(whole)) == 19
    cost = json.loads((whole / "cost.json").read_text())
    assert set(cost["methods"]) == {"sam", "rst"}
    assert cost["methods"]["sam"]["time_ratio"]["median"] > 1  # how much, benchmarks and tests of the cost say
    assert cost["methods"]["sam"]["memory_ratio"] > 1
    runs = [json.loads((whole / "runs" / name).read_text()) for name in studies.finished(whole)]
    seen = [r["passes_per_step"] for r in runs if r["method"] == "rst"]
    assert 1 < min(seen) <= cost["methods"]["rst"]["passes"] <= max(seen) < cost["methods"]["sam"]["passes"] == 2
    assert json.loads((whole / "spec.json").read_text())["methods"] == ["sam", "rst"]


def test_the_same_command_again_runs_nothing(whole):
    before = studies.finished(whole)
    cost = (whole / "cost.json").stat().st_mtime_ns
    done = studies.complete(whole, "--json")
    assert done.returncode == 0 and studies.finished(whole) == before
    assert (whole / "cost.json").stat().st_mtime_ns == cost
    assert json.loads(done.stdout) == json.loads((whole / "summary.json").read_text())


def test_killed_and_resumed_equals_undisturbed(whole, tmp_path):
    assert studies.killed(tmp_path) == -signal.SIGKILL  # benchmarks/kill_compare.py does ten random moments
    kept = studies.finished(tmp_path)
    assert len(kept) == 5
    (tmp_path / "runs" / ".half.json.1.tmp").write_text("{")
    assert studies.complete(tmp_path).returncode == 0
    after = studies.finished(tmp_path)
    assert {name: after[name] for name in kept} == kept
    assert studies.results(tmp_path) == studies.results(whole)
    assert not list((tmp_path / "runs").glob("*.tmp"))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    done = studies.interrupted(tmp_path)  # as KeyboardInterrupt, which is what the signal becomes
    assert done.returncode == 130
    last = done.stderr.splitlines()[-1]
    assert last.startswith("steppe: interrupted") and "the same command" in last
    assert len(studies.finished(tmp_path)) == 2


def settled(out: Path, **flags):
    flags = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 2, "rho": 0.1, "jobs": 1, **flags}
    plan = study.check(resolve({**flags, "out": str(out)}))
    with progress.PlainProgress(Console(stderr=True)) as shown:
        return study.compare(plan, shown)


@pytest.fixture
def runs_alone(monkeypatch):
    """Runs are made in this process, and not timed."""
    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    monkeypatch.setattr(study.cost, "measure", lambda *_: {"methods": {}})


@pytest.fixture
def measured(monkeypatch) -> list[dict]:
    """What was asked of the measurement of cost, which is not made; runs are made in this process."""
    asked = []

    def measure(spec, runs, shares):
        asked.append(shares)
        return {"methods": {each.method: {"passes": 1 + shares[each.method]} for each in runs}}

    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    monkeypatch.setattr(study.cost, "measure", lambda spec, runs, shares, *_: measure(spec, runs, shares))
    return asked


def test_a_kept_cost_counts_for_what_it_was_measured_of_only(measured, tmp_path):
    settled(tmp_path, seeds=1, epochs=1)
    settled(tmp_path, seeds=1, epochs=1)
    assert len(measured) == 1, "kept"
    settled(tmp_path, seeds=1, epochs=1, rho=0.2)
    assert len(measured) == 2, "another radius is another measurement"
    settled(tmp_path, seeds=1, epochs=1, rho=0.2, methods=["sam", "rst"])
    assert len(measured) == 3 and measured[-1].keys() == {"sam", "rst"}
    kept = json.loads((tmp_path / "cost.json").read_text())
    (tmp_path / "cost.json").write_text(json.dumps(kept | {"key": "of something else"}))
    settled(tmp_path, seeds=1, epochs=1, rho=0.2, methods=["sam", "rst"])
    assert len(measured) == 4
    for samples in (2, 5):  # at the same radius, on the same share of steps
        settled(tmp_path, seeds=1, epochs=1, rho=0.2, methods=["sam"], tune=[f"samples={samples}"])
    assert len(measured) == 6


@pytest.mark.usefixtures("measured")
def test_the_passes_of_the_cost_are_those_that_were_counted(tmp_path):
    """Not one and the share of steps that ascend: ESAM's second pass is of half of the batch, after a third of one."""
    settled(tmp_path, methods=["esam", "sam"], seeds=1, epochs=1)
    cost = json.loads((tmp_path / "cost.json").read_text())["methods"]
    assert cost["esam"]["passes"] == pytest.approx(1 + 1 / 3 + 0.5) and cost["sam"]["passes"] == pytest.approx(2.0)


@pytest.mark.usefixtures("runs_alone")
def test_other_settings_in_the_same_folder_do_not_mix(tmp_path):
    first, second = settled(tmp_path), settled(tmp_path, epochs=2)
    assert len(studies.finished(tmp_path)) == 16
    seeds = [[row["seeds"] for row in each.summary["rows"]] for each in (first, second)]
    assert seeds[0] == seeds[1] == [2, 2, 2, 2]
    assert {record["epochs"] for record in _records(tmp_path)} == {1, 2, 4, 8}


def _records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (out / "runs").glob("*.json")]


@pytest.mark.usefixtures("runs_alone")
def test_more_seeds_run_only_the_new_ones(tmp_path):
    settled(tmp_path, seeds=1)
    before = studies.finished(tmp_path)
    outcome = settled(tmp_path, seeds=2)
    after = studies.finished(tmp_path)
    assert len(before) == 4 and len(after) == 8 and before.items() <= after.items()
    assert outcome.summary["seeds"] == [0, 1]


def test_failed_runs_are_reported_and_the_rest_is_finished(tmp_path):
    done = studies.complete(tmp_path, "--model", "tests.compare.tiny:broken_model", "--seeds", "1")
    assert done.returncode == 1
    assert "the model is broken" in done.stderr.splitlines()[-1]
    assert (tmp_path / "report.html").exists()


def test_what_is_odd_about_the_data_is_said_before_the_first_run(tmp_path, monkeypatch, capsys):
    """It stood under the table alone, when the hours had been spent."""
    days = [f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}" for i in range(60)]
    (tmp_path / "log.csv").write_text(
        "day,x,y\n" + "".join(f"{day},{i * 37 % 60},{i % 2}\n" for i, day in enumerate(days))
    )

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "compare", interrupted)
    asked = f"compare --task table:{tmp_path}/log.csv --target y --leave-out day --methods sam --out {tmp_path}/out"
    assert main([*asked.split(), "--epochs", "1"]) == 130
    assert "· The rows are in order of time (column 'day')" in capsys.readouterr().err
