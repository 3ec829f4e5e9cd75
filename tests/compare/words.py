"""Tiny texts on disk, a tiny pretrained model beside them, and the settings of a study of both."""

from __future__ import annotations

from pathlib import Path

from tests.text.tiny import save

from steppe.compare.engine.spec import Spec, resolve

GOOD = ("good fine film .", "a joy", "the plot is fine", "good good joy of the film what a joy")
BAD = ("bad poor film .", "dull", "the plot is poor", "bad bad dull of the film who is the dull")


def lines(count: int, start: int = 0) -> list[tuple[int, str]]:
    """Labels in turn, each with a text of its kind."""
    return [(i % 2, (BAD, GOOD)[i % 2][(start + i // 2) % 4]) for i in range(count)]


def write(folder: Path, name: str = "words.{part}.all", train: int = 24, **others: int) -> str:
    """Files of lines "LABEL text", one for each part; gives the training file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in {"train": train, **others}.items():
        text = "".join(f"{label} {words}\n" for label, words in lines(count))
        (folder / name.format(part=part)).write_text(text, encoding="utf-8")
    return str(folder / name.format(part="train"))


def settings(folder: Path, **flags: object) -> Spec:
    """A study of such texts with training, validation and test files and a one-layer BERT."""
    task = write(folder / "data", dev=8, test=12)
    model = folder / "model"
    if not model.is_dir():
        save(model)
    given = {
        "task": f"text:{task}", "model": f"hf:{model}", "max_steps": 6, "batch_size": 4, "eval_every": 3,
        "lora_targets": ["query", "value"], "device": "cpu", "out": str(folder / "out"),
    }  # fmt: skip
    if flags.get("adapt") == "full":
        del given["lora_targets"]
    return resolve({**given, **flags})
