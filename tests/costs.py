"""What tests cost in processor time: listed, limited where it is asked for, and the dearest files run first.

No limit by default: processes that wait for each other spin, so that several ranks on a busy machine take a multiple.
"""

from __future__ import annotations

import resource
from collections.abc import Generator
from typing import Any

import pytest

_BEGAN = pytest.StashKey[float]()
DEAREST = (
    "tests/test_examples.py", "tests/loops/test_interrupts.py", "tests/loops/test_dcp.py",
    "tests/test_trajectories.py", "tests/compare/test_texts.py", "tests/loops/test_compile.py",
    "tests/loops/test_fsdp.py", "tests/finetune/test_resume.py", "tests/compare/engine/test_executors.py",
    "tests/finetune/test_run.py", "tests/integrations/test_lightning.py",
    "tests/compare/test_rho.py", "tests/test_peers.py", "tests/loops/test_faults.py",
    "tests/methods/test_contract.py", "tests/integrations/test_trainer_hosts.py",
)  # fmt: skip
"""Files of more than four seconds; the order of the others does not matter."""


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


def dearest_first(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every worker begins with its share of the dearest files, so that what is left for the end is cheap.

    xdist gives each worker a run of neighbours, all of the same number; who has done its own takes over from the end
    of another's.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    dear = [files.pop(file) for file in DEAREST if file in files]
    shares = [[item for file in dear[number::workers] for item in file] for number in range(workers)]
    rest, left = [item for file in files.values() for item in file], len(items)
    for number, share in enumerate(shares):
        room = left // (workers - number)
        left -= room
        more = max(0, room - len(share))
        share += rest[:more]
        del rest[:more]
    items[:] = [item for share in shares for item in share]


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
