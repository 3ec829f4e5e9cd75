"""The study behind docs/script.md: `steppe compare --script` in three hosts, a summary of each in benchmarks/results.

    python benchmarks/studies.py [NAME ...]

A study that was broken off goes on where it was. On two idle cores: about two minutes each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STUDIES = {
    f"script_{host}": f"--script examples/compare_{host}.py:train --methods sam,rst,sam:samples=5 --seeds 5 "
    "--tune-seeds 2"
    for host in ("loop", "trainer", "lightning")
}


def run(name: str, folder: Path) -> None:
    """One study, and its summary beside the command that makes it."""
    command, out = STUDIES[name], folder / name
    done = subprocess.run([sys.executable, "-m", "steppe", "compare", *command.split(), "--out", str(out)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    summary = json.loads((out / "summary.json").read_text())
    summary["spec"]["out"] = ""
    kept = {"command": f"steppe compare {command}"} | summary
    (HERE / "results" / f"study_{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *STUDIES], help="which; all by default")
    parser.add_argument("--folder", type=Path, default=Path("results/studies"), help="where the runs are kept")
    given = parser.parse_args()
    for name in given.names or STUDIES:
        run(name, given.folder)


if __name__ == "__main__":
    main()
