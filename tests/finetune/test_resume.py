"""An interrupted run, killed where it stood, ends as if nobody had interrupted it."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.cases import FEW, Stop, flags, run
from transformers import Trainer, TrainingArguments

from steppe.cli import main
from steppe.finetune import measure
from steppe.finetune import run as running
from steppe.finetune.spec import Spec, resolve

STEPS = 12
TRAINING = FEW | {"max_steps": STEPS, "save_steps": 3, "logging_steps": 3}
SHORT = TRAINING | {"max_steps": 3}


def broken_off(folder: Path, at: int, **more: object) -> None:
    ready = running.prepare(resolve(flags(folder, **more), TRAINING))
    with pytest.raises(KeyboardInterrupt):
        running.train(ready, Stop(at))


def weights(folder: Path) -> dict[str, object]:
    found = next((folder / "out").glob("*/*model.safetensors"))
    return {name: value.tolist() for name, value in load_file(found).items()}


CASES = [
    {"method": "nbar"}, {"method": "look_sam:k=4,push=natural", "dropout": 0.1},
    {"kind": "dora", "method": "rst:p=0.2,schedule=linear2"},
    {"method": "sl_sam", "full": True},
]  # fmt: skip


@pytest.mark.parametrize("more", CASES, ids=[str(case["method"]).partition(":")[0] for case in CASES])
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path: Path, more: dict[str, object]) -> None:
    whole = run(tmp_path / "whole", training=TRAINING, **more)
    broken_off(tmp_path / "broken", 8, **more)
    assert not (tmp_path / "broken" / "out" / "result.json").exists()
    resumed = run(tmp_path / "broken", training=TRAINING, resume=True, **more)
    assert resumed["resumed_at"] == 6
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["passes_per_step"] == pytest.approx(whole["passes_per_step"], rel=1e-12)
    assert [row["loss"] for row in resumed["curve"] if "loss" in row] == [
        row["loss"] for row in whole["curve"] if "loss" in row
    ]


def test_a_language_model_resumes_too(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    ready = running.prepare(resolve(flags(tmp_path / "broken", "gpt2", packing=True, method="nbar"), TRAINING))
    with pytest.raises(KeyboardInterrupt):
        running.train(ready, Stop(11))
    run(tmp_path / "broken", "gpt2", training=TRAINING, packing=True, method="nbar", resume=True)
    run(tmp_path / "whole", "gpt2", training=TRAINING, packing=True, method="nbar")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def killed_at(step: int, words: list[str]) -> None:
    """The command in a process that dies when it has written the weights of a step, and not the rest."""
    write = Trainer._save_optimizer_and_scheduler

    def dies(trainer: Trainer, folder: str) -> None:
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        write(trainer, folder)

    Trainer._save_optimizer_and_scheduler = dies
    sys.exit(main(words))


def test_a_process_killed_while_it_writes_a_checkpoint_resumes_with_its_folder_alone(tmp_path: Path) -> None:
    """The weights of step 9 are written, the optimizer's state is not: step 6 is the last whole checkpoint."""
    (tmp_path / "killed").mkdir()
    given = flags(tmp_path / "killed", method="nbar")
    words = ["finetune", *(f"--{key}={value}" for key, value in (given | TRAINING).items())]
    words = [word.replace("_", "-", word.split("=")[0].count("_")) for word in words]
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(9, words), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    out = tmp_path / "killed" / "out"
    half = {path.name for path in (out / "checkpoints" / "checkpoint-9").iterdir()}
    assert "adapter_model.safetensors" in half and "trainer_state.json" not in half
    assert not (out / "result.json").exists()
    assert main(["finetune", "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "result.json").read_text())["resumed_at"] == 6
    run(tmp_path / "whole", training=TRAINING, method="nbar")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_run_that_is_begun_anew_leaves_no_result_of_the_one_before(tmp_path: Path) -> None:
    run(tmp_path, method="nbar")
    ready = running.prepare(resolve(flags(tmp_path, method="sam"), TRAINING), overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        running.train(ready, Stop(1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoints", "settings.json"]


@pytest.mark.parametrize(
    ("begun", "now", "said"),
    [
        ({"method": "adasam:lr=0.001"}, {"method": "adasam:lr=0.002"}, "method = 'adasam:lr=0.001'"),
        ({"learning_rate": 1e-3}, {"learning_rate": 2e-3}, "learning_rate = 0.001, now it is 0.002"),
        ({"weight_decay": 0.0}, {"weight_decay": 0.1}, "weight_decay = 0.0, now it is 0.1"),
    ],
)
def test_another_learning_rate_is_refused_wherever_it_stands(
    tmp_path: Path, begun: dict[str, object], now: dict[str, object], said: str
) -> None:
    """In the method's text, or among the Trainer's arguments."""

    def asked(more: dict[str, object]) -> Spec:
        flag = {key: value for key, value in more.items() if key == "method"}
        return resolve(flags(tmp_path, **({"method": "sam"} | flag)), TRAINING | {"save_steps": 1} | _rest(more))

    with pytest.raises(KeyboardInterrupt):
        running.train(running.prepare(asked(begun)), Stop(2))
    with pytest.raises(ValueError, match=said):
        running.prepare(asked(now), resume=True)


def _rest(more: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in more.items() if key != "method"}


def test_half_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    broken_off(tmp_path, 10, method="nbar")
    half = tmp_path / "out" / "checkpoints" / "checkpoint-12"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    assert run(tmp_path, training=TRAINING, method="nbar", resume=True)["resumed_at"] == 9


def test_an_evaluation_that_fails_leaves_the_adapter_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory in the evaluation")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(measure, "metrics", fails)
        run(tmp_path, training=SHORT, method="nbar")
    before = weights(tmp_path)
    free = {"per_device_eval_batch_size": 1, "eval_accumulation_steps": 1, "dataloader_num_workers": 0}
    again = run(tmp_path, training=SHORT | free, method="nbar", resume=True)
    assert again["resumed_at"] == 3 and weights(tmp_path) == before
    assert again["settings"]["training"]["per_device_eval_batch_size"] == 1
    whole = run(tmp_path / "whole", training=SHORT, method="nbar")
    assert weights(tmp_path / "whole") == before
    assert again["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)


def test_the_evaluations_precision_leaves_what_is_saved_alone(tmp_path: Path) -> None:
    plain, cast = (
        run(tmp_path / name, training=SHORT | more, method="nbar")
        for name, more in (("plain", {}), ("cast", {"bf16_full_eval": True, "use_cpu": True}))
    )
    assert weights(tmp_path / "cast") == weights(tmp_path / "plain")
    assert cast["method"]["balancedness"] == plain["method"]["balancedness"]


def test_a_batch_that_is_shared_out_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path, 8, method="nbar")
    for key, now in (("world_size", "4 x 2 processes"), ("n_gpu", "4 x 1 process x 2 devices each")):
        said = f"a batch of 4 x 1 process, now .* {now}: s"
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=said):
            patch.setattr(TrainingArguments, key, property(lambda self: 2))
            run(tmp_path, training=TRAINING, method="nbar", resume=True)
    assert run(tmp_path, training=TRAINING, method="nbar", resume=True)["resumed_at"] == 6


def test_a_folder_of_an_older_version_tells_its_processes_by_the_checkpoint(tmp_path: Path) -> None:
    broken_off(tmp_path, 8, method="nbar")
    place = tmp_path / "out" / "settings.json"
    begun = json.loads(place.read_text())
    assert begun.pop("shared") == {"processes": 1, "devices": 1}
    place.write_text(json.dumps(begun))
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-6"
    others = [checkpoint / f"rng_state_{rank}.pth" for rank in range(2)]
    for other in others:
        other.touch()
    with pytest.raises(ValueError, match="begun with a batch of 4 x 2 processes, now it would be 4 x 1 process: start"):
        run(tmp_path, training=TRAINING, method="nbar", resume=True)
    for other in others:
        other.unlink()
    assert run(tmp_path, training=TRAINING, method="nbar", resume=True)["resumed_at"] == 6
