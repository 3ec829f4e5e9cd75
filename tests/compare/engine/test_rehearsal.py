"""What cannot be trained is refused in one sentence before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.tiny import split
from torch import Tensor, nn

from steppe.cli import main
from steppe.compare import Split, Task
from steppe.compare.engine.rehearsal import check_anew, check_model, check_targets

TINY = split(40, 0)


def with_labels(y: Tensor, part: str = "train") -> Task:
    parts = {"train": TINY, "val": TINY, "test": TINY} | {part: Split(TINY.x[: len(y)], y)}
    return Task("made up", **parts, classes=2)


LABELS = {
    "fractions": (TINY.y.float(), "the train labels of made up are float32; expected whole numbers from 0 to 1"),
    "truth values": (TINY.y == 1, "are bool; expected whole numbers"),
    "one-hot": (nn.functional.one_hot(TINY.y, 2), "are one-hot, of shape (40, 2); give y.argmax(1)"),
    "one-hot fractions": (nn.functional.one_hot(TINY.y, 2).float(), "are one-hot"),
    "from -1": (TINY.y - 1, "go from -1 to 0; expected 0 to 1, as it has 2 classes"),
    "a column": (TINY.y[:, None], "are a column, of shape (40, 1); give y.squeeze(1)"),
    "from 1": (TINY.y + 1, "go from 1 to 2; expected 0 to 1"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none(kind: str) -> None:
    labels, said = LABELS[kind]
    with pytest.raises(ValueError) as error:
        check_targets(with_labels(labels))
    assert said in str(error.value)


def test_labels_without_classes() -> None:
    with pytest.raises(ValueError, match=r"made up has whole numbers as labels and no classes; say how many: Task"):
        check_targets(replace(with_labels(TINY.y), classes=0))


PARTS = {
    "arrays": (Split(TINY.x.numpy(), TINY.y), "the val part of t holds a ndarray where tensors are expected"),
    "a list": (Split(TINY.x, TINY.y.tolist()), "holds a list where tensors are expected; give torch.as_tensor"),
    "nothing": (TINY.take(torch.arange(0)), "the val part of t has no examples"),
    "other lengths": (Split(TINY.x, TINY.y[:30]), "the val part of t has 40 inputs and 30 targets"),
    "one of two": (Split({"a": TINY.x, "b": TINY.x[:9]}, TINY.y), "the val part of t has 9 inputs and 40 targets"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_are_none(kind: str) -> None:
    """They ended in a traceback."""
    part, said = PARTS[kind]
    with pytest.raises(ValueError) as error:
        Task("t", TINY, part, TINY, 2)
    assert said in str(error.value)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_of_one_class(part: str) -> None:
    with pytest.raises(ValueError, match=f"the {part} labels of made up are all 0, which cannot tell"):
        check_targets(with_labels(torch.zeros(20, dtype=torch.long), part))


def test_what_is_right_passes() -> None:
    check_targets(with_labels(TINY.y))
    check_model("mlp", nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), with_labels(TINY.y))
    numbers = Task("numbers", *(Split(TINY.x, TINY.y.float()),) * 3, loss="mse")
    check_targets(numbers)
    check_model("mlp", nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), numbers)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


def no_arguments() -> nn.Module:
    return nn.Flatten()


def no_model(shape: Any, outputs: int) -> int:
    return outputs


def raising(shape: Any, outputs: int) -> nn.Module:
    raise RuntimeError("out of ideas")


def numbers(count: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, count))


def too_few(shape: Any, outputs: int) -> nn.Module:
    return numbers(1)


def too_many(shape: Any, outputs: int) -> nn.Module:
    return numbers(7)


def misfit(shape: Any, outputs: int) -> nn.Module:
    return nn.Linear(3, 2)


def pair(shape: Any, outputs: int) -> nn.Module:
    return Pair()


def no_seed() -> Task:
    return with_labels(TINY.y)


def no_data(seed: int) -> Task:
    raise FileNotFoundError(2, "No such file", "cats.npz")


MODELS = {
    "no_arguments": "failed with TypeError: no_arguments() takes 0 positional arguments but 2 were given; expected "
    "function(shape, outputs) -> torch.nn.Module",
    "no_model": "gave int; expected a torch.nn.Module",
    "raising": "failed with RuntimeError: out of ideas",
    "too_few": "gave 1 numbers for an example; expected 2, one for each class",
    "too_many": "gave 7 numbers for an example; expected 2, one for each class",
    "misfit": "fails on two examples of shape (1, 8, 8): RuntimeError: mat1 and mat2",
    "pair": "gave a tuple; expected one tensor",
}
HERE = "tests.compare.engine.test_rehearsal"


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    assert main(["compare", "--methods", "sam", "--out", str(folder / "out"), *words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path, "--task", "tests.compare.tiny:task", "--model", f"{HERE}:{name}")
    assert said.startswith(f"steppe: model '{HERE}:{name}'") and MODELS[name] in said


@pytest.mark.parametrize(
    ("name", "why"), [("no_seed", "expected function(seed) -> steppe.compare.Task"), ("no_data", "No such file")]
)
def test_tasks_that_cannot_be(name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path, "--task", f"{HERE}:{name}")
    assert said.startswith(f"steppe: task '{HERE}:{name}' failed with ") and why in said


def test_a_radius_is_not_sought_for_them_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rho", "sam", "--task", "tests.compare.tiny:task", "--model", f"{HERE}:too_many"]) == 2
    assert "gave 7 numbers" in capsys.readouterr().err


def test_home_is_found_behind_the_kind_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cats").mkdir()
    said = refused(capsys, tmp_path, "--task", "images:~/cats")
    assert f"{tmp_path}/cats has 0 class folders" in said


def cached(seen: list[nn.Module]) -> nn.Module:
    """As a user's function may keep what it loads."""
    seen[:] = seen or [nn.Sequential(nn.Flatten(), nn.Linear(64, 2))]
    return seen[0]


def test_a_model_that_is_the_same_every_time_is_refused() -> None:
    """Every run went on where another had ended, and gains were of who came last."""
    seen: list[nn.Module] = []
    with pytest.raises(ValueError, match=r"'mine:net' gave the same weights twice, and .* copy.deepcopy"):
        check_anew("mine:net", cached(seen), nn.Sequential(cached(seen), nn.Linear(2, 2)))
    frozen = cached(seen).requires_grad_(False)  # a body that is loaded once, under heads of their own
    check_anew("mine:net", *(nn.Sequential(frozen, nn.Linear(2, 2)) for _ in range(2)))


SAME = """
from torch import nn
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
def net(shape, outputs):
    return NET
"""


def test_a_comparison_of_such_a_model_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "same.py").write_text(SAME)
    asked = f"compare --task tests.compare.tiny:task --model {tmp_path}/same.py:net --out {tmp_path}/out"
    assert main(asked.split()) == 2 and "gave the same weights twice" in capsys.readouterr().err
