"""Tables: a target column from the others, numbers and words, told by what the training part alone says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._command.copies import shared
from steppe._words import count
from steppe.compare.data import answers, columns, doubts, order, together
from steppe.compare.data.examples import Amounts, Source, Split, Task, drawn, hold_out_test
from steppe.compare.data.metrics import in_unit
from steppe.compare.data.sound import alike, rare
from steppe.compare.data.windows import sizes

FEW, MANY, LEAST = 10, 100, 10
"""Different whole numbers that are still classes; different words that are none any more; fewest rows."""
_PARTS = 3  # rows of a class: to train, to validate, to test


@dataclass(frozen=True)
class Table:
    """What is to be told from what.

    Args:
        place: a CSV or Parquet file.
        target: the column to tell.
        kind: "classes" or "numbers"; None is classes where the target is words or at most `FEW` whole numbers.
        leave_out: columns that are not used.
        group: a column whose rows of the same value stay in one part; it is no input.
        parts: shares, or numbers of rows, of training, validation and test, one after the other; None draws them.
    """

    place: str
    target: str
    kind: str | None = None
    leave_out: tuple[str, ...] = ()
    group: str | None = None
    parts: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Cells:
    """A table as it was read: the inputs as numbers (NaN is missing) or words, the target, its classes' names (if any).

    `keys` are the same for rows of the same inputs, `group` for rows that belong together.
    """

    inputs: dict[str, np.ndarray]
    goal: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()
    group: Tensor | None = None

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def strata(self) -> Tensor:
        """What every part has its share of: the classes, or tenths of the numbers."""
        if self.classes:
            return torch.from_numpy(self.goal)
        return torch.from_numpy(np.digitize(self.goal, np.quantile(self.goal, np.arange(0.1, 1, 0.1))))


def task(name: str, wanted: Table, seed: int, amounts: Amounts) -> Task:
    """The task of one seed: a fixed fifth of the rows tests, the seed draws the others; or the parts are in turn.

    Numbers get mean 0 and deviation 1, a missing one the median, and a column more where there are such; words become
    a column each: all of it by the training part. A target of numbers is scaled likewise for the loss; MSE and MAE are
    told in its own unit.
    """
    cells = read(wanted)
    if amounts.noise and not cells.classes:
        raise ValueError("noise changes labels, and the target is numbers; leave it out")
    source = _source(wanted)
    train, val = drawn(source, seed, amounts)
    made = [_encoded(column, train.x.numpy()) for column in cells.inputs.values()]
    x = torch.from_numpy(np.concatenate(made, 1)).float()
    parts = (train, val, source.test)
    if cells.classes:
        one, two, three = (replace(part, x=x[part.x]) for part in parts)
        # Scores whose probabilities are the shares of the classes, each counted once more than it is there.
        usual = _Always((torch.bincount(train.y, minlength=cells.classes) + 1).log().float())
        return Task(name, one, two, three, cells.classes, rows={"commonest class": usual}, notes=source.notes)
    known = cells.goal[train.x.numpy()]
    unit = _unit(known)
    y = torch.from_numpy((cells.goal - known.mean()) / unit).float()
    one, two, three = (replace(part, x=x[part.x], y=y[part.x]) for part in parts)
    metrics = (in_unit("mse", unit**2), in_unit("mae", unit), "r2")
    mean = {"the mean": _Always(torch.zeros(1))}
    return Task(name, one, two, three, loss="mse", metrics=metrics, rows=mean, notes=source.notes)


@dataclass(frozen=True)
class _Always:
    """The same answer to everything."""

    answer: Tensor

    def __call__(self, x: Any) -> Tensor:
        return self.answer.to(x.device).expand(len(x), -1)


def _encoded(column: np.ndarray, train: np.ndarray) -> np.ndarray:
    """A column as columns of numbers, by what is known of it at the rows `train`."""
    known = column[train]
    if column.dtype.kind != "f":
        return (column[:, None] == np.unique(known)[None]).astype(np.float64)
    holes = np.isnan(known)
    median = 0.0 if holes.all() else np.nanmedian(known)
    filled = np.where(np.isnan(column), median, column)
    there = filled[train]
    scaled = (filled - there.mean()) / _unit(there)
    return np.stack([scaled, np.isnan(column)] if holes.any() else [scaled], 1)


def _unit(known: np.ndarray) -> float:
    """The deviation; 1 of what is the same throughout, whose computed deviation may be 1e-17."""
    return float(known.std()) if known.min() < known.max() else 1.0


@lru_cache(maxsize=1)
def _source(wanted: Table) -> Source:
    """Rows by their number, the test apart."""
    cells = read(wanted)
    rows = Split(torch.arange(len(cells.goal)), cells.strata, cells.group)
    source = hold_out_test(rows, cells.classes) if wanted.parts is None else _in_turn(rows, cells.classes, wanted.parts)
    return replace(source, notes=(*cells.notes, *_noted(cells, source, wanted)))


def _noted(cells: _Cells, source: Source, wanted: Table) -> list[str]:
    """What a reader must know of the parts, and of what the rows that do not test tell of the target."""
    known = [*source.pool.x.tolist(), *(source.val.x.tolist() if source.val else ())]
    keys, asked = [cells.keys[row] for row in known], [cells.keys[row] for row in source.test.x.tolist()]
    copies = shared(keys, asked, "rows", together.CURE if cells.group is None else "")
    few = rare(replace(source, names=cells.names)) if cells.group is not None and cells.classes else []
    first = list(dict(zip(reversed(keys), reversed(known), strict=True)).values())  # one of all copies
    there = {name: column[first] for name, column in cells.inputs.items()}
    knowing = answers.knowing(there, cells.goal[first], not cells.classes, wanted.target)
    return [*knowing, *copies, *few, *_unknown(source, cells.names)]


def _in_turn(rows: Split, classes: int, parts: Sequence[float]) -> Source:
    """Training, validation and test one after the other, as the file has them."""
    ends = list(accumulate(sizes(parts, len(rows), "rows"), initial=0))
    train, val, test = (rows.take(torch.arange(start, end)) for start, end in pairwise(ends))
    return Source(train, test, classes, val)


def _unknown(source: Source, names: Sequence[str]) -> list[str]:
    """A sentence on classes that no row trains."""
    there = set(source.pool.y.tolist())
    lacking = ", ".join(repr(name) for label, name in enumerate(names) if label not in there)
    return [f"No row that trains is of the target's class {lacking}: no network can know it."] if lacking else []


@lru_cache(maxsize=1)
def read(wanted: Table) -> _Cells:
    """The columns of the file, checked."""
    everything = columns.read(wanted.place)
    found = columns.without(everything, wanted.leave_out)
    goal = found.pop(columns.need(found, wanted.target, "target"))
    group = _group(everything, wanted)
    if wanted.group is not None:
        found.pop(wanted.group, None)
    if not found:
        raise ValueError(f"{wanted.place} has no column beside {wanted.target!r} to tell it from")
    if len(goal) < LEAST:
        raise ValueError(
            f"{wanted.place} has {count(len(goal), 'row')}; expected at least {LEAST} to train, validate and test"
        )
    hole = next((row for row, word in enumerate(goal, 1) if columns.missing(word)), None)
    if hole is not None:
        raise ValueError(f"column {wanted.target!r} has no value in row {hole}; leave out rows without a target")
    inputs = _inputs(found)
    values, names = _goal(goal, wanted)
    if names:
        far = [*alike(names), doubts.written(wanted.target, goal)]
    else:
        far = [*doubts.outlying(values), doubts.many(goal, values, wanted.target) if wanted.kind is None else None]
    keys = tuple(map(hash, zip(*found.values(), strict=True)))
    told = _ordered(everything, inputs, values, wanted)
    for name, words in found.items():
        told += doubts.of_column(name, words, inputs[name].dtype.kind == "f", group is not None)
    return _Cells(inputs, values, names, (*told, *filter(None, far)), keys, group)


def _ordered(found: columns.Columns, inputs: dict[str, np.ndarray], goal: np.ndarray, wanted: Table) -> list[str]:
    """What a reader must know of the order of the rows."""
    told = order.of_time(found, wanted.parts is not None, wanted.group)
    return told or ([] if wanted.parts or wanted.group else order.of_neighbours(found, inputs, goal))


def _group(found: columns.Columns, wanted: Table) -> Tensor | None:
    """The rows that belong together, by number."""
    name = wanted.group
    if name is None:
        return None
    if name == wanted.target:
        raise ValueError(f"column {name!r} is the target and cannot be the group, too; name another with --group")
    words = found[columns.need(found, name, "group")]
    hole = next((row for row, word in enumerate(words, 1) if columns.missing(word)), None)
    if hole is not None:
        raise ValueError(f"column {name!r} has no value in row {hole}, whose group is not known; leave out such rows")
    return together.numbered(words)


class _UnfitError(ValueError):
    """A column that is no input as it is."""

    def __init__(self, name: str, why: str, cure: str = "mend it, or ") -> None:
        super().__init__(f"column {name!r} {why}; {cure}leave it out with --leave-out {name}")
        self.name, self.why = name, why


def _inputs(found: columns.Columns) -> dict[str, np.ndarray]:
    """All columns but the target; those that are none are told together, as leaving them out is one flag."""
    made, unfit = dict[str, np.ndarray](), list[_UnfitError]()
    for name, words in found.items():
        try:
            made[name] = _input(words, name)
        except _UnfitError as error:
            unfit.append(error)
    if len(unfit) == 1:
        raise unfit[0]
    if unfit:
        reasons = "; ".join(f"{each.name!r} {each.why}" for each in unfit[: columns.SHOWN])
        names = ",".join(each.name for each in unfit)
        raise ValueError(f"columns that are no inputs: {reasons}; mend them or leave them out with --leave-out {names}")
    return made


def _input(words: Sequence[str], name: str) -> np.ndarray:
    if len({word for word in words if not columns.missing(word)}) < 1 or len(set(words)) == 1:
        raise _UnfitError(name, f"has {'no' if columns.missing(words[0]) else 'one'} value throughout", cure="")
    values = columns.numbers(words)
    if values is not None:
        if np.isinf(values).any():
            raise _UnfitError(name, f"is infinite in row {int(np.isinf(values).argmax()) + 1}")
        return values
    different = sorted({word for word in words if not columns.missing(word)})
    if len(different) > MANY:
        raise _UnfitError(name, _why_no_categories(words, len(different)))
    return np.array(["" if columns.missing(word) else word for word in words])


def _why_no_categories(words: Sequence[str], different: int) -> str:
    """Why a column of many different words is no input, by its first word that is no number."""
    row, word, among = columns.intruder(words)
    if among:
        odd = f"{among} of its cells, such as {word!r} in row {row}"
        return f"has numbers but for {odd} (a missing value is an empty cell)"
    if columns.written(words):
        return (
            f"has {different} different words that read as numbers or dates (row {row}: {word!r}) and are no plain ones"
        )
    whose = "; if it says which rows belong together, it is for --group" if different <= len(words) / 2 else ""
    return f"has {different} different words (row {row}: {word!r}), too many to be categories{whose}"


def _check_finite(values: np.ndarray, name: str) -> None:
    if np.isinf(values).any():
        raise ValueError(f"column {name!r} is infinite in row {int(np.isinf(values).argmax()) + 1}; mend it")


def _goal(words: Sequence[str], wanted: Table) -> tuple[np.ndarray, tuple[str, ...]]:
    """The target as labels and the classes' names, or as numbers without."""
    values = columns.numbers(words)
    name = wanted.target
    if wanted.kind == "numbers" and values is None:
        row, word = columns.first_word(words)
        raise ValueError(f"column {name!r} has {word!r} in row {row}, which is no number; use --kind classes")
    if values is not None:
        _check_finite(values, name)
    whole = values is not None and bool((values == values.round()).all()) and len(set(words)) <= FEW
    if values is not None and (wanted.kind == "numbers" or (wanted.kind is None and not whole)):
        if values.min() == values.max():
            raise ValueError(f"column {name!r} has one value throughout; there is nothing to tell")
        return values, ()
    return _labels(words, values, name)


def _labels(words: Sequence[str], values: np.ndarray | None, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = np.array(words) if values is None else values
    names, labels, counts = np.unique(cells, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"column {name!r} has a single class, {names[0]}; expected at least 2")
    if counts.min() < _PARTS:
        rare = names[counts.argmin()]
        raise ValueError(
            f"class {rare} of column {name!r} has {count(int(counts.min()), 'row')}; expected at least {_PARTS} of each"
            + ("; leave out such rows" if values is None else " (or a target of numbers: --kind numbers)")
        )
    return labels.reshape(-1).astype(np.int64), tuple(
        f"{name:g}" if values is not None else str(name) for name in names
    )
