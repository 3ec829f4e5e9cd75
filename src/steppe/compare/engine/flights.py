"""The pool of workers that an executor is: jobs go out, what became of them comes back, lost ones go out again."""

from __future__ import annotations

import concurrent.futures as cf
import dataclasses
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steppe._command import beats
from steppe._command.pool import Event, Job, Workers
from steppe.compare.engine import luggage, remote
from steppe.compare.engine.executors import Engine, ExecutorError
from steppe.compare.engine.plan import Plan

TRIES = 3
"""How often a run is begun whose worker is lost, before it counts as failed."""
_POLL = 0.5
_THEN = "finished runs are kept, and the same command goes on from there"


class Flights(Workers):
    """Runs jobs on an executor; stands in for the pool of this machine's processes."""

    def __init__(self, engine: Engine, plan: Plan, say: Callable[[str], None]) -> None:
        super().__init__()
        self.engine, self._plan, self._say = engine, plan, say
        runs = Path(plan.spec.out).absolute() / "runs"
        packed = luggage.pack(plan.spec)
        self._site = remote.Site(plan.spec_hash, str(runs), secrets.token_hex(6), packed)
        self._sign = beats.claim(self._site.sign, "steppe compare")
        self._flying: dict[cf.Future[Any], Job] = {}
        self._trials: Counter[str] = Counter()
        self._shares: dict[str, float] = {}
        self._with_data = False

    def __exit__(self, *_: object) -> None:
        for future in self._flying:
            future.cancel()
        if self._sign:
            self._sign.free()
        for left in Path(self._site.runs).glob(f".*.{self._site.token}.share"):
            left.unlink(missing_ok=True)

    def events(self) -> Iterator[Event]:
        """Jobs go out while they are waiting, and what became of them comes back."""
        while self._waiting or self._flying:
            while self._waiting:
                self._send(self._waiting.popleft())
            done, _ = cf.wait(self._flying, _POLL, cf.FIRST_COMPLETED)
            for future in done:
                yield from self._ended(self._flying.pop(future), future)
            yield from self._moving()

    def _send(self, job: Job) -> None:
        self._trials[job.key] += 1
        try:
            future = self.engine.executor.submit(remote.work, self._site, job, self._trials[job.key])
        except Exception as error:
            raise _broken(self.engine, error) from error
        self._flying[future] = job

    def _ended(self, job: Job, future: cf.Future[Any]) -> Iterator[Event]:
        try:
            event = future.result()
        except cf.BrokenExecutor as error:
            raise _broken(self.engine, error) from error
        except Exception as error:
            yield from self._lost(job, f"{type(error).__name__}: {error}".removesuffix(": "))
            return
        if isinstance(event, remote.Missing):
            yield from self._unseen(job, event)
        else:
            self._shares.pop(job.key, None)
            yield event

    def _lost(self, job: Job, why: str) -> Iterator[Event]:
        """A job whose worker is gone goes out again, unless the executor has tried that by itself."""
        if self._trials[job.key] >= TRIES or why.startswith("KilledWorker"):
            yield Event("failed", job.key, f"its worker was lost, {self._trials[job.key]} times: {why}")
            return
        self._say(f"a worker of {self.engine.name} was lost ({why}); its run is begun again")
        self._waiting.append(job)

    def _unseen(self, job: Job, said: remote.Missing) -> Iterator[Event]:
        """Send the data along from here on."""
        if not self._with_data:
            try:
                packed = luggage.pack(self._plan.spec, data=True)
            except ValueError as error:
                where = "keep the data in a folder that all machines see under the same path"
                yield Event("failed", job.key, f"{said.host} does not see {said.paths[0]}, and {error}; {where}")
                return
            self._with_data = True
            self._site = dataclasses.replace(self._site, luggage=packed)
            self._say(f"{said.host} does not see {said.paths[0]}: the data goes along with every run")
        self._trials[job.key] -= 1
        self._waiting.append(job)

    def _moving(self) -> Iterator[Event]:
        """How far jobs are, where workers see the study's folder."""
        for job in list(self._flying.values()):
            try:
                share = float(self._site.progress(job.key).read_text())
            except (OSError, ValueError):
                continue
            if job.key not in self._shares:
                yield Event("begun", job.key)
            if share != self._shares.get(job.key):
                self._shares[job.key] = share
                yield Event("moving", job.key, share)


def _broken(engine: Engine, error: BaseException) -> ExecutorError:
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return ExecutorError(f"{engine.name} takes no more runs ({why}); {_THEN}")
