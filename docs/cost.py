"""Write docs/cost.md from the figures in benchmarks/results/step_time_*.json (`make costs`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "cost.md"
ORDER = (
    "resnet18_b128", "resnet18_b128_more", "resnet18_b16", "vit192_b128", "minilm_full", "minilm_lora", "mlp_b128",
    "cnn_b64", "tiny_language", "cuda_resnet50_b128", "cuda_vit_b16_b128", "cuda_llama1b_lora_b8",
    "cuda_resnet18_b128", "cuda_resnet18_b16", "cuda_transformer100m", "cuda_resnet50_row8", "cuda_vit_b16_row8",
    "cuda_resnet50_graphs", "cuda_vit_b16_graphs", "cuda_resnet50_recorded", "cuda_vit_b16_recorded",
)  # fmt: skip
WIDTHS = ("width", "cuda_width_float32", "cuda_width_bfloat16")
PAIRS = (("sam", "peer_sam"), ("look_sam:k=5", "peer_look_sam"), ("gsam", "peer_gsam"), ("fsam", "peer_fsam"))
AIMS = (("sam", 2.04), ("look_sam:k=5", 1.24), ("rst", 1.53))
LOOKED = ("sam", "recommended", "sam:samples=16", "rst", "look_sam:k=5", "msam")
KINDS = {
    "more": " (more methods)", "row8": " (eight steps without waiting)", "recorded": " (recorded looks)",
    "graphs": " (CUDA graphs of torch.compile)",
}  # fmt: skip
QUIET = 1.5
INTRO = """# What a step costs, measured

Written by `python docs/cost.py` (`make costs` measures first) from `benchmarks/results/step_time_*.json`; each table
names the command that makes its file. Your own model: `steppe bench --model module:function`. What a step does beside
its passes, which is what small models feel: [overhead.md](overhead.md).

How it is measured: every contender trains its own copy of the model in one process and they take turns, step by step,
after a warm-up. A ratio is a step beside a step of the bare optimizer (SGD with momentum) of the same turn; shown are
the median and, in brackets, the quartiles. Steps that ascend and steps that do not are measured equally often and
weighted by their share in the schedule. `passes` is the predicted ratio: forward and backward passes counted, nothing
else. Times are processor time on a CPU, in which other programs on the machine do not show, though their use of caches
and memory may: load averages are named. On a GPU they are the wall clock's.
`buffers` is the peak memory above the base's, in sizes of the trained parameters; `memory` the peak itself.
pytorch_optimizer is used as its documentation says, the naive loop is `benchmarks/step_peers.py`.
"""


def load(name: str) -> dict[str, Any] | None:
    """The figures of a case, if it was run."""
    path = RESULTS / f"step_time_{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def page() -> str:
    """The whole page."""
    found = {name: record for name in ORDER if (record := load(name))}
    parts = [INTRO, aims(found), gpu(found), pairs(found), *(case(record) for record in found.values())]
    parts += [width(record) for name in WIDTHS if (record := load(name))]
    return "\n".join([*parts, optax(found), missing()])


def aims(found: dict[str, Any]) -> str:
    """The aims on ResNet-18 at batch 128."""
    if not (record := found.get("resnet18_b128")):
        return ""
    rows = [
        "## ResNet-18, batch 128: the aims",
        "",
        "| | aim | passes | measured |",
        "|---|---|---|---|",
    ]
    for name, aim in AIMS:
        row = record["methods"][name]
        rows.append(f"| {row['label']} | ≤ {aim} | {row['passes']:.3f} | {ratio(row, record)} |")
    if share := record.get("phases", {}).get("steppe"):
        rows.append(f"| perturb + restore | ≤ 1 % of a pass | | {percent(share['share_of_a_pass'])} |")
    return "\n".join([*rows, ""])


ON_A_GPU = """## On a GPU

Here every step was waited for. A pass over one sample launches as many kernels as a pass over 128, and a fast GPU has
done them before the host has launched the next: so a look saves nearly no time where a step is launches for the most
part, and less than its passes say elsewhere.

| model | {heads} |
|---|{rule}
{rows}

What is near its passes there is RST, LookSAM and MSAM, and a look that is recorded (below).
"""

RECORDED = """### A look that is recorded

With `cuda_graph=True` a look is recorded as a CUDA graph and replayed: one launch in the place of some hundred
([how, and what is asked of the loss](compose.md)). Times the base's step, SAM whose ascent is on {samples} of
{batch_size} images:

| model | the look, each step waited for | recorded | the look, {steps} steps in a row | recorded |
|---|---|---|---|---|
{rows}

`{command}`, {device}, torch {torch}.

