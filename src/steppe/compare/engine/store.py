"""Files of a study: one JSON per finished run, written whole or not at all, and read only if it is of this study."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from steppe._command.files import finite, read_json, remove_left, write_json
from steppe.compare.engine.spec import SCHEMA


class Store:
    """The folder of a study.

    Args:
        folder: created when needed. Runs of other settings may lie there too: they are left alone and not read.
        spec_hash: what the runs of this study bear.
    """

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

    def save(self, id_: str, phase: str, record: dict[str, Any]) -> dict[str, Any]:
        """Keep one finished run for good and give it back as the file has it."""
        identity = {"schema": SCHEMA, "run_id": id_, "phase": phase, "spec_hash": self.spec_hash}
        whole: dict[str, Any] = finite(identity | record)
        write_json(self.runs / f"{id_}.json", whole)
        return whole
