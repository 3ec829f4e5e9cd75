"""The kinds of value that settings have, with the words that say what is expected, and the TOML files they are in."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from steppe._command.lookup import at_home

M = TypeVar("M", bound=BaseModel)


def as_list(value: Any) -> Any:
    """What was given; of one thing a list."""
    return [value] if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


def _as_seeds(value: Any) -> Any:
    count = isinstance(value, int) and not isinstance(value, bool)
    return list(range(value)) if count and 1 <= value <= 1000 else value


def _each_once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise PydanticCustomError("twice", "{value} is there twice; give each once", {"value": str(value)})
    return values


def listed(value: Any) -> Any:
    """The words of `query,value`."""
    return [piece.strip() for piece in value.split(",") if piece.strip()] if isinstance(value, str) else value


@dataclass(frozen=True)
class Expected:
    """Said of a type: what a refusal tells that it wants."""

    text: str


Whole = Annotated[int, Field(ge=1), Expected("a whole number of at least 1")]
Two = Annotated[int, Field(ge=2), Expected("a whole number of at least 2")]
Share = Annotated[float, Field(ge=0, lt=1), Expected("a share from 0 up to, not including, 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Expected("a number above 0")]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False), Expected("a number of at least 0")]
Name = Annotated[str, Field(min_length=1), Expected("a name or a path")]
Column = Annotated[str, Expected("the name of a column")]
Modules = Annotated[list[str], BeforeValidator(listed), Field(min_length=1), Expected("a list of module names")]
Grid = Annotated[
    list[Positive],
    BeforeValidator(as_list),
    AfterValidator(_each_once),
    Field(min_length=1),
    Expected("a list of numbers above 0"),
]
Counts = Annotated[
    list[Whole],
    BeforeValidator(as_list),
    AfterValidator(_each_once),
    Field(min_length=1),
    Expected("a list of whole numbers of at least 1"),
]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[
    list[Seed],
    BeforeValidator(_as_seeds),
    AfterValidator(_each_once),
    Field(min_length=1),
    Expected("a count of at least 1, or a list of seeds of at least 0"),
]


def validated(model: type[M], values: Mapping[str, Any]) -> M:
    """The settings in `values`; the first thing that is wrong there is a sentence."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(refusal(model, error, values)) from None


def refusal(model: type[BaseModel], error: ValidationError, values: Mapping[str, Any]) -> str:
    """The sentence about the first thing that is wrong in `values`."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "twice":
        return f"{name}: {first['msg']}"
    return f"{name} must be {_expected(model.model_fields[name])}, got {values.get(name)!r}"


def _expected(field: FieldInfo) -> str:
    return _outermost(field.metadata) or _of_type(field.annotation) or "of another type"


def _outermost(said: Sequence[Any]) -> str | None:
    """Python lays what is said of a type said of already flat, the outermost last."""
    return next((each.text for each in reversed(said) if isinstance(each, Expected)), None)


def _of_type(annotation: Any) -> str | None:
    """What an annotation says is expected, on its outside first; the words of a Literal; true or false of a bool."""
    if annotation is bool:
        return "true or false"
    if get_origin(annotation) is Literal:
        *others, last = (repr(each) for each in get_args(annotation))
        return f"{', '.join(others)} or {last}" if others else last
    parts = get_args(annotation)
    return _outermost(parts) or next(filter(None, map(_of_type, parts)), None)


def read_toml(path: Path, flag: str = "--config") -> dict[str, Any]:
    """The settings in the TOML file that was given with `flag`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return {key: at_home(value) if isinstance(value, str) else value for key, value in found.items()}
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give the path of a TOML file to {flag}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
