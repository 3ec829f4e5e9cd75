"""Worker processes that stay alive over many jobs, leave when their parent is gone, and report what happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any, Literal

_IMPORTED = ["steppe._command.preload"]
"""What workers import that takes seconds."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Of numpy and scikit-learn too, unless the user says other: there is a worker for each core."""

_PATIENCE = 5.0
"""Seconds in which a worker that has nothing to do leaves by itself."""

Tell = Callable[[float], None]
"""Told the share of a run that is done, 0 to 1."""


@cache
def _context() -> BaseContext:
    """How workers start: forked from a process that has imported torch and done nothing, or by themselves.

    Never forked from this process, as fork copies locked threads; nor where there is CUDA, which cannot be forked.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def warm_up() -> None:
    """Let the process from which workers are forked import torch while this one goes on with something else."""
    if _context().get_start_method() == "forkserver":
        with _starting():
            forkserver.ensure_running()


class SaidError(Exception):
    """A job failed for a reason that its one sentence says whole, with the place: nothing is to be added."""


@dataclass(frozen=True)
class Job:
    """`function(*arguments, tell)` under the name `key`; `tell(share)` reports how far it is."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Event:
    """What happened to a job: begun, moving (value: share done), done (value: its result), failed (value: why)."""

    kind: Literal["begun", "moving", "done", "failed"]
    key: str
    value: Any = None


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    job: Job | None = None


class Workers(AbstractContextManager["Workers"]):
    """Whoever does jobs: those of a pool, one process for all, or an executor of somebody else's."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def __exit__(self, *_: object) -> None:
        """Nothing is to be left in order."""

    def submit(self, job: Job) -> None:
        """Queue `job`; it starts while `events` is being read."""
        self._waiting.append(job)

    @abstractmethod
    def events(self) -> Iterator[Event]:
        """What happens until every job, also those submitted meanwhile, has ended."""


class Pool(Workers):
    """Runs jobs in `size` spawned processes with one torch thread each.

        with Pool(2) as pool:
            pool.submit(Job("a", work, (1,)))
            for event in pool.events():
                ...

    Args:
        size: number of processes.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler writes to stderr; read on import
        self._workers = [_start() for _ in range(size)]

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            if worker.job is None:  # it is told, and leaves in order, with what a script's own workers shared
                worker.process.join(_PATIENCE)
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def events(self) -> Iterator[Event]:
        while self._waiting or any(worker.job for worker in self._workers):
            yield from self._hand_out()
            busy = {worker.connection: worker for worker in self._workers if worker.job}
            for connection in wait(list(busy)):
                yield self._hear(busy[connection])  # type: ignore[index]

    def _hand_out(self) -> Iterator[Event]:
        for worker in self._workers:
            if worker.job is None and self._waiting:
                worker.job = self._waiting.popleft()
                try:
                    worker.connection.send(worker.job)
                except OSError:  # it died idle; its end of the pipe now says so to `events`
                    continue
                yield Event("begun", worker.job.key)

    def _hear(self, worker: _Worker) -> Event:
        assert worker.job is not None
        try:
            event: Event = worker.connection.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if event.kind != "moving":
            worker.job = None
        return event

    def _replace(self, dead: _Worker) -> Event:
        """A process that died (out of memory, a crash in native code) fails its job and is replaced."""
        assert dead.job is not None
        dead.process.join()
        reason = f"the worker process ended with exit code {dead.process.exitcode} (out of memory?)"
        event = Event("failed", dead.job.key, reason)
        self._workers[self._workers.index(dead)] = _start()
        return event


def _start() -> _Worker:
    ours, theirs = _context().Pipe()
    given = theirs, _ONE_THREAD | os.environ
    # no daemon, which may have no children: a script's DataLoader has; `_leave_with_parent` ends it all the same
    process = _context().Process(target=_serve, args=given, name="steppe-worker")  # type: ignore[attr-defined]
    with _starting():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _starting() -> Iterator[None]:
    """Whoever starts now computes in one thread, is deaf to Ctrl-C, and does not run the program's own file again.

    A script that calls `steppe.compare.run` at its top would begin another comparison in every worker.
    """
    program, unsaid = sys.modules["__main__"], _ONE_THREAD.keys() - os.environ.keys()
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update({name: _ONE_THREAD[name] for name in unsaid})
    try:
        with _deaf():
            yield
    finally:
        sys.modules["__main__"] = program
        for name in unsaid:
            del os.environ[name]


@contextmanager
def _deaf() -> Iterator[None]:
    """Whoever starts now does not hear Ctrl-C, which reaches the whole group, not even while it imports."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """The life of a worker: one job after the other, until the parent hangs up.

    The parent's environment may have changed since the process began that this one is forked from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    multiprocessing.set_forkserver_preload(_IMPORTED)  # a DataLoader's workers: since 3.14 each would import torch
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(attempt(job, connection.send))


def attempt(job: Job, send: Callable[[Event], Any]) -> Event:
    """Do a job here, and say what came of it: done, or failed and why; `send` is told how far it is."""
    try:
        result = job.function(*job.arguments, lambda share: send(Event("moving", job.key, share)))
        return Event("done", job.key, result)
    except SaidError as error:
        return Event("failed", job.key, str(error))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        return Event("failed", job.key, f"{type(error).__name__}: {error} ({where})")


def _leave_with_parent() -> None:
    """End this process the moment its parent has ended, also when the parent was killed and could say nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
