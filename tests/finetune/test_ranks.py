"""`torchrun ... steppe finetune`: two processes train what one would, and rank 0 alone writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.cases import undropped

from steppe._command.app import BadInputError
from steppe.cli import main
from steppe.finetune import commands

# Within the first epoch: at its end two processes fill up the last batch, and one does not.
TRAINING = ["--max-steps", "2", "--logging-steps", "1", "--save-steps", "1", "--use-cpu", "--json"]
_NAMES = {"r": "--lora-r"}  # torchrun takes --r for an abbreviation of its own flags


def words(folder: Path, ranks: int, **asked: Any) -> list[str]:
    """The command's, for a batch of four examples in all, and a test that does not share out evenly."""
    settings = undropped(folder, held_out=0.25, **asked).items()
    flags = [word for key, value in settings for word in (_NAMES.get(key, f"--{key.replace('_', '-')}"), str(value))]
    return ["finetune", *flags, *TRAINING, "--per-device-train-batch-size", str(4 // ranks)]


def launched(folder: Path, **asked: Any) -> subprocess.CompletedProcess[str]:
    """The command on two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "steppe"]
    command = [sys.executable, *launch, *words(folder, 2, **asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def left(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The result and the adapter in `folder`, and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "result.json", "settings.json"]
    return json.loads((folder / "result.json").read_text()), load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("body", "method"), [("bert", "sam:rho=0.1"), ("gpt2", "nbar:mu=1")])
def test_two_processes_train_what_one_does(body: str, method: str, tmp_path: Path) -> None:
    assert main(words(tmp_path / "alone", 1, body=body, method=method)) == 0
    done = launched(tmp_path / "both", body=body, method=method)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Reading ") == 1, "rank 0 alone speaks"
    (alone, weights), (both, shared) = (left(tmp_path / name / "out") for name in ("alone", "both"))
    assert json.loads(done.stdout) == both, "once, or it would be no JSON"
    assert both["steps"] == alone["steps"] == 2
    assert both["passes_per_step"] == alone["passes_per_step"]
    assert both["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-5)
    assert shared.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "out").write_text("a file")
    done = launched(tmp_path / "alone")
    assert done.returncode != 0 and "is a file; name a folder with --out" in done.stderr
    assert (tmp_path / "alone" / "out").read_text() == "a file"


def test_the_example_is_refused_on_several_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInputError, match="the example runs in one process"):
        commands._example(str(tmp_path / "out"), False, commands.Console(stderr=True), False)
    assert not (tmp_path / "out").exists()
