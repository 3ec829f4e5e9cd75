"""Slurm as an executor of the standard interface, through submitit: one job for one run."""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit

if TYPE_CHECKING:
    from steppe.compare.engine.executors import SlurmOptions

_POLL = 0.5


class Submitted(cf.Executor):
    """Every call is a job of its own; its logs stay in `folder`, which the nodes see, where it failed."""

    def __init__(self, folder: Path, options: SlurmOptions) -> None:
        self._folder = folder
        self._jobs: dict[cf.Future[Any], submitit.Job[Any]] = {}
        self._executor = submitit.AutoExecutor(folder=folder, cluster=options.cluster)
        self._executor.update_parameters(**options.parameters())
        self._lock, self._over = threading.Lock(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="steppe-slurm")
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        """Submit a job; cancelling its future cancels it."""
        future: cf.Future[Any] = cf.Future()
        job = self._executor.submit(fn, *args, **kwargs)
        with self._lock:
            self._jobs[future] = job
        future.add_done_callback(lambda done: job.cancel(check=False) if done.cancelled() else None)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Watch no more; jobs that are under way are cancelled."""
        for future in list(self._jobs):
            future.cancel()
        self._over.set()
        self._watcher.join()
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            for future, job in list(self._jobs.items()):
                if future.cancelled() or job.done():
                    with self._lock:
                        del self._jobs[future]
                    _settle(future, job)


def _settle(future: cf.Future[Any], job: submitit.Job[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job.result()
    except Exception as error:
        future.set_exception(RuntimeError(_last_line(job, error)))
        return
    future.set_result(result)
    for left in job.paths.folder.glob(f"{job.job_id}_*"):
        left.unlink(missing_ok=True)


def _last_line(job: submitit.Job[Any], error: Exception) -> str:
    """What a job ended with."""
    lines = [line for line in (job.stderr() or str(error)).splitlines() if line.strip()]
    return f"job {job.job_id} ended without a result ({job.state.lower()}): {lines[-1] if lines else error}"
