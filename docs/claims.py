"""Write docs/claims.md, what papers claim beside what was measured here, from benchmarks/results (`make claims`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from claim_tables import (
    ABSENT,
    NAMES,
    Record,
    batches,
    compared,
    finder,
    full,
    interval,
    large,
    lora,
    points,
    row_of,
    spread,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "claims.md"

INTRO = """# Claims, published and measured

Written by `python docs/claims.py` from the files in `benchmarks/results`; `make claims` runs the benchmarks of the
sections first. Every line names the command that makes its file. Measured on small tasks and one CPU thread: they say
whether a claim's direction and cost hold where anybody can repeat them, not what the papers' models reach. Accuracies
in per cent on the test set, ± half a 95 % interval or (in brackets) the standard deviation over seeds; no interval is
corrected for the number of comparisons. Where a command has no `--epochs-grid` all train as long as the task says, and
what is gained there may be the length's ([the suite](suite.md)).
"""


@dataclass(frozen=True)
class Claim:
    """One line: what a paper says, and what a file says about it."""

    claim: str
    published: str
    file: str
    command: str
    measured: Callable[[Record], str]


def accuracies(*methods: str) -> Callable[[Record], str]:
    """Accuracy, passes of a step and chosen epochs of some methods of a study, those that it has."""

    def measured(record: Record) -> str:  # `accuracy`: in summaries of 0.1.0
        found = [row for method in methods if (row := row_of(record, method))]
        shown = [(r, interval(r.get("final") or r["accuracy"])) for r in found]
        return "; ".join(f"{r['label']} {figure} at {r['passes']:.2f} passes{_long(r)}" for r, figure in shown)

    return measured


def _long(row: Record) -> str:
    """The epochs that a method chose, where each chose its own."""
    return f", {row['epochs']} epochs" if row.get("epochs") else ""


def over_lora(record: Record) -> str:
    """The mean over the tasks, less LoRA's."""
    rows = record["across"]["paired"]
    gains = ", ".join(f"{NAMES[name]} {points(rows[name]['over']['base'])}" for name in rows if "over" in rows[name])
    return f"LoRA {interval(rows['base']['final'])}, points over it: {gains}"


def adasam_over(record: Record) -> str:
    """AdaSAM less the others."""
    rows = [each for each in record["across"]["differences"] if "adasam" in each["of"]]
    return "; ".join(f"AdaSAM − {NAMES[each['to']]} {points(each['over'])}" for each in rows)


def bar_cost(record: Record) -> str:
    """A step beside a step of LoRA."""
    steps = record["minilm"]["steps"]
    return ", ".join(f"{name} {spread(steps[name]['ratio_processor'])}" for name in ("nbar", "obar", "sam"))


def sl_sam_cost(record: Record) -> str:
    """Time and memory beside SAM's."""
    rows = {name: row for name, row in record["methods"].items() if name.startswith("sl_sam")}
    return "; ".join(
        f"{name.removeprefix('sl_sam ')}s: mean time {row['over_sam']['step']['mean']:.2f}, "
        f"memory beyond the weights {row['memory']['over_sam']:.2f} of SAM's"
        for name, row in rows.items()
    )


def speedup(record: Record) -> str:
    """Steps until the loss is below shares of the first one, by batch."""
    rows = record["steps_to_share_of_first_loss"]
    return "; ".join(
        f"batch {batch}: "
        + ", ".join(f"{'–' if at is None else f'{at:g}'} steps to {share}" for share, at in row.items())
        for batch, row in rows.items()
    )


