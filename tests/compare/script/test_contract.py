"""What a script must do: each mistake is one sentence, with the line it is in."""

import re
from pathlib import Path

import pytest
import torch

from steppe._command.pool import Event, Job, SaidError, attempt
from steppe.compare.data.metrics import read_metric
from steppe.compare.engine.beforehand import check_script
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.script import builder, follow
from steppe.compare.engine.spec import resolve
from steppe.compare.script.plain import Plain
from steppe.compare.script.results import Figures
from steppe.compare.script.sharpen import Sharpen
from steppe.compare.script.source import ScriptError, check_settings, fingerprint, load, read_settings

WRONG = Path(__file__).with_name("wrong.py")

MISTAKES = {
    "nothing": "returned nothing; expected {'val': ..., 'test': ...}",
    "yields_nothing": "yielded nothing; expected {'val': ..., 'test': ...}",
    "a_number": "returned 0.9; expected {'val': ..., 'test': ...}",
    "no_val": "yielded no 'val', only 'valid', 'test'",
    "beside": "yielded 'accuracy' beside 'val' and 'test'; put it among the figures of both",
    "lacks": "'test' lacks 'nll', which the other part has",
    "later": "'nll' is missing in look 2",
    "no_number": "'val', 'score', is 'good'; expected a number",
    "nan": "'accuracy' of 'val' is nan in look 1, while the training loss is",
    "in_per_cent": "'accuracy' of 'test' is 93.5, and is told in per cent of what is given; give 0.935, or take it as",
    "direction": "which way is better is not known of 'thing'; say it with --metric thing:higher or --metric thing:",
    "never_called": "sharpen was never called; expected sharp = sharpen(model, optimizer)",
    "never_backward": "no backward went through what sharpen gave",
    "never_stepped": "the optimizer that sharpen was given never stepped",
    "no_measure": "measure={'val': 1.0} was given; expected a function without arguments that gives {'val'",
    "measure_without_length": "measure was given without total_steps, which averages need",
    "two_models": "sharpen was called for a second model",
    "raises": "IndexError: list index out of range",
    "exits": "SystemExit: 3; a command line that it reads is steppe's",
    "a_loss": "TypeError: backward() was given a Tensor; expected a function that computes the loss",
}


def line(name: str) -> int:
    lines = WRONG.read_text().splitlines()
    return next(number for number, text in enumerate(lines, 1) if text.endswith(f"# HERE {name}"))


def run(name: str, build=lambda model, optimizer, total_steps: Plain(model, optimizer), metric=None) -> None:
    script = load(f"{WRONG}:{name}")
    follow(Figures(script, Sharpen(build), metric), {"seed": 0})


def test_a_figure_that_is_no_share_is_taken_as_it_is_where_that_is_said():
    run("in_per_cent", metric="accuracy:higher")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_with_its_line(name):
    with pytest.raises(SaidError) as refused:
        run(name)
    assert str(refused.value).startswith(f"wrong.py:{line(name)}: ")
    assert MISTAKES[name] in str(refused.value) and "\n" not in str(refused.value)


def test_a_metric_that_is_asked_for_must_be_there():
    with pytest.raises(SaidError, match="there is no figure 'f1', which --metric asks for; known: accuracy, nll"):
        run("later", metric="f1")


