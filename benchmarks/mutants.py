"""Plant bugs in a copy of the source, one at a time: the tests that are meant to notice each must fail.

    python benchmarks/mutants.py              all of benchmarks/planted.py; benchmarks/results/mutants.json
    python benchmarks/mutants.py early wsam   those whose name, or file of tests, has one of the words
    python benchmarks/mutants.py --rest       those of which the file says nothing yet

The file has one row for each bug: what came of it when it was planted last, and on which day. A run of some leaves the
other rows as they are; "not run" is what was not planted since its texts or its tests changed in benchmarks/planted.py.
Exit 1 where one survives, or where its text is no longer in the source.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mutant import Mutant
from planted import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "results" / "mutants.json"
FAILED, PASSED = 1, 0  # exit codes of pytest; others mean that nothing was tested
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch.profiler", "scipy.stats", "pydantic", "hypothesis", "pytest"])


def run_tests(source: Path, files: set[str], words: set[str]) -> int:
    """How pytest ends; in a process that has all but steppe imported, which is most of what a few tests take."""
    child = FORKS.Process(target=_tests, args=(source, sorted(files), " or ".join(sorted(words))))
    child.start()
    child.join()
    return child.exitcode


def _tests(source: Path, files: list[str], words: str) -> None:
    os.environ |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(source)]
    os.chdir(ROOT)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.exit(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files, "-k", words]))


def place_of(mutant: Mutant, source: Path) -> Path | None:
    """The one file that holds the text once."""
    found = {path: path.read_text().count(mutant.old) for path in source.rglob("*.py")}
    places = [path for path, count in found.items() if count]
    return places[0] if len(places) == 1 and found[places[0]] == 1 else None


def plant(mutant: Mutant) -> dict[str, Any]:
    """What became of it, at which expense."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)  # with what is compiled, which only the planted file is not
        place = place_of(mutant, source)
        if place is None:
            outcome = "not planted: its text is not in the source, or more than once"
        else:
            place.write_text(place.read_text().replace(mutant.old, mutant.new))
            code = run_tests(source, {mutant.file}, {mutant.words})
            outcome = {FAILED: "killed", PASSED: "survived"}.get(code, f"nothing tested (pytest ended with {code})")
        file = place.relative_to(source).as_posix() if place else ""
    print(f"{outcome:8}  {mutant.name}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return named(mutant, file) | {"outcome": outcome, "on": time.strftime("%Y-%m-%d", time.gmtime())}


def named(mutant: Mutant, file: str = "") -> dict[str, Any]:
    """How its row begins."""
    bug = hashlib.blake2b(repr(mutant).encode(), digest_size=4).hexdigest()
    return {"mutant": mutant.name, "bug": bug, "file": file, "tests": mutant.tests}


def rows() -> dict[str, dict[str, Any]]:
    """A row for each bug: the file's, as far as it is of the bug as it is today."""
    kept = json.loads(OUT.read_text())["mutants"] if OUT.exists() else []
    old = {each.get("bug"): each for each in kept}
    blank = [named(mutant) | {"outcome": "not run", "on": None} for mutant in MUTANTS]
    return {each["mutant"]: old.get(each["bug"], each) for each in blank}


def keep(row: dict[str, Any]) -> dict[str, Any]:
    """Write it into the file, beside the other rows."""
    every = list((rows() | {row["mutant"]: row}).values())
    counts = {word: sum(each["outcome"] == word for each in every) for word in ("killed", "not run")}
    OUT.write_text(json.dumps({**counts, "of": len(every), "mutants": every}, indent=1) + "\n")
    return row


def chosen(words: list[str]) -> list[Mutant]:
    """The bugs that are asked for."""
    if words == ["--rest"]:
        known = rows()
        return [mutant for mutant in MUTANTS if known[mutant.name]["outcome"] == "not run"]
    return [each for each in MUTANTS if not words or any(word in each.name or word in each.file for word in words)]


def main() -> None:
    bugs = chosen(sys.argv[1:])
    if not bugs:
        sys.exit("no such bug")
    if run_tests(ROOT / "src", {each.file for each in bugs}, {each.words for each in bugs}) != PASSED:
        sys.exit("the tests fail without any bug planted")
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = [keep(row) for row in pool.map(plant, bugs)]
    killed = sum(each["outcome"] == "killed" for each in results)
    print(f"{killed} of {len(results)} killed")
    sys.exit(killed < len(results))


if __name__ == "__main__":
    main()
