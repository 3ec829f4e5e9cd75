"""Classification heads: which parts of a loaded model are new, so that they are trained and saved with the adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

_BY_PEFT = ("classifier", "score")  # modules with names that end so are trained and saved by PEFT unasked


def load(path: str, names: Sequence[str], **how: Any) -> tuple[Any, list[str]]:
    """A sequence classifier in float32, and its modules that must be trained and saved whatever else is.

    Those are all that the checkpoint lacks (they are drawn here) and the output layer. An output layer of the
    checkpoint that fits in size is kept where its classes are ``names`` in this order, or have no names ("LABEL_0"),
    which tells nothing against it; otherwise it scores other classes and is drawn anew.

    Args:
        path: folder or hub id.
        names: of the classes.
        how: for ``from_pretrained``.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    before = AutoConfig.from_pretrained(path, **how).id2label
    model, found = AutoModelForSequenceClassification.from_pretrained(
        path, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
        problem_type="single_label_classification",  # whatever the checkpoint was trained for
        ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32, **how,
    )  # fmt: skip
    keys = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    new = {key.rpartition(".")[0] for key in keys} - {""}
    output = _output(model, len(names))
    if output and output not in new and _other_classes(before, names):
        _draw(model.get_submodule(output), getattr(model.config, "initializer_range", 0.02))
    # "pre_classifier" too: PEFT saves it for the end of its name, so it may get no adapter, and has to be listed.
    by_peft = [name for name, _ in model.named_modules() if name.endswith(_BY_PEFT)]
    return model, _outermost([*new, *([output] if output else []), *by_peft])


def _output(model: Any, classes: int) -> str | None:
    """The name of the linear layer that gives the scores."""
    body = model.base_model_prefix + "."
    fits = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and not name.startswith(body)
    ]  # fmt: skip
    return fits[-1] if fits else None


def _other_classes(before: dict[int, str], names: Sequence[str]) -> bool:
    known = [str(before[i]) for i in sorted(before)]
    unnamed = known == [f"LABEL_{i}" for i in range(len(known))]
    return not unnamed and [name.casefold() for name in known] != [name.casefold() for name in names]


def _draw(layer: Any, deviation: float) -> None:
    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _outermost(names: Iterable[str]) -> list[str]:
    """Without those inside of others, which PEFT would wrap twice, and without the names it adds itself."""
    alone = sorted(set(names))
    return [name for name in alone if not any(name.startswith(other + ".") for other in alone) and name not in _BY_PEFT]
