"""How a batch is read: how many samples it holds, and which of its parts lie in columns or are lists of samples.

Columns hold one row for each sample: tensors in tuples, named tuples, mappings and dataclasses. A list of samples (CHW
images, dicts of boxes, (x, y) pairs, graphs) IS the batch: samples are taken from the list and never cut. Where a batch
can be read in two ways, or its parts disagree on the number of samples, it is refused.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from steppe._nested import children, is_array, rebuilt
from steppe._words import an

_NO_SAMPLES = (str, bytes, int, float, complex, enum.Enum, range, slice, torch.dtype, torch.device, type, type(None))
_ADVICE = "or give the look a function of your own that makes the smaller batch: Look(view=...)"


class UnreadableError(Exception):
    """A part cannot be read in this way; what it says is for the user. ``kind``: the error that it becomes."""

    def __init__(self, text: str, kind: type[Exception] = ValueError) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Take:
    """Which samples: as rows of a tensor, of an array and of a list."""

    tensor: Callable[[Tensor], Tensor]
    array: Callable[[Any], Any]
    items: Callable[[Any], Any]

    @classmethod
    def first(cls, count: int) -> Take:
        """The first ones, as views."""
        return cls(*(lambda part: part[:count],) * 3)

    @classmethod
    def rows(cls, rows: Tensor) -> Take:
        """Those of the given numbers."""
        return cls(
            lambda tensor: tensor.index_select(0, rows.to(tensor.device)),
            lambda array: array[rows.cpu().numpy()],
            lambda items: type(items)(items[i] for i in rows.tolist()),
        )


@dataclass(frozen=True)
class Reading:
    """One way to read a part: with ``size`` samples (None: it holds none and stays as it is).

    ``listed``: as a list of samples. ``samples``: there is such a list in it whose elements are containers.
    ``optional``: plain words or numbers, which may be of another number. ``unsure``: another reading is as likely.
    """

    size: int | None
    take: Callable[[Take], Any]
    samples: bool = False
    listed: bool = False
    optional: bool = False
    unsure: bool = False

    def sure(self) -> Reading:
        """Itself, where there is no other reading.

        Raises:
            ValueError: there is.
        """
        if self.unsure:
            raise ValueError(
                f"the batch can be read as columns of {self.size} samples and as a list of samples; expected columns "
                f"in a tuple or dict, or a list of (x, y) tuples, {_ADVICE}"
            )
        return self


def read(batch: Any) -> Reading:
    """The one reading of a batch.

    Raises:
        TypeError: there is nothing in it to take samples of, or an object that cannot be sliced.
        ValueError: its parts disagree on the number of samples, or it can be read in two ways.
    """
    try:
        found = _readings(batch, outermost=True)
    except UnreadableError as error:
        raise error.kind(str(error)) from None
    best = found[0] if len(found) == 1 else _better(batch, found)
    if best.size is None:
        raise TypeError(
            f"the batch ({type(batch).__name__}) holds no tensor with a first dimension; expected tensors in tuples, "
            "lists or dicts, or a list of samples, to take the first samples of"
        )
    return best


def _readings(part: Any, outermost: bool = False) -> list[Reading]:
    if isinstance(part, Tensor):
        return [_of_tensor(part)]
    if is_array(part):
        return [Reading(part.shape[0], lambda take: take.array(part)) if part.shape else Reading(None, lambda _: part)]
    if isinstance(part, _NO_SAMPLES):
        return [Reading(None, lambda _: part)]
    if isinstance(part, PackedSequence) or children(part) is None:
        raise UnreadableError(
            f"the batch holds {an(type(part).__name__)}, which cannot be cut into samples here; expected tensors in "
            f"tuples, lists, dicts or dataclasses, or a list of samples, {_ADVICE}",
            TypeError,
        )
    if _is_list(part):
        return _of_list(part, outermost)
    return _columns(part)


def _of_tensor(tensor: Tensor) -> Reading:
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        text = f"the batch holds a {kind} tensor, which cannot be cut into samples here; {_ADVICE[3:]}"
        raise UnreadableError(text, TypeError)
    if not tensor.ndim:
        return Reading(None, lambda _: tensor)
    return Reading(tensor.shape[0], lambda take: take.tensor(tensor))


def _is_list(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and not hasattr(part, "_fields")


def _of_list(part: Sequence[Any], outermost: bool) -> list[Reading]:
    if not part:
        return [Reading(None, lambda _: part)]
    if outermost and isinstance(part, tuple):
        return _columns(part)
    rows = Reading(len(part), lambda take: take.items(part), samples=children(part[0]) is not None, listed=True)
    if not _has_rows(part):  # words, numbers and the like are no samples for sure, but dicts and graphs are
        return [dataclasses.replace(rows, samples=False, optional=_is_plain(part) or not _alike(part))]
    may_be_samples = _alike(part)
    if may_be_samples and _surely_samples(part, outermost):
        return [rows]
    try:
        columns = _columns(part)
    except UnreadableError:
        if may_be_samples:
            return [rows]
        raise
    return [*columns, rows] if may_be_samples else columns


def _surely_samples(part: Sequence[Any], outermost: bool) -> bool:
    """A list of tuples, which no collate function makes of columns, or of containers with a number beside tensors."""
    if children(part[0]) is None:
        return False
    pairs = isinstance(part, list) and isinstance(part[0], tuple) and _is_list(part[0])
    alone = any(isinstance(x, (int, float, str)) or (isinstance(x, Tensor) and not x.ndim) for x in _leaves(part))
    return (outermost and pairs) or alone


def _columns(part: Any) -> list[Reading]:
    """Every part holds the same number of samples; one reading for each number on which all agree."""
    names, parts = children(part) or ((), ())
    if not parts:
        return [Reading(None, lambda _: part)]
    options = [_readings(each) for each in parts]
    if any(found and all(r.samples for r in found) for found in options):
        # Beside a list of samples, another list is one of samples too: images beside their boxes.
        options = [[r for r in found if r.listed] or found for found in options]
    firm = [{r.size for r in found} for found in options if not all(r.size is None or r.optional for r in found)]
    loose = [{r.size for r in found} for found in options if any(r.optional for r in found)]
    sizes = set.intersection(*firm) if firm else set.intersection(*loose) if loose else {None}
    if not sizes and firm:
        raise UnreadableError(
            f"the parts of the batch disagree on how many samples there are: {_listed(firm)}; expected the same number "
            f"in all of them, with what is no sample (class weights, edges) left out of the batch, {_ADVICE}"
        )
    ordered = dict.fromkeys(r.size for found in options for r in found)
    return [_joined(part, names, options, size) for size in ordered if size in (sizes or {None})]


def _joined(part: Any, names: Sequence[Any], options: Sequence[list[Reading]], size: int | None) -> Reading:
    parts = (children(part) or ((), ()))[1]
    fitting = [[r for r in found if r.size == size] for found in options]
    samples = any(r.samples for found in fitting for r in found)
    chosen = [(found[-1] if samples else found[0]) if found else None for found in fitting]

    def take(which: Take) -> Any:
        new = [old if r is None else r.take(which) for r, old in zip(chosen, parts, strict=True)]
        return rebuilt(part, dict(zip(names, new, strict=True)))

    # As many images as channels; columns of fewer dimensions are just as many as samples by chance.
    tied = [each[0] for each, found in zip(parts, fitting, strict=True) if len(found) > 1]
    unsure = not samples and any(len(getattr(each, "shape", ())) > 2 for each in tied)
    used = [r for r in chosen if r is not None and r.size is not None]
    unsure = unsure or any(r.unsure for r in used)
    return Reading(size, take, samples, optional=bool(used) and all(r.optional for r in used), unsure=unsure)


def _better(batch: Any, found: list[Reading]) -> Reading:
    """Of several readings the likely one: a list of samples beside others; alone, columns as torch collates them."""
    if not _is_list(batch) or isinstance(batch, tuple):
        return next((r for r in found if r.samples), found[0])
    columns, rows = found[0], found[-1]
    likely = isinstance(batch[0], list) or children(batch[0]) is None
    return columns if likely and (rows.size or 0) <= (columns.size or 0) else dataclasses.replace(columns, unsure=True)


def _is_plain(part: Any) -> bool:
    return all(_is_plain(p) for p in part) if isinstance(part, (list, tuple)) else isinstance(part, _NO_SAMPLES)


def _alike(part: Sequence[Any]) -> bool:
    """Whether all elements have the structure of the first: they may be samples of one kind."""
    return len({_structure(each) for each in part}) == 1


def _structure(part: Any) -> Any:
    if isinstance(part, Tensor) or is_array(part):
        return (len(part.shape), part.dtype)
    below = children(part)
    if below is None or (_is_list(part) and not _has_rows(part)):
        return type(part).__name__
    names, parts = below
    return (type(part).__name__, tuple(map(str, names)), tuple(map(_structure, parts)))


def _leaves(part: Any) -> Iterable[Any]:
    below = children(part)
    if below is None:
        yield part
    else:
        for each in below[1]:
            yield from _leaves(each)


def _has_rows(part: Any) -> bool:
    return any((isinstance(x, Tensor) or is_array(x)) and len(x.shape) > 0 for x in _leaves(part))


def _listed(found: Sequence[set[int | None]]) -> str:
    return " and ".join(dict.fromkeys(" or ".join(sorted(map(str, sizes))) for sizes in found))
