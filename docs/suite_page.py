"""Write docs/suite.md and docs/suite.svg from benchmarks/results/suite_*.json (`python docs/suite_page.py`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, TARGET, FIGURE = ROOT / "benchmarks" / "results", ROOT / "docs" / "suite.md", ROOT / "docs" / "suite.svg"
sys.path.append(str(ROOT / "benchmarks"))

from suite import SUITE  # noqa: E402

Record = dict[str, Any]
INTRO = """# The suite

Written by `python docs/suite_page.py` from `benchmarks/results/suite_*.json`; `make suite ARGS="--data FOLDER"` runs
it. On each task the base chooses its learning rate and every method its radius, on the validation part and the same
seeds. The baseline is the best of the base at its end, stopped early, with averaged weights, and trained twice as
long (stopped or not), by its mean on the test: a hard one, as it is picked with the test in sight and the methods are
not. A gain is paired over seeds, ± half a 95 % interval, not corrected for the number of comparisons; **bold** where
it is clear of zero after Holm's correction over the methods of its task. Cost is in passes; what a pass on few
samples takes in time depends on the network ([choosing](choosing.md)).
"""


def kept(name: str) -> Record | None:
    """The summary of a task, None where there is none."""
    path = RESULTS / f"suite_{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def figure(value: Record | None, record: Record, signed: bool = False) -> str:
    """A mean with its interval in the metric's unit."""
    if value is None:
        return "–"
    scale = 100 if record["metric"]["percent"] else 1
    size = abs(best(record)["mean"])
    digits = 2 if scale == 100 else max(0, 3 - len(str(int(size))) + (size < 10))
    form = f"{'+' if signed else ''}.{digits}f"
    half = "" if value["ci95"] is None else f" ± {scale * value['ci95']:.{digits}f}"
    return f"{scale * value['mean']:{form}}{half}".replace("-", "−")


def best(record: Record) -> Record:
    """The hardest of the honest baselines."""
    found: Record = record["baselines"][record["best_baseline"]]
    return found


def methods(record: Record) -> list[Record]:
    """The rows that are no baselines."""
    return [row for row in record["rows"] if row["method"] != "base"]


def clear(row: Record) -> bool:
    """Whether a gain is above zero after the correction over the task's methods."""
    return (row["gain"] or {}).get("clear", 0) > 0


def table(record: Record) -> str:
    """One task: its methods by passes."""
    lines = ["| method | radius | gain | passes | of SAM's gain |", "|" + " --- |" * 5]
    for row in sorted(methods(record), key=lambda each: each["passes"]):
        gain = figure(row["gain"], record, signed=True)
        cells = [
            row["label"], "–" if row["rho"] is None else f"{row['rho']:g}", f"**{gain}**" if clear(row) else gain,
            f"{row['passes']:.2f}", _share(row),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(row: Record) -> str:
    """How much of SAM's gain, with Fieller's bounds where there are any."""
    found = row["kept"]
    return f"{100 * found['share']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]" if found else "–"


def section(name: str, record: Record) -> str:
    """Title, command, baselines, table."""
    task, metric = SUITE[name], record["metric"]
    unit = "points" if metric["percent"] else ("higher is better" if metric["higher"] else "lower is better")
    shown = [f"{each} {figure(found, record)}" for each, found in record["baselines"].items()]
    plain = kept(f"{name}_linear")
    shown += [f"a linear network {figure(best(plain), record)}"] if plain else []
    seeds = best(record)["n"]
    return (
        f"## {task.title}\n\n{metric['title']} ({unit}; a gain above zero is better), {seeds} seeds. Baselines: "
        f"{'; '.join(shown)}. Best: {record['best_baseline']}.\n\n`{record['command']}`\n\n{table(record)}\n"
    )


def page(found: dict[str, Record]) -> str:
    """The whole page."""
    picture = "![Gain over the best baseline against the passes of a step, task by task](suite.svg)\n"
    return "\n".join([INTRO, picture, *(section(name, record) for name, record in found.items())])


def draw(found: dict[str, Record]) -> None:
    """Gain over the best baseline against passes, a panel for each task."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "steppe", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    wide = min(3, len(found))
    deep = -(-len(found) // wide)
    grid, panels = pyplot.subplots(deep, wide, figsize=(max(4, 3 * wide), 0.8 + 2.4 * deep), squeeze=False)
    names = dict.fromkeys(row["label"] for record in found.values() for row in methods(record))
    marks = {name: f"C{i}" for i, name in enumerate(names)}
    for panel in panels.flat[len(found) :]:
        panel.remove()
    for panel, (name, record) in zip(panels.flat, found.items(), strict=False):
        scale = 100 / (1 if record["metric"]["percent"] else abs(best(record)["mean"]))
        for row in methods(record):
            half = scale * (row["gain"]["ci95"] or 0)
            panel.errorbar(
                row["passes"], scale * row["gain"]["mean"], half, fmt="o", ms=4, capsize=2,
                color=marks[row["label"]], label=row["label"],
            )  # fmt: skip
        panel.axhline(0, color="0.6", lw=0.8)
        unit = "points" if record["metric"]["percent"] else "% less error"
        panel.set(title=SUITE[name].title, xlabel="passes a step", ylabel=unit)
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in grid.axes]
    handles = {text: handle for each in pairs for handle, text in each}
    grid.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    grid.set_layout_engine("constrained")
    grid.savefig(FIGURE, metadata={"Date": None, "Creator": None})


def main() -> int:
    """Write, or with --check only say whether the page is out of date."""
    found = {name: record for name in SUITE if (record := kept(name))}
    if "--check" in sys.argv:
        return int(TARGET.read_text() != page(found))
    TARGET.write_text(page(found))
    draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
