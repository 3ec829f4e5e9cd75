"""What a method needs of the Trainer's arguments where several processes train."""

from pathlib import Path
from typing import Any

import pytest
from tests.finetune.cases import FEW, flags
from transformers import TrainingArguments

from steppe.finetune import method
from steppe.finetune.run import prepare
from steppe.finetune.spec import resolve

REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


def arguments(folder: Path, method: str, **more: Any) -> Any:
    return prepare(resolve(flags(folder, method=method, full=True), FEW | {"use_cpu": True} | more)).arguments


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes see it."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))


@pytest.mark.usefixtures("two")
def test_processes_do_not_wait_for_what_a_method_leaves_out(tmp_path: Path) -> None:
    assert arguments(tmp_path, "sl_sam", gradient_checkpointing=True).ddp_find_unused_parameters is True
    assert arguments(tmp_path, "sl_sam").ddp_find_unused_parameters is True
    assert arguments(tmp_path, "sam", gradient_checkpointing=True).ddp_find_unused_parameters is None
    assert arguments(tmp_path, "base").ddp_find_unused_parameters is None


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ddp_find_unused_parameters": False}, "with ddp_find_unused_parameters=False; leave it out"),
        ({"ddp_static_graph": True}, "with ddp_static_graph; leave it out"),
        (REENTRANT, "a reentrant checkpoint of the activations; leave use_reentrant out"),
    ],
)
def test_what_cannot_work_on_several_processes_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"method 'sl_sam' trains a part of the weights in each step, .*{message}"):
        arguments(tmp_path, "sl_sam", **more)
    assert not (tmp_path / "out").exists()


def test_one_process_alone_has_nothing_to_wait_for(tmp_path: Path) -> None:
    assert arguments(tmp_path, "sl_sam", **REENTRANT).ddp_find_unused_parameters is None


def test_a_method_that_reads_the_momentum_finds_that_of_the_trainers_optimizer(tmp_path: Path) -> None:
    settings = resolve(flags(tmp_path, method="msam"), FEW)
    made = prepare(settings)
    assert method.rehearse("msam", made.model, settings.training) is not None
    with pytest.raises(ValueError, match="keeps no momentum"):
        method.rehearse("msam", made.model, settings.training | {"optim": "sgd"})
    assert method.rehearse("msam", made.model, settings.training | {"optim": "sgd", "optim_args": "momentum=0.9"})
