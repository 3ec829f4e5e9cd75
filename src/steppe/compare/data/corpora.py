"""Texts with labels -> `Source`: a file and its siblings, a folder, or a data set of the hub, tokenised once."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from steppe._command.saved import base_and_adapter
from steppe.compare.data.examples import Source, Texts, hold_out_test
from steppe.compare.data.together import numbered
from steppe.text.models import tokenizer_of
from steppe.text.readers import Labelled, read
from steppe.text.rows import HUB
from steppe.text.tokens import check_length, counted, encode, limit, note_on_cut

WORDS = {"train": ("train",), "val": ("dev", "validation", "valid", "val"), "test": ("test",)}
"""Part -> the words that a file's name has for it: `stsa.binary.dev`, `val.csv`."""

_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)
_SECRET = ("-1",)
_LONG = 512  # tokens, for a model that says nothing about it


def files(place: str) -> dict[str, Path]:
    """The files of a local task by part ("train", "val", "test"); a file alone is "train".

    A file may have siblings whose names differ in the word for their part alone; or the place is a folder of them.
    """
    path = Path(place)
    if path.is_dir():
        path = _training_file(path)
    elif not path.is_file():
        raise ValueError(f"{place} is neither a file nor a folder; give text:FILE, text:FOLDER or text:hf:DATASET")
    found = {part: _sibling(path, words) for part, words in WORDS.items()}
    return {"train": path} | {part: file for part, file in found.items() if file is not None}


def _training_file(folder: Path) -> Path:
    named = [path for path in sorted(folder.iterdir()) if path.is_file() and _TRAIN.search(path.name.lower())]
    if len(named) != 1:
        many = f"several: {', '.join(path.name for path in named)}" if named else "none"
        raise ValueError(f"{folder} must hold one file with 'train' in its name, it has {many}; give text:FILE")
    return named[0]


def _sibling(path: Path, words: tuple[str, ...]) -> Path | None:
    """The file beside `path` with one of `words` where `path` has "train"."""
    for word in words:
        name = _TRAIN.sub(word, path.name)
        if name != path.name and path.with_name(name).is_file():
            return path.with_name(name)
    return None


def parts(place: str, text: str, label: str, group: str | None = None) -> dict[str, Labelled]:
    """The labelled texts of each part, their labels counted in the training data's names."""
    columns: dict[str, Any] = {"text": text, "label": label, "group": group}
    found = _hub_parts(place, columns) if place.startswith(HUB) else {
        part: read(str(path), **columns) for part, path in files(place).items()
    }  # fmt: skip
    names = found["train"].names
    if len(names) < 2:
        raise ValueError(f"{place} has {len(names)} class, {', '.join(names)}; expected at least 2")
    return {part: each.under(names, f"the {part} part of {place}") for part, each in found.items()}


def _hub_parts(place: str, columns: Mapping[str, Any]) -> dict[str, Labelled]:
    found = {"train": read(place, **columns)}
    for part in ("val", "test"):
        for split in WORDS[part]:
            try:
                each = read(place, split=split, **columns)
            except ValueError as error:
                if "has no split" in str(error):
                    continue
                raise
            if each.names != _SECRET:  # a test whose labels are kept secret is none
                found[part] = each
                break
    return found


def source(
    place: str, model: str, max_length: int | None, text: str | None, label: str | None, group: str | None = None
) -> Source:
    """The examples of `place` in the tokens of `model`.

    Args:
        place: a file, a folder or hf:DATASET.
        model: folder or hub id of the model whose tokenizer is used.
        max_length: tokens, beyond which a text is cut; None is as many as the model takes.
        text: the column of the text, or two with a comma between; None is "text".
        label: the column of the label; None is "label".
        group: the column of what a text belongs to, whose texts stay in one part.
    """
    _need_packages(place)
    found = parts(place, text or "text", label or "label", group)
    splits, notes = _tokenised(model, found, max_length)
    names = found["train"].names
    classes = len(names)
    val = splits["val"].by_length() if "val" in splits else None
    if "test" in splits:
        return Source(splits["train"], splits["test"].by_length(), classes, val, notes, names)
    rest = hold_out_test(splits["train"], classes, val=val)
    return replace(rest, test=cast(Texts, rest.test).by_length(), notes=notes, names=names)


def _need_packages(place: str) -> None:
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"text:{place} needs {' and '.join(missing)}; run: pip install 'steppe[study,finetune]'")


def _tokenised(
    model: str, found: Mapping[str, Labelled], max_length: int | None
) -> tuple[dict[str, Texts], tuple[str, ...]]:
    """The texts of each part, and a sentence where some are cut."""
    from transformers import AutoConfig

    model, _ = base_and_adapter(model)
    tokenizer = tokenizer_of(model)
    tokenizer.padding_side = "right"  # what is cut off again is at the end, whatever the model was trained with
    made = SimpleNamespace(config=AutoConfig.from_pretrained(model))
    most = limit(made, tokenizer)
    length = check_length(max_length, made, tokenizer) if max_length else most or _LONG
    known: dict[str, int] = {}
    texts = {
        part: Texts(
            encode(tokenizer, each.texts, length),
            torch.tensor(each.labels),
            numbered(each.groups, known) if each.groups else None,
        )
        for part, each in found.items()
    }
    full = any(int(each.lengths.max()) >= length for each in texts.values())
    whole = [n for each in found.values() for n in counted(tokenizer, each.texts)] if full else []
    note = note_on_cut(whole, length, most)
    return texts, (f"{note}.",) if note else ()


def check(place: str) -> None:
    """Refuse a local task whose files are not there."""
    if not place.startswith(HUB):
        files(place)


def content(path: Path) -> bytes:
    """A hash of what is in a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).digest()


def fingerprint(place: str) -> bytes:
    """Names and contents of the files of a local task; nothing for the hub."""
    if place.startswith(HUB):
        return b""
    found = files(place)
    return b"".join(f"{part}:{found[part].name}:".encode() + content(found[part]) for part in sorted(found))
