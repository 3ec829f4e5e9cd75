"""The kinds of value that settings have, with the words that say what is expected, and the TOML files they are in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


def _as_seeds(value: Any) -> Any:
    count = isinstance(value, int) and not isinstance(value, bool)
    return list(range(value)) if count and 1 <= value <= 1000 else value


def _each_once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise PydanticCustomError("twice", "{value} is there twice; give each once", {"value": str(value)})
    return values


def words(value: Any) -> Any:
    """A list of words, where one was given a list of one."""
    return [value] if isinstance(value, str) else value


Whole = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Share = Annotated[float, Field(ge=0, lt=1, description="a share from 0 up to, not including, 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Grid = Annotated[list[Positive], BeforeValidator(_as_list), AfterValidator(_each_once), Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[
    list[Seed],
    BeforeValidator(_as_seeds),
    AfterValidator(_each_once),
    Field(min_length=1, description="a count of at least 1, or a list of seeds of at least 0"),
]


def read_toml(path: Path, flag: str = "--config") -> dict[str, Any]:
    """The settings in the TOML file that was given with `flag`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give the path of a TOML file to {flag}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
