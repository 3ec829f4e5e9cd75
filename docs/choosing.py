"""Write docs/choosing.md's table, and the default's of docs/compare.md, from results (`python docs/choosing.py`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET, COMPARE = ROOT / "docs" / "choosing.md", ROOT / "docs" / "compare.md"
DEFAULT = ROOT / "benchmarks" / "results" / "default.json"
PUSHES = ROOT / "benchmarks" / "results" / "look_sam_default.json"


def pushes(record: dict[str, Any]) -> str:
    """Test accuracy of the base, and each push's mean difference to it at each radius, task by task."""
    cells = record["cells"]
    heads = [f"{name}, base {fmean(cell['base']):.1f}" for name, cell in cells.items()]
    lines = ["| push | rho | " + " | ".join(heads) + " |", "|" + " --- |" * (len(heads) + 2)]
    for name, radii in next(iter(cells.values()))["tests"].items():
        for rho in radii:
            pairs = [(cell["tests"][name][rho], cell["base"]) for cell in cells.values()]
            cells_of = [_over([a - b for a, b in zip(tests, base, strict=False)]) for tests, base in pairs]
            lines.append(f"| {name} | {rho} | " + " | ".join(cells_of) + " |")
    return "\n".join(lines)


BASELINES = {
    "base": "the base, its learning rate tuned", "early": "stopped early", "averaged": "averaged weights",
    "lawa": "the latest weights averaged", "half": "half the epochs", "half_early": "half the epochs, stopped early",
    "double": "twice the epochs", "double_early": "twice the epochs, stopped early", "a linear model": "a linear model",
}  # fmt: skip


def default(record: dict[str, Any]) -> str:
    """What the command without options came to: the verdict, and every row."""
    summary = record["summary"]
    head = ["| | test accuracy, % | gain, points | passes, ÷ the base's |", "| --- | --- | --- | --- |"]
    lines = [f"> {summary['verdict']}", "", *head]
    for name, figure in summary["baselines"].items():
        mark = " (the best: gains are over this)" if name == summary["best_baseline"] else ""
        lines.append(f"| {BASELINES[name]}{mark} | {_percent(figure)} | | {_passes(name)} |")
    for row in (row for row in summary["rows"] if row["method"] != "base"):
        gain = f"{100 * row['gain']['mean']:+.1f} ± {100 * row['gain']['ci95']:.1f}".replace("-", "−")
        lines.append(f"| {row['label']} | {_percent(row[summary['judged']])} | {gain} | {row['passes']:.2f} |")
    return "\n".join(lines)


def _passes(baseline: str) -> str:
    """Passes of a baseline, in units of the base's."""
    return "–" if "linear" in baseline else {"double": "2", "half": "½"}.get(baseline.partition("_")[0], "1")


def _percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['mean']:.1f} ± {100 * figure['ci95']:.1f}"


def _over(differences: list[float]) -> str:
    return f"{fmean(differences):+.1f} ({len(differences)})"


def page(text: str, tables: dict[str, str]) -> str:
    """The page with the present tables between their marks."""
    for name, content in tables.items():
        start, end = f"<!-- {name}: written by docs/choosing.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def pages() -> dict[Path, str]:
    """What each page should hold."""
    mine = {"pushes": pushes(json.loads(PUSHES.read_text()))}
    default_row = {"default": default(json.loads(DEFAULT.read_text()))}
    return {TARGET: page(TARGET.read_text(), mine), COMPARE: page(COMPARE.read_text(), default_row)}


def main() -> int:
    """Write, or with --check only say which page is out of date."""
    made = pages()
    old = [path.name for path, text in made.items() if path.read_text() != text]
    if "--check" in sys.argv:
        print(f"out of date: {', '.join(old)}; run python docs/choosing.py" if old else "up to date")
        return bool(old)
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
