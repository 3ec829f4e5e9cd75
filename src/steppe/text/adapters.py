"""A saved PEFT adapter on the model it was made for, to be trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn


def with_adapter(model: Any, adapter: str, classify: bool) -> nn.Module:
    """``model`` with the adapter in the folder ``adapter``, which is trained further; all else is frozen by this.

    ``classify``: it must bring the classification head, which the model draws at random.
    """
    from peft import PeftModel

    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no PEFT adapter (adapter_config.json is missing); give the folder of one")
    if classify:
        _check_head(model, adapter)
    try:
        made: Any = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    except (ValueError, RuntimeError, OSError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(_foreign(adapter, model, str(error))) from error
    _check_whole(made, adapter, model)
    return made


def _check_head(model: Any, adapter: str) -> None:
    """An adapter of another task leaves the head as it was drawn, frozen, and it is not saved either."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(_foreign(adapter, model, str(error))) from error
    kept = set(getattr(config, "modules_to_save", None) or ())
    if config.task_type != "SEQ_CLS" and not kept & _heads(model):
        raise ValueError(
            f"the adapter in {adapter} is of the task {config.task_type or 'none'} and holds no classification head, "
            "so that a random one would stay; give one with task_type SEQ_CLS, or leave --adapter out"
        )


def _heads(model: Any) -> set[str]:
    """What a module outside the pretrained body is called."""
    body = f"{model.base_model_prefix}."
    return {name.rpartition(".")[2] for name, _ in model.named_modules() if name and not f"{name}.".startswith(body)}


def _check_whole(made: Any, adapter: str, model: Any) -> None:
    """PEFT loads what fits and leaves the rest at random: every tensor of the file must have found its place."""
    from peft import get_peft_model_state_dict, load_peft_weights

    wanted = {name: value.shape for name, value in load_peft_weights(adapter, device="cpu").items()}
    there = {name: value.shape for name, value in get_peft_model_state_dict(made).items()}
    strange = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if strange:
        raise ValueError(_foreign(adapter, model, f"{strange[0]} does not fit"))


def _foreign(adapter: str, model: Any, why: str) -> str:
    name = model.config._name_or_path or model.config.model_type
    return f"the adapter in {adapter} does not belong to the model {name} ({_first(why)}); give the one it was made for"


def _first(text: str) -> str:
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    return (
        (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:200].rstrip(".") if lines else "refused"
    )
