"""Kill -9 a comparison at ten random moments, resume it, and check that the report equals the undisturbed one.

    python benchmarks/kill_compare.py            # writes benchmarks/results/kill_compare.json

The comparison is a small one on real data (digits-few, few epochs). Times and what follows from them are left out of
the check; everything else in run files and summary must be equal, and no finished run may be run again.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parent / "results" / "kill_compare.json"
MOMENTS = 10
STUDY = "compare --task digits-few --methods sam,rst,look_sam:push=natural --seeds 3 --epochs 8 --jobs 2".split()
TIMES = {"seconds", "finished", "provenance"}
ROWS = "method variant label rho accuracy early delta gain kept passes sharpness tuning seeds".split()


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "steppe", *STUDY, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(out: Path) -> None:
    if start(out).wait() != 0:
        sys.exit("the comparison failed")


def run_files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


def results(out: Path) -> dict:
    """Everything that must be equal."""
    runs = {name: json.loads((out / "runs" / name).read_text()) for name in run_files(out)}
    summary = json.loads((out / "summary.json").read_text())
    return {
        "runs": {name: {key: run[key] for key in run.keys() - TIMES} for name, run in sorted(runs.items())},
        "rows": [{key: row[key] for key in ROWS} for row in summary["rows"]],
        "baselines": summary["baselines"],
    }


def killed_once(out: Path, runs: int, delay: float, whole: dict) -> dict:
    """Kill `delay` seconds after `runs` runs are finished, resume, compare."""
    began, process = time.perf_counter(), start(out)
    while process.poll() is None and len(run_files(out)) < runs:
        time.sleep(0.005)
    time.sleep(delay)
    moment, over = time.perf_counter() - began, process.poll() is not None
    process.kill()
    process.wait()
    kept = run_files(out)
    began = time.perf_counter()
    finish(out)
    after = run_files(out)
    return {
        "killed_after_s": round(moment, 2), "over_before_the_kill": over, "runs_kept": len(kept), "runs": len(after),
        "kept_runs_run_again": sum(after[name] != kept[name] for name in kept),
        "equal": results(out) == whole, "report": (out / "report.html").exists(),
        "half_files_left": len(list(out.rglob("*.tmp"))), "resume_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        finish(Path(folder) / "whole")
        whole = results(Path(folder) / "whole")
        moments = [(draw.randint(0, len(whole["runs"])), draw.uniform(0, 1)) for _ in range(MOMENTS)]
        kills = [killed_once(Path(folder) / str(i), *moment, whole) for i, moment in enumerate(moments)]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    all_equal = all(kill["equal"] and not kill["kept_runs_run_again"] for kill in kills)
    report = {"study": " ".join(STUDY), "all_equal": all_equal, "kills": kills}
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{sum(kill['equal'] for kill in kills)} of {MOMENTS} equal; written to {OUT}")


if __name__ == "__main__":
    main()
