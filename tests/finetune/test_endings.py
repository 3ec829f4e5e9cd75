"""A run that was killed behind its last step, in whichever phase, resumes to the very same adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.finetune.cases import flags

from steppe.finetune import measure
from steppe.finetune import run as running
from steppe.finetune.folder import Folder
from steppe.finetune.run import finetune
from steppe.finetune.spec import resolve

# 18 examples in batches of 4: five steps an epoch. At a constant rate a step too many is seen.
SHARED = {"per_device_train_batch_size": 4, "save_steps": 3, "logging_steps": 1, "lr_scheduler_type": "constant"}
ENDINGS = {
    "inside an epoch": {"max_steps": 8}, "at its end": {"max_steps": 10}, "by epochs": {"num_train_epochs": 1.5},
    "by epochs, saved with them": {"num_train_epochs": 1.5, "save_strategy": "epoch"},
}  # fmt: skip
PHASES = {
    "the test": (measure, "metrics"),
    "the adapter's writing": (running, "_save"),
    "the result": (Folder, "finish"),
}


class Killed(BaseException):
    """What no handler of errors catches."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


def tuned(folder: Path, training: dict[str, Any], method: str, **how: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    result = finetune(resolve(flags(folder, method=method), SHARED | training), **how)
    found = load_file(folder / "out" / "adapter" / "adapter_model.safetensors")
    return result, {name: value.tolist() for name, value in found.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[dict[str, Any], Any]]:
    return functools.cache(
        lambda ending, method: tuned(tmp_path_factory.mktemp("whole") / "run", ENDINGS[ending], method)
    )


@pytest.mark.parametrize(
    ("ending", "phase", "method"),
    [("at its end", "the test", "base"), ("by epochs, saved with them", "the test", "base")]
    + [("by epochs", "the result", "base"), *(("inside an epoch", phase, "sam") for phase in list(PHASES)[:2])],
)  # fmt: skip
def test_no_step_is_taken_twice_nor_too_many(
    tmp_path: Path, ending: str, phase: str, method: str, monkeypatch: pytest.MonkeyPatch, undisturbed: Any
) -> None:
    whole, weights = undisturbed(ending, method)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*PHASES[phase], killed)
        tuned(tmp_path / "killed", ENDINGS[ending], method)
    resumed, again = tuned(tmp_path / "killed", ENDINGS[ending], method, resume=True)
    assert again == weights
    assert resumed["steps"] == resumed["resumed_at"] == whole["steps"]
    assert resumed["metrics"] == whole["metrics"] and resumed["passes_per_step"] == whole["passes_per_step"]
