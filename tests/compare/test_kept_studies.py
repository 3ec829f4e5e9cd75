"""What a folder of finished runs is good for: the report anew, an index, several side by side, CSV; and the screen."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.compare import studies
from tests.compare.records import records

from steppe._command.progress import PlainProgress, duration
from steppe.cli import main
from steppe.compare import screen
from steppe.compare.analysis.summary import summarise
from steppe.compare.engine import cost, store, study
from steppe.compare.studies import beside, index, kept


def quickly(spec: Any, runs: list[Any], shares: Any, tell: Any = None) -> dict[str, Any]:
    """A cost that took no time to measure."""
    return {"methods": {run.method: {"label": run.label, "time_ratio": {"median": 2.0}} for run in runs}, "turns": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two seeds."""
    out = tmp_path_factory.mktemp("results") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure", quickly)
        done = studies.complete(out, "--epochs", "2", "--seeds", "2", "--rho", "0.1", "--tune-seeds", "1")
    assert done.returncode == 0, done.stderr
    assert " runs, about " in done.stderr and "s left\n" in done.stderr
    return out


def test_report_and_table_are_rewritten_from_kept_runs(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (whole / name).read_text() for name in ("report.html", "summary.json")}
    (whole / "report.html").write_text("gone")
    (whole / "summary.json").unlink()
    runs = studies.finished(whole)
    assert main(["compare", "--report", str(whole)]) == 0
    said = capsys.readouterr()
    assert "Two seeds cannot tell" in said.out.replace("\n", " ") and "Report: " in said.out and not said.err
    assert {name: (whole / name).read_text() for name in before} == before
    assert studies.finished(whole) == runs


def test_a_folder_without_a_study_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--report", str(tmp_path)]) == 2
    assert "holds no comparison; give the --out of one" in capsys.readouterr().err
    assert main(["compare", "--report", str(tmp_path), "--seeds", "3"]) == 2
    assert "--report runs nothing, so --seeds says nothing there" in capsys.readouterr().err


