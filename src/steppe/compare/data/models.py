"""The model of a run by its name: a small network, a pretrained one, or your own as `module:function`."""

from __future__ import annotations

from torch import Tensor, nn

from steppe._command.lookup import called, nearest
from steppe._command.networks import MODELS, find
from steppe.compare.data import transformer
from steppe.compare.data.examples import Task
from steppe.compare.data.sequence_models import FORECASTERS, TOKENS
from steppe.text.models import Lora


def build(name: str, task: Task, lora: Lora | None = None, seed: int = 0) -> nn.Module:
    """The model `name` for the inputs of `task`.

    Args:
        name: one of `MODELS`, `FORECASTERS` and `TOKENS`, or a `module:function`, their weights drawn from the global
            generator; or `hf:FOLDER` or `hf:ID`, a pretrained one.
        task: whose inputs and classes the model is for.
        lora: adapters of a pretrained model; None trains all of it.
        seed: draws what is new in a pretrained model.
    """
    if name.startswith(transformer.PREFIX):
        return transformer.build(name.removeprefix(transformer.PREFIX), task.classes, lora, seed)
    x, y = task.train.x, task.train.y
    shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
    if len(shape) == 2 and y.dim() == 3 and name in FORECASTERS:
        return FORECASTERS[name](*shape, *y.shape[1:])
    if name in FORECASTERS and name not in MODELS:
        raise ValueError(f"model {name!r} needs windows of a series, as forecast:FILE gives them; this task has none")
    if name == "cnn" and y.dim() == 3:
        raise ValueError(
            "model 'cnn' gives one answer for a signal, not a series; take channel_attention, linear or mlp"
        )
    if ":" in name:
        return _own(name, shape, task.outputs)
    if name not in (known := list(dict.fromkeys([*MODELS, *FORECASTERS, *TOKENS]))):
        raise ValueError(f"unknown model {name!r}; {nearest(name, known)}, or give module:function")
    if not isinstance(x, Tensor):
        raise ValueError(f"model {name!r} reads one tensor, and the inputs are several; give module:function")
    if (name in TOKENS) != (y.dim() == 2 and bool(task.classes)):
        raise ValueError(
            f"model {name!r} does not fit this task; sequences of tokens (lm:FILE) go with gpt, and no others"
        )
    if name in TOKENS:
        return TOKENS[name](shape, task.outputs)
    return find(name)(shape, task.outputs)


def _own(name: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """What the user's function gives, which is a network or a sentence."""
    form = "function(shape, outputs) -> torch.nn.Module"
    made = called(find(name), shape, outputs, what=f"model {name!r}", form=form)
    if not isinstance(made, nn.Module):
        raise ValueError(f"model {name!r} gave {type(made).__name__}; expected a torch.nn.Module")
    return made
