"""One study here, on a Dask cluster, through submitit and in two shards, with kills: the same JSON.

    python benchmarks/many_machines.py           # writes benchmarks/results/many_machines.json

The study has 40 short runs of a made-up task. On each engine a worker in the midst of a run is
killed (kill -9), the driver is killed, and the same command is started again. Then every run's record and the summary
must equal those of the undisturbed study of this machine, apart from times and what follows from them, and no run that
was finished before a kill may be made again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "many_machines.json"
TASK = "--task tests.compare.tiny:task --epochs 16".split()  # from a module of the current folder, which travels
STUDY = ["compare", *TASK, *"--methods sam,rst --seeds 8 --rho 0.05,0.1,0.2 --tune-seeds 2".split()]
TIMES = {"seconds", "finished", "provenance"}
ROWS = "method variant label rho final early delta gain kept passes sharpness tuning seeds".split()
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}


def start(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "steppe", *STUDY, "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, **QUIET)


def ended(process: subprocess.Popen) -> str:
    """What a command said that had to succeed."""
    said = process.communicate()[1]
    if process.returncode != 0:
        sys.exit(f"the study failed: {said[-2000:]}")
    return said


def run_files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


def results(out: Path) -> dict:
    """Everything that must be equal."""
    runs = {name: json.loads((out / "runs" / name).read_text()) for name in run_files(out)}
    summary = json.loads((out / "summary.json").read_text())
    return {
        "runs": {name: {key: run[key] for key in run.keys() - TIMES} for name, run in sorted(runs.items())},
        "rows": [{key: row.get(key) for key in ROWS} for row in summary["rows"]],
        "baselines": summary["baselines"],
    }


def children(pid: int) -> list[int]:
    """Processes that descend from one, the nearest first."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(own): int(parent) for own, parent in (line.split() for line in found.splitlines())}
    below, level = [], [pid]
    while level:
        level = [own for own, parent in parents.items() if parent in level]
        below += level
    return below


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def reach(out: Path, runs: int, process: subprocess.Popen) -> None:
    while process.poll() is None and len(run_files(out)) < runs:
        time.sleep(0.01)


def kill(pids: list[int]) -> int:
    """End processes at once; how many there were."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


def disturbed(out: Path, more: list[str], workers: Callable[[int], list[int]], whole: dict) -> dict:
    """Kill a worker after a few runs and the driver after some more; start again and compare."""
    began, driver = time.perf_counter(), start(out, *more)
    reach(out, 5, driver)
    while driver.poll() is None and not (found := workers(driver.pid)):
        time.sleep(0.01)
    workers_killed = kill(found[:1])
    reach(out, 18, driver)
    over = driver.poll() is not None
    kill([driver.pid])
    driver.communicate()
    kept = run_files(out)
    said = ended(start(out, *more))
    after = run_files(out)
    return {
        "workers_killed": workers_killed, "drivers_killed": int(not over), "runs_kept": len(kept), "runs": len(after),
        "kept_runs_made_again": sum(after[name] != kept[name] for name in kept), "equal": results(out) == whole,
        "left": sorted(path.name for path in (out / "runs").glob(".*")), "says": said.splitlines()[-1:],
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def dask(out: Path, whole: dict) -> dict:
    """Two workers with nannies, which start a killed one again."""
    import distributed

    path = os.pathsep.join(filter(None, sys.path))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, env={"PYTHONPATH": path}
    ) as cluster:

        def workers(_: int) -> list[int]:
            return [nanny.process.pid for nanny in cluster.workers.values()]

        return disturbed(out, ["--on", f"dask:{cluster.scheduler_address}"], workers, whole)


def slurm(out: Path, whole: dict) -> dict:
    """Jobs of submitit's local executor, two at a time."""

    def workers(driver: int) -> list[int]:
        return [pid for pid in children(driver) if "submitit.core._submit" in words(pid)]

    return disturbed(out, ["--on", "slurm:cluster=local", "--jobs", "2"], workers, whole)


def shards(out: Path, whole: dict) -> dict:
    """Two commands share the folder; the second is killed in mid-run, then the first; both are started again."""
    began = time.perf_counter()
    first, second = (start(out, "--shard", f"{i}/2", "--jobs", "1") for i in (1, 2))
    reach(out, 8, first)
    kill([second.pid])
    second.communicate()
    reach(out, 18, first)
    over = first.poll() is not None
    kill([first.pid])
    first.communicate()
    kept = run_files(out)
    again = [start(out, "--shard", f"{i}/2", "--jobs", "1") for i in (1, 2)]
    said = [ended(each).splitlines()[-1] for each in again]
    after = run_files(out)
    return {
        "workers_killed": 0, "drivers_killed": 1 + int(not over), "runs_kept": len(kept), "runs": len(after),
        "kept_runs_made_again": sum(after[name] != kept[name] for name in kept), "equal": results(out) == whole,
        "left": sorted(path.name for path in (out / "runs").glob(".*")), "says": said,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


ENGINES = {"dask": dask, "slurm": slurm, "shards": shards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=list(ENGINES), help="dask, slurm, shards (all)")
    chosen = parser.parse_args().engines
    with tempfile.TemporaryDirectory() as folder:
        ended(start(Path(folder) / "whole"))
        whole = results(Path(folder) / "whole")
        found = json.loads(OUT.read_text())["engines"] if OUT.exists() else {}
        for name in chosen:
            found[name] = ENGINES[name](Path(folder) / name, whole)
            write(found, len(whole["runs"]))
    sys.exit(not all(map(sound, found.values())))


def sound(each: dict) -> bool:
    return each["equal"] and not each["kept_runs_made_again"] and not each["left"]


def write(found: dict, runs: int) -> None:
    """After each engine, so that one can be run by itself."""
    report = {"study": " ".join(STUDY), "runs": runs, "all_equal": all(map(sound, found.values())), "engines": found}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1), flush=True)


if __name__ == "__main__":
    main()
