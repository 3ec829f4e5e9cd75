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
    lora = kept("lora_study")["sst2"]["paired"]["sam"]["over"]["base"]
    more = shown({name: 100 * lora[name] for name in ("mean", "ci95")})
    assert f"LoRA-SAM had {more} points more on SST-2, which is not clear" in page
    assert kept("lora_study")["sst2"]["verdict"].startswith("Not settled: SAM")


def test_the_readme_is_short() -> None:
    """One screen and a half."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_the_first_snippet_is_sam_itself() -> None:
    """What a stranger copies first must not need tuning that it does not show."""
    first = (ROOT / "README.md").read_text().split("```diff")[1].split("```")[0]
    assert "steppe.SAM(model, optimizer, rho=0.05)" in first


def test_the_default_push_is_the_one_that_harms_least() -> None:
    """Beside the paper's and the natural one, on every task of the study; never more than a point below SAM."""
    assert inspect.signature(steppe.LookSAM).parameters["push"].default == "guarded"
    for cell in kept("look_sam_default")["cells"].values():
        worst = cell["worst"]
        assert worst["guarded"] > worst["natural"] > worst["paper, alpha .7"]
        assert worst["guarded"] > worst["SAM"] - 1
