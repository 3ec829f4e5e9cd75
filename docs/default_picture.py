"""Write docs/default.svg, what `make compare` comes to, from its kept result (`python docs/default_picture.py`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
RESULT, FIGURE = ROOT / "benchmarks" / "results" / "default.json", ROOT / "docs" / "default.svg"

NAMES = {
    "base": "the base, its rate tuned", "early": "stopped early", "averaged": "averaged weights",
    "lawa": "the latest weights averaged", "half": "half the epochs", "half_early": "half the epochs, stopped early",
    "double": "twice the epochs", "double_early": "twice the epochs, stopped early",
}  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, LINE = 720, 236, 560, 34, 26
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .dim { fill: #59636e }
.base { stroke: #59636e; fill: #59636e } .method { stroke: #0969da; fill: #0969da } .grid { stroke: #59636e44 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .dim { fill: #9198a1 }
  .base { stroke: #9198a1; fill: #9198a1 } .method { stroke: #4493f8; fill: #4493f8 }
}
</style>"""


def lines_of(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, str]]:
    """Each baseline and method: its name, its figure, what it costs in training time, and its class of style."""
    rows = summary["rows"]
    time = {row["variant"]: row["time_ratio"]["median"] for row in rows if row["method"] == "base"}
    bases = [
        (NAMES[name], figure, f"{time.get(name.partition('_')[0], time['plain']):.2f}×", "base")
        for name, figure in summary["baselines"].items()
        if name in NAMES  # a linear model is far off the scale, which the text says
    ]
    methods = [row for row in rows if row["method"] != "base"]
    return bases + [(r["label"], r[summary["judged"]], f"{r['time_ratio']['median']:.2f}×", "method") for r in methods]


def drawn(summary: dict[str, Any]) -> str:
    """The picture: accuracy with its 95 % interval over the seeds, a line for each, and the training time beside it."""
    lines = lines_of(summary)
    ends = [100 * (f["mean"] + sign * f["ci95"]) for _, f, _, _ in lines for sign in (-1, 1)]
    low, high = int(min(ends)), int(max(ends)) + 1

    def at(value: float) -> str:
        return f"{LEFT + (100 * value - low) / (high - low) * (RIGHT - LEFT):.1f}"

    floor = TOP + LINE * len(lines)
    parts = [f'<text class="dim" x="{LEFT}" y="18">test accuracy, %</text>']
    parts.append(f'<text class="dim" x="{RIGHT + 20}" y="18">training time</text>')
    for tick in range(low, high + 1):
        x = at(tick / 100)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{floor}"/>')
        parts.append(f'<text class="dim" x="{x}" y="{floor + 16}" text-anchor="middle">{tick}</text>')
    for place, (name, figure, cost, kind) in enumerate(lines):
        y = TOP + LINE * place + 12
        mean, half = figure["mean"], figure["ci95"]
        parts.append(f'<text x="0" y="{y + 4}">{escape(name)}</text>')
        parts.append(f'<line class="{kind}" x1="{at(mean - half)}" x2="{at(mean + half)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{at(mean)}" cy="{y}" r="4"/>')
        parts.append(f'<text class="dim" x="{RIGHT + 20}" y="{y + 4}">{100 * mean:.1f} at {cost}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {floor + 24}" role="img">'
    return "\n".join([head, f"<title>{escape(summary['verdict'])}</title>", STYLE, *parts, "</svg>"]) + "\n"


def main() -> int:
    """Write, or with --check only say whether the picture is out of date."""
    made = drawn(json.loads(RESULT.read_text())["summary"])
    same = FIGURE.exists() and FIGURE.read_text() == made
    if "--check" in sys.argv:
        print("up to date" if same else "out of date: docs/default.svg; run python docs/default_picture.py")
        return not same
    FIGURE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
