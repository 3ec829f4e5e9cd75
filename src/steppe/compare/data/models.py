"""The model of a run by its name: a small network, a pretrained one, or your own as `module:function`."""

from __future__ import annotations

from torch import Tensor, nn

from steppe._command.networks import find
from steppe.compare.data import transformer
from steppe.compare.data.examples import Task
from steppe.text.models import Lora


def build(name: str, task: Task, lora: Lora | None = None, seed: int = 0) -> nn.Module:
    """The model `name` for the inputs of `task`.

    Args:
        name: one of `MODELS` or a `module:function`, which draw their weights from torch's global generator; or
            `hf:FOLDER` or `hf:ID`, a pretrained one.
        task: whose inputs and classes the model is for.
        lora: adapters of a pretrained model; None trains all of it.
        seed: draws what is new in a pretrained model.
    """
    if name.startswith(transformer.PREFIX):
        return transformer.build(name.removeprefix(transformer.PREFIX), task.classes, lora, seed)
    shape = tuple(task.train.x.shape[1:]) if isinstance(task.train.x, Tensor) else ()
    return find(name)(shape, task.outputs)