The kernels of a pass over one image take {kernels} of the time of those of 128, by
torch's profiler: that remains. A loop that does not wait for every step hides a part of the launches behind the GPU's
work, and
`torch.compile` with a backend of CUDA graphs takes two launches for a pass, and more work on the host:

| model, batch 128 | {heads} |
|---|{rule}
{others}
"""

KINDS_ON_A_GPU = {
    "row8": "eight steps in a row", "graphs": "in CUDA graphs of torch.compile, waited for",
    "recorded": "each step waited for",
}  # fmt: skip
RECORDED_TOO = (
    "sam", "look_sam:k=5", "recommended", "recommended:cuda_graph=True", "sam:samples=16",
    "sam:cuda_graph=True,samples=16", "msam",
)  # fmt: skip


def gpu(found: dict[str, Any]) -> str:
    """What looks cost where launches take the time."""
    on_it = {name: record for name, record in found.items() if name.startswith("cuda_")}
    plain = [record for name, record in on_it.items() if name.rpartition("_")[2] not in KINDS_ON_A_GPU]
    names = [name for name in LOOKED if all(name in record["methods"] for record in plain)]
    if not plain or not names:
        return ""
    return "\n".join([ON_A_GPU.format(**_table(names, {subject(r): r for r in plain})), *recorded(on_it)])


def recorded(on_it: dict[str, Any]) -> list[str]:
    """The same where looks are recorded, or a pass is launched at once by other means."""
    path = RESULTS / "recorded_look.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    rows = [f"| {name} | {' | '.join(_beside_the_base(each))} |" for name, each in record["models"].items()]
    others = {
        f"{each['subject']['model'].removesuffix('_graphs')}, {KINDS_ON_A_GPU[kind]}": each
        for name, each in sorted(on_it.items())
        if (kind := name.rpartition("_")[2]) in KINDS_ON_A_GPU
    }
    shown = _table(RECORDED_TOO, others)
    shown["others"] = shown.pop("rows")
    about = record["provenance"]
    shares = [f"{each['1'] / each['128']:.0%} on {name}" for name, each in record.get("kernels_ms", {}).items()]
    return [
        RECORDED.format(
            kernels=" and ".join(shares).replace("%", " %"),
            rows="\n".join(rows), device=about["device"], torch=about["torch"],
            **{key: record[key] for key in ("command", "samples", "batch_size", "steps")}, **shown,
        )
    ]  # fmt: skip


def _beside_the_base(each: dict[str, Any]) -> list[str]:
    """Times the base's step: a look, and a recorded one, waited for and in a row."""
    return [
        f"{each[kind][how] / each['base'][how]:.2f}" for how in ("waited_ms", "row_ms") for kind in ("look", "recorded")
    ]


def _table(names: Sequence[str], records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Heads, rule and rows of times."""
    labels = {name: row["label"] for record in records.values() for name, row in record["methods"].items()}
    shown = [name for name in names if name in labels]
    rows = [
        f"| {title} | "
        + " | ".join(f"{_on(record, name):.2f}" if name in record["methods"] else "–" for name in shown)
        + " |"
        for title, record in records.items()
    ]
    heads = " | ".join(labels[name] for name in shown)
    return {"heads": heads, "rule": "---|" * len(shown), "rows": "\n".join(rows)}


def _on(record: dict[str, Any], name: str) -> float:
    return float(measured(record["methods"][name], record)["median"])


def pairs(found: dict[str, Any]) -> str:
    """Each method beside the other library's, in the same run."""
    rows = [
        "## Beside pytorch_optimizer, in the same runs", "",
        "Step time and peak memory above the base's in sizes of the trained parameters.", "",
        "| model | method | steppe | pytorch_optimizer | steppe, buffers | pytorch_optimizer, buffers |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for record in found.values():
        methods = record["methods"]
        for ours, theirs in PAIRS:
            if ours in methods and theirs in methods:
                a, b = methods[ours], methods[theirs]
                times = (f"{measured(row, record)['median']:.3f}" for row in (a, b))
                cells = (subject(record), a["label"], *times, f"{a['buffers']:.2f}", f"{b['buffers']:.2f}")
                rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, ""])


def subject(record: dict[str, Any]) -> str:
    """The model and the batch, in a few words."""
    return f"{record['subject']['model']}, batch {record['subject']['batch_size']}"


