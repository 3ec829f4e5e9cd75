"""The bugs that `make mutants` plants are still bugs of this source, and name tests that exist."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from planted import MUTANTS  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))
SOURCE = [path.read_text() for path in (ROOT / "src").rglob("*.py")]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.name)
def test_it_can_be_planted(mutant):
    assert sum(text.count(mutant.old) for text in SOURCE) == 1, "its text stands exactly once"
    assert mutant.new != mutant.old
    tests = re.findall(r"^def (test_\w+)", (ROOT / mutant.file).read_text(), re.MULTILINE)
    meant = mutant.words.split(" or ") if " -k " in mutant.tests else [""]
    assert tests and all(any(word in name for name in tests) for word in meant)
