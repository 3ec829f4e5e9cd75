"""Adapters that others made: which of them a classifier can be trained further with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.finetune.cases import FEW, flags
from tests.text import tiny

from steppe.finetune.run import finetune
from steppe.finetune.spec import resolve
from steppe.text.models import causal, classifier

HEAD = {"modules_to_save": ["classifier"]}


def saved(folder: Path, body: str, task: str | None, **settings: Any) -> str:
    """The folder of an adapter for the tiny model ``body``, made with plain PEFT."""
    targets = ["query", "value"] if body == "bert" else ["q_proj", "v_proj"]
    (folder / body).mkdir(exist_ok=True)
    path = tiny.save(folder / body, body)
    model: Any = causal(path, None, 0)[0] if task == "CAUSAL_LM" else classifier(path, 2, None, 0)[0]
    config = LoraConfig(r=2, target_modules=targets, task_type=task, **settings)
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    return str(folder / "adapter")


def further(folder: Path, body: str, adapter: str) -> None:
    asked = flags(folder, body, adapter=adapter, method="base")
    asked |= {"task": "classify", "data": flags(folder, "bert")["data"]}
    finetune(resolve(asked, FEW | {"learning_rate": 0.01, "save_strategy": "no"}))


@pytest.mark.parametrize(
    ("task", "settings"),
    [("SEQ_CLS", {}), (None, HEAD), ("FEATURE_EXTRACTION", HEAD)],
)  # fmt: skip
def test_an_adapter_with_a_head_is_trained_further_head_and_all(
    tmp_path: Path, task: str | None, settings: dict[str, Any]
) -> None:
    adapter = saved(tmp_path, "bert", task, **settings)
    further(tmp_path, "bert", adapter)
    before, after = (
        load_file(Path(place, "adapter_model.safetensors")) for place in (adapter, tmp_path / "out/adapter")
    )
    heads = [name for name in after if "classifier" in name]
    assert heads and not any(torch.equal(before[name], after[name]) for name in heads)


@pytest.mark.parametrize(
    ("body", "task", "settings"),
    [
        ("llama", "CAUSAL_LM", {}), ("bert", None, {}), ("bert", "FEATURE_EXTRACTION", {}),
        ("bert", None, {"modules_to_save": ["pooler"]}),
    ],
)  # fmt: skip
def test_an_adapter_without_a_head_is_refused(
    tmp_path: Path, body: str, task: str | None, settings: dict[str, Any]
) -> None:
    adapter = saved(tmp_path, body, task, **settings)
    with pytest.raises(ValueError, match=f"is of the task {task or 'none'} and holds no classification head"):
        further(tmp_path, body, adapter)
    assert not (tmp_path / "out").exists()


def test_what_the_load_trips_over_is_told_as_a_sentence(tmp_path: Path) -> None:
    adapter = saved(tmp_path, "llama", "CAUSAL_LM")
    place = Path(adapter, "adapter_config.json")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"modules_to_save": ["score"]}))
    with pytest.raises(ValueError, match="does not belong to the model .*prepare_inputs_for_generation"):
        further(tmp_path, "llama", adapter)
    place.write_text('{"peft_type": "LORA", "r": 2, "target_modules": 3}')
    with pytest.raises(ValueError, match="^the adapter in "):
        further(tmp_path, "llama", adapter)


def test_another_training_of_an_adapter_is_seen_when_a_run_goes_on(tmp_path: Path) -> None:
    adapter = saved(tmp_path, "bert", "SEQ_CLS")
    settings, file = resolve(flags(tmp_path, adapter=adapter)), Path(adapter, "adapter_model.safetensors")
    before, trained = settings.weights(), file.read_bytes()
    file.write_bytes(trained[:-1] + bytes([trained[-1] ^ 1]))
    assert settings.weights()[0] == before[0] and settings.weights() != before
