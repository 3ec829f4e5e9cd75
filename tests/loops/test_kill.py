"""The quick version of benchmarks/kill_training.py: three points of the plain loop, and one that it must find out."""

import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def careless() -> None:
    """A save under the final name: what a kill leaves of it looks like a checkpoint."""
    own = importlib.import_module("kill_loops.own")
    own.save = lambda state, step, folder: torch.save(state, folder / f"{step}.pt")  # type: ignore[attr-defined]


def as_a_command(options: list[str], before: Callable[[], None]) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    sys.argv = ["kill_training.py", *options]
    command = importlib.import_module("kill_training")
    before()
    command.main()


def kill(out: Path, before: Callable[[], None] = lambda: None) -> tuple[int | None, dict[str, Any]]:
    """The command in a fork of this process, which has torch imported; the third of its points kills in a save."""
    options = ["--points", "3", "--loops", "plain", "--out", str(out)]
    process = multiprocessing.get_context("fork").Process(target=as_a_command, args=(options, before))
    process.start()
    process.join()
    return process.exitcode, json.loads(out.read_text())


def test_killed_and_resumed_is_the_undisturbed_run(tmp_path: Path) -> None:
    code, found = kill(tmp_path / "kill.json")
    assert code == 0, found["kills"]
    assert found["equal"] == found["points"] == 3
    assert found["killed_mid_ascent"] and found["killed_mid_checkpoint"] and found["killed_from_outside"]
    assert not found["torn_checkpoints_loaded"]


def test_a_checkpoint_that_is_not_written_whole_is_found_out(tmp_path: Path) -> None:
    code, found = kill(tmp_path / "kill.json", careless)
    assert code == 1
    assert any("torn" in reason for reason in found["kills"][2]["differs"])
