"""`steppe rho`: the finder on a study's task, from the command line."""

import functools
import json
from typing import Any

import pytest
from tests.compare import tiny

import steppe
from steppe._command.choices import parse
from steppe.cli import main
from steppe.compare.engine.spec import resolve
from steppe.compare.rho import ONE_IN, prepared

TASK = ["--task", "tests.compare.tiny:task"]


def spec(**given):
    return resolve({"task": "tests.compare.tiny:task", "device": "cpu", **given})


_ANSWERS: dict[tuple[str, ...], Any] = {}


def asked(capsys, *words):
    """What is answered; the same question is answered alike, and asked once."""
    if words not in _ANSWERS:
        assert main(["rho", *words, *TASK, "--json"]) == 0
        _ANSWERS[words] = json.loads(capsys.readouterr().out)
    return _ANSWERS[words]


@functools.cache
def once(trial: int):
    """The search by itself, of the study as it is."""
    return prepared(spec(), parse("sam"), 0, trial=trial)()


def test_json_holds_the_curve_and_the_trials(capsys):
    found = asked(capsys, "sam", "--trial", "8")
    assert found["rho"] in [trial["rho"] for trial in found["trials"]]
    assert {"rho", "rise", "predicted", "cosine", "change", "moved"} == set(found["curve"][0])


def test_the_words_are_those_of_the_library(capsys):
    assert main(["rho", *TASK, "--trial", "0"]) == 0
    out = capsys.readouterr().out
    assert "cos(g, g~)" in out and "SAM: rho = " in out and "leaves the linear regime" in " ".join(out.split())
    assert "learned, beside the base" not in out


@pytest.mark.parametrize("width", [44, 64])
def test_no_figure_is_cut_on_a_narrow_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["rho", *TASK, "--trial", "0"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and ("moved" in out) is (width == 64) and "cos(g, g~)" in out


def test_what_few_steps_ask_for_can_be_typed(capsys):
    assert "or give --trial 20 or more" in asked(capsys, "--trial", "8")["why"]
    assert main(["rho", *TASK, "--trial", "8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "or give --trial 20 or more" in shown and "learned, beside the base" in shown, "trials are shown"
    assert "or give trial=20 or more" in once(8).why, "as Python takes it"


def test_what_begins_is_said_without_a_terminal(capsys):
    assert main(["rho", *TASK, "--trial", "8", "--after", "2", "--json"]) == 0
    told = capsys.readouterr()
    tried = [f"8 steps with rho = {trial['rho']:g}" for trial in json.loads(told.out)["trials"]]
    first = ["2 steps of the base first", "along the ascent on 4 batches", "8 steps of the base"]
    lines = told.err.splitlines()
    assert lines[:3] == first and sorted(lines[3:]) == sorted(tried)


def test_a_method_with_settings_in_its_own_units(capsys):
    few = asked(capsys, "sam:samples=3", "--trial", "0")
    sam = asked(capsys, "sam", "--trial", "0")
    asam = asked(capsys, "asam", "--trial", "0")
    assert few["curve"] != sam["curve"]
    assert asam["linear"] > 2 * sam["linear"], "ASAM's radii are about ten times SAM's"


def test_seeds_and_steps_before_are_heard(capsys):
    plain = asked(capsys, "--trial", "0")
    assert asked(capsys, "--trial", "0", "--seed", "1") != plain
    assert asked(capsys, "--trial", "0", "--after", "6") != plain
    assert asked(capsys, "--trial", "0", "--looks", "1") != plain
    _ANSWERS.clear()
    assert asked(capsys, "--trial", "0") == plain, "and nothing else moves it"


def test_flags_of_the_study_are_heard(capsys):
    assert asked(capsys, "--trial", "4", "--lr", "0.01")["trials"] != asked(capsys, "--trial", "4")["trials"]
    assert asked(capsys, "--trial", "0", "--batch-size", "5")["curve"] != asked(capsys, "--trial", "0")["curve"]


def test_a_trial_is_a_fifth_of_the_training():
    found = prepared(spec(epochs=10), parse("sam"), 0)()
    assert f"in {10 * 4 // ONE_IN} steps" in found.why


def test_the_search_is_find_rho_on_the_run_of_that_seed():
    from steppe.compare.engine.run import batches, load_task, make_trainer
    from steppe.compare.engine.runs import Run

    given = spec()
    task = load_task(given, 0)
    trainer = make_trainer(given, task, Run("base", None, 0), 16)
    first = list(next(batches(task, given.batch_size, 0)))
    by_hand = steppe.find_rho(trainer.model, trainer.optimizer, trainer.loss_of, first, trial=0)
    assert once(0) == by_hand


def test_the_rate_is_that_after_the_warm_up():
    assert prepared(spec(warmup=0.5), parse("sam"), 0, trial=8)().trials == once(8).trials


def test_a_method_that_brings_its_base():
    assert prepared(spec(), parse("adasam"), 0, trial=2)().rho > 0


def test_a_picture(tmp_path, capsys):
    target = tmp_path / "rho.png"
    assert main(["rho", *TASK, "--trial", "0", "--plot", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert tiny.task(0).classes == 2


def test_a_picture_that_cannot_be_written_costs_the_picture_alone(tmp_path, capsys):
    (tmp_path / "rho.png").mkdir()
    assert main(["rho", *TASK, "--trial", "0", "--plot", str(tmp_path / "rho.png")]) == 2
    shown = capsys.readouterr()
    assert "SAM: rho = " in shown.out and "cannot write" in shown.err


BAD = [
    ("esam", "needs a loss for each example, and the search has their mean only"),
    ("samm", "did you mean 'sam'?"),
    ("nbar", "there is no radius to find, as it has none"),
    ("sam:rho=0.1", "there is no radius to find, as its settings fix rho"),
    ("--seed -1", "seed must be a whole number of at least 0, got -1"),
    ("--trial -1", "trial=-1"),
    ("--keep 2", "keep=2.0"),
    ("--looks 0", "looks=0"),
    ("--after -3", "after=-3"),
    ("--epochs 0", "epochs must be a whole number of at least 1, got 0"),
    ("--trails 3", "--trial"),
    ("--warmup 0.1", "unknown flag --warmup"),
    ("--plot /dev/null/rho.png", "there is no folder /dev/null; make it, or name another file"),
    ("--plot rho.zzz", "--plot rho.zzz is no picture that can be drawn; end it in one of ."),
]


@pytest.mark.parametrize(("typed", "hint"), BAD, ids=[typed for typed, _ in BAD])
def test_bad_input_is_one_sentence(typed, hint, capsys):
    assert main(["rho", *typed.split(), *TASK]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and hint in captured.err
