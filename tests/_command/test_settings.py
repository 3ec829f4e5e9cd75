"""What a refusal says is expected."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ValidationError

from steppe._command.settings import Expected, Grid, Modules, Seeds, Two, refusal


class Made(BaseModel):
    radii: Annotated[Grid, Expected("a list of radii above 0")] = [0.1]
    rates: Annotated[Grid | None, Expected("a list of rates")] = None
    grid: Grid | None = None
    seeds: Seeds = [0]
    count: Two | None = None
    kind: Literal["one", "two", "three"] = "one"
    where: Literal["here"] | None = None
    modules: Modules | None = None
    full: bool = False
    other: dict[str, int] = {}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("radii", [-1], "a list of radii above 0"), ("rates", "x", "a list of rates"),
        ("grid", [], "a list of numbers above 0"), ("seeds", 0, "a count of at least 1, or a list of seeds"),
        ("count", 1, "a whole number of at least 2"), ("kind", "four", "'one', 'two' or 'three'"),
        ("where", "there", "'here'"), ("modules", " , ", "a list of module names"), ("full", "maybe", "true or false"),
        ("other", 3, "of another type"),
    ],
)  # fmt: skip
def test_the_outermost_words_are_said(name, value, expected):
    with pytest.raises(ValidationError) as caught:
        Made.model_validate({name: value})
    said = refusal(Made, caught.value, {name: value})
    assert said.startswith(f"{name} must be {expected}") and said.endswith(f", got {value!r}")


def test_what_is_there_twice():
    with pytest.raises(ValidationError) as caught:
        Made.model_validate({"radii": [0.1, 0.1]})
    assert refusal(Made, caught.value, {"radii": [0.1, 0.1]}) == "radii: 0.1 is there twice; give each once"


def test_modules_are_split_at_commas():
    assert Made(modules="query, value").modules == ["query", "value"]
