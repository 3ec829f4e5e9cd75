"""The Hugging Face Trainer's checkpoints: resumed runs equal uninterrupted ones, torn ones are found out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.problems import everything

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.integrations import tiny_models as tiny  # noqa: E402
from tests.integrations.trainers import arguments, base, factory  # noqa: E402

from steppe.integrations import _trainer  # noqa: E402
from steppe.integrations.transformers import SharpTrainer  # noqa: E402


def resumable(folder: Path, name: str, lora: bool = False, **settings: Any) -> SharpTrainer:
    model = tiny.with_lora(tiny.classifier()) if lora else tiny.classifier()
    args = arguments(
        folder, max_steps=6, gradient_accumulation_steps=2, save_strategy="steps", save_steps=3, **settings
    )
    return SharpTrainer(
        model, args, train_dataset=tiny.sentences(16), optimizers=(base(name, model), None), sharp=factory(name)
    )


def outcome(trainer: SharpTrainer) -> dict[str, Any]:
    return {
        "weights": everything(trainer.model), "sharp": trainer.sharp.state_dict(),
        "optimizer": trainer.sharp.optimizer.state_dict(), "logs": trainer.state.log_history[:-1],
    }  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# Those with draws, with memory, with a base's state of its own and with a selection; and once with adapters.
@pytest.mark.parametrize(
    ("name", "lora"),
    [("grst", False), ("look_sam", True), ("adasam", False), ("sl_sam", True)],
)
def test_resumed_in_the_middle_equals_uninterrupted(name: str, lora: bool, tmp_path: Path) -> None:
    """At step 3: in the middle of an epoch and of a LookSAM cycle of 4, with dropout and shuffled data."""
    whole = resumable(tmp_path, name, lora)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = resumable(tmp_path, name, lora)
    again.train(resume_from_checkpoint=True)
    assert equal(outcome(again), outcome(whole))


def test_resumed_behind_the_last_step_takes_none(tmp_path: Path) -> None:
    """Six steps end within the second epoch of four; the rate stays, so that a seventh would be seen."""
    whole, again = (resumable(tmp_path, "sam", lr_scheduler_type="constant") for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.sharp.step) == (6, 6)
    assert equal(everything(again.model), everything(whole.model))


def test_resume_after_a_fault_between_the_passes_and_a_torn_checkpoint(tmp_path: Path) -> None:
    whole = resumable(tmp_path / "whole", "look_sam")
    whole.train()
    broken = resumable(tmp_path / "broken", "look_sam")
    step, calls = broken.compute_loss, []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(broken.sharp._making.climb.perturbation is not None)
        if broken.state.global_step == 4 and calls[-1]:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    broken.compute_loss = fails
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    torn = tmp_path / "broken" / "checkpoint-4"
    shutil.copytree(tmp_path / "broken" / "checkpoint-3", torn)
    (torn / "trainer_state.json").write_text('{"global_step":')
    again = resumable(tmp_path / "broken", "look_sam")
    again.train(resume_from_checkpoint=True)
    assert any(calls) and equal(outcome(again), outcome(whole))


def test_a_checkpoint_written_over_an_older_one_is_not_vouched_for_by_it(tmp_path: Path) -> None:
    resumable(tmp_path, "sam").train()
    anew = resumable(tmp_path, "look_sam")  # in a folder with an older run's checkpoints 3 and 6

    def breaks(output_dir: str) -> None:
        raise KeyboardInterrupt

    anew._save_optimizer_and_scheduler = breaks
    with pytest.raises(KeyboardInterrupt):
        anew.train()
    assert not (tmp_path / "checkpoint-3" / "trainer_state.json").exists()
    assert Path(_trainer.last_whole_checkpoint(str(tmp_path))).name == "checkpoint-6"


def test_the_state_is_read_without_running_anything(tmp_path: Path) -> None:
    trainer = resumable(tmp_path, "look_sam")
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    state = torch.load(folder / "sharpness_aware.pt", weights_only=True)
    assert equal(state, trainer.sharp.state_dict())
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_a_checkpoint_without_the_state_is_refused(tmp_path: Path) -> None:
    resumable(tmp_path, "sam").train()
    (tmp_path / "checkpoint-6" / "sharpness_aware.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6 holds no sharpness_aware.pt.*from_pretrained"):
        resumable(tmp_path, "sam").train(resume_from_checkpoint=True)
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        resumable(tmp_path, "sam").train(resume_from_checkpoint=True)
