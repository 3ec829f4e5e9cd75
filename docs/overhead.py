"""Write docs/overhead.md, what steppe does beside the passes, from benchmarks/results/host_overhead.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "host_overhead.json"
TARGET = ROOT / "docs" / "overhead.md"
INTRO = """# What a step does beside its passes

Written by `python docs/overhead.py` from `benchmarks/results/host_overhead.json`. All times are processor time on one
thread; contenders have copies of one model and take turns, step by step; shown are the median over the turns, in
brackets the quartiles, and behind it what the quickest tenth of the steps of either side says, which other programs on
the machine disturb least.
"""
BUSY = 2
AIMS = {"msam": 1.06, "look": 1.15}
NAMES = {
    "msam": "MSAM (one pass)", "look": "SAM, ascent on one sample", "reuse": "LookSAM, a step that reuses",
    "skip": "a step known to skip", "msam by hand": "MSAM written by hand",
    "look by hand": "SAM written by hand, ascent on one sample",
}  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    counts = entered(found["entered"], found.get("entered_skipping"))
    return "\n".join([INTRO, tensors(found["tensors"]), cnn(found["cnn"]), counts, made_with(found)])


def aim(tensors: int) -> float:
    """Milliseconds that SAM may take beside the loop's step."""
    return 0.10 + 0.0015 * tensors


def tensors(cases: list[dict[str, Any]]) -> str:
    """By the number of tensors: SAM beside the loop, and a step that skips beside a plain one."""
    rows = [
        "## Beside a loop of twelve lines", "",
        "SAM's step less that of a loop with the same arithmetic (`loop_of` in the benchmark, one call for all)",
        "on chains of linear layers of width 16; and a step that is known to skip less one of the bare optimizer.", "",
        "| tensors | the loop's step, ms | SAM's step more, ms | aim | a skipping step more, ms | aim |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in cases:
        sam, skip = shown(case["sam_over_loop_ms"], 3), shown(case["skip_over_base_ms"], 3)
        rows.append(
            f"| {case['tensors']} | {case['ms']['loop']:.2f} | {sam} | ≤ {aim(case['tensors']):.2f} | {skip} | ≤ 0.02 |"
        )
    return "\n".join([*rows, ""])


def cnn(found: dict[str, Any]) -> str:
    """Methods whose cost is nearly the base's."""
    rows = [
        "## On a small network", "",
        f"The CNN of the task digits-few, batch 50; a step of the bare optimizer takes {found['base_ms']:.2f} ms.", "",
        "| | times the base's step | aim |", "|---|---|---|",
    ]  # fmt: skip
    for name, ratio in found["times_base"].items():
        goal = f"≤ {AIMS[name]}" if name in AIMS else ""
        rows.append(f"| {NAMES[name]} | {shown(ratio, 2)} | {goal} |")
    return "\n".join([*rows, ""])


def entered(found: dict[str, int], skipping: dict[str, int] | None) -> str:
    """What a reader steps through."""
    return (
        "## Functions of a step\n\n"
        f"One step of SAM on a two-layer MLP enters {found['functions']} functions of steppe, {found['files']} files, "
        f"by {found['calls']} calls, {found['depth']} deep"
        + (f"; one that is known to skip {skipping['functions']} by {skipping['calls']} calls" if skipping else "")
        + ".\n"
    )


def made_with(found: dict[str, Any]) -> str:
    """The command and the machine."""
    about = found["provenance"]
    busy = about["load_average"][0] > BUSY
    return (
        f"`{found['command']}` · torch {about['torch']}, Python {about['python']}, load average "
        f"{about['load_average'][0]} at the end."
        + (f" {found['note']}" if found.get("note") else "")
        + (" A busy machine, several times slower than an idle one: no verdict on the aims.\n" if busy else "\n")
    )


def shown(figure: dict[str, float], digits: int) -> str:
    """Median (quartiles); the quickest."""
    spread = f"({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"
    return f"{figure['median']:.{digits}f} {spread}; {figure['quick']:.{digits}f}"


if __name__ == "__main__":
    TARGET.write_text(page(json.loads(RESULT.read_text())))
    print(f"wrote {TARGET.relative_to(ROOT)}")