CLAIMS = (
    *(
        Claim(
            f"G-RST at half of SAM's extra cost, {task}", "at least SAM's accuracy (arXiv 2203.09962)",
            f"suite_{name}.json", f"python benchmarks/suite.py {name} --data FOLDER",
            accuracies("base", "sam", "grst"),
        )
        for task, name in (
            ("MNIST-1D, MLP", "mnist1d_mlp"), ("2,000 of Fashion-MNIST", "fashion_mlp"),
            ("the same, 20 % wrong labels", "fashion_mlp_noisy"),
        )
    ),
    Claim(
        "BAR costs next to nothing: a step beside LoRA's (processor time)",
        "1.03–1.05; SAM 2.5 in the same precision (arXiv 2410.14802)", "bar_cost.json", "python benchmarks/bar_cost.py",
        bar_cost,
    ),
    Claim(
        "BAR comes near SAM on LoRA, few labels",
        "RoBERTa-large, mean: LoRA 80.0, SAM 81.3, oBAR 80.9, nBAR 81.2 (arXiv 2410.14802)", "lora_study.json",
        "python benchmarks/lora_study.py lora --data FOLDER", over_lora,
    ),
    Claim(
        "SL-SAM is cheaper than SAM", "20–25 % less memory and time (arXiv 2602.09395)", "sl_sam_cost.json",
        "python benchmarks/sl_sam_cost.py", sl_sam_cost,
    ),
    Claim(
        "AdaSAM is faster in proportion to the batch", "rate O(1/√(bT)) (arXiv 2303.00565)", "adasam_speedup.json",
        "python benchmarks/lora_study.py speedup --data FOLDER", speedup,
    ),
    Claim(
        "AdaSAM beats SGD, SAM on SGD and AMSGrad", "on GLUE with RoBERTa-large (arXiv 2303.00565)", "full_study.json",
        "python benchmarks/lora_study.py full --data FOLDER", adasam_over,
    ),
)  # fmt: skip


def load(name: str, results: Path) -> Record | None:
    """The figures in a file, if it was made."""
    path = results / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def line(claim: Claim, results: Path) -> str:
    """One row of the table."""
    record = load(claim.file, results)
    measured = ABSENT if record is None else claim.measured(record)
    return f"| {claim.claim} | {claim.published} | {measured} | `{claim.command}` | `{claim.file}` |"


def section(title: str, text: str, name: str, command: str, results: Path, body: Callable[[Record], list[str]]) -> str:
    """A heading, what was published, and a table of its own from one file."""
    record = load(name, results)
    source = f"`{command}` → `benchmarks/results/{name}`"
    return "\n".join([f"## {title}", "", text, "", source, "", *([ABSENT] if record is None else body(record)), ""])


def _compared(title: str, text: str, name: str, results: Path) -> str:
    """A section of one `steppe compare`, with the honest baselines beside the methods."""
    command = f"python benchmarks/suite.py {name}"
    return section(title, text, f"suite_{name}.json", command, results, compared)


