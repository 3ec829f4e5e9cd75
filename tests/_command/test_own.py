"""Recipes of the user's own, and `recommended`, by name."""

import json
import pickle

import pytest
import torch
from tests.compare import studies

import steppe
from steppe._command import lookup, rows
from steppe._command.choices import parse, parse_all, split_list
from steppe.cli import main
from steppe.compare.engine.run import train
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.finetune import method as finetuned

OWN = '''
import steppe
from beside import FACTOR


def Half(model, optimizer, *, rho, k: int = 2, plain=0.5, push: str = "one", on: bool = True, seed=0):
    """Half of the radius."""
    return steppe.SAM(model, optimizer, rho=rho * FACTOR, seed=seed)


class Twice(steppe.SharpnessAware):
    def __init__(self, model, optimizer, **more):
        super().__init__(model, optimizer, ascent=steppe.Ascent(0.1), **more)


class ByHand:
    """No part of steppe in it: the gradient doubled."""

    def __init__(self, model, optimizer, factor=2.0):
        self.factor = factor

    def backward(self, loss_of, batch):
        loss = loss_of(batch)
        (self.factor * loss).backward()
        return loss.detach()


def hardest(model, optimizer, rho=0.1):
    return steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(rho), hardest=0.5)


def nothing(model, optimizer):
    return None


def one(model):
    return model
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("FACTOR = 0.5\n")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    yield str(tmp_path / "own.py")
    __import__("sys").modules.pop("beside", None)
    forget()


def forget():
    """As a process that has read nothing yet."""
    for cache in (lookup._from_file, rows._own, rows._text):
        cache.cache_clear()


def net():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def test_an_own_recipe_is_read_with_its_settings(file):
    choice = parse(f"{file}:Half:plain=3,k=4,push=two,on=false,rho=0.2")
    assert choice.settings == {"plain": 3, "k": 4, "push": "two", "on": False, "rho": 0.2}
    assert choice.text == f"{file}:Half:k=4,on=False,plain=3,push=two,rho=0.2" and choice.label.startswith("Half (k=4")
    assert parse(choice.text) == choice and choice.grid({"rho": [0.1]}) == [0.2]
    assert parse(f"{file}:Half").grid({"rho": [0.1, 0.4]}) == [0.1, 0.4]
    assert parse(f"{file}:Twice:alpha=1").settings == {"alpha": 1}  # it takes whatever comes
    assert split_list(f"sam,{file}:Half:k=4,plain=1,rst") == ["sam", f"{file}:Half:k=4,plain=1", "rst"]
    assert [each.text for each in parse_all(["steppe:SAM"])] == ["steppe:SAM"]


def test_it_is_built_with_value_and_seed_where_it_takes_them(file):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = parse(f"{file}:Half").build(model, optimizer, value=0.4, seed=7, total_steps=9)
    assert (half.ascent.rho, half.seed) == (0.2, 7)
    assert parse(f"{file}:Twice").build(model, optimizer, value=None, seed=7, total_steps=9).seed == 7
    assert parse(f"{file}:ByHand:factor=3").build(model, optimizer, value=None, seed=7, total_steps=9).factor == 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.py:Half", "cannot import module 'missing.py' (there is no such file)"),
        ("{file}:Hlaf", "has no function 'Hlaf'; did you mean 'Half'?"),
        ("{file}:Half:plian=1", "has no setting 'plian'; did you mean 'plain'?"),
        ("{file}:Half:k=x", "k = 'x' is not a whole number"),
        ("{file}:Half:on=maybe", "on = 'maybe' is not true or false"),
        ("{file}:Half:seed=1", "'seed' is set by the study itself"),
        ("{file}:Half:", "ends in ':'"),
        ("{file}:one", "takes (model); expected a function or a class of (model, optimizer, **settings)"),
        ("mymodul:MySAM", "cannot import module 'mymodul'"),
        ("sma:rho=1", "there is no method 'sma'; did you mean 'sam'?"),
        ("recomended", "there is no method 'recomended'; did you mean 'recommended'? known are recommended, sam, "),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(file, name, sentence):
    with pytest.raises(ValueError) as refused:
        parse(name.format(file=file))
    assert sentence in str(refused.value)


def test_a_file_that_fails_is_said_so(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match="cannot import module .*broken.py' \\(ZeroDivisionError: division by zero\\)"):
        parse(f"{tmp_path}/broken.py:MySAM")


def test_a_recipe_that_gives_nothing_is_refused_before_anything_runs(file, tmp_path):
    ended = studies.complete(tmp_path / "out", "--methods", f"{file}:nothing")
    assert ended.returncode == 2 and "its recipe gives a NoneType; expected a steppe.Method" in ended.stderr


def test_a_whole_comparison_with_own_methods(file, tmp_path):
    """Half SAM at twice the radius is SAM; a plain gradient by hand takes one pass and is tuned on nothing."""
    names = ["sam:rho=0.1", f"{file}:Half:rho=0.2", f"{file}:ByHand:factor=1.0", "recommended"]
    ended = studies.complete(tmp_path, "--methods", ",".join(names), "--json")
    assert ended.returncode == 0, ended.stderr
    found = {row["method"]: row for row in json.loads(ended.stdout)["rows"] if row["variant"] == "plain"}
    sam, half, hand = (found[name] for name in names[:3])
    assert half["by_seed"] == sam["by_seed"] and half["label"] == "Half (rho=0.2)"
    assert hand["by_seed"]["final"] == found["base"]["by_seed"]["final"]
    assert hand["values"] == [] and hand["passes"] == 1.0 and hand["time_ratio"]["median"] > 0
    assert found["recommended"]["rho"] in (0.1, 0.2) and found["recommended"]["passes"] < 1.5


def test_another_text_of_the_file_is_another_run(file, tmp_path):
    run = Run(f"{file}:Half", 0.1, 0)
    before = run.id("hash")
    assert run.id("hash") == before and Run("sam", 0.1, 0).id("hash") == "sam-rho0.1-seed0-5ee1596abba8"
    with open(file, "a") as more:
        more.write("\n# changed\n")
    forget()
    assert run.id("hash") != before


def test_a_worker_finds_it_again_from_the_runs_name(file):
    """What goes to a worker is the spec and the run, words and numbers: the module is read there."""
    fixed = {"task": "tests.compare.tiny:task", "device": "cpu", "epochs": 2, "methods": [f"{file}:Half"]}
    here = train(resolve(fixed), Run(f"{file}:Half", 0.1, 0))
    sent = pickle.dumps((resolve(fixed), Run(f"{file}:Half", 0.1, 0)))
    forget()
    there = train(*pickle.loads(sent))
    assert there["test_accuracy"] == here["test_accuracy"] and there["label"] == "Half"


def test_recommended_is_the_functions_own(monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = parse("recommended").build(model, optimizer, value=None, seed=0, total_steps=9)
    expected = steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    assert (sharp.ascent, sharp.schedule, sharp.combine) == (expected.ascent, expected.schedule, expected.combine)
    assert parse("recommended:p=1,samples=4").settings == {"p": 1.0, "samples": 4}


def test_bench_rho_and_finetune_take_them(file, tmp_path, capsys):
    out = str(tmp_path / "bench.json")
    methods = f"recommended,{file}:Half:rho=0.1,{file}:ByHand"
    small = ["--shape", "1,8,8", "--batch-size", "4", "--steps", "2", "--budget", "1"]
    assert main(["bench", "--model", "mlp", "--methods", methods, *small, "--out", out, "--json"]) == 0
    assert {"recommended", f"{file}:ByHand"} <= set(json.loads(capsys.readouterr().out)["methods"])
    words = ["--task", "tests.compare.tiny:task", "--epochs", "2", "--trial", "0", "--json"]
    assert main(["rho", f"{file}:Half", *words]) == 0 and json.loads(capsys.readouterr().out)["rho"] > 0
    assert main(["rho", f"{file}:ByHand", *words]) == 2
    assert "there is no radius to find, as it has none" in capsys.readouterr().err
    training = {"learning_rate": 0.1, "weight_decay": 0.0, "optim": "adamw_torch"}
    for name in ("recommended", f"{file}:Half:rho=0.1"):
        assert isinstance(finetuned.rehearse(finetuned.check(name), net(), training), steppe.SharpnessAware)
    with pytest.raises(ValueError, match="its recipe gives a ByHand; expected a steppe object"):
        finetuned.rehearse(f"{file}:ByHand", net(), training)
    with pytest.raises(ValueError, match="needs one loss per sample .*the Trainer has the mean loss only"):
        finetuned.rehearse(f"{file}:hardest", net(), training)


def test_its_card(file, capsys):
    assert main(["methods", f"{file}:Half"]) == 0 and "Half of the radius." in capsys.readouterr().out
    assert main(["methods", "--json"]) == 0 and json.loads(capsys.readouterr().out)[0]["name"] == "recommended"
