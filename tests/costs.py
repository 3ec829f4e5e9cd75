"""What tests cost in processor time: listed, and limited where it is asked for.

No limit by default: processes that wait for each other spin, so that several ranks on a busy machine take a multiple.
"""

from __future__ import annotations

import resource
from collections.abc import Generator
from typing import Any

import pytest

_BEGAN = pytest.StashKey[float]()


def spent() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def options(parser: pytest.Parser) -> None:
    group = parser.getgroup("costs")
    group.addoption("--dearest", type=int, default=0, metavar="N", help="list the N tests of most processor time")
    group.addoption(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="a test of more processor time fails, unless it is marked slow",
    )


def begin(item: pytest.Item) -> None:
    item.stash[_BEGAN] = spent()


def end(item: pytest.Item) -> Generator[None, Any, Any]:
    """Around the call: notes what set-up and call took, and fails a test that took more than the budget."""
    result = yield
    took = spent() - item.stash[_BEGAN]
    item.user_properties.append(("seconds", took))
    budget = item.config.getoption("--budget")
    if budget and took > budget and "slow" not in item.keywords:
        pytest.fail(f"{took:.1f} s of processor time, and {budget:g} are allowed: make it smaller, or mark it slow")
    return result


def table(reporter: Any, count: int) -> None:
    """The dearest tests and files at the end of a run."""
    reports = [each for kind in reporter.stats.values() for each in kind if getattr(each, "when", "") == "call"]
    seconds = {each.nodeid: float(dict(each.user_properties).get("seconds", 0.0)) for each in reports}
    files: dict[str, float] = {}
    for name, took in seconds.items():
        file = name.partition("::")[0]
        files[file] = files.get(file, 0.0) + took
    for title, found in (("tests", seconds), ("files", files)):
        reporter.section(f"dearest {title}, seconds of processor time, of {sum(found.values()):.0f}")
        for name, took in sorted(found.items(), key=lambda each: -each[1])[:count]:
            reporter.line(f"{took:7.1f}  {name}")
