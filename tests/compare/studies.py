"""Whole comparisons of a made-up task, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "finished", "provenance"}
"""What may differ between two equal runs."""

EQUAL = "method variant label rho final early delta gain kept passes sharpness tuning".split()
"""What must be equal in the rows of two summaries of the same study; the rest are times and what follows from them."""


def command(out: Path, *more: str) -> list[str]:
    """A comparison of 16 runs of a fraction of a second each."""
    fixed = "compare --task tests.compare.tiny:task --methods sam,rst --seeds 3 --rho 0.1,0.2 --tune-seeds 2 --jobs 2"
    return [sys.executable, "-m", "steppe", *fixed.split(), "--epochs", "40", "--out", str(out), *more]


def complete(out: Path, *more: str) -> subprocess.CompletedProcess:
    """The comparison from wherever it is to its end."""
    return subprocess.run(command(out, *more), capture_output=True, text=True, cwd=ROOT, check=False, timeout=240)


def cut_off(out: Path, runs: int, how: int = signal.SIGKILL, *more: str) -> tuple[int, str]:
    """Start the comparison and send it a signal as soon as `runs` runs are finished: its exit code and stderr."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # A background job of a script inherits an ignored Ctrl-C; these tests may be one, the user's terminal is not.
    process = subprocess.Popen(command(out, *more), cwd=ROOT, text=True, preexec_fn=_heed_ctrl_c, **quiet)
    while process.poll() is None and len(finished(out)) < runs:
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(out: Path) -> dict[str, int]:
    """Files of finished runs, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


def results(out: Path) -> dict:
    """Everything a comparison found out, apart from times."""
    runs = {name: json.loads((out / "runs" / name).read_text()) for name in finished(out)}
    summary = json.loads((out / "summary.json").read_text())
    return {
        "runs": {name: {key: run[key] for key in run.keys() - TIMES} for name, run in runs.items()},
        "rows": [{key: row[key] for key in EQUAL} for row in summary["rows"]],
        "baselines": summary["baselines"],
    }
