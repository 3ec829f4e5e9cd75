"""The studies behind docs/claims.md: run `steppe compare` for each, keep its summary in benchmarks/results.

    python benchmarks/studies.py [NAME ...] [--fashion FOLDER]      # FOLDER: the four gzip files of Fashion-MNIST

A study that was broken off goes on where it was. On two idle cores: about 8, 5, 2, 2 and 2 minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STUDIES = {
    "digits_few": "--task digits-few --seeds 16 --methods sam,grst,look_sam:push=natural,look_sam:push=paper",
    "digits_noisy": "--task digits-noisy --seeds 6 --methods sam,grst,rst,look_sam:push=natural,fsam",
    "digits_noisy_short": "--task digits-noisy --epochs 10 --seeds 6 --methods sam,look_sam:push=natural",
    **{
        f"script_{host}": f"--script examples/compare_{host}.py:train --methods sam,rst,sam:samples=5 --seeds 5 "
        "--tune-seeds 2"
        for host in ("loop", "trainer", "lightning")
    },
    "fashion": "--task idx:{fashion} --labelled 1000 --model mlp --epochs 60 --seeds 6 "
    "--methods sam,grst,look_sam:push=natural",
    "fashion_noisy": "--task idx:{fashion} --labelled 1000 --noise 0.2 --model mlp --epochs 60 --seeds 6 "
    "--methods sam,grst,look_sam:push=natural",
}


def run(name: str, fashion: str, folder: Path) -> None:
    """One study, and its summary beside the command that makes it."""
    command = STUDIES[name]
    words = [word.format(fashion=fashion) for word in command.split()]
    out = folder / name
    done = subprocess.run([sys.executable, "-m", "steppe", "compare", *words, "--out", str(out)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    summary = json.loads((out / "summary.json").read_text())
    summary["spec"] |= {"out": "", "task": "idx:fashion-mnist" if "{fashion}" in command else summary["task"]}
    summary["task"] = summary["spec"]["task"]
    kept = {"command": f"steppe compare {command.format(fashion='FASHION-MNIST')}"} | summary
    (HERE / "results" / f"study_{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    """Run the studies that are named, or all whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *STUDIES], help="which; all by default")
    parser.add_argument("--fashion", default="", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--folder", type=Path, default=Path("results/studies"), help="where the runs are kept")
    given = parser.parse_args()
    for name in given.names or STUDIES:
        if "{fashion}" in STUDIES[name] and not given.fashion:
            print(f"{name}: left out, as --fashion names no folder")
        else:
            run(name, given.fashion, given.folder)


if __name__ == "__main__":
    main()
