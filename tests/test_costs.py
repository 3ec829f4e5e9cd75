"""The order in which the tests run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import costs


def ordered(names: list[str], workers: int) -> list[str]:
    items = [SimpleNamespace(nodeid=name) for name in names]
    costs.dearest_first(SimpleNamespace(workerinput={"workercount": workers}), items)  # type: ignore[arg-type]
    return [item.nodeid for item in items]


def test_the_dearest_files_are_there() -> None:
    assert [file for file in costs.DEAREST if not (Path(__file__).parents[1] / file).is_file()] == []


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_worker_begins_with_its_share_of_the_dearest(workers: int) -> None:
    names = [f"tests/test_cheap.py::test_{i}" for i in range(40)]
    names += [f"{file}::test_{i}" for file in costs.DEAREST[:4] for i in range(2)]
    found = ordered(names, workers)
    assert sorted(found) == sorted(names)
    starts = [len(names) * number // workers for number in range(workers)]  # xdist's cuts
    assert [found[start] for start in starts] == [f"{file}::test_0" for file in costs.DEAREST[:workers]]
    assert [name for name in found if "cheap" in name] == names[:40]


def test_a_few_dear_files_alone_stay_whole() -> None:
    names = [f"{costs.DEAREST[0]}::test_{i}" for i in range(9)] + [f"{costs.DEAREST[1]}::test_0"]
    assert ordered(names, 2) == names
