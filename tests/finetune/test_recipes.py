"""Every recipe runs in small, on a stand-in of its architecture and on local data."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.finetune.cases import dialogues, sentences
from tests.text import tiny

from steppe._command.files import read_json
from steppe.cli import main
from steppe.finetune.recipes import about, names, recipe
from steppe.finetune.run import finetune
from steppe.finetune.spec import resolve

BODIES = {
    "roberta-large-few-shot": "roberta", "roberta-large-glue": "roberta", "roberta-glue-sl-sam": "roberta",
    "opt-1.3b-few-shot": "opt", "gpt2-medium-webnlg": "gpt2", "llama-3.2-3b-platypus": "llama",
}  # fmt: skip


def test_every_recipe_has_a_stand_in() -> None:
    assert sorted(BODIES) == names()


@pytest.mark.parametrize("name", BODIES)
def test_recipes_are_complete_and_say_where_they_come_from(name: str) -> None:
    found = about(name)
    assert {"title", "paper", "note", "published"} == set(found)
    assert re.search(r"arXiv \d{4}\.\d{5}", found["paper"])
    settings = resolve({} if "data" in recipe(name) else {"data": "mine.jsonl"}, name=name)
    asked = recipe(name)
    for key, value in asked["training"].items():
        assert settings.training[key] == value
    assert (settings.model, settings.full, settings.method.partition(":")[0]) == (
        asked["model"], asked.get("full", False), asked["method"].partition(":")[0],
    )  # fmt: skip
    assert settings.out == f"results/finetune/{name}" + ("" if "data" in asked else "-mine")


@pytest.mark.parametrize("name", BODIES)
def test_recipes_run_in_small(name: str, tmp_path: Path) -> None:
    body = BODIES[name]
    path = tiny.save(tmp_path / "model", body)
    data = dialogues(tmp_path) if recipe(name).get("task") == "causal-lm" else sentences(tmp_path)
    given = {"model": path, "data": data, "out": str(tmp_path / "out"), "max_length": tiny.LENGTH}
    if body == "opt":
        given["targets"] = "q_proj,v_proj"
    result = finetune(resolve(given, {"max_steps": 2, "bf16": "false", "fp16": "false"}, name))
    asked = recipe(name)
    assert result["steps"] == 2 and result["settings"]["method"].startswith(asked["method"].partition(":")[0])
    assert result["settings"]["training"]["learning_rate"] == asked["training"]["learning_rate"]
    assert result["method"]["pairs"] == (None if asked.get("full") else 1 if body == "gpt2" else 2)


PAPERS = [
    ("opt-1.3b-few-shot", {"examples": 1000, "per_class": None},
     {"per_device_train_batch_size": (2, 4, 8), "learning_rate": (1e-5, 1e-4, 5e-4), "fp16": (True,)}),
    ("roberta-large-few-shot", {"per_class": 512, "examples": None},
     {"max_steps": (1000,), "per_device_train_batch_size": (16,), "learning_rate": (1e-4, 3e-4, 5e-4)}),
    ("roberta-large-glue", {"r": 8}, {"weight_decay": (0.0,), "warmup_steps": (0.06,)}),
    ("gpt2-medium-webnlg", {"r": 4, "alpha": 32.0},
     {"num_train_epochs": (5,), "per_device_train_batch_size": (8,), "label_smoothing_factor": (0.1,)}),
    ("roberta-glue-sl-sam", {"max_length": 512},
     {"num_train_epochs": (30,), "per_device_train_batch_size": (16,), "learning_rate": (1e-5,)}),
    ("llama-3.2-3b-platypus", {}, {"num_train_epochs": (1,), "per_device_train_batch_size": (2,), "bf16": (True,)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "training"), PAPERS, ids=[name for name, *_ in PAPERS])
def test_recipes_are_the_papers(name: str, own: dict[str, Any], training: dict[str, tuple[Any, ...]]) -> None:
    """What the papers say, or one of the values that they search over; a comment in the file names what is ours."""
    settings = resolve({} if "data" in recipe(name) else {"data": "mine.jsonl"}, name=name)
    assert {key: getattr(settings, key) for key in own} == own
    assert all(settings.training[key] in values for key, values in training.items())


def test_recipes_say_where_they_part_from_the_papers() -> None:
    assert "by prompts, without" in about("roberta-large-few-shot")["note"]
    assert "weight decay 0.1 but for CoLA" in about("roberta-large-glue")["note"]
    assert "with a head" in about("opt-1.3b-few-shot")["note"]


def test_a_recipe_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "bert")
    sentences(tmp_path)
    Path("mine.toml").write_text(
        'model = "bert"\ndata = "train.txt"\nr = 2\nmethod = "sam:rho=0.1"\n[training]\nmax_steps = 2\nbf16 = false\n'
    )
    assert main(["finetune", "--recipe", "mine.toml", "--max-steps", "3", "--out", "a"]) == 0
    found = read_json(tmp_path / "a" / "result.json")
    assert (found["settings"]["r"], found["settings"]["method"], found["steps"]) == (2, "sam:rho=0.1", 3)
    assert "LoRA-SAM (rho=0.1)" in capsys.readouterr().out


def test_the_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--recipe", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names())


def test_other_data_than_the_recipes_drops_the_recipes_columns() -> None:
    settings = resolve({"data": "mine.csv"}, name="roberta-large-glue")
    assert (settings.text, settings.test, settings.test_split) == ("text", None, None)
    assert settings.targets == ["query", "value"]
    assert resolve({"model": "mine"}, name="roberta-large-glue").targets is None
    assert resolve({"data": "mine.csv", "text": "a,b"}, name="roberta-large-glue").text == "a,b"
