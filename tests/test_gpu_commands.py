"""The commands on a GPU, as they are typed: by default they take it, in several processes, and results say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.finetune.cases import run as fine_tuned

from steppe.cli import main

pytestmark = pytest.mark.gpu
QUICK = [
    "--methods",
    "sam,recommended",
    "--seeds",
    "2",
    "--epochs",
    "1",
    "--rho",
    "0.1",
    "--grow",
    "0",
    "--jobs",
    "2",
]


def compared(out: Path, *words: str) -> dict[str, Any]:
    """The summary of a comparison that was typed."""
    assert main(["compare", *words, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def walk(folder: Path) -> str:
    """A series of two columns."""
    steps = np.random.default_rng(0).normal(size=(900, 2)).cumsum(0)
    (folder / "walk.csv").write_text("a,b\n" + "\n".join(f"{a:.3f},{b:.3f}" for a, b in steps) + "\n")
    return f"forecast:{folder}/walk.csv"


def table(folder: Path) -> str:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    (folder / "rows.csv").write_text("a,b,y\n" + "\n".join(f"{a},{b},{a * b + c}" for a, b, c in rows) + "\n")
    return f"table:{folder}/rows.csv"


def text(folder: Path) -> str:
    (folder / "text.txt").write_text("the cat sat on the mat and looked at the dog. " * 400)
    return f"lm:{folder}/text.txt"


TASKS: dict[str, tuple[Any, list[str]]] = {
    "default": (lambda folder: "mnist1d-10k", ["--labelled", "400"]),
    "digits": (lambda folder: "digits-few", ["--also", "calibration,quantized,noise"]),
    "forecast": (walk, ["--lookback", "32", "--horizon", "8"]),
    "table": (table, ["--target", "y"]),
    "lm": (text, []),
    "resnet": (lambda folder: "digits-few", ["--model", "resnet18"]),
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_comparison_takes_the_gpu(kind: str, tmp_path: Path) -> None:
    make, words = TASKS[kind]
    found = compared(tmp_path / "out", "--task", make(tmp_path), *words, *QUICK)
    assert all(row["time_ratio"] for row in found["rows"] if row["method"] != "base")
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert cost["methods"]["sam"]["memory_ratio"] > 1 and cost["clock"] == "wall"
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*.json")]
    assert len(records) >= 6 and not any("error" in each for each in records)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_the_same_comparison_goes_on_and_is_not_made_again(tmp_path: Path) -> None:
    first = compared(tmp_path, "--task", "digits-few", *QUICK)
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert compared(tmp_path, "--task", "digits-few", *QUICK)["rows"] == first["rows"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")} == begun


@pytest.mark.parametrize("method", ["nbar", "sam", "flat_lora"])
def test_fine_tuning_takes_the_gpu(method: str, tmp_path: Path) -> None:
    found = fine_tuned(tmp_path, method=method)
    assert "cuda" in found["provenance"]["device"].lower() or "nvidia" in json.dumps(found["provenance"]).lower()
    assert found["memory"]["peak_bytes"] > 0 and 0 <= found["metrics"]["accuracy"] <= 1


def test_the_example_of_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune"]) == 0


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--methods", "sam,recommended,look_sam:k=5", "--device", "cuda", "--steps", "4", "--batch-size", "16"]
    assert main(["bench", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"]["memory_bytes"] > 0 and found["methods"]["sam"]["buffers"] < 1.5


def test_a_radius_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rho", "--task", "digits-few", "--trial", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rho"] > 0


def test_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hessian_eigenthings")
    compared(tmp_path / "study", "--task", "digits-few", *QUICK)
    quick = ["--steps", "3", "--probes", "3", "--runs", "1", "--points", "3", "--radii", "0.05", "--draws", "2"]
    assert main(["look", str(tmp_path / "study"), "--out", str(tmp_path / "look"), *quick]) == 0
    assert json.loads((tmp_path / "look" / "look.json").read_text())["models"]
