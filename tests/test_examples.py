"""Every example runs, says something, and its own assertions hold: in this process, the distributed ones on ranks."""

from __future__ import annotations

import contextlib
import functools
import io
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch.distributed as dist
from tests.compare import studies
from tests.loops import distributed as d

from steppe.compare.engine import study

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
RANKS = [path for path in EXAMPLES if "torchrun" in path.read_text()]
ALONE = [path for path in EXAMPLES if path not in RANKS]
# What must still hold with less work: constants of an example, and what they are here.
STUDY = "--methods sam --rho 0.2 --seeds 1 --tune-seeds 1 --jobs 1 "
SMALLER: dict[str, dict[str, Any]] = {
    "averaged": {"STEPS": 150, "TAIL": 75},
    "bar": {"STEPS": 100},
    "compare_lightning": {"COMPARED": STUDY + "--settings epochs=1"},
    "compare_loop": {"COMPARED": STUDY + "--settings epochs=2"},
    "compare_trainer": {"COMPARED": STUDY + "--settings epochs=1"},
    "custom_task": {"COMPARED": STUDY + "--epochs 2"},
    "dcp": {"STEPS": 12, "SAVED": 8},
    "ddp": {"STEPS": 50},
    "fsdp": {"STEPS": 12},
    "hf_trainer": {"STEPS": 42, "SAVED": 33},
    "lightning_module": {"EPOCHS": 3, "STOPPED": 1},
    "plain_loop": {"EPOCHS": 60, "SEEDS": 2},
}


def stem(path: Path) -> str:
    return path.stem


digits = functools.cache(sklearn.datasets.load_digits)  # read from a text of 1797 lines, once for all examples


def run_main(path: Path) -> str:
    """What the example prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", digits)
        main = runpy.run_path(str(path))["main"]
    main.__globals__.update(SMALLER.get(path.stem, {}))
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Pool", studies.Here)  # what a worker of `steppe compare` does is done in this process
        studies.few_turns(patch)
        main()
    return said.getvalue()


@pytest.mark.parametrize("path", ALONE, ids=stem)
def test_runs_and_says_something(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, and with no warning that an example run by itself would show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)  # as when it is run by itself
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        assert run_main(path).strip()
    assert not [str(w.message) for w in warned]


def as_a_rank(path: Path) -> str:
    """The group is there already: this rank has been started by the test, not by torchrun."""
    dist.init_process_group = lambda backend: None
    return run_main(path)


@pytest.mark.parametrize("path", RANKS, ids=stem)
def test_runs_on_two_ranks(path: Path) -> None:
    said = d.run(2, as_a_rank, path)
    assert said[0].strip() and not said[1].strip(), "the first rank speaks for all"


@pytest.mark.parametrize("path", RANKS, ids=stem)
def test_called_plainly_it_calls_torchrun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 3)
    with pytest.raises(SystemExit, match="3"):
        runpy.run_path(str(path), run_name="__main__")
    flags = ["--standalone", "--nproc-per-node", "2"]
    assert calls == [[sys.executable, "-m", "torch.distributed.run", *flags, str(path)]]


def test_there_are_examples() -> None:
    assert len(ALONE) >= 8 and len(RANKS) == 3
    assert all(path.read_text().startswith('"""') for path in EXAMPLES), "an example begins with what it shows"
    ends = [path.read_text().rstrip().splitlines() for path in ALONE]
    assert all(lines[-2:] == ['if __name__ == "__main__":', "    main()"] for lines in ends)
