"""The quick version of benchmarks/kill_training.py: three points of the plain loop, and one that it must find out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# A save under the final name: what a kill leaves of it looks like a checkpoint. The third point kills in such a save.
CARELESS = """
import sys
import torch
sys.path.insert(0, sys.argv.pop(1))
from kill_loops import own
import kill_training
own.save = lambda state, step, folder: torch.save(state, folder / f"{step}.pt")
kill_training.main()
"""


def kill(out: Path, *command: str) -> tuple[int, dict[str, Any]]:
    options = ["--points", "3", "--loops", "plain", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *command, *options], env=environment, timeout=240, capture_output=True)
    return ended.returncode, json.loads(out.read_text())


def test_killed_and_resumed_is_the_undisturbed_run(tmp_path: Path) -> None:
    code, found = kill(tmp_path / "kill.json", str(BENCHMARKS / "kill_training.py"))
    assert code == 0, found["kills"]
    assert found["equal"] == found["points"] == 3
    assert found["killed_mid_ascent"] and found["killed_mid_checkpoint"] and found["killed_from_outside"]
    assert not found["torn_checkpoints_loaded"]


def test_a_checkpoint_that_is_not_written_whole_is_found_out(tmp_path: Path) -> None:
    code, found = kill(tmp_path / "kill.json", "-c", CARELESS, str(BENCHMARKS))
    assert code == 1
    assert any("torn" in reason for reason in found["kills"][2]["differs"])
