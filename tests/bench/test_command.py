import json

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from steppe._command.choices import parse
from steppe.bench import tasked
from steppe.bench.subject import Subject
from steppe.cli import main
from steppe.optim import AMSGrad

TINY = ["bench", "--model", "tests.bench.tiny:problem", "--batch-size", "4", "--steps", "2"]


def test_a_table_on_the_terminal_and_the_figures_in_a_file(tmp_path, capsys):
    out = tmp_path / "deep" / "figures.json"
    assert main([*TINY, "--methods", "sam,look_sam:k=2,push=natural", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "SAM" in shown and "LookSAM (k=2" in shown and str(out) in shown.replace("\n", "")
    record = json.loads(out.read_text())
    assert set(record["methods"]) == {"sam", "look_sam:k=2,push=natural"}
    assert record["settings"]["turns"] == 2 and record["subject"]["batch_size"] == 4


def test_without_out_the_file_is_named_after_the_command(tmp_path, capsys, monkeypatch):
    """Another one does not write over what it measured; the same one does."""
    monkeypatch.chdir(tmp_path)
    for words in (["sam"], ["sam"], ["sam:rho=0.1"], ["sam", "--optimizer", "adamw"]):
        assert main([*TINY, "--no-memory", "--methods", *words]) == 0
    begin, end = "tests.bench.tiny-problem-sam", "batch_size-4"
    names = sorted(path.name for path in (tmp_path / "results" / "bench").iterdir())
    assert len(names) == 3 and all(name.startswith(begin) and end in name for name in names)
    assert sum("adamw" in name for name in names) == sum("rho-0.1" in name for name in names) == 1


def test_json_on_stdout_is_what_the_file_holds(tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main([*TINY, "--methods", "sam", "--out", str(out), "--json", "--optimizer", "adamw"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_a_table_without_memory_where_none_was_measured(tmp_path, capsys):
    assert main([*TINY, "--methods", "sam", "--no-memory", "--out", str(tmp_path / "figures.json")]) == 0
    shown = capsys.readouterr().out
    assert "SAM" in shown and "MiB" not in shown


def test_a_task_s_own_network_batch_and_loss_are_measured(tmp_path, capsys):
    place, out = tmp_path / "cells.csv", tmp_path / "figures.json"
    place.write_text("size,price\n" + "".join(f"{n},{n % 7 + n / 50}\n" for n in range(60)))
    words = ["bench", "--task", f"table:{place}", "--target", "price", "--methods", "sam", "--steps", "2"]
    assert main([*words, "--out", str(out)]) == 0
    subject = json.loads(out.read_text())["subject"]
    assert {**subject, "task": f"table:{place}", "target": "price", "model": "mlp", "batch_size": 32} == subject
    assert f"mlpontable:{place}," in "".join(capsys.readouterr().out.split())
    same = tasked.chosen({"task": f"table:{place}", "target": "price"})
    problem, again = same.make(), same.make()
    x, y = problem.batch
    assert len(x) == 32 and torch.equal(x, again.batch[0])
    loss = problem.loss_of(problem.model, problem.batch)
    torch.testing.assert_close(loss, F.mse_loss(problem.model(x).view_as(y), y))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--horizon 3", "--horizon is for --task, which is not given; leave it out"),
        ("--task digits-few --shape 3,8,8", "--shape is for --model without a task"),
        ("--task digits-few --batch-size 900", "batch_size is 900 and digits-few has 200 training examples"),
        ("--task digit-few", "unknown task 'digit-few'; did you mean 'digits-few'?"),
        ("--task digits-few --dtype int8", "dtype must be one of float32"),
        ("--model cn", "did you mean 'cnn'?"),
        ("--methods sma", "did you mean 'sam'?"),
        ("--methods sam,esam", "needs a loss for each example, and the benchmark has their mean only"),
        ("--methods sam:k=3", "no setting 'k'"),
        ("--batch-size 0", "batch_size must be a whole number of at least 1, got 0"),
        ("--steps 0", "steps must be a whole number of at least 1, got 0"),
        ("--threads -1", "threads must be a whole number of at least 1"),
        ("--shape 3,x,3", "shape must be whole numbers"),
        ("--shape 3,4,4", "at least 8x8"),
        ("--shape 3,32", "shape must be channels, height and width such as 3,32,32, got (3, 32)"),
        ("--dtype int8", "dtype must be one of float32"),
        ("--device tpu", "device must be"),
        ("--optimizer adam", "optimizer must be one of sgd, adamw, got 'adam'"),
        ("--lora 4", "--lora is for hf: models"),
        ("--model tests.bench.tiny:whole_output", 'returned dict; expected a tensor with one element: its ["loss"]'),
        (
            "--model tests.bench.tiny:normed --methods sam:samples=1",
            "method 'sam:samples=1': a look at samples=1 leaves",
        ),
        ("--model tests.bench.tiny:wrong", "expected (model, batch, loss_of)"),
        ("--methods sam:rho=-1", "method 'sam:rho=-1.0': rho=-1.0 was given"),
        ("--methods nbar", "method 'nbar': "),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(flags, words, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["bench", "--out", str(out), *flags.split()]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()


@pytest.mark.parametrize(("place", "words"), [("", "is a folder"), ("file/x.json", "is no folder to write in")])
def test_a_file_that_cannot_be_is_refused_before_anything_is_measured(place, words, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    assert main([*TINY, "--methods", "sam", "--out", str(tmp_path / place)]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_figures_that_cannot_be_kept_are_shown_first(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steppe._command.files.write_json", full)
    assert main([*TINY, "--methods", "sam", "--out", str(tmp_path / "figures.json")]) == 2
    said = capsys.readouterr()
    assert "SAM" in said.out and "could not be written" in said.err and "No space left on device" in said.err


def test_a_learning_rate_reaches_the_optimizer_that_the_method_brings(tmp_path):
    out = tmp_path / "figures.json"
    assert main([*TINY, "--methods", "adasam:lr=0.01", "--out", str(out)]) == 0
    weights = list(Subject("tests.bench.tiny:problem", 4).make().model.parameters())
    made = parse("adasam:lr=0.01").own_optimizer(weights, 0.5)
    assert isinstance(made, AMSGrad) and made.param_groups[0]["lr"] == 0.01
    assert parse("adasam").own_optimizer(weights, 0.5).param_groups[0]["lr"] == 0.5
    assert parse("adasam").own_optimizer(weights).param_groups[0]["lr"] == AMSGrad(weights).param_groups[0]["lr"]
    assert parse("sam").own_optimizer(weights) is None
