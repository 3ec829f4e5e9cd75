"""Plant bugs in a copy of the source, one at a time: the tests that are meant to notice each must fail.

    python benchmarks/mutants.py              all of benchmarks/planted.py; benchmarks/results/mutants.json
    python benchmarks/mutants.py early wsam   those whose name has one of the words; nothing is written

Exit 1 where one survives, or where its text is no longer in the source.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planted import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "results" / "mutants.json"
FAILED, PASSED = 1, 0  # exit codes of pytest; others mean that nothing was tested


def run_tests(source: Path, files: set[str], words: set[str]) -> int:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += [*sorted(files), "-k", " or ".join(sorted(words))]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode


def place_of(mutant: Mutant, source: Path) -> Path | None:
    """The one file that holds the text once."""
    found = {path: path.read_text().count(mutant.old) for path in source.rglob("*.py")}
    places = [path for path, count in found.items() if count]
    return places[0] if len(places) == 1 and found[places[0]] == 1 else None


def plant(mutant: Mutant) -> dict[str, str]:
    """What became of it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        place = place_of(mutant, source)
        if place is None:
            outcome = "not planted: its text is not in the source, or more than once"
        else:
            place.write_text(place.read_text().replace(mutant.old, mutant.new))
            code = run_tests(source, {mutant.file}, {mutant.words})
            outcome = {FAILED: "killed", PASSED: "survived"}.get(code, f"nothing tested (pytest ended with {code})")
        file = place.relative_to(source).as_posix() if place else ""
    print(f"{outcome:8}  {mutant.name}", flush=True)
    return {"mutant": mutant.name, "file": file, "tests": mutant.tests, "outcome": outcome}


def main() -> None:
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if run_tests(ROOT / "src", {each.file for each in chosen}, {each.words for each in chosen}) != PASSED:
        sys.exit("the tests fail without any bug planted")
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(plant, chosen))
    killed = sum(each["outcome"] == "killed" for each in results)
    print(f"{killed} of {len(results)} killed")
    if not words:
        OUT.write_text(json.dumps({"killed": killed, "of": len(results), "mutants": results}, indent=1) + "\n")
    sys.exit(killed < len(results))


if __name__ == "__main__":
    main()