def test_half_of_the_steps_is_a_whole_number():
    """A schedule said `start=9.0 was given` of the 12.5 steps that half of 25 are."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ScriptError, match=r"total_steps=12.5 was given; expected a whole number, as max\(1, round"):
        Sharpen(builder(Run("late_sam", 0.1, 0)))(model, optimizer, total_steps=12.5)
    sharpen = Sharpen(builder(Run("late_sam", 0.1, 0)))
    sharpen(model, optimizer, total_steps=12.0)
    assert type(sharpen.total_steps) is int


def test_a_method_that_needs_the_length_says_how_to_give_it():
    with pytest.raises(SaidError, match=r"late_sam.*total_steps.*give sharpen the length: sharpen\(model, optimizer, "):
        run("no_length", builder(Run("late_sam", 0.1, 0)))


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("train.py", "expected FILE.py:FUNCTION"),
        ("nowhere.py:train", "there is no file"),
        (f"{WRONG}:direktion", "wrong.py has no function 'direktion'; did you mean 'direction'?"),
        (f"{WRONG}:no_seed", "takes no argument 'seed'; expected def train(sharpen, seed)"),
        (f"{WRONG}:asynchronous", "is an async function"),
        ("no_such_module:train", "cannot import module 'no_such_module'"),
    ],
)
def test_what_is_no_script_is_refused(reference, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load(reference)


def test_a_script_that_cannot_be_imported_says_where(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(ValueError, match=r"cannot be imported: broken.py:2: ZeroDivisionError"):
        load(f"{tmp_path}/broken.py:train")
    (tmp_path / "unread.py").write_text("x = 1\ny = lambda: 0 0\n")
    with pytest.raises(ValueError, match="cannot be imported: unread.py:2: SyntaxError: invalid syntax[^(]*$"):
        load(f"{tmp_path}/unread.py:train")
    (tmp_path / "reads.py").write_text("import unread\n")
    with pytest.raises(ValueError, match="cannot be imported: unread.py:2: SyntaxError: "):
        load(f"{tmp_path}/reads.py:train")
    (tmp_path / "nulls.py").write_bytes(b"x = 1\0\n")
    with pytest.raises(ValueError, match="cannot be imported: nulls.py"):
        load(f"{tmp_path}/nulls.py:train")
    (tmp_path / "unguarded.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--lr', '3'])\n")
    with pytest.raises(
        ValueError, match=r"cannot be imported: unguarded.py:2: SystemExit: 2; put what runs a training"
    ):
        load(f"{tmp_path}/unguarded.py:train")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"epochs": 3}, "a script brings its own data, model and training; leave 'epochs' out"),
        ({"task": "digits-few"}, "leave 'task' out"),
        ({"settings": "widht=3"}, "takes no setting 'widht'; did you mean 'width'?"),
        ({}, "nothing gives the argument 'width'; give it a default, or --settings width=..."),
        ({"settings": "width=3,seed=1"}, "'seed' is given by the comparison itself"),
        ({"settings": "width=3", "lr_grid": [0.1, 0.2]}, "lr_grid goes to the argument 'lr'"),
        ({"settings": "width=3", "device": "cpu"}, "device goes to the argument 'device'"),
        ({"settings": "width=3", "metric": "thing"}, "say which way is better, thing:higher or thing:lower"),
        ({"settings": "width"}, "settings must be name=value,name=value, got 'width'"),
    ],
)
def test_settings_that_a_script_has_no_use_for_are_refused(flags, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        resolve({"script": f"{WRONG}:wants", **flags})


def test_settings_without_a_script_are_refused():
    with pytest.raises(ValueError, match="settings are arguments of a script"):
        resolve({"settings": "width=3"})


def test_a_method_with_its_own_optimizer_is_refused(tmp_path):
    spec = resolve({"script": f"{WRONG}:nothing", "methods": ["adasam"], "out": str(tmp_path)})
    with pytest.raises(ValueError, match="'adasam' brings an optimizer of its own, and a script makes its own"):
        check_script(Plan(spec, "hash"))


def test_settings_are_read_as_what_they_look_like():
    found = read_settings("lr=0.1, layers=[64,32],name=adam,flag=true,width=64,none=None")
    assert found == {"lr": 0.1, "layers": [64, 32], "name": "adam", "flag": True, "width": 64, "none": None}
    check_settings(load(f"{WRONG}:wants"), {"width": 3}, {})


def test_a_metric_says_its_direction_and_unit():
    assert read_metric("accuracy").percent and read_metric("nll").higher is False
    judge = read_metric("word_error:lower:percent")
    assert (judge.name, judge.title, judge.higher, judge.percent) == ("word_error", "word error", False, True)
    for wrong in ("a b", "x:up", "x:lower:higher", "x:percent"):
        with pytest.raises(ValueError, match="metric"):
            read_metric(wrong)


def test_a_changed_script_or_module_beside_it_is_another_study(tmp_path):
    (tmp_path / "beside_it.py").write_text("WIDTH = 3\n")
    script = tmp_path / "mine.py"
    script.write_text("import beside_it\n\n\ndef train(sharpen, seed):\n    return beside_it.WIDTH\n")
    first = fingerprint(f"{script}:train")
    (tmp_path / "not_read.py").write_text("X = 1\n")
    assert fingerprint(f"{script}:train") == first
    (tmp_path / "beside_it.py").write_text("WIDTH = 4\n")
    second = fingerprint(f"{script}:train")
    script.write_text(script.read_text() + "# a word more\n")
    assert len({first, second, fingerprint(f"{script}:train")}) == 3


def test_the_pool_adds_nothing_to_a_sentence_that_says_all():
    def fails(tell):
        raise SaidError("train.py:3: a sentence")

    assert attempt(Job("a", fails, ()), print) == Event("failed", "a", "train.py:3: a sentence")


def test_a_model_that_every_run_goes_on_with_is_refused(tmp_path):
    """It lay outside of the function: each run began where the one before had ended, and the last one won."""
    spec = resolve({"script": f"{WRONG}:goes_on", "out": str(tmp_path)})
    told = f"wrong.py:{line('goes_on')}: the weights are still those that an earlier call of the function has trained"
    with pytest.raises(ValueError, match=re.escape(told)):
        check_script(Plan(spec, "hash"))
    check_script(Plan(resolve({"script": f"{WRONG.with_name('loops.py')}:one_model", "out": str(tmp_path)}), "hash"))
