"""The study from settings to report: check, run what is missing side by side, measure cost, summarise."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from steppe._command.beats import BeatingClaim
from steppe._command.files import read_json, write_json
from steppe._command.pool import Event, Job, Pool, Workers
from steppe._command.progress import PlainProgress, Work
from steppe._command.provenance import finished
from steppe._command.ranks import InStep, agree, first
from steppe._command.trackers import Log
from steppe._command.trackers import check as check_trackers
from steppe.compare.analysis import summary
from steppe.compare.analysis.wording import told
from steppe.compare.engine import beforehand, cost, run, script, turns
from steppe.compare.engine.executors import Engine
from steppe.compare.engine.flights import Flights
from steppe.compare.engine.logged import logged
from steppe.compare.engine.plan import Plan, plan_of
from steppe.compare.engine.runs import Run, describe
from steppe.compare.engine.spec import Spec, short_hash
from steppe.compare.engine.store import Store
from steppe.compare.report import page

_COST = "cost"
_POLL = 0.5
"""Seconds between two looks at what other processes have done."""
_OTHER = "another process works at this study in this folder, too: each run is made by one of them and counts for both"
_ELSEWHERE, _BEFORE = " (in another process)", " (done before)"


@dataclass(frozen=True)
class Outcome:
    """What a study came to: the summary, where the report is, and which runs failed why."""

    summary: dict[str, Any]
    report: Path
    failed: dict[str, str] = field(default_factory=dict)


def check(spec: Spec) -> Plan:
    """Find out before anything starts whether every run can: reads the data, builds the model and each method."""
    check_trackers(spec.log)
    plan = Plan(spec, spec.hash())
    beforehand.check_methods(plan)
    (beforehand.check_task if spec.script is None else beforehand.check_script)(beforehand.as_here(plan))
    Store(Path(spec.out), plan.spec_hash).open()
    return plan


def notes_of_data(plan: Plan) -> list[str]:
    """What a reader must know of the data, which stands under the table, too: who hears it now may mend it first."""
    spec = beforehand.as_here(plan).spec
    return [] if spec.script is not None else list(run.load_task(spec, spec.seeds[0]).notes)


def compare(plan: Plan, progress: PlainProgress, engine: Engine | None = None) -> Outcome:
    """Run the study of `plan` to its end. Every finished run is kept at once, so a study may be cut off anywhere.

    The engine makes the runs; None: processes of this machine.
    """
    spec = plan.spec
    store = Store(Path(spec.out), plan.spec_hash)
    if moved := store.move_in(shown(plan)):
        progress.say(moved)
    session = _Session(plan, store, progress)
    costs = _kept_cost(session)
    if costs is None or session.missing():
        with session, _workers(session, engine) as (pool, size):
            session.finish_runs(pool, size)
            costs = session.cost(pool)
    return _outcome(session, costs)


@contextmanager
def _workers(session: _Session, engine: Engine | None) -> Iterator[tuple[Workers, Callable[[], int]]]:
    """Who makes the runs, and how many at a time by now."""
    plan = session.plan
    if engine is not None:
        with Flights(engine, plan, session.progress.say) as flights:
            yield flights, engine.size
        return
    size = min(plan.spec.workers, max(1, len(session.missing()))) if plan.spec.parallel is None else 1
    with Pool(size) if plan.spec.parallel is None else InStep() as pool:
        yield pool, lambda: size


class _Session:
    """One call of `compare`: what is done, what is under way, what failed."""

    def __init__(self, plan: Plan, store: Store, progress: PlainProgress) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.failed: dict[str, str] = {}
        self._since = finished()
        self.records = agree(store.known(plan.needed))
        self.under_way: dict[str, Run] = {}
        self._held, self._accompanied = dict[str, BeatingClaim](), False
        self._needed: tuple[tuple[int, int], dict[str, Run]] = (-1, -1), {}
        self._log = Log(plan.spec.log if first() else (), store.folder, progress.say)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        for id_ in list(self._held):
            self._free(id_)

    def missing(self) -> dict[str, Run]:
        """Runs known to be needed that are neither done nor failed, by id."""
        known = len(self.records), len(self.failed)  # both only grow; asked several times a second, which adds up
        if self._needed[0] != known:
            self._needed = known, self.plan.needed(self.records, self.failed)
        needed = self._needed[1]
        return {id_: each for id_, each in needed.items() if id_ not in self.records and id_ not in self.failed}

    def finish_runs(self, pool: Workers, size: Callable[[], int]) -> None:
        """Run what is missing, `size()` at a time; what becomes known meanwhile (a method's chosen rho) joins in.

        Runs that another process has claimed are waited for, and taken over if it ends without them.
        """
        self.progress.begin(self.plan.total(self.records, self.failed), len(self.records), self._work())
        waiting = False
        while self.missing():
            self._fill(pool, size)
            for event in pool.events():
                self._note(event)
                self._fill(pool, size)
            if self.missing() and not waiting:
                waiting = True
                self.progress.say("waiting for runs that another process has begun in this folder")
            if self.missing():
                time.sleep(_POLL)
                self._take_in(self.missing())

    def _fill(self, pool: Workers, size: Callable[[], int]) -> None:
        """Claim runs and hand them out until `size()` are under way; of several shards each begins with its own."""
        room = size()
        for id_, each in in_turn(self.missing(), self.plan.spec.part).items():
            if len(self.under_way) >= room:
                return
            if id_ not in self.under_way and self._claim(id_):
                self.under_way[id_] = each
                train = run.train if self.plan.spec.script is None else script.train
                pool.submit(Job(id_, train, (self.plan.spec, each)))

    def _claim(self, id_: str) -> bool:
        """Whether the run is ours to make; one that was finished elsewhere since, or that failed there, is taken in."""
        held = self.store.claim(id_) if first() else None
        if held:
            self._held[id_] = held
        if agree(held is not None):
            if not self._take_in([id_]):
                return True
            self._free(id_)
        elif id_ != _COST:
            if not self._accompanied:
                self._accompanied = True
                self.progress.say(_OTHER)
            if why := agree(self.store.failed(id_) if first() else None):
                text = describe(self.missing()[id_])
                self.failed[id_] = f"{text}: {why}"
                self.progress.failed(id_, text, why + _ELSEWHERE)
        return False

    def _free(self, id_: str) -> None:
        if id_ in self._held:
            self._held.pop(id_).free()

    def _take_in(self, ids: Collection[str]) -> bool:
        """Runs that another process has finished, or an earlier call, where only now they are known to be needed."""
        runs, found = self.missing(), agree(self.store.load(ids))
        self.records |= found
        if found:
            self._expect()
        for id_, record in found.items():
            before = str(record.get("finished")) < self._since
            self.progress.skip(runs[id_].steps(self.plan.spec, 1) if before else 0)
            self.progress.done(id_, describe(runs[id_]), told(record) + (_BEFORE if before else _ELSEWHERE))
        return bool(found)

    def _note(self, event: Event) -> None:
        text = describe(self.under_way[event.key])
        if event.kind == "begun":
            self.progress.begun(event.key, text)
        elif event.kind == "moving":
            self.progress.moving(event.key, event.value)
        elif event.kind == "failed":
            self.failed[event.key] = f"{text}: {event.value}"
            self._expect()
            self.progress.failed(event.key, text, event.value)
            if event.key in self._held:
                self._held[event.key].note(str(event.value))  # and hold it: others need not try in vain
            if self.plan.spec.script is not None and not self.records:
                raise script.FirstFailedError(f"{self.failed[event.key]}; nothing more is run")
        else:
            phase = "tune" if event.key in self.plan.tuning(self.records, self.failed) else "final"
            self.records[event.key] = self.store.save(event.key, phase, event.value)
            self.log(event.key)
            self._expect()
            self.progress.done(event.key, text, told(event.value))
            self._free(event.key)
        if event.kind in ("done", "failed"):
            del self.under_way[event.key]

    def _expect(self) -> None:
        """Tell how many runs there are by what is known now."""
        self.progress.expect(self.plan.total(self.records, self.failed), self._work())

    def _work(self) -> Work:
        """How long all trainings are, and those that have ended, in epochs (as if a step took every method as long)."""
        spec, of = self.plan.spec, self.plan.trainings(self.records, self.failed)
        needed = self.plan.needed(self.records, self.failed)
        ended = [each for id_, each in needed.items() if id_ in self.records or id_ in self.failed]
        return sum(count * each.steps(spec, 1) for each, count in of.items()), sum(e.steps(spec, 1) for e in ended)

    def log(self, id_: str) -> None:
        """Give a run to the trackers, unless they have it."""
        self._log.write(id_, lambda: logged(id_, self.records[id_], self.plan.spec_hash))

    def cost(self, pool: Workers) -> dict[str, Any] | None:
        """The cost that is kept, or that another process measures, or else is measured here."""
        waiting = False
        while (kept := _kept_cost(self)) is None:
            if self._claim(_COST):
                kept = _kept_cost(self) or self.finish_cost(pool)
                self._free(_COST)
                return kept
            if not waiting:
                waiting = True
                self.progress.say("waiting for the times that another process measures in this folder")
            time.sleep(_POLL)
        return kept

    def finish_cost(self, pool: Workers) -> dict[str, Any] | None:
        """Measure the cost of every method that has a chosen value, in one worker while the others idle."""
        runs, shares = self.cost_runs(), self.shares()
        if not runs:
            return None
        self.progress.say("measuring time and memory, step by step beside the base")
        pool.submit(self._measurement(runs, shares))
        for event in pool.events():
            if event.kind == "failed":
                self.failed[_COST] = f"measuring the cost: {event.value}"
                self.progress.say(self.failed[_COST])
            elif event.kind == "done":
                measured: dict[str, Any] = {"key": self.cost_key(), **event.value}
                for method, passes in self.means("passes_per_step").items():
                    measured["methods"].get(method, {})["passes"] = passes  # not all ascents cost one
                with self.store.showing():
                    write_json(self.store.place / "cost.json", measured)
                return measured
        return None

    def _measurement(self, runs: list[Run], shares: dict[str, float]) -> Job:
        spec = self.plan.spec
        if spec.script is None:
            return Job(_COST, cost.measure, (spec, runs, shares))
        final = [r for r in self.plan.records(self.records, self.failed) if r["phase"] == "final"]
        return Job(_COST, turns.measure, (spec, runs, shares, turns.of_runs(final)))

    def cost_runs(self) -> list[Run]:
        """One run per method that finished at its chosen value."""
        shares = self.shares()
        found = (self.plan.best(choice, self.records, self.failed) for choice in self.plan.choices)
        return [each for each in found if each is not None and each.method in shares]

    def shares(self) -> dict[str, float]:
        """Method -> mean share of steps that ascended in its final runs."""
        return self.means("ascended_share")

    def means(self, figure: str) -> dict[str, float]:
        """Method -> mean of a figure over its final runs."""
        seen: dict[str, list[float]] = {}
        for record in self.plan.records(self.records, self.failed):
            if record["phase"] == "final" and record["method"] != "base":
                seen.setdefault(record["method"], []).append(record[figure])
        return {method: sum(values) / len(values) for method, values in seen.items()}

    def cost_key(self) -> str:
        """A hash of what was measured: kept costs count for the same methods at the same values only."""
        measured = [[each.method, each.value, each.seed, *each.beside] for each in self.cost_runs()]
        return short_hash([self.plan.spec_hash, measured, self.shares()])


def in_turn(runs: dict[str, Run], part: tuple[int, int] | None) -> dict[str, Run]:
    """The runs, those of the i-th of n parts first, then the next part's: whoever is done with its own helps on."""
    if part is None:
        return runs
    i, n = part
    return {id_: runs[id_] for id_ in sorted(runs, key=lambda id_: (int(id_[-12:], 16) - (i - 1)) % n)}


def rewrite(folder: Path) -> Outcome:
    """Summary and report of the study in a folder anew, from the runs and times that are kept; nothing is run."""
    session = _kept(folder)
    return _outcome(session, _kept_cost(session))


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records behind the figures that a folder shows: what chose has the phase "tune", what counts "final"."""
    session = _kept(folder)
    return session.plan.records(session.records)


def _kept(folder: Path) -> _Session:
    plan = plan_of(folder)
    return _Session(plan, Store(folder, plan.spec_hash), PlainProgress(Console(quiet=True)))


def _kept_cost(session: _Session) -> dict[str, Any] | None:
    kept = agree(read_json(session.store.place / "cost.json"))
    return kept if isinstance(kept, dict) and kept.get("key") == session.cost_key() else None


def shown(plan: Plan) -> dict[str, Any]:
    """The settings as the report shows them, complete, methods in their canonical form."""
    labels = {choice.text: choice.label for choice in plan.choices}
    said = plan.spec.model_dump(exclude={"shard", "on", "log"})  # who made which run is not in the result
    said = said if plan.spec.script is None else script.shown(said)
    return said | {"methods": list(labels), "labels": labels, "spec_hash": plan.spec_hash}


def _outcome(session: _Session, costs: dict[str, Any] | None) -> Outcome:
    for id_ in session.records:
        session.log(id_)
    records = session.plan.records(session.records, session.failed)
    result = summary.summarise(records, costs, shown(session.plan))
    with session.store.showing():
        path = session.store.place / "report.html"
        write_json(path.with_name("summary.json"), result)
        page.write(result, records, costs, path)
    return Outcome(result, path, session.failed)
