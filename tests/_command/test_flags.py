"""Flags made from the fields of settings."""

from dataclasses import dataclass, fields
from importlib import import_module
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field

from steppe import cli
from steppe._command.app import app
from steppe._command.flags import taking
from steppe.bench.measure import Request as Timing
from steppe.bench.subject import Subject
from steppe.compare.engine.spec import Spec
from steppe.evaluate.request import Request
from steppe.finetune.spec import Spec as Finetuning

for commands in cli._COMMANDS.values():
    import_module(commands)
ROOT = typer.main.get_command(app)
NO_FLAG = {("finetune", "training"), ("evaluate", "model")}  # of the Trainer; an argument


class Made(BaseModel):
    task: str = Field("digits", description="What is learnt.")
    count: int | None = Field(None, description="How many (all).")
    share: float = Field(0.5, description="A share.")
    kind: Literal["one", "two"] = Field("one", description="Which.")
    seeds: list[int] = Field([0, 1], description="Which seeds.")
    radii: list[float] | None = Field(None, description="Radii.")
    words: list[str] = Field(["a", "b"], description="Words.")
    full: bool = Field(False, description="All of it.")
    kept: bool = Field(True, description="All of it.")
    hidden: int = Field(3, description="Not for users.")


@dataclass(frozen=True)
class Plain:
    size: Annotated[int | str, Field(description="How large.")] = 8
    shape: Annotated[tuple[int, ...], Field(description="Its sides.")] = (3, 32)
    names: Annotated[tuple[str, ...], Field(description="Its names.")] = ()


def told(words: str, *kinds: type, **options: Any) -> dict[str, Any]:
    """What a command gets of what is typed, without what was not given."""
    made, seen = typer.Typer(), {}

    @made.command()
    @taking(*kinds, **options)
    def command(flags: dict[str, Any], more: int = 1) -> None:
        seen.update(flags, more=more)

    made(words.split(), standalone_mode=False)
    return {key: value for key, value in seen.items() if value is not None}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {}),
        ("--task x --count 3 --share .25", {"task": "x", "count": 3, "share": 0.25}),
        ("--kind three", {"kind": "three"}),  # for the settings to refuse
        ("--seeds 5 --radii 1", {"seeds": 5, "radii": [1.0]}),
        ("--seeds 0,3 --radii .1,.2 --words a,b", {"seeds": [0, 3], "radii": [0.1, 0.2], "words": "a,b"}),
        ("--seeds a,b --radii x", {"seeds": "a,b", "radii": "x"}),
        ("--full", {"full": True}),
        ("--no-kept", {"kept": False}),
    ],
)
def test_what_is_typed_is_read_as_the_field_takes_it(words, found):
    assert told(words, Made) == found | {"more": 1}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--size 3 --shape 1,2,3 --names a,b", {"size": 3, "shape": (1, 2, 3), "names": ("a", "b")}),
        ("--size auto --shape 3,x", {"size": "auto", "shape": "3,x"}),
        ("--size 3 --count 4", {"size": 3, "count": 4}),
    ],
)
def test_dataclasses_and_several_kinds(words, found):
    assert told(words, Plain, Made) == found | {"more": 1}


def test_a_flag_may_be_left_out_or_have_a_second_name():
    options = {"without": ("hidden",), "spelled": {"count": ("--count", "--many")}}
    assert told("--many 3 --more 2", Made, **options) == {"count": 3, "more": 2}
    with pytest.raises(Exception, match="No such option: --hidden"):
        told("--hidden 3", Made, **options)


def helped(words: list[str], capsys) -> str:
    assert cli.main(words) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_shows_choices_and_defaults(capsys):
    shown = helped(["compare", "--help"], capsys)
    for text in (
        "--optimizer [sgd|adamw|amsgrad]", "[default: the task's, or 30]", "[default: lora]",
        "[default: the task's, or 0,1]", "--text-column, --text <str>",
    ):  # fmt: skip
        assert text in shown, text
    assert "[default: 0]" in helped(["finetune", "-h"], capsys), "a seed of 0 is a default too"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("compare", list(Spec.model_fields)), ("finetune", list(Finetuning.model_fields)),
        ("bench", [each.name for kind in (Subject, Timing) for each in fields(kind)]),
        ("evaluate", [each.name for each in fields(Request)]),
    ],
)  # fmt: skip
def test_every_setting_is_a_flag_that_says_what_it_is(command, names):
    flags = {each.name: each for each in ROOT.commands[command].params}
    for name in names:
        if (command, name) not in NO_FLAG:
            assert f"--{name.replace('_', '-')}" in flags[name].opts and flags[name].help.strip(), name


@pytest.mark.parametrize(
    ("command", "idle"), [("rho", ("step_back", "half", "season")), ("bench", ("step_back", "half", "season"))]
)
def test_a_command_has_no_flag_that_it_does_not_read(command, idle):
    assert not {each.name for each in ROOT.commands[command].params} & set(idle)


def test_a_command_may_say_by_itself_what_a_setting_is_to_it(capsys):
    assert "as many)" in helped(["compare", "-h"], capsys)
    assert "as many)" not in (shown := helped(["rho", "-h"], capsys)) and "the check is a fifth of it" in shown


@pytest.mark.parametrize("command", [None, *ROOT.commands])
def test_three_ways_to_ask_for_help(command, capsys):
    name = [command] if command else []
    shown = helped([*name, "--help"], capsys)
    assert helped([*name, "-h"], capsys) == shown and helped(["help", *name], capsys) == shown


def test_help_about_nothing_is_refused(capsys):
    assert cli.main(["help", "compair"]) == 2
    assert "compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("compare --rate 3", "unknown flag --rate; did you mean --learning-rate?"),
        ("compare --epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("compare --column x", "unknown flag --column; did you mean --text-column?"),
        ("finetune --epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("finetune --rate 3", "unknown flag --rate; did you mean --learning-rate?"),
        ("finetune --zzz 3", "unknown flag --zzz; see steppe finetune --help"),
    ],
)
def test_hints_name_what_was_meant_or_nothing(words, sentence, capsys):
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err == f"steppe: {sentence}\n"


@pytest.mark.parametrize(
    ("typed", "completed"), [("steppe ben", {"bench"}), ("steppe compare --tune-lr ", {"base", "each"})]
)
def test_the_shell_completes_commands_and_choices(typed, completed, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["steppe"])
    monkeypatch.setenv("_STEPPE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    with pytest.raises(SystemExit):
        cli.main([])
    assert set(capsys.readouterr().out.split()) == completed


def test_the_script_for_the_shell(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["steppe"])
    monkeypatch.setenv("_STEPPE_COMPLETE", "source_bash")
    with pytest.raises(SystemExit):
        cli.main([])
    assert "complete -o default -F _steppe_completion steppe" in capsys.readouterr().out
