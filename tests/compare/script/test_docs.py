"""The table of docs/script.md is that of the kept studies."""

import json
from pathlib import Path

import pytest

from steppe.compare.analysis.wording import Words

ROOT = Path(__file__).parents[3]
LABELS = ("base", "base, ½× epochs", "base, 2× epochs", "SAM", "RST", "SAM (samples=5)")


HOSTS = {"loop": "| plain", "trainer": "| Trainer", "lightning": "| Lightning"}


@pytest.mark.parametrize(("host", "line"), HOSTS.items())
def test_every_figure_is_that_of_the_file(host, line):
    summary = json.loads((ROOT / f"benchmarks/results/study_script_{host}.json").read_text())
    words, rows = Words(summary), {row["label"]: row for row in summary["rows"]}
    expected = []
    for label in LABELS:
        expected.append(words.figure(rows[label]["final"]))
        expected += [words.gain(rows[label]["gain"])] if rows[label]["gain"] else []
    (shown,) = [each for each in (ROOT / "docs/script.md").read_text().splitlines() if each.startswith(line)]
    assert [cell.strip() for cell in shown.split("|")[2:-1]] == expected
    assert summary["command"].startswith(f"steppe compare --script examples/compare_{host}.py:train")
    passes = {label: rows[label]["passes"] for label in LABELS}
    assert passes["SAM"] == 2.0 and passes["SAM (samples=5)"] == pytest.approx(1.1) and 1.5 < passes["RST"] < 1.525
