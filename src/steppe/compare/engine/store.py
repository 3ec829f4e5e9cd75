"""Files of a study: one JSON per finished run, written whole or not at all, and read only if it is of this study.

Several processes, of one machine or of many, may work at one study in one folder: each claims a run before it begins,
and a claim ends with the process that holds it. The folder shows one study's report; those of other settings stand in
``earlier/``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steppe._command import beats
from steppe._command.files import finite, read_json, remove_left, write_json, writing
from steppe._command.locks import one_writer
from steppe.compare.engine.spec import SCHEMA

_THEN = "make room or name another --out; finished runs are kept, and the same command goes on from there"
_SHOWN = ("spec.json", "cost.json", "summary.json", "report.html")
_PATIENCE = 60.0  # seconds: others write a report meanwhile


class Store:
    """The folder of a study. Runs of other settings may lie there too: they are left alone and not read."""

    def __init__(self, folder: Path, spec_hash: str) -> None:
        self.folder, self.spec_hash = folder, spec_hash
        self.runs = folder / "runs"

    def open(self) -> None:
        """Make the folder; remove what a killed process left half-written."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            if not os.access(self.runs, os.W_OK):
                raise PermissionError
            remove_left(self.folder)
            remove_left(self.runs)
            for left in self.runs.glob(".*.claim"):
                if held := beats.claim(left, "tidying"):
                    held.free()
            for left in self.runs.glob(".*.share"):
                left.unlink(missing_ok=True)  # those who are at it write again
        except OSError as error:
            why = error.strerror or "no permission"
            raise ValueError(f"cannot write to {self.folder} ({why}); name another folder with --out") from error

    def load(self, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """The finished runs among `ids`."""
        found = {}
        for id_ in ids:
            record = read_json(self.runs / f"{id_}.json")
            if isinstance(record, dict) and record.get("spec_hash") == self.spec_hash:
                found[id_] = record
        return found

    def known(self, needed: Callable[[dict[str, dict[str, Any]]], Collection[str]]) -> dict[str, dict[str, Any]]:
        """All that is kept of what is `needed`: which there are depends on those that chose or let a grid grow."""
        records, before = dict[str, dict[str, Any]](), -1
        while len(records) > before:
            before, records = len(records), self.load(needed(records))
        return records

    def save(self, id_: str, phase: str, record: dict[str, Any]) -> dict[str, Any]:
        """Keep one finished run for good and give it back as the file has it."""
        identity = {"schema": SCHEMA, "run_id": id_, "phase": phase, "spec_hash": self.spec_hash}
        whole: dict[str, Any] = finite(identity | record)
        with writing(self.folder, _THEN):
            write_json(self.runs / f"{id_}.json", whole)
        return whole

    def claim(self, id_: str) -> beats.BeatingClaim | None:
        """The right to make a run, until it is freed or this process ends; None: another process makes it."""
        with writing(self.folder, _THEN):
            return beats.claim(self._claim(id_), "steppe compare")

    def failed(self, id_: str) -> str | None:
        """Why another process, which is still at this study, failed with a run."""
        return beats.failed(self._claim(id_))

    def _claim(self, id_: str) -> Path:
        return self.runs / f".{id_}.claim"

    @property
    def place(self) -> Path:
        """Where this study's report and cost are."""
        there = _hash_in(self.folder)
        return self.folder if there in (None, self.spec_hash) else self.folder / "earlier" / self.spec_hash

    def move_in(self, spec: dict[str, Any]) -> str | None:
        """Let this study's report be the one that the folder shows; a sentence if another's stood there."""
        with self.showing():
            there, before = _hash_in(self.folder), read_json(self.folder / "spec.json")
            aside = self.folder / "earlier" / str(there)
            if there not in (None, self.spec_hash):
                _move(self.folder, aside)
            _move(self.folder / "earlier" / self.spec_hash, self.folder)
            write_json(self.folder / "spec.json", spec)
        if there in (None, self.spec_hash):
            return None
        changed = [f"{k} was {before.get(k)!r} and is {v!r}" for k, v in spec.items() if before.get(k) != v]
        what = next((each for each in changed if not each.startswith(("out", "spec_hash"))), "its data or code differ")
        return f"{self.folder} showed a study of other settings ({what}): its report and cost are in {aside} now"

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Nobody else moves or writes reports meanwhile."""
        with writing(self.folder, _THEN), one_writer(self.folder, "steppe compare", patience=_PATIENCE):
            yield


def _hash_in(folder: Path) -> str | None:
    found = read_json(folder / "spec.json")
    return found.get("spec_hash") if isinstance(found, dict) else None


def _move(source: Path, place: Path) -> None:
    """A study's own files from folder to folder."""
    for path in filter(Path.exists, (source / name for name in _SHOWN)):
        place.mkdir(parents=True, exist_ok=True)
        os.replace(path, place / path.name)
