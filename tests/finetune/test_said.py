"""What a result says of itself: runs that diverged or only guess, each class, what was not finite from the start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sklearn.metrics import classification_report
from tests.finetune.cases import FEW, flags, run

from steppe.finetune import measure, watch
from steppe.finetune.example import _diverged
from steppe.finetune.run import prepare
from steppe.finetune.spec import resolve
from steppe.finetune.table import summary
from steppe.finetune.watch import Losses, why_diverged

MODEL = torch.nn.Linear(1, 1)


def losses(*values: float) -> Losses:
    made = Losses()
    for i, value in enumerate(values):
        made.add(torch.tensor(value), i / len(values))
    return made


def test_tenths_of_the_way_and_through_a_checkpoint() -> None:
    found = losses(*range(40))
    assert found.ends == (1.5, 37.5)
    again = Losses(**json.loads(json.dumps(found.state())))
    again.add(137.5, 0.99)
    assert again.ends == (1.5, 57.5)
    assert losses(3.0).ends == (3.0, 3.0) and Losses().ends is None


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((0.7, 0.5), None), ((0.01, 1.3), None),
        ((0.7, 1.5), "its loss rose from 0.7 in the first tenth to 1.5 in the last"),
        ((0.7, math.inf), "its loss or weights are not finite"),
        ((0.7, math.nan), "its loss or weights are not finite"),
    ],
)  # fmt: skip
def test_a_loss_that_ran_away(values: tuple[float, ...], why: str | None) -> None:
    """Two classes: a loss of ln 2 is that of a coin, and twice that is worse than knowing nothing."""
    found = why_diverged(MODEL, losses(*values), math.log(2))
    assert found is None if why is None else found and found.startswith(why)


def test_weights_that_are_not_finite_are_enough() -> None:
    spoilt = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(spoilt.weight, math.nan)
    assert why_diverged(MODEL, Losses(), 1.0) is None and why_diverged(spoilt, Losses(), 1.0)


@pytest.mark.parametrize("method", ["base", "sam"])
def test_an_explosion_is_marked_everywhere(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    wild = {"learning_rate": 30.0, "optim": "sgd", "max_grad_norm": 0, "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2}  # fmt: skip
    ready = prepare(resolve(flags(tmp_path, method=method, full=True), FEW | wild))
    result = watch_on(ready)
    assert result["diverged"] and "its loss rose from" in result["why_diverged"]
    assert capsys.readouterr().err.count("warning: the training diverged: its loss rose from") == 1
    said = _diverged([result, run(tmp_path / "good", method=method)])
    assert said.startswith(" Diverged") and said.count("with seed 0") == 1


def watch_on(ready: Any) -> dict[str, Any]:
    from steppe.finetune.run import train

    return train(ready, watch.on(Console(stderr=True)))


def test_each_class_and_the_commonest_answer(tmp_path: Path) -> None:
    result = run(tmp_path, held_out=0.25, training={"max_steps": 2})
    assert [row["class"] for row in result["per_class"]] == ["0", "1"]
    assert sum(row["examples"] for row in result["per_class"]) == 5 == result["data"]["test"]
    right = sum(row["recall"] * row["examples"] for row in result["per_class"])
    assert right / 5 == pytest.approx(result["metrics"]["accuracy"])
    assert result["majority"]["class"] in "01" and isinstance(result["at_chance"], bool)
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    console.print(summary(result))
    shown = console.export_text()
    assert f"always answering '{result['majority']['class']}', the commonest, has" in shown and "% of " in shown


def test_a_loss_that_is_not_a_number_is_not_told_as_zero(tmp_path: Path) -> None:
    """The last steps are after weights of 1e30; the Trainer's own log has 0.0 there."""
    result = run(tmp_path, training={"learning_rate": 1e30, "max_steps": 3}, method="base", examples=4, held_out=0.05)
    logged = [row["loss"] for row in result["curve"] if "loss" in row]
    assert len(logged) == 3 and math.isfinite(logged[0]) and math.isnan(logged[-1]) and 0.0 not in logged
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    console.print(summary(result))
    shown = console.export_text()
    assert "so the result means nothing" in shown and "loss nan on 1 example held out" in shown


def test_figures_of_classes_are_scikit_learns() -> None:
    draw = torch.Generator().manual_seed(0)
    labels, answers = (torch.randint(0, 3, (50,), generator=draw).tolist() for _ in range(2))
    expected = classification_report(labels, answers, output_dict=True)
    for i, row in enumerate(measure.per_class(labels, answers, ["a", "b", "c"])):
        told = expected[str(i)]
        assert (row["class"], row["examples"]) == ("abc"[i], told["support"])
        assert (row["precision"], row["recall"], row["f1"]) == (told["precision"], told["recall"], told["f1-score"])
    none_right = measure.per_class([1, 1], [0, 0], ["a", "b"])
    assert [str(row["examples"]) for row in none_right] == ["0", "2"], "which scikit-learn gives as 0.0 and 2.0 then"


def test_the_commonest_class_is_the_trainings_and_its_accuracy_the_tests() -> None:
    assert measure.majority([0, 1, 1], [0, 0, 0, 1], ["a", "b"]) == {"class": "b", "accuracy": 0.25}


@pytest.mark.parametrize(("accuracy", "examples", "chance"), [(0.55, 100, True), (0.65, 100, False), (0.65, 20, True)])
def test_chance_has_an_error_too(accuracy: float, examples: int, chance: bool) -> None:
    assert measure.at_chance(accuracy, 0.5, examples) is chance


def test_a_spoilt_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = flags(tmp_path)
    place = Path(given["model"], "model.safetensors")
    weights = load_file(place)
    name = next(name for name in weights if "query.weight" in name)
    weights[name][0, 0] = math.nan
    save_file(weights, place, {"format": "pt"})
    with pytest.raises(ValueError, match=r"bert holds values that are not finite, the first in .*query.*weight: train"):
        prepare(resolve(given, FEW))
    assert not (tmp_path / "out").exists()


def test_a_long_measurement_tells_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    shown = watch.Lines(Console(stderr=True))
    for done in range(1, 101):
        now[0] += 1
        shown.measured(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[11/100] batches measured" and len(lines) == 9


@pytest.mark.parametrize("body", ["bert", "gpt2"])
def test_the_progress_of_the_test_is_told(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(watch.Quiet, "measured", lambda self, done, total: told.append((done, total)))
    run(tmp_path, body, training={"per_device_eval_batch_size": 1, "max_steps": 1}, validation=0.2, held_out=0.2)
    assert told[: told[0][1]] == [(i, told[0][1]) for i in range(1, told[0][1] + 1)]
