"""The flags of a command, made from the fields of its settings.

A field `warmup: Share = Field(0.0, description="Share of the steps ...")` is the flag `--warmup FLOAT`, its help the
description with the default behind it. A field more is a flag more.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T")
_LISTS = (list, tuple)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One field as a flag: the types it may have, None left out, and the default that is shown behind the help."""

    name: str
    kinds: tuple[Any, ...]
    help: str
    default: Any = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it may be, where these are few."""
        return tuple(str(each) for kind in self.kinds if get_origin(kind) is Literal for each in get_args(kind))

    def parameter(self, spelled: Sequence[str], shown: str | None) -> inspect.Parameter:
        """As typer takes it; None is what was not given."""
        word = self.name.replace("_", "-")
        words = tuple(spelled) or ((f"--{word}/--no-{word}",) if self.default is True else (f"--{word}",))
        behind = _shown(self.default) if shown is None else shown
        option = typer.Option(
            *words, help=self.help + (f" [default: {behind}]" if behind else ""), show_default=False,
            metavar=f"[{'|'.join(self.choices)}]" if self.choices else None,
            autocompletion=self._complete if self.choices else None,
        )  # fmt: skip
        typed: Any = Annotated[Optional[self._typed()], option]  # noqa: UP045
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=typed)

    def _complete(self, incomplete: str) -> list[str]:
        return [each for each in self.choices if each.startswith(incomplete)]

    def _typed(self) -> Any:
        return self.kinds[0] if self.kinds in ((bool,), (int,), (float,)) else str

    def read(self, text: Any) -> Any:
        """What was typed as the field takes it; what cannot be read is left for the settings to refuse."""
        if not isinstance(text, str):
            return text
        if self.kinds == (int, str):
            return int(text) if re.fullmatch(r"[+-]?\d+", text) else text
        of = next((kind for kind in self.kinds if get_origin(kind) in _LISTS), None)
        return text if of is None else _pieces(text, get_origin(of), _bare(get_args(of)[0])[0])


def _pieces(text: str, whole: Any, each: Any) -> Any:
    """`0.1,0.2` as a list of numbers; a count alone is a number, and a list of words is split by the settings."""
    if each is str:
        return text if whole is list else tuple(piece.strip() for piece in text.split(",") if piece.strip())
    try:
        found = [each(piece) for piece in text.split(",")]
    except ValueError:
        return text
    return found[0] if whole is list and each is int and len(found) == 1 else whole(found)


def _bare(annotation: Any) -> tuple[Any, ...]:
    """The types in an annotation, without what is said of them and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _bare(part) if kind is not type(None))
    return (annotation,)


def _shown(default: Any) -> str:
    if isinstance(default, _LISTS):
        return ",".join(map(_shown, default))
    if isinstance(default, float):
        return f"{default:g}"
    if default is True:
        return "yes"
    if default is None or default is False or default == "":
        return ""
    return str(default) if str(default).strip() else repr(default)


def flags_of(kind: type) -> Iterator[Flag]:
    """A flag for every field of a pydantic model, or of a dataclass whose annotations hold a pydantic `Field`."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            default = None if field.is_required() else field.default
            yield Flag(name, _bare(field.annotation), field.description or "", default)
        return
    hints = get_type_hints(kind, include_extras=True)
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        said = next((m for m in get_args(hints[each.name])[1:] if isinstance(m, FieldInfo)), FieldInfo())
        default = None if each.default is dataclasses.MISSING else each.default
        yield Flag(each.name, _bare(hints[each.name]), said.description or "", default)


def help_of(kind: type, name: str) -> str:
    """What a field is, for a command that takes it as an argument."""
    return next(each.help for each in flags_of(kind) if each.name == name)


def taking(
    *kinds: type, without: Collection[str] = (), spelled: Mapping[str, Sequence[str]] | None = None,
    shown: Mapping[str, str] | None = None, said: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:  # fmt: skip
    """Give a command the flags of its settings; its argument `flags` gets them by field, None where one is not given.

    Args:
        kinds: pydantic models or dataclasses.
        without: fields that are no flags.
        spelled: field -> its flags, where they are not the field's name alone.
        shown: field -> the default to show, where it is not the field's own.
        said: field -> what it is to this command, where that is not the field's own description.
    """
    found = {each.name: each for kind in kinds for each in flags_of(kind) if each.name not in without}
    found |= {name: dataclasses.replace(found[name], help=text) for name, text in (said or {}).items()}
    made = [each.parameter((spelled or {}).get(name, ()), (shown or {}).get(name)) for name, each in found.items()]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(flags={name: each.read(given.pop(name)) for name, each in found.items()}, **given)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        first = [p for p in own if p.default is p.empty]
        every = [*first, *made, *(p for p in own if p not in first)]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every}
        del run.__wrapped__
        return run

    return decorated


def given(flags: Mapping[str, Any], kind: Callable[..., T]) -> dict[str, Any]:
    """What was given of a dataclass's fields."""
    names = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return {key: value for key, value in flags.items() if key in names and value is not None}
