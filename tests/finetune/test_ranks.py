"""`steppe finetune` as torchrun starts it: two processes train what one would, and rank 0 alone writes and speaks."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.cases import undropped
from tests.integrations.ranks import as_launched
from tests.loops import distributed as d

from steppe._command.app import BadInputError
from steppe.cli import main
from steppe.finetune import commands

# Within the first epoch: at its end two processes fill up the last batch, and one does not.
TRAINING = ["--max-steps", "2", "--logging-steps", "1", "--save-steps", "1", "--use-cpu", "--json"]
_NAMES = {"r": "--lora-r"}  # torchrun would take --r for an abbreviation of its own flags


def words(folder: Path, ranks: int, **asked: Any) -> list[str]:
    """The command's, for a batch of four examples in all, and a test that does not share out evenly."""
    settings = undropped(folder, held_out=0.25, **asked).items()
    flags = [word for key, value in settings for word in (_NAMES.get(key, f"--{key.replace('_', '-')}"), str(value))]
    return ["finetune", *flags, *TRAINING, "--per-device-train-batch-size", str(4 // ranks)]


def both_speak(given: list[list[str]]) -> list[tuple[int, str, str]]:
    """On a rank: the exit code of each command, and what it says."""
    as_launched()
    said = []
    for asked in given:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                code = main(asked)
            except SystemExit as end:
                code = end.code
        said.append((int(code or 0), out.getvalue(), err.getvalue()))
    return said


CASES = {
    "sam:rho=0.1": "bert", "nbar:mu=1": "gpt2",
    "flat_lora:sigma=0.3": "bert", "bi_lora:lr=0.5,rho=1.0,rule=sgd": "gpt2",
}  # fmt: skip


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[tuple[int, str, str]]]]:
    """A folder, and for each case what both ranks say: one pair of processes for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    given = [words(folder / method, 2, body=body, method=method) for method, body in CASES.items()]
    (folder / "file").mkdir()
    (folder / "file" / "out").write_text("a file")
    answers = d.run(2, both_speak, [*given, words(folder / "file", 2)])
    return folder, dict(zip((*CASES, "file"), zip(*answers, strict=True), strict=True))


def left(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The result and the adapter in `folder`, and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "result.json", "settings.json"]
    return json.loads((folder / "result.json").read_text()), load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(("method", "body"), CASES.items())
def test_two_processes_train_what_one_does(method: str, body: str, tmp_path: Path, spoken: Any) -> None:
    assert main(words(tmp_path, 1, body=body, method=method)) == 0
    (code, out, err), (other_code, other_out, other_err) = spoken[1][method]
    assert code == other_code == 0, err + other_err
    assert err.count("Reading ") == 1 and not other_out and "Reading" not in other_err, "rank 0 alone speaks"
    (alone, weights), (both, shared) = left(tmp_path / "out"), left(spoken[0] / method / "out")
    assert json.loads(out) == both
    assert both["steps"] == alone["steps"] == 2
    assert both["passes_per_step"] == alone["passes_per_step"]
    assert both["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-5)
    assert shared.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_bad_input_is_refused_before_anything_is_written(spoken: Any) -> None:
    folder, said = spoken
    assert all(code != 0 for code, _, _ in said["file"])
    assert "is a file; name a folder with --out" in said["file"][0][2]
    assert (folder / "file" / "out").read_text() == "a file"


def test_the_example_is_refused_on_several_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInputError, match="the example runs in one process"):
        commands._example(str(tmp_path / "out"), False, commands.Console(stderr=True), False)
    assert not (tmp_path / "out").exists()
