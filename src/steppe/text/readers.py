"""Texts with labels, and prompts with responses, from files or the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from steppe.text.rows import HUB, column, label_lines, rows

Columns: TypeAlias = str | Sequence[str]
Texts: TypeAlias = "list[str] | list[tuple[str, str]]"
_WHOLE = re.compile("-?[0-9]{1,1000}")  # str.isdigit holds for more than int() reads: "²"


@dataclass(frozen=True)
class Labelled:
    """Texts, each of a class.

    Attributes:
        texts: n texts, or n pairs (premise and hypothesis, question and sentence).
        labels: n indices into ``names``.
        names: the classes as the source writes them; numbers in order of size, words in order of the alphabet.
        groups: what each text belongs to, if that was asked for.
    """

    texts: Texts
    labels: list[int]
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int]) -> Labelled:
        """The examples at ``index``, with the same names."""
        texts, labels = [self.texts[i] for i in index], [self.labels[i] for i in index]
        return Labelled(texts, labels, self.names, tuple(self.groups[i] for i in index if self.groups))  # type: ignore[arg-type]

    def under(self, names: Sequence[str], what: str = "the data") -> Labelled:
        """The same examples, their labels counted in ``names`` (those of the training data)."""
        strange = sorted({self.names[label] for label in self.labels} - set(names))
        if strange:
            raise ValueError(
                f"{what} has the label {strange[0]!r}, which the training data has not; "
                f"there the labels are {', '.join(names)}: every label needs training examples"
            )
        place = {name: i for i, name in enumerate(names)}
        return replace(self, labels=[place[self.names[label]] for label in self.labels], names=tuple(names))


@dataclass(frozen=True)
class Dialogues:
    """Prompts, given to the model, each with the response that it learns to write."""

    prompts: list[str]
    responses: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, index: Sequence[int]) -> Dialogues:
        """The dialogues at ``index``."""
        return Dialogues([self.prompts[i] for i in index], [self.responses[i] for i in index])


def read(
    source: str, *, text: Columns = "text", label: str = "label", split: str | None = None, group: str | None = None
) -> Labelled:
    """Texts and their labels.

    Args:
        source: a file of lines "LABEL text" (UTF-8, or latin-1 throughout); a ``.jsonl``, ``.csv`` or ``.tsv`` file; or
            ``hf:DATASET`` or ``hf:DATASET:CONFIGURATION`` of the hub.
        text: the column of the text; two columns, as a sequence or as "premise,hypothesis", give pairs.
        label: the column of the label, which is a number or a word.
        split: of a hub data set, "train" if None; files have none.
        group: the column of what each text belongs to.
    """
    if group is None and not source.startswith(HUB) and (lines := label_lines(source, split)) is not None:
        return labelled([words for _, words in lines], [name for name, _ in lines])
    found = rows(source, split)
    wanted = tuple(text.split(",")) if isinstance(text, str) else tuple(text)
    if not 1 <= len(wanted) <= 2:
        raise ValueError(f"text names {len(wanted)} columns; expected one, or two for pairs of texts")
    columns = [column(found, name.strip(), source, "text") for name in wanted]
    given = column(found, label, source, "label", empty="refused")
    names = [_name(value.strip(), number, label, source) for number, value in enumerate(given, 1)]
    texts: Texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    groups = tuple(column(found, group, source, "group", empty="refused")) if group is not None else ()
    return replace(labelled(texts, names), groups=groups)


def labelled(texts: Texts, names: Sequence[str]) -> Labelled:
    """Texts with the names of their classes; the classes are those that occur."""
    numbers = all(_WHOLE.fullmatch(name) for name in names)
    known = tuple(sorted(set(names), key=lambda name: (int(name) if numbers else 0, name)))
    place = {name: i for i, name in enumerate(known)}
    return Labelled(texts, [place[name] for name in names], known)


def read_dialogues(
    source: str, *, prompt: str = "prompt", response: str = "response", split: str | None = None
) -> Dialogues:
    """Prompts and responses.

    Args:
        source: a ``.jsonl``, ``.csv`` or ``.tsv`` file, or ``hf:DATASET``.
        prompt: the column of the prompts.
        response: the column of the responses.
        split: as in :func:`read`.
    """
    found = rows(source, split)
    return Dialogues(
        column(found, prompt, source, "prompt"), column(found, response, source, "response", empty="refused")
    )


def _name(value: str, number: int, label: str, source: str) -> str:
    if value.casefold() == "nan":
        raise ValueError(
            f"{source}: example {number} has {value!r} in column {label!r}, which stands for a missing value; "
            "fill it or leave the example out"
        )
    return value[:-2] if value.endswith(".0") and _WHOLE.fullmatch(value[:-2]) else value  # a table's 1.0 is 1
