"""What a fine-tuned classifier answers to further texts, and how well where their labels are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from steppe._command.files import read_json
from steppe.finetune import measure
from steppe.finetune.folder import RESULT
from steppe.finetune.spec import LANGUAGE
from steppe.text.models import trained
from steppe.text.readers import labelled, read
from steppe.text.rows import column, label_lines, rows
from steppe.text.tokens import counted, encode

BATCH = 64


def predict(
    run: str, data: str, *, text: str | None = None, label: str | None = None, split: str | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """The answers of the classifier that a fine-tuning left in the folder ``run``.

    Args:
        run: the ``--out`` of a finished ``steppe finetune``.
        data: examples in the form of its training data; labels need not be there.
        text: the column of the text; the run's own by default.
        label: the column of the label, which must then be there; by default the run's own, if there is one.
        split: of a hub data set.
        tell: how many batches are done, of how many.

    Returns:
        ``rows`` (text, answer, its probability, the label or None), and, where labels are known, ``accuracy``,
        ``per_class`` and ``majority`` (the commonest class of the training, and the accuracy of always answering it);
        else None.
    """
    result = _result(run)
    settings, names = result["settings"], result["data"]["classes"]
    texts, labels = _examples(data, text or settings["text"], label, settings["label"], split, names)
    model, tokenizer = trained(run, names)
    counted(tokenizer, texts)  # which refuses what cannot be answered
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    scores = torch.cat(list(_scores(model, tokenizer, texts, result["data"]["max_length"], tell)))
    chances, answers = scores.softmax(1).max(1)
    known: list[Any] = [None] * len(texts) if labels is None else labels
    found = zip(texts, answers.tolist(), chances.tolist(), known, strict=True)
    return {
        "schema": measure.SCHEMA, "kind": "predict", "run": run, "data": data, "classes": names,
        "accuracy": float((answers == torch.tensor(labels)).double().mean()) if labels else None,
        "per_class": measure.per_class(labels, answers.tolist(), names) if labels else None,
        "majority": _majority(result["majority"]["class"], labels, names) if labels else None,
        "rows": [
            {"text": t, "answer": names[a], "probability": p, "label": None if y is None else names[y]}
            for t, a, p, y in found
        ],
    }  # fmt: skip


def _majority(name: str, labels: list[int], names: list[str]) -> dict[str, Any]:
    return {"class": name, "accuracy": labels.count(names.index(name)) / len(labels)}


def _result(run: str) -> dict[str, Any]:
    found = read_json(Path(run) / RESULT)
    if not isinstance(found, dict) or found.get("kind") != "finetune":
        raise ValueError(f"{run} holds no finished fine-tuning; give the --out of steppe finetune")
    if found["settings"]["task"] == LANGUAGE:
        raise ValueError(f"{run} holds a language model, which gives no classes; measure it with steppe evaluate {run}")
    return found


def _examples(
    data: str, text: str, label: str | None, usual: str, split: str | None, names: list[str]
) -> tuple[Any, list[int] | None]:
    """Texts, and the number of each one's label among ``names``, or None."""
    if not data.startswith("hf:") and (lines := label_lines(data, split)) is not None:
        found = labelled([words for _, words in lines], [name for name, _ in lines])
    else:
        table = rows(data, split)
        if label is None and not any(usual in row for row in table):
            columns = [column(table, name.strip(), data, "text") for name in text.split(",")]
            return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)), None
        found = read(data, text=text, label=label or usual, split=split)
    known = found.under(names, f"the data {data}")
    return known.texts, known.labels


@torch.no_grad()
def _scores(
    model: Any, tokenizer: Any, texts: Any, length: int, tell: Callable[[int, int], None]
) -> Iterator[torch.Tensor]:
    total = -(-len(texts) // BATCH)
    for done in range(total):
        batch = encode(tokenizer, texts[done * BATCH : (done + 1) * BATCH], length)
        yield model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.double().cpu()
        tell(done + 1, total)