COMPARED = (
    (
        "The seven schedules of G-RST",
        "Published: seven curves p(t) (arXiv 2203.09962); here each ascends on half of the steps in the mean. None of "
        "the gains is clear after the correction; SAM on the first half (piecewise2) comes to SAM's gain, on the "
        "second (piecewise1) to hardly any.",
        "schedules",
    ),
    (
        "LookSAM over k and push, on AdamW",
        "Published: SAM's accuracy at 1 + 1/k passes with alpha = 0.7 (arXiv 2203.02714), which is push=paper; "
        "guarded, the default, and natural are steppe's ([choosing.md](choosing.md#looksams-push)). An independent "
        "comparison on CIFAR-100 (WRN-28-10; MSAM's paper): base 81.51, SAM 84.16, LookSAM 83.31: 68 % of SAM's gain. "
        "Here the guarded push at k = 5 is near SAM for a fifth of its extra passes, alpha = 0.7 breaks trainings, and "
        "so does, at k = 2, a radius that two seeds chose.",
        "look_sam",
    ),
    (
        "LookSAM's push, on SGD",
        "The same network with SGD and momentum, on which SAM itself gains nothing.",
        "look_sam_sgd",
    ),
    (
        "AdaSAM beside SAM on AdamW",
        "Published: AdaSAM above Adam and SAM on GLUE (arXiv 2303.00565). Here each chooses its own rate, and AdaSAM "
        "is not above AdamW.",
        "adasam",
    ),
    (
        "AdaSAM beside AMSGrad",
        "The same claim, over its own base: clearly so, but that base is four points below AdamW here, and with AdaSAM "
        "where AdamW is.",
        "adasam_amsgrad",
    ),
    ("Newer methods", "One of each kind, none of whose papers has this task.", "newer"),
)  # fmt: skip
LORA = """Published: RoBERTa-large, 512 labels of each class, 1,000 steps: LoRA 80.0, LoRA-SAM 81.3, oBAR 80.9,
nBAR 81.2 (arXiv 2410.14802). Not reproduced here, with MiniLM, 128 labels and 128 steps, which fit SST-2's labels: oBAR
and nBAR do nothing that five seeds can see, at any mu (0.5 moves the factors by as much in all as the paper's setting
does, 8 by sixteen times that). LoRA-SAM has 1.1 points more on SST-2 at twice the cost, which
is not clear among three methods; on TREC twice the steps do more than any method."""
NOISY = """No paper's claim: by the theory BAR's part of SAM grows with the noise of the gradients, of which wrong
labels make much, but no experiment of the paper has them. With 40 % of TREC's labels wrong, those of the validation
too, twice the steps cost eight points, so there is something to protect. Neither BAR is above LoRA by more than its
interval, and LoRA-SAM is no better at twice the cost."""
FULL = """Published: AdaSAM above SGD, SAM on SGD and AMSGrad (arXiv 2303.00565); SL-SAM at or above SAM's level
(arXiv 2602.09395). Here, MiniLM on SST-2, 128 labels of each class, 48 steps: AdaSAM is above SGD and SAM on SGD, which
hardly begin in so few steps, and not above AMSGrad or AdamW; no method gains on its own base. SL-SAM gives each tensor
a fifth of the updates, so at SAM's rate it hardly begins either; with SAM's compute (80 steps) and a rate of its own
(`python benchmarks/sl_sam_study.py --data FOLDER`) it is at SAM's level, within a wide interval;
`steppe compare --tune-lr each` gives each method a rate of its own."""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    head = "| claim | published | measured | command | file |\n|---|---|---|---|---|"
    lines = "\n".join([INTRO, head, *(line(claim, results) for claim in CLAIMS), ""])
    sections = [
        *(
            _compared(title, text, name, results)
            for title, text, name in COMPARED
            if (results / f"suite_{name}.json").exists()  # what has not been run yet is no section
        ),
        section("LoRA with few labels", LORA, "lora_study.json",
            "python benchmarks/lora_study.py lora --data FOLDER", results, lora),
        section("LoRA with wrong labels", NOISY, "noisy_study.json",
            "python benchmarks/lora_study.py noisy --only trec40 --data FOLDER", results, lora),
        section("Whole models", FULL, "full_study.json",
            "python benchmarks/lora_study.py full --data FOLDER", results, full),
        section(
            "AdaSAM as the batch grows",
            "Published: to the same loss, b times the batch needs a b-th of the steps (arXiv 2303.00565), at a rate of "
            "order √b. So it is here where all three seeds come to the loss: half the steps for twice the batch. "
            "Batches of 4 come to 90 % with two seeds of three.",
            "adasam_speedup.json", "python benchmarks/lora_study.py speedup --data FOLDER", results, batches,
        ),
        section(
            "Look-LayerSAM as the batch grows",
            "Published: ViT on ImageNet, 79.8 % at batch 4k and still 75.6 % at 64k, on LAMB (arXiv 2203.02714), in "
            "thousands of steps. Not reproduced: here, with a tiny ViT on pooled Fashion-MNIST at equal epochs, LAMB "
            "alone is best at every batch. The model is small and trained briefly, the largest batches have hardly any "
            "steps, and the chosen rho is the smaller of the two tried almost everywhere. The reused push costs most, "
            "the paper's more than the natural one up to 8k.",
            "large_batch.json", "python benchmarks/large_batch.py --fashion FASHION-MNIST", results, large,
        ),
        section(
            "A radius without a sweep",
            "No paper's claim: how near `steppe rho` comes to the best of a sweep (in brackets: above it, or below: in "
            "points, or in the MSE of a forecast), and what share of the gain over the base it keeps, where that gain "
            "is clear of zero over the seeds. See [rho.md](rho.md).",
            "rho_finder.json", "python benchmarks/rho_finder.py --fashion FASHION-MNIST", results, finder,
        ),
    ]  # fmt: skip
    return "\n".join([lines, *sections])


def main() -> int:
    """Write, or with --check only say whether it is out of date."""
    text = page()
    if "--check" in sys.argv:
        old = not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text
        print("out of date: docs/claims.md; run python docs/claims.py" if old else "up to date")
        return int(old)
    TARGET.write_text(text, encoding="utf-8")
    print(f"written: {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
