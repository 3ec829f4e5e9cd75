"""Workers of others' executors as forks of this process: they have everything imported, and begin in no time.

`make machines` runs the same engines with processes of their own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("fork")


@contextmanager
def dask(count: int) -> Iterator[str]:
    """The address of a scheduler with so many workers; one that is killed is not replaced."""
    from distributed import LocalCluster

    pipes = [CONTEXT.Pipe() for _ in range(count)]
    workers = [CONTEXT.Process(target=_dask_worker, args=(theirs,), daemon=True) for _, theirs in pipes]
    for worker in workers:  # before there is a thread of Dask's
        worker.start()
    try:
        with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
            for mine, _ in pipes:
                mine.send(cluster.scheduler_address)
            yield cluster.scheduler_address
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _dask_worker(pipe: Connection) -> None:
    from distributed import Worker

    async def serve(address: str) -> None:
        async with Worker(address, nthreads=1) as worker:
            await worker.finished()

    asyncio.run(serve(pipe.recv()))


class Controller:
    """Stands in for submitit's process that starts a job's: what submitit asks of it."""

    def __init__(self, folder: Path, **_: Any) -> None:
        self._process = CONTEXT.Process(target=_submitted, args=(Path(folder),), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)


def _submitted(folder: Path) -> None:
    """What submitit's processes of a job do."""
    from submitit.core.submission import process_job
    from submitit.core.utils import JobPaths

    ours = {"JOB_ID": str(os.getpid()), "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "GLOBALID": "0"}
    os.environ.update({f"SUBMITIT_LOCAL_{name}": value for name, value in {**ours, "LOCALID": "0"}.items()})
    os.environ["SUBMITIT_EXECUTOR"] = "local"
    paths = JobPaths(folder, ours["JOB_ID"], 0)
    sys.stdout, sys.stderr = paths.stdout.open("a"), paths.stderr.open("a")
    while not paths.submitted_pickle.exists():  # it is given the job's number, which is this process's
        time.sleep(0.01)
    process_job(folder)
