"""Tiny models and data as files, as a user of `steppe finetune` has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.text import tiny

from steppe.finetune.run import finetune
from steppe.finetune.spec import resolve
from steppe.finetune.watch import Quiet

FEW = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 2}


def sentences(folder: Path, name: str = "train.txt") -> str:
    """Lines of label and text."""
    good, bad = ("1 a good film .", "1 joy , fine plot"), ("0 a dull film .", "0 poor bad plot")
    path = folder / name
    path.write_text("\n".join((*good, *bad) * 5))
    return str(path)


def dialogues(folder: Path, name: str = "train.jsonl") -> str:
    """Prompts and responses."""
    rows = [
        {"prompt": "what is a film ?", "response": "joy"},
        {"prompt": "who is the plot ?", "response": "a good film ."},
    ]
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows * 6))
    return str(path)


def flags(folder: Path, body: str = "bert", **more: Any) -> dict[str, Any]:
    """The flags of a tiny fine-tuning below ``folder``."""
    language = body in ("gpt2", "opt", "llama")
    (folder / body).mkdir(exist_ok=True, parents=True)
    data = dialogues(folder) if language else sentences(folder)
    found = {"model": tiny.save(folder / body, body), "data": data, "out": str(folder / "out")}
    found |= {} if more.get("full") or more.get("adapter") else {"r": 2}
    return found | ({"task": "causal-lm"} if language else {}) | more


def undropped(folder: Path, body: str = "bert", **more: Any) -> dict[str, Any]:
    """The same with a model that drops nothing: what it learns does not depend on how its batches are cut."""
    found = flags(folder, body, **more)
    path = Path(found["model"], "config.json")
    config = json.loads(path.read_text())
    assert (none := {key: 0.0 for key, value in config.items() if "drop" in key and value})
    path.write_text(json.dumps(config | none))
    return found


def run(folder: Path, body: str = "bert", training: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Its result."""
    options = {key: more.pop(key) for key in ("resume", "overwrite") if key in more}
    return finetune(resolve(flags(folder, body, **more), FEW | (training or {})), **options)


class Stop(Quiet):
    """Breaks the training off at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, done: int) -> None:
        if done == self.at:
            raise KeyboardInterrupt
