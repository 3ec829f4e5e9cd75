"""The examples of a fine-tuning: read, parted into training and test, turned into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from steppe._command.copies import shared
from steppe.finetune.spec import Spec
from steppe.text.packing import check_packing
from steppe.text.readers import Dialogues, Labelled, read, read_dialogues
from steppe.text.tokens import check_length, counted, encode_dialogues, limit, note_on_cut, pack, sides

Example = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """Training and test examples as they were read.

    Attributes:
        train: to learn from. test: to measure with, once, at the end. held_out: whether the test is a share of the
            training data. validation: to look at and choose with in between; None where nothing looks.
    """

    train: Any
    test: Any
    held_out: bool
    validation: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes; none for dialogues."""
        return self.train.names if isinstance(self.train, Labelled) else ()


@dataclass(frozen=True)
class Tokens:
    """The same as tokens.

    Attributes:
        train: for the Trainer. test: likewise. length: the most tokens of an example.
        cut: how many training examples were longer than that. validation: None where nothing looks at any.
        test_cut: how many test examples were longer. notes: sentences on what was cut, and on copies in the test.
    """

    train: list[Example]
    test: list[Example]
    length: int
    cut: int
    validation: list[Example] | None = None
    test_cut: int = 0
    notes: tuple[str, ...] = ()


def examples(settings: Spec) -> Examples:
    """Read what the settings name."""
    everything = _read(settings, settings.data, settings.split)
    if settings.test is None:
        train, test = _parted(everything, settings.held_out, settings.seed, "--test")
    else:
        train, test = everything, _under(everything, settings, "test", settings.test, settings.test_split)
    train, validation = _validated(_fewer(train, settings), settings)
    return Examples(train, test, settings.test is None, validation)


def _validated(train: Any, settings: Spec) -> tuple[Any, Any]:
    """Training and validation examples: a share is of what `--examples` and `--per-class` leave."""
    if settings.validation is None:
        return train, None
    if isinstance(settings.validation, float):
        return _parted(train, settings.validation, settings.seed, "--validation FILE")
    return train, _under(train, settings, "validation", settings.validation, settings.validation_split)


def _under(train: Any, settings: Spec, what: str, source: str, split: str | None) -> Any:
    """Data of another source, its labels those of the training data."""
    found = _read(settings, source, split)
    return found if settings.language else found.under(train.names, f"the {what} data {source}")


def tokens(settings: Spec, found: Examples, model: Any, tokenizer: Any) -> Tokens:
    """Turn the examples into what the model takes."""
    most = limit(model, tokenizer)
    length = min(settings.length, most or settings.length)
    if settings.max_length is not None:
        length = check_length(settings.max_length, model, tokenizer)
    make = _of_dialogues if settings.language else _of_texts
    train, whole = make(found.train, tokenizer, length)
    test, test_whole = make(found.test, tokenizer, length)
    cut, test_cut = (sum(each > length for each in lengths) for lengths in (whole, test_whole))
    validation, more = make(found.validation, tokenizer, length) if found.validation else (None, [])
    note = note_on_cut([*whole, *test_whole, *more], length, most)
    notes = (*([f"{note}."] if note else []), *shared(_inputs(found.train), _inputs(found.test)))
    if settings.packing and "flash" not in str(model.config._attn_implementation):
        check_packing(model, train)
    return Tokens(pack(train, length) if settings.packing else train, test, length, cut, validation, test_cut, notes)


def _inputs(found: Labelled | Dialogues) -> list[Any]:
    """What tells one example from another: its text, or prompt and response."""
    return found.texts if isinstance(found, Labelled) else list(zip(found.prompts, found.responses, strict=True))


def _read(settings: Spec, source: str, split: str | None) -> Any:
    if settings.language:
        return read_dialogues(source, prompt=settings.prompt, response=settings.response, split=split)
    return read(source, text=settings.text, label=settings.label, split=split)


def _parted(everything: Any, share: float, seed: int, instead: str) -> tuple[Any, Any]:
    """Training and held-out examples: the first in a random order are held out, but never the last one of a class."""
    wanted = max(1, round(share * len(everything)))
    if wanted >= len(everything):
        raise ValueError(
            f"the data has {len(everything)} examples, of which none would be left to train on; give {instead}"
        )
    order = _order(len(everything), seed)
    held = _spared(everything, order)[:wanted] if isinstance(everything, Labelled) else order[:wanted]
    if not held:
        raise ValueError(
            f"the data has {len(everything)} examples, one of each class, and every label needs training examples, so "
            f"that none can be held out; give {instead}"
        )
    return everything.take(sorted({*order} - {*held})), everything.take(sorted(held))


def _spared(found: Labelled, order: list[int]) -> list[int]:
    """``order`` without the example of each class that stands last in it."""
    last = {found.labels[i]: i for i in order}
    return [i for i in order if last[found.labels[i]] != i]


def _fewer(train: Any, settings: Spec) -> Any:
    """The first in a random order: of each class, then of all, so that a cut leaves the classes mixed."""
    order = _order(len(train), settings.seed)
    if settings.per_class is not None:
        order = _first_of_each(train, order, settings.per_class)
    return train.take(sorted(order[: settings.examples]))


def _first_of_each(train: Labelled, order: list[int], most: int) -> list[int]:
    """Of ``order``, as it stands, the first ``most`` of each class."""
    seen = [0] * len(train.names)
    kept = []
    for i in order:
        seen[train.labels[i]] += 1
        if seen[train.labels[i]] <= most:
            kept.append(i)
    return kept


def _order(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _of_texts(found: Labelled, tokenizer: Any, length: int) -> tuple[list[Example], list[int]]:
    """Examples, and how long they are as a whole."""
    made = tokenizer(*sides(found.texts), truncation=True, max_length=length)
    rows = [{key: made[key][i] for key in made} | {"labels": label} for i, label in enumerate(found.labels)]
    return rows, counted(tokenizer, found.texts)


def _of_dialogues(found: Dialogues, tokenizer: Any, length: int) -> tuple[list[Example], list[int]]:
    whole = encode_dialogues(tokenizer, found, _WHOLE)
    return encode_dialogues(tokenizer, found, length), [len(row["input_ids"]) for row in whole]


_WHOLE = 10**9  # tokens: nothing is cut
