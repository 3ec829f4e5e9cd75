"""A bug to plant: a text of the source, what stands there instead, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Args:
        name: what is wrong.
        old: text that stands exactly once in ``src/steppe``; where, is found.
        new: what takes its place.
        tests: a file of tests and, behind ``-k``, words of the names of those that must notice; none: all of it.
    """

    name: str
    old: str
    new: str
    tests: str

    @property
    def file(self) -> str:
        """The file of tests."""
        return self.tests.partition(" -k ")[0]

    @property
    def words(self) -> str:
        """What picks the tests there: all of the file where nothing is said."""
        return self.tests.partition(" -k ")[2] or Path(self.file).stem
