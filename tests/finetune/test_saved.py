"""What a fine-tuning left, taken up: answers to further texts, evaluated, compared, trained further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.finetune.cases import FEW, flags, run, sentences

from steppe._command.saved import base_and_adapter, trained_in
from steppe.cli import main
from steppe.compare.data import corpora
from steppe.evaluate.request import Request
from steppe.finetune.predict import predict
from steppe.finetune.run import prepare
from steppe.finetune.spec import resolve
from steppe.text.models import causal, classifier
from steppe.text.tokens import encode


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder, test=sentences(folder, "test.txt"), training={"max_steps": 12, "learning_rate": 0.05})
    return folder


def test_the_answers_are_those_that_were_measured(trained: Path) -> None:
    result = json.loads((trained / "out" / "result.json").read_text())
    found = predict(str(trained / "out"), str(trained / "test.txt"))
    assert found["accuracy"] == result["metrics"]["accuracy"] and found["per_class"] == result["per_class"]
    assert found["majority"] == result["majority"]
    right = [row["answer"] == row["label"] for row in found["rows"]]
    assert sum(right) / len(right) == found["accuracy"] and all(0.5 <= r["probability"] <= 1 for r in found["rows"])


def test_texts_without_labels(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "new.jsonl").write_text('{"text": "a good film ."}\n{"text": "dull plot"}\n')
    assert main(["predict", str(trained / "out"), "--data", str(trained / "new.jsonl")]) == 0
    lines = [json.loads(line) for line in (trained / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a good film .", "dull plot"]
    assert all(line["label"] is None and line["answer"] in "01" for line in lines)
    assert "2 answers: " in capsys.readouterr().out


def test_the_table_of_the_classes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(trained / "out"), "--data", str(trained / "test.txt"), "--out", str(tmp_path / "p.jsonl")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "precision %" in printed and "accuracy " in printed and "on 20 examples" in printed
    assert "always answering" in printed
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 20


def test_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished fine-tuning; give the --out of steppe finetune"):
        predict(str(tmp_path), "x.txt")
    (tmp_path / "odd.txt").write_text("7 a film")
    with pytest.raises(ValueError, match="has the label '7', which the training data has not"):
        predict(str(trained / "out"), str(tmp_path / "odd.txt"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="has saved nothing yet; go on with steppe finetune --resume --out"):
        trained_in(str(tmp_path / "begun"))


def test_a_text_without_a_token_has_no_answer(tmp_path: Path) -> None:
    run(tmp_path, "gpt2", task="classify", data=sentences(tmp_path), training={"max_steps": 1})
    (tmp_path / "new.jsonl").write_text('{"text": "a film"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match="1 of 2 texts, such as '', are no token to the model"):
        predict(str(tmp_path / "out"), str(tmp_path / "new.jsonl"))


def test_a_model_may_be_a_fine_tuning_and_its_adapter_becomes_part_of_it(trained: Path) -> None:
    """As `compare --model hf:RUN`, `bench` and `finetune --model RUN` load it."""
    model, tokenizer = classifier(str(trained / "out"), ["0", "1"], None, 0)
    assert base_and_adapter(str(trained / "out")) == (str(trained / "bert"), str(trained / "out" / "adapter"))
    assert all(weight.requires_grad for weight in model.parameters())
    texts = ["a good film .", "dull plot"]
    with torch.no_grad():
        scores = model.eval()(**encode(tokenizer, texts, 24)).logits.softmax(1)
    (trained / "two.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    told = predict(str(trained / "out"), str(trained / "two.jsonl"))["rows"]
    assert [row["probability"] for row in told] == pytest.approx(scores.max(1).values.tolist(), rel=1e-5)


def test_its_tokenizer_is_found_and_a_classifier_is_no_language_model(trained: Path) -> None:
    texts = [corpora.source(str(trained / "test.txt"), str(trained / each), 24, None, None) for each in ("out", "bert")]
    assert all(torch.equal(a, b) for a, b in zip(*(each.pool.x.values() for each in texts), strict=True))
    with pytest.raises(ValueError, match="holds a classifier, .* measure it with steppe predict .* --data FILE"):
        Request(str(trained / "out"))


def test_training_goes_on_from_a_fine_tuning(trained: Path, tmp_path: Path) -> None:
    given = flags(tmp_path) | {"model": str(trained / "out")}
    begun = prepare(resolve(given, FEW)).model
    whole = classifier(str(trained / "out"), ["0", "1"], None, 0)[0].state_dict()
    part = "bert.encoder.layer.0.attention.self.query"
    assert torch.equal(begun.state_dict()[f"base_model.model.{part}.base_layer.weight"], whole[f"{part}.weight"])
    further = flags(tmp_path, adapter=str(trained / "out")) | {"out": str(tmp_path / "further")}
    assert prepare(resolve(further | {"model": str(trained / "bert")}, FEW))


def test_evaluate_takes_a_fine_tuning(tmp_path: Path) -> None:
    run(tmp_path, "gpt2", method="base", training={"max_steps": 2})
    assert Request(str(tmp_path / "out"), ("x.jsonl",)).model == str(tmp_path / "out" / "adapter")
    lone, _ = causal(str(tmp_path / "out"), None, 0)
    assert all(weight.requires_grad for weight in lone.parameters())
    with pytest.raises(ValueError, match="holds a language model, which gives no classes; measure it with steppe eval"):
        predict(str(tmp_path / "out"), "x.txt")