def test_an_index_of_studies(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", str(whole.parent)]) == 0
    assert "verdict" in capsys.readouterr().out
    line = screen_text(index(kept(whole.parent)), 250).splitlines()[3].split()
    assert line[:4] == [str(whole), "tests.compare.tiny:task", "2", "2"] and line[4:7] == ["Two", "seeds", "cannot"]
    assert main(["studies", str(whole.parent), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [str(whole)]


def test_a_folder_in_the_index_can_be_copied(whole: Path) -> None:
    summary = kept(whole)[whole]
    assert "results/reviews-csv-again " in screen_text(index({Path("results/reviews-csv-again"): summary}), 80)


def test_two_studies_side_by_side(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", str(whole), str(whole)]) == 0  # the same one twice is one
    assert main(["studies", "nowhere"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    summary = json.loads((whole / "summary.json").read_text())
    other = summary | {"rows": [row for row in summary["rows"] if row["method"] != "rst"]}
    made = screen_text(beside({Path("a"): summary, Path("b"): other}))
    (rst,) = (words for line in made.splitlines() if (words := line.split())[:1] == ["RST"])
    assert rst[-1] == "–" and rst[1] != "–"


def test_side_by_side_it_is_said_what_the_gains_are_of_and_over_what(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text()) | {"best_baseline": "early"}
    error = summary | {"metric": {"name": "mse", "title": "MSE", "higher": False, "percent": False}}
    made = screen_text(beside({Path("a"): summary, Path("b"): error | {"best_baseline": "counts"}}), 140)
    said = [[part for part in re.split(r"\s{2,}", line.strip()) if part] for line in made.splitlines()[2:5]]
    assert said == [
        ["2 seeds", "2 seeds"],
        ["accuracy, points", "MSE, % better"],
        ["gain over the best baseline", "over the base stopped early", "than “counts”"],
    ]


def screen_text(shown: Any, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_runs_as_csv(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", str(whole), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    runs = [json.loads((whole / "runs" / name).read_text()) for name in studies.finished(whole)]
    found = {(r["method"], r["variant"], r["seed"], r["rho"]): float(r["test"]) for r in rows}
    want = {(k["method"], k["variant"], str(k["seed"]), str(k["rho"] or "")): k["test_accuracy"] for k in runs}
    assert found == want
    for row in json.loads((whole / "summary.json").read_text())["rows"]:  # also where the run was made to choose
        same = (r for r in rows if (r["method"], r["variant"], r["phase"]) == (row["method"], row["variant"], "final"))
        assert {r["seed"]: float(r["test"]) for r in same} == row["by_seed"]["final"]


def test_a_full_disk_is_one_sentence_and_finished_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = store.write_json, []

    def full(path: Path, value: Any) -> None:
        if path.parent.name == "runs":
            written.append(path.name)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, value)

    monkeypatch.setattr(store, "write_json", full)
    done = studies.complete(tmp_path, "--epochs", "1", "--seeds", "1", "--tune-seeds", "1")
    assert done.returncode == 2 and len(studies.finished(tmp_path)) == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("steppe: cannot write to") and "No space left on device); make room" in last


def test_the_live_table_fills_with_the_runs(whole: Path) -> None:
    plan = study.plan_of(whole)
    shown = screen.Screen(Console(file=io.StringIO(), force_terminal=True, width=100), plan)
    shown.begin(plan.total(), 0)
    text = screen_text(shown._table)
    assert "gain so far, points" in text
    (line,) = (words for each in text.splitlines() if (words := each.split())[:1] == ["SAM"])
    assert line[1] == "0.1" and "2/2" in line
    shown.begun("x", "a run")
    shown.moving("x", 0.5)
    shown.failed("x", "a run", "why")
    assert not shown._bars and shown.finished == 1


def test_before_a_setting_is_chosen_the_live_table_has_the_best_so_far_on_validation() -> None:
    tries = [r for r in records() if r["phase"] == "tune" and r["method"] == "sam"]
    best = max(r["val_accuracy"] for r in tries)
    text = screen_text(screen.so_far(summarise(tries, None, {"methods": ["base", "sam"], "seeds": [0, 1]})))
    base, sam = (line for line in text.splitlines() if line.split()[-2:-1] == ["0/2"])
    assert "base" in base and "(val.)" not in base
    assert f"{100 * best:.1f} (val.)" in sam
    longer = [r for r in records() if r["variant"] == "double"]
    text = screen_text(screen.so_far(summarise(longer, None, {"methods": ["base"], "seeds": [0, 1]})))
    assert "base  " in text and "0/2" in text, "the base that is not done yet keeps its row"


def test_the_time_left_is_told_before_and_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("steppe._command.progress.time.monotonic", lambda: now[0])
    shown = PlainProgress(Console(file=(said := io.StringIO()), width=100))
    shown.foretell(600)
    shown.begin(10, 4)
    assert said.getvalue() == "10 runs, 4 of them done before, about 6 min left\n"
    now[0] += 20
    shown.done("a", "SAM", "so much")
    assert said.getvalue().splitlines()[1] == "[5/10] SAM: so much, about 2 min left"
    shown.begin(10, 4, (100.0, 10.0))  # runs of other lengths: those before were the short ones
    assert said.getvalue().splitlines()[2].endswith("before, about 9 min left"), "600 s for all"
    now[0] += 20
    shown.expect(10, (110.0, 20.0))
    shown.done("b", "SAM", "so much")
    assert said.getvalue().splitlines()[3] == "[5/10] SAM: so much, about 3 min left", "9 times as much as in 20 s"
    shown.expect(10, (110.0, 30.0))
    shown.skip(10.0)
    shown.done("c", "SAM", "so much")
    assert said.getvalue().splitlines()[4] == "[6/10] SAM: so much, about 3 min left", "done before: 8 times"
    assert [duration(s) for s in (0.2, 89, 600, 9000)] == ["1 s", "89 s", "10 min", "2.5 h"]
