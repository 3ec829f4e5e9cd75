"""Two comparisons behind docs/claims.md: the seven schedules of RST, and LookSAM over k and push.

    python benchmarks/claims.py [NAME ...]

digits-noisy (40 % wrong labels), where SAM's gain is clear of zero. Every method gets the same budget: its rho is
chosen from two values on the validation images of seed 0, then three seeds. Every schedule of RST ascends on half of
the steps in the mean. Finished runs are kept; about six minutes of one core. Writes rst_schedules.json and
look_sam_grid.json into benchmarks/results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sweep import records, settings

from steppe._command.choices import parse
from steppe._command.files import write_json
from steppe.compare.engine.plan import Run
from steppe.compare.engine.run import provenance
from steppe.compare.engine.spec import Spec

TASK, RADII, SEEDS = "digits-noisy", (0.05, 0.1), 3
PUSHES = ("push=paper,alpha=0.1", "push=paper,alpha=0.7", "push=natural")
STUDIES = {
    "rst_schedules": [
        "sam", "rst", "rst:p=0.5,schedule=piecewise1", "rst:p=0.5,schedule=piecewise2",
        "rst:p=0.2,schedule=piecewise3", "rst:p=0.5,schedule=linear1", "rst:p=0.2,schedule=linear2",
        "rst:p=0,schedule=trigonometric",
    ],
    "look_sam_grid": [
        "sam", *(f"look_sam:k={k},{push}" for push in PUSHES for k in (2, 5, 10)),
    ],
}  # fmt: skip


def row(spec: Spec, method: str, folder: Path) -> dict[str, Any]:
    """One method: the better of two radii on seed 0, then all seeds; the base has nothing to choose."""
    rho = None
    if method != "base":
        tries = [Run(method, each, 0) for each in RADII]
        found = records(spec, tries, folder)
        rho = max(zip(RADII, found, strict=True), key=lambda pair: pair[1]["val_accuracy"])[0]
    runs = records(spec, [Run(method, rho, seed) for seed in range(SEEDS)], folder)
    tests = [each["test_accuracy"] for each in runs]
    return {
        "method": method, "label": runs[0]["label"], "rho": rho, "test": mean(tests), "deviation": stdev(tests),
        "tests": tests, "early": mean(each["early"]["test_accuracy"] for each in runs),
        "passes": mean(each["passes_per_step"] for each in runs), "seeds": SEEDS,
    }  # fmt: skip


def study(name: str, folder: Path) -> dict[str, Any]:
    """All methods of one comparison beside the base."""
    spec = settings(TASK, "")
    rows = [row(spec, method, folder) for method in ("base", *(parse(each).text for each in STUDIES[name]))]
    return {
        "command": f"python benchmarks/claims.py {name}", "task": TASK, "radii": RADII, "rows": rows,
        "provenance": provenance(spec),
    }  # fmt: skip


def main() -> None:
    """Run the comparisons that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *STUDIES], help="which; both by default")
    parser.add_argument("--folder", type=Path, default=Path("results/claims"), help="where the runs are kept")
    given = parser.parse_args()
    for name in given.names or STUDIES:
        found = study(name, given.folder)
        write_json(Path(__file__).parent / "results" / f"{name}.json", found)
        for each in found["rows"]:
            print(f"{each['label']}: {each['test']:.4f} at rho {each['rho']}, {each['passes']:.2f} passes")


if __name__ == "__main__":
    main()