def case(record: dict[str, Any]) -> str:
    """The table of one case."""
    rows = [
        f"## {subject(record)}" + KINDS.get(record["case"].rpartition("_")[2], ""), "",
        f"`{record['command']}` · {setting(record)}", "",
        "| method | passes | step time | buffers | memory, MiB |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in record["methods"].values():
        memory = f"{row['buffers']:.2f} | {row['memory_bytes'] / 2**20:.1f}" if "buffers" in row else " | "
        rows.append(f"| {row['label']} | {row['passes']:.2f} | {ratio(row, record)} | {memory} |")
    return "\n".join([*rows, "", *([record["note"], ""] if "note" in record else ()), *phases(record)])


def setting(record: dict[str, Any]) -> str:
    """What the figures of a case were made with."""
    about, what, base = record["provenance"], record["subject"], record["base"]
    return (
        f"{what['trained'] / 1e6:.3g} M trained parameters in {what['trained_tensors']} tensors, {what['dtype']}, "
        f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}, "
        f"{record['settings']['turns']} turns, "
        f"load average {about.get('load_average', ['?'])[0]}; base {_milliseconds(record)}"
        + (f"{base['memory_bytes'] / 2**20:.1f} MiB" if "memory_bytes" in base else "memory not measured")
    )


def _milliseconds(record: dict[str, Any]) -> str:
    """The wall clock's time of a step of the base, where nothing else was running to speak of."""
    about = record["provenance"]
    quiet = about.get("load_average", [0])[0] <= QUIET * about["threads"]
    return f"{record['base']['step_ms']['median']:.4g} ms a step, " if quiet else ""


def phases(record: dict[str, Any]) -> list[str]:
    """Perturb and restore within the steps of one case."""
    if not (found := record.get("phases")):
        return []
    shares = [f"{name} {percent(each['share_of_a_pass'])}" for name, each in found.items()]
    return [f"Perturb and restore, of a pass of the same step: {', '.join(shares)}.", ""]


def width(record: dict[str, Any]) -> str:
    """Perturb and restore alone, over the sizes."""
    about, ways = record["provenance"], ("steppe", "pytorch_optimizer", "naive")
    rows = [
        f"## Perturb and restore alone, {record['dtype']} on {about['device']}", "",
        f"`{record['command']}` · {record['tensors']} tensors, gradients given, {about['threads']} thread(s). In "
        f"brackets: times what {record['streams']} reads and writes of the parameters (steppe's: norm 1, scaling 2, "
        "saving 2, adding 3, restoring 2) take at the rate of a plain copy of as much. Processor time on a CPU.", "",
        f"| weights | copy, GB/s | {' | '.join(f'{way}, ms' for way in ways)} |", "|---|---|" + "---|" * len(ways),
    ]  # fmt: skip
    for name, found in record["sizes"].items():
        if "left_out" in found:
            rows.append(f"| {name} | left out: {found['left_out']} |" + " |" * len(ways))
            continue
        cells = [_width_cell(found["ways"][way]) for way in ways]
        rows.append(f"| {name} | {found['copy_gb_per_s']:.1f} | {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _width_cell(way: dict[str, Any]) -> str:
    return f"{way['ms']['median']:.4g} ({way['at_copy_rate']:.2f})"


def optax(found: dict[str, Any]) -> str:
    """Another compiler, for context."""
    record = found.get("mlp_b128", {}).get("optax")
    if not record:
        return ""
    time = record["time_ratio"]
    return (
        f"For context, `optax.contrib.sam` {record['optax']} on {record['model']}, batch {record['batch_size']}, "
        f"jitted, against plain optax: {time['median']:.2f} ({time['low']:.2f} to {time['high']:.2f}) times a step of "
        f"{record['base_step_ms']:.3g} ms.\n"
    )


def missing() -> str:
    """What was not run here."""
    left = [name for name in (*ORDER, *WIDTHS) if load(name) is None]
    if not left:
        return ""
    return f"Not run yet: {', '.join(left)}. `python benchmarks/step_time.py CASE` (with `--device cuda` for cuda_).\n"


def measured(row: dict[str, Any], record: dict[str, Any]) -> dict[str, float]:
    """The step time that another program's work is not in: the processor's on a CPU, the wall clock's on a GPU."""
    found: dict[str, float] = row["busy_ratio" if record["provenance"]["device"] == "cpu" else "time_ratio"]
    return found


def ratio(row: dict[str, Any], record: dict[str, Any]) -> str:
    """Median and quartiles of the step time."""
    time = measured(row, record)
    return f"{time['median']:.3f} ({time['low']:.2f} to {time['high']:.2f})"


def percent(spread: dict[str, float]) -> str:
    """A share with its quartiles."""
    return f"{spread['median']:.2%} ({spread['low']:.2%} to {spread['high']:.2%})"


def main() -> int:
    """Write, or with --check only say whether the page is out of date."""
    text = page()
    if "--check" in sys.argv:
        old = not TARGET.exists() or TARGET.read_text() != text
        print("out of date: run python docs/cost.py" if old else "up to date")
        return int(old)
    TARGET.write_text(text)
    print(f"written: {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
