"""Whole comparisons of a made-up task, as a user starts them."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from steppe._command import pool
from steppe.cli import main
from steppe.compare.engine import study

TIMES = {"seconds", "finished", "provenance"}
"""What may differ between two equal runs."""

EQUAL = "method variant label rho final early delta gain kept passes sharpness tuning".split()
"""What must be equal in the rows of two summaries of the same study; the rest are times and what follows from them."""


def words(out: Path, *more: str) -> list[str]:
    """A comparison of 19 runs of a fraction of a second each."""
    fixed = "compare --task tests.compare.tiny:task --methods sam,rst --seeds 3 --rho 0.1,0.2 --tune-seeds 2 --jobs 2"
    return [*fixed.split(), "--grow", "0", "--epochs", "2", "--out", str(out), *more]


class Here(pool.Workers):
    """Stands in for the pool of processes: what a worker does, done here, one job after the other."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def send(self, event: pool.Event) -> None:
        """How far a job is, which nobody looks at."""

    def events(self) -> Iterator[pool.Event]:
        while self._waiting:
            job = self._waiting.popleft()
            yield pool.Event("begun", job.key)
            yield pool.attempt(job, self.send)


class _Interrupted(Here):
    """Ctrl-C when the third job has begun."""

    def events(self) -> Iterator[pool.Event]:
        for number, event in enumerate(super().events()):
            if number == 4:
                raise KeyboardInterrupt
            yield event


class _Killed(Here):
    """SIGKILL when the sixth job has begun."""

    def events(self) -> Iterator[pool.Event]:
        for number, event in enumerate(super().events()):
            if number == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            yield event


def few_turns(patch: pytest.MonkeyPatch) -> None:
    """How dear a method is, is measured in a single short block; more turns are tested in engine/test_cost.py."""
    for name, count in (("WARM_UP", 1), ("BLOCK", 6), ("LEAST", 6), ("MOST", 6), ("MEMORY_STEPS", 2)):
        patch.setattr(study.cost, name, count)


def complete(out: Path, *more: str, made_by: type[Here] = Here) -> subprocess.CompletedProcess:
    """The comparison from wherever it is to its end, in this process, or to where its pool breaks off."""
    given, said, aside = words(out, *more), io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(aside), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Pool", made_by)
        patch.setattr(pool, "warm_up", lambda: None)
        few_turns(patch)
        code = main(given)
    return subprocess.CompletedProcess(given, code, said.getvalue(), aside.getvalue())


def interrupted(out: Path) -> subprocess.CompletedProcess:
    """A comparison that is told to end after two runs."""
    return complete(out, made_by=_Interrupted)


def killed(out: Path) -> int | None:
    """The exit code of a process that makes the comparison and is killed in its sixth run."""
    process = multiprocessing.get_context("fork").Process(target=complete, args=(out,), kwargs={"made_by": _Killed})
    process.start()
    process.join()
    return process.exitcode


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
