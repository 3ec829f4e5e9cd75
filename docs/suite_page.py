"""Write docs/suite.md, its picture and README's table of gains from benchmarks/results/suite_*.json."""

from __future__ import annotations

import json
import re
import sys
import textwrap
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
seeds; where the command has `--epochs-grid`, each chooses its epochs, too, and with `--tune-lr each` every method a
rate of its own. There a method tried up to 28 settings and the base up to 25 (on diabetes 38 and 24), as its search
ends where nothing is left between neighbours. The baseline is the best of the base at its end, stopped early, with
averaged weights, and trained half and twice as long (stopped or not), by its mean on the test: a hard one, as it is
picked with the test in sight and the methods are not. Where it is one that stops early, the methods do so, too. **Tasks
without `--epochs-grid` were run at one length, and what is gained or lost there may be the length's.** Commands that
end in `--no-half` have no base with half the epochs, those with `--no-step-back` were run before `steppe compare`
stepped back from radii beside broken ones ([compare](compare.md#what-is-chosen-and-from-what)). A gain is paired over
seeds, ± half a 95 % interval, not corrected for the number of comparisons; **bold** where it is clear of zero after
Holm's correction over the methods of its task. Passes are counted, of a step; time is a step's beside the base's, in
turns in one process: processor time, or where a table says so the wall clock; a training's is that times its epochs
over the base's. On the smallest networks a pass over few samples takes nearly as long as one over all
([choosing](choosing.md)).
"""

FOUND = """What to make of it:

- **Where every side chose its rate and its epochs, something is gained on five of six tasks**, much by two forecasters
  and by an MLP on MNIST-1D, a third of a point by MLPs on images, nothing on diabetes. Where a method gains it trains
  for two to four times the base's epochs: in all 4 to 8 times the base's time by SAM, 3 to 6.5 times by a look. More
  may be had where these epochs lie at the end of what was tried.
- **On the weather SAM errs 8.9 ± 0.9 % less than the best baseline, and a look at 8 of 256 samples 8.9 ± 1.1 %**, at
  1.08 times the time of a step. The base is best after 3 epochs, at a quarter of the methods' rate, and worse after 6
  or at 0.002; the methods take 12, which makes SAM's training 8.1 times as long as the base's, the look's 4.3 times.
- **Far more than by SAM is gained on MNIST-1D with an MLP** by the climb on 4 of 100 samples, at a radius of 3.2,
  where SAM, at one length, learned nothing from 0.8 on: SAM +1.5 ± 0.9, the look +4.7 ± 0.8, +4.0 ± 0.4 where its
  radius rises over the first tenth of the training, and +4.4 ± 0.7 on 16 samples. All want the 160 epochs that were the
  longest tried, and the base's best is as long, twice what it chose. At one length, 80 epochs, and one rate, with more
  methods (`mnist1d_mlp_one_length.json`), a look on every fourth step kept little or nothing of what one on every step
  gains: that is why `steppe.recommended` looks on every step.
- **With a CNN on the same signals nothing gains.** It is 26 points better than the MLP, and validation took small
  radii: the gain is that network's, not those signals'. (At 80 epochs for all.)
- **MLPs on 2,000 images gain a third of a point, and clearly**: with right labels by a look at 4 of 64, +0.3 ± 0.1
  after 40 epochs where the base takes 10, and by SAM nothing clear; with a fifth of the labels wrong by SAM, +0.3 ±
  0.2, and the look whose radius rises as much, the one without +0.1 ± 0.2.
- **A ResNet with BatchNorm gains where a fifth of the labels is wrong, and a shorter training wins most of that for
  nothing.** At 15 epochs SAM has +1.7 ± 0.8 points, and a look at 8 of 128 images whose radius rises as many, at 1.06
  passes and 1.18 times the time. But a base of 10 epochs from the start (twice those of “the same ResNet”) lies 1.3
  points above the best baseline of 15, which early stopping is not; over that one SAM has +0.4 ± 0.4, the look +0.5 ±
  0.3. Methods were tried at 5 epochs, where both lose, and at 15; that base has the rate that was chosen at 5.
- **An MLP-Mixer gains half a point, and clearly**, beside a base of which twice the epochs win 0.2, and fewer were not
  tried: SAM +0.6 ± 0.2, a look at 16 of 64 images whose radius rises +0.5 ± 0.3, one at 4 +0.4 ± 0.3.
- **A large radius breaks some trainings.** A mean over few seeds does not see it coming, but a value that breaks in the
  tuning right above it does: `steppe compare` steps back there, or says so.
- **On ETTh1, 96 hours, SAM errs 5.2 ± 1.9 % less, the look 3.5 ± 1.8 %**, likewise after 12 epochs where the base
  chose 3 and is best after 6. At one length and the base's rate nothing was gained there (`ett96_one_length.json`). At
  720 hours, at one length and with one seed that chose the radii, all lose clearly to twice the epochs.
- **A linear network beats the forecaster** on all three forecasts: its base by 7 to 10 %, SAM on it by 1 % at 96 hours
  and 11 % at 720. SAM repairs what attention overfits; who wants the forecast takes the linear network.
- **Nothing** on wine (solved) and the bytes of film reviews, where one seed chose the radii and whose default training
  is far from its end: twice the steps win 7 %, and counts of 5-grams more than that. **On diabetes every method
  loses**, by 2 to 6 %, to the base with half of the eight epochs that validation chose.
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
    """One task: its methods by passes; their epochs where each chose its own."""
    time = "time" if record.get("clock") == "processor" else "time (wall)"
    epochs = any(row.get("epochs") for row in record["rows"])
    heads = ["method", "radius", *(["epochs"] if epochs else []), "gain", "passes", time, "of SAM's gain"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in sorted(methods(record), key=lambda each: each["passes"]):
        gain = figure(row["gain"], record, signed=True)
        cells = [
            row["label"], "–" if row["rho"] is None else f"{row['rho']:g}", *([f"{row['epochs']}"] if epochs else []),
            f"**{gain}**" if clear(row) else gain, f"{row['passes']:.2f}", _time(row), _share(row),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def step_time(row: Record) -> float | None:
    """Time of a step in units of the base's; that of a training holds its length, too."""
    found = (row["time_ratio"] or {}).get("median")
    return found / (row.get("length") or 1) if found else None


def _time(row: Record) -> str:
    found = step_time(row)
    return f"{found:.2f}" if found else "–"


def _share(row: Record) -> str:
    """How much of SAM's gain, with Fieller's bounds where there are any."""
    found = row["kept"]
    return f"{100 * found['share']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]" if found else "–"


def command(record: Record) -> str:
    """What gives the record today: before there was a step back, or a shorter base, there was nothing to leave."""
    later = ("step_back", "half")
    spec = record.get("spec", later)
    return str(record["command"]) + "".join(f" --no-{name.replace('_', '-')}" for name in later if name not in spec)


def section(name: str, record: Record) -> str:
    """Title, command, baselines, table."""
    task, metric = SUITE[name], record["metric"]
    unit = "points" if metric["percent"] else ("higher is better" if metric["higher"] else "lower is better")
    shown = [f"{each} {figure(found, record)}" for each, found in record["baselines"].items()]
    plain = kept(f"{name}_linear")
    shown += [f"a linear network {figure(best(plain), record)}"] if plain else []
    seeds, note = best(record)["n"], f"\n{record['note']}\n" if "note" in record else ""
    return (
        f"## {task.title}\n\n{metric['title']} ({unit}; a gain above zero is better), {seeds} seeds. Baselines: "
        f"{'; '.join(shown)}. Best: {record['best_baseline']}.{_chosen(record)}\n\n`{command(record)}`\n\n"
        f"{table(record)}\n{note}"
    )


def _chosen(record: Record) -> str:
    """What the base took, where it chose its epochs."""
    base = next((row for row in record["rows"] if row["method"] == "base" and row.get("epochs")), None)
    return f" The base chose {base['epochs']} epochs, at a rate of {base['lr']:g}." if base else ""


LOOK, RAMP = "a look at few samples", "the same, its radius rising"
COLUMNS = {
    "SAM": ("sam",),
    LOOK: ("sam:samples={few}", "rst:p=1,samples={few}", "rst:p=1.0,samples={few}"),
    RAMP: ("recommended:ramp=0.1,samples={few}",),
    "on four times as many": ("recommended:ramp=0.1,samples={more}",),
    "G-RST": ("grst",),
    "LookSAM": ("look_sam",),
}
"""Which methods stand in which column of the overview; {few} is the task's number of samples, {more} four times it."""


def columns(name: str, record: Record) -> dict[str, Record | None]:
    """Title of a column -> the task's row for it."""
    rows = {row["method"]: row for row in methods(record)}
    few = SUITE[name].few
    wanted = {title: [each.format(few=few, more=4 * few) for each in names] for title, names in COLUMNS.items()}
    return {title: next((rows[each] for each in names if each in rows), None) for title, names in wanted.items()}


def overview(found: dict[str, Record]) -> str:
    """All tasks in one table, in points or in per cent of the best baseline's error."""
    lines = ["| task (seeds) | best baseline | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for name, record in found.items():
        cells = [_won(row, record) if row else "–" for row in columns(name, record).values()]
        hardest = f"{figure(best(record), record)}, {record['best_baseline'].replace('_', ' and ')}"
        lines.append(f"| {SUITE[name].title} ({best(record)['n']}) | {hardest} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _won(row: Record, record: Record) -> str:
    """A gain in points, or as a share of the best baseline's error; bold where it is clear."""
    scale = 100 / (1 if record["metric"]["percent"] else abs(best(record)["mean"]))
    half = "" if row["gain"]["ci95"] is None else f" ± {scale * row['gain']['ci95']:.1f}"
    text = f"{scale * row['gain']['mean']:+.1f}{half}{'' if record['metric']['percent'] else ' %'}".replace("-", "−")
    return f"**{text}**" if clear(row) else text


README = ROOT / "README.md"
EVIDENCE = re.compile(r"(?<=<!-- evidence: written by docs/suite_page.py -->\n).*?(?=<!-- end of evidence -->)", re.S)
QUOTED = (
    "weather96", "ett96", "mnist1d_mlp", "mnist1d_cnn", "fashion_mlp", "fashion_mlp_noisy", "fashion_mixer",
    "fashion_resnet_noisy",
)  # fmt: skip


def evidence(found: dict[str, Record]) -> str:
    """README's table: some tasks, with SAM, a look at few samples with either radius, and what that takes."""
    titles = ["SAM", LOOK, RAMP]
    lines = [
        "| task (seeds) | epochs: base, SAM, look | " + " | ".join([*titles, "a look's time: step, training"]) + " |",
        "|" + " --- |" * 6,
    ]
    for name in QUOTED:
        record, row = found[name], columns(name, found[name])
        cells = [_won(row[title], record) if row[title] else "–" for title in titles]
        look = row[LOOK]
        time = f"{_time(look)}, {look['time_ratio']['median']:.1f}" if look else "–"
        head = f"{SUITE[name].title} ({best(record)['n']})"
        lines.append(f"| {head} | {_epochs(record, row['SAM'], look)} | {' | '.join(cells)} | {time} |")
    return "\n".join(lines) + "\n"


def _epochs(record: Record, *chosen: Record | None) -> str:
    """What the base and some methods chose, or the one length at which all were trained."""
    base = next(row for row in record["rows"] if row["method"] == "base")
    if "epochs" in base:
        return ", ".join(f"{row['epochs']}" for row in (base, *chosen) if row)
    return f"all {record['spec']['epochs']}"


def readme(found: dict[str, Record]) -> str:
    """README with its table made anew."""
    return EVIDENCE.sub(lambda _: evidence(found), README.read_text())


def page(found: dict[str, Record]) -> str:
    """The whole page."""
    picture = "![Gain over the best baseline against the time of a step, task by task](suite.svg)\n"
    parts = [section(name, record) for name, record in found.items()]
    return "\n".join([INTRO, picture, overview(found), FOUND, *parts])


def draw(found: dict[str, Record]) -> None:
    """Gain over the best baseline against the measured time of a step, a panel for each task."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "steppe"  # the same file from the same figures
    from matplotlib.figure import Figure

    deep = -(-len(found) // 3)
    grid = Figure(figsize=(9, 0.9 + 2.5 * deep), layout="constrained")
    panels = iter(grid.subplots(deep, 3, squeeze=False, sharex=True).flat)
    for (name, record), panel in zip(found.items(), panels, strict=False):
        _panel(panel, name, record)
    for panel in panels:
        panel.remove()
    for panel in grid.axes:
        panel.tick_params(labelbottom=True)
    grid.supxlabel("time of a step (the base's is 1)", fontsize=10)
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in grid.axes]
    handles = {text: handle for each in pairs for handle, text in each}
    grid.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    grid.savefig(FIGURE, metadata={"Date": None, "Creator": None})


def _panel(panel: Any, name: str, record: Record) -> None:
    scale = 100 / (1 if record["metric"]["percent"] else abs(best(record)["mean"]))
    for i, (label, row) in enumerate(columns(name, record).items()):
        if row and row["gain"] and (time := step_time(row)):
            half = scale * (row["gain"]["ci95"] or 0)
            panel.errorbar(
                time, scale * row["gain"]["mean"], half, fmt="o", ms=4, capsize=2, color=f"C{i}", label=label,
            )  # fmt: skip
    panel.axhline(0, color="0.6", lw=0.8)
    panel.set_title(textwrap.fill(SUITE[name].title, 30), fontsize=10)
    panel.set_ylabel("points" if record["metric"]["percent"] else "% less error", fontsize=9)


def main() -> int:
    """Write, or with --check only say whether the page is out of date."""
    found = {name: record for name in SUITE if (record := kept(name))}
    if "--check" in sys.argv:
        return int(TARGET.read_text() != page(found) or README.read_text() != readme(found))
    TARGET.write_text(page(found))
    README.write_text(readme(found))
    draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
