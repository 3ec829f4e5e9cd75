"""What chooses (the best checkpoint, early stopping) looks at validation examples, and at the test once, at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.finetune.cases import FEW, dialogues, flags, run, sentences
from tests.text import tiny
from transformers import Trainer, TrainerCallback

from steppe.finetune import measure
from steppe.finetune import run as running
from steppe.finetune.data import examples
from steppe.finetune.run import prepare, train
from steppe.finetune.spec import resolve
from steppe.finetune.watch import Quiet

BEST = FEW | {"load_best_model_at_end": True, "max_steps": 8, "lr_scheduler_type": "constant"}


def texts(found: Any) -> set[str]:
    return set(found.texts)


def numbered(folder: Path, name: str = "train.txt", count: int = 40) -> str:
    """Every line is another text."""
    (folder / name).write_text("\n".join(f"{i % 2} {name} {i}" for i in range(count)))
    return str(folder / name)


def settings(folder: Path, training: dict[str, Any] | None = None, **more: Any) -> Any:
    return resolve(flags(folder) | {"data": numbered(folder)} | more, FEW | (training or {}))


def test_three_parts_have_no_example_in_common_and_the_validation_is_of_what_is_labelled(tmp_path: Path) -> None:
    found = examples(settings(tmp_path, held_out=0.25, validation="0.2", examples=20))
    assert (len(found.train), len(found.validation), len(found.test)) == (16, 4, 10)
    assert len(texts(found.train) | texts(found.validation) | texts(found.test)) == 30
    assert found.validation.names == found.train.names


def test_data_of_its_own(tmp_path: Path) -> None:
    other = numbered(tmp_path, "val.txt", 6)
    found = examples(settings(tmp_path, validation=other))
    assert (len(found.train), len(found.validation)) == (36, 6)
    (tmp_path / "val.txt").write_text("7 what")
    with pytest.raises(ValueError, match="the validation data .* has the label '7', which the training data has not"):
        examples(settings(tmp_path, validation=other))


@pytest.mark.parametrize(
    "training",
    [
        {"load_best_model_at_end": "true"}, {"eval_strategy": "steps"},
        {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    ],
)  # fmt: skip
def test_whatever_looks_gets_a_validation_part(tmp_path: Path, training: dict[str, Any]) -> None:
    made = settings(tmp_path, training)
    assert made.validation == 0.1 and made.decisive()["validation"] == 0.1
    ready = prepare(made)
    trainer = running.make_trainer(ready, running.Watch(Quiet()))
    assert trainer.eval_dataset == ready.tokens.validation and len(trainer.eval_dataset) == 4
    assert settings(tmp_path).validation is None


def test_the_best_step_on_the_validation_is_saved_and_the_test_has_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation's curve is scripted: step 4 is best, the last is worst."""
    curve, seen = iter([0.9, 0.2, 0.8, 0.7]), []
    real = Trainer.evaluate

    def scripted(self: Any, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        seen.append(len(self.get_eval_dataloader(eval_dataset).dataset))
        found = real(self, eval_dataset, *args, **kwargs) | {"eval_loss": next(curve)}
        self.state.log_history[-1]["eval_loss"] = found["eval_loss"]
        return found

    ready = prepare(resolve(flags(tmp_path, held_out=0.25, validation=0.2, method="sam"), BEST))
    kept: dict[int, Any] = {}

    class Weights(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            kept[state.global_step] = {n: w.clone() for n, w in ready.model.named_parameters() if w.requires_grad}

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", scripted)
        patch.setattr(running, "Watch", _with(Weights()))
        result = train(ready, Quiet())
    assert seen == [3, 3, 3, 3]
    assert result["best"] == {"step": 4, "metric": "loss", "value": 0.2} and result["steps"] == 8
    assert all(torch.equal(w, kept[4][n]) for n, w in ready.model.named_parameters() if w.requires_grad)
    assert (result["data"]["train"], result["data"]["validation"], result["data"]["test"]) == (12, 3, 5)
    assert 0 <= result["validation"]["accuracy"] <= 1


def _with(callback: TrainerCallback) -> Any:
    class Both(running.Watch):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_step_end(*args, **kwargs)
            callback.on_step_end(*args, **kwargs)

    return Both


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize("method", ["base", "sam"])
def test_patience_ends_a_training_once_also_when_it_is_resumed(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a learning rate of almost nothing no look is better than the first by what a float32 shows."""
    training = {"learning_rate": 1e-12, "max_steps": 20, "lr_scheduler_type": "constant"}
    monkeypatch.setattr(running.Patience, "check_metric_value", _never_better)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(measure, "metrics", killed)
        run(tmp_path, training=training, patience=2, method=method)
    result = run(tmp_path, training=training, patience=2, method=method, resume=True)
    assert result["steps"] == result["resumed_at"] == 4
    assert result["settings"]["training"]["load_best_model_at_end"] and result["settings"]["validation"] == 0.1
    assert len([row for row in result["curve"] if "eval_loss" in row]) == 2


def _never_better(self: Any, *_: Any) -> None:
    self.early_stopping_patience_counter += 1


def test_a_language_model_too(tmp_path: Path) -> None:
    result = run(tmp_path, "gpt2", training={"load_best_model_at_end": True}, validation=dialogues(tmp_path, "v.jsonl"))
    assert set(result["validation"]) == {"loss", "perplexity"} and result["best"]["step"] in (2, 4, 6)


@pytest.mark.parametrize("body", ["gpt2", "bert"])
def test_the_best_is_chosen_by_the_figure_that_is_told(tmp_path: Path, body: str) -> None:
    """Not by a mean over batches, here of one to three examples each, nor by the loss of smoothed labels."""
    more = {} if body == "bert" else {"validation": dialogues(tmp_path, "v.jsonl")}
    changing = {"label_smoothing_factor": 0.2, "dataloader_drop_last": True, "per_device_eval_batch_size": 5}
    result = run(tmp_path, body, training={"load_best_model_at_end": True} | changing, **more)
    looks = {row["step"]: row["eval_loss"] for row in result["curve"] if "eval_loss" in row}
    assert result["validation"]["loss"] == result["best"]["value"] == looks[result["best"]["step"]]


@pytest.mark.parametrize(
    ("more", "training", "sentence"),
    [
        ({"validation": 1.5}, {}, "validation must be a share between 0 and 1, or data in the form of the"),
        ({"validation_split": "dev"}, {}, "validation_split='dev' is given without validation data"),
        ({"validation": "hf:trec"}, {}, "--validation hf:trec is given without --validation-split"),
        ({"validation": "DATA"}, {}, "--validation .* is the training data itself; .* such as --validation 0.1"),
        ({"validation": "TEST", "test": "TEST"}, {}, "--validation .* is the test data itself"),
        ({"patience": 0}, {}, "patience must be"),
        ({"patience": 1}, {"save_strategy": "no"}, "patience = 1 counts looks at the validation examples, and with ev"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, more: dict[str, Any], training: dict[str, Any], sentence: str) -> None:
    tiny.save(tmp_path / "bert")
    places = {"DATA": sentences(tmp_path), "TEST": sentences(tmp_path, "test.txt")}
    with pytest.raises(ValueError, match=sentence):
        resolve(
            flags(tmp_path, **{k: places.get(v, v) if isinstance(v, str) else v for k, v in more.items()}), training
        )
