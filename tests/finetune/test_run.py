import json
import math
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from tests.finetune.cases import FEW, dialogues, flags, run, sentences, undropped
from tests.text import tiny
from transformers import AutoModelForSequenceClassification

from steppe.finetune import measure
from steppe.finetune.run import finetune, make_trainer, prepare, train
from steppe.finetune.spec import resolve
from steppe.finetune.watch import Quiet, Watch
from steppe.methods import METHODS
from steppe.text.models import causal, tokenizer_of
from steppe.text.readers import read
from steppe.text.tokens import encode


def test_the_result_is_one_json_that_says_what_was_done(tmp_path: Path) -> None:
    result = run(tmp_path, method="nbar", held_out=0.25)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["settings"]["method"] == "nbar" and result["settings"]["training"]["max_steps"] == 6
    assert 0 <= result["metrics"]["accuracy"] <= 1 and result["metrics"]["loss"] > 0
    (copies,) = result["data"].pop("notes")
    assert copies.startswith("5 of the 5 test examples (100 %) have inputs")
    assert result["data"] == {
        "train": 15, "test": 5, "held_out": True, "classes": ["0", "1"], "max_length": tiny.LENGTH, "cut": 0,
        "test_cut": 0, "blocks": None, "validation": None,
    }  # fmt: skip
    assert 0 < result["model"]["trained"] < result["model"]["parameters"]
    assert result["method"]["pairs"] == 2
    begin, end = (result["method"]["balancedness"][when] for when in ("begin", "end"))
    assert set(begin) == set(end) and all(begin[name] > 0 and begin[name] != end[name] for name in begin)
    assert (result["steps"], result["resumed_at"], result["passes_per_step"]) == (6, None, 1.0)
    assert result["seconds"]["step"] > 0 and result["memory"]["peak_bytes"] > 0
    assert [row["step"] for row in result["curve"] if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {"steppe", "torch", "transformers", "peft", "device"} <= set(result["provenance"])


def test_nothing_but_settings_adapter_and_result_is_left(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "result.json", "settings.json"]


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(**inputs).logits


def trained(folder: Path, kind: str = "bert", **more: object) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model in memory as training left it, and the logits that it gives."""
    settings = resolve(flags(folder, kind, **more), FEW)
    ready = prepare(settings)
    train(ready, Quiet())
    return ready.model, encode(ready.tokenizer, ["a good film", "dull plot ."], 12)


def test_plain_peft_loads_the_adapter_of_a_classifier_with_equal_logits(tmp_path: Path) -> None:
    model, inputs = trained(tmp_path, method="sam", kind="bert")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_plain_peft_loads_the_adapter_of_a_language_model_with_equal_logits(tmp_path: Path, kind: str) -> None:
    model, inputs = trained(tmp_path, kind, method="nbar")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "adapter")
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    untrained = causal(str(tmp_path / kind), None, 0)[0]
    assert not torch.equal(logits(untrained, inputs), logits(model, inputs))


def test_a_model_trained_whole_is_saved_whole(tmp_path: Path) -> None:
    model, inputs = trained(tmp_path, full=True, method="look_sam:k=2,push=natural")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert loaded.config.id2label == {0: "0", 1: "1"}
    assert len(tokenizer_of(str(tmp_path / "out" / "model"))) == 20


@pytest.mark.parametrize(
    "method", ["obar", "flat_lora", "bi_lora", "look_sam:k=5,push=natural", "adasam:lr=1e-3", "rst"]
)
def test_methods_on_adapters(tmp_path: Path, method: str) -> None:
    result = run(tmp_path, method=method, training={"max_steps": 3})
    expected = {"sam": 2.0, "adasam": 2.0, "look_sam": 4 / 3}.get(method.partition(":")[0])
    assert result["passes_per_step"] == pytest.approx(expected) if expected else 1 <= result["passes_per_step"] <= 2
    of_factors = method in ("obar", "flat_lora", "bi_lora")
    assert result["method"]["pairs"] == (2 if of_factors else None)
    assert ("LoRA-" in result["method"]["label"]) is not of_factors


@pytest.mark.parametrize(
    ("method", "passes", "logging"),
    [
        ("base", 1.0, {"logging_steps": 7}), ("sam", 2.0, {"logging_strategy": "no"}),
        *(("look_sam:k=5", 1.2, more) for more in ({"logging_steps": 7}, {"logging_steps": 100})),
        ("look_sam:k=5", 1.2, {"logging_strategy": "no"}),
    ],
)  # fmt: skip
def test_passes_are_counted_whatever_is_logged(
    tmp_path: Path, method: str, passes: float, logging: dict[str, object]
) -> None:
    settings = {"max_steps": 10, "logging_first_step": True, "save_strategy": "no"} | logging
    assert run(tmp_path, method=method, training=settings)["passes_per_step"] == passes


def test_sl_sam_trains_everything(tmp_path: Path) -> None:
    assert "sl_sam" in METHODS
    assert run(tmp_path, method="sl_sam", full=True, training={"max_steps": 3})["metrics"]["loss"] > 0


def test_language_models_packed_or_not(tmp_path: Path) -> None:
    single = run(tmp_path / "a", "gpt2", method="nbar")
    packed = run(tmp_path / "b", "gpt2", method="nbar", packing=True)
    loss, perplexity = single["metrics"].values()
    assert list(single["metrics"]) == ["loss", "perplexity"] and perplexity == pytest.approx(math.exp(loss))
    assert single["data"]["blocks"] is None and packed["data"]["blocks"] < packed["data"]["train"]


def test_packing_is_refused_where_the_model_would_mix_the_dialogues(tmp_path: Path) -> None:
    given = flags(tmp_path, "llama", method="nbar", packing=True)
    path = Path(given["model"], "config.json")
    windowed = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | windowed))
    with pytest.raises(ValueError, match=r"sees 2 tokens at a time.*leave the packing out"):
        prepare(resolve(given, FEW))
    assert not Path(given["out"]).exists()


def test_the_loss_of_a_language_model_is_per_token_of_the_responses(tmp_path: Path) -> None:
    """Not per batch: here each response is a batch of its own, and they are of two lengths."""
    given = flags(tmp_path, "llama", test=dialogues(tmp_path, "test.jsonl"), method="base")
    ready = prepare(resolve(given, FEW | {"per_device_eval_batch_size": 1}))
    assert len({sum(label != -100 for label in row["labels"]) for row in ready.tokens.test}) == 2
    first = ready.tokens.test[0]
    first["labels"][0] = first["input_ids"][0]  # as of an empty prompt: a first token follows from nothing
    trainer = make_trainer(ready, Watch(Quiet()))
    total, count = 0.0, 0
    for row in ready.tokens.test:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = ready.model.eval()(input_ids=ids).logits[:, :-1]
        kept = labels[:, 1:] != -100
        total += float(torch.nn.functional.cross_entropy(logits[kept], labels[:, 1:][kept], reduction="sum"))
        count += int(kept.sum())
    assert measure.loss_per_token(trainer, ready.tokens.test) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "more",
    [{}, {"dataloader_drop_last": True, "label_smoothing_factor": 0.2, "prediction_loss_only": True}],
    ids=["plain", "arguments that change the Trainer's own loss"],
)  # fmt: skip
def test_a_classifier_is_measured_by_the_plain_loss_of_every_test_example(
    tmp_path: Path, more: dict[str, object]
) -> None:
    training = FEW | {"per_device_eval_batch_size": 3} | more
    ready = prepare(resolve(flags(tmp_path, held_out=0.25, method="base"), training))
    found = train(ready, Quiet())["metrics"]
    given = ready.model.eval()
    scores = torch.cat([logits(given, encode(ready.tokenizer, [text], 24)) for text in ready.found.test.texts])
    labels = torch.tensor(ready.found.test.labels)
    assert len(labels) == 5
    assert found["accuracy"] == pytest.approx(float((scores.argmax(-1) == labels).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)
    assert ready.arguments.dataloader_drop_last == bool(more.get("dataloader_drop_last"))


def test_the_trainers_arguments_reach_it(tmp_path: Path) -> None:
    ready = prepare(
        resolve(flags(tmp_path), FEW | {"lr_scheduler_type": "cosine", "max_grad_norm": "0.5", "warmup_steps": 2})
    )
    found = ready.arguments
    assert (found.lr_scheduler_type, found.max_grad_norm, found.warmup_steps) == ("cosine", 0.5, 2)
    assert (found.max_steps, found.seed) == (6, 0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        run(tmp_path / name, seed=seed, method="sam") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first["metrics"] == again["metrics"] and first["data"] == again["data"]
    assert other["metrics"]["loss"] != first["metrics"]["loss"]


def test_few_examples_of_each_class(tmp_path: Path) -> None:
    source = sentences(tmp_path, "test.txt")
    ready = prepare(resolve(flags(tmp_path, per_class=3, test=source), FEW))
    assert sorted(ready.found.train.labels) == [0, 0, 0, 1, 1, 1] and len(ready.found.test) == len(read(source))
    assert len(prepare(resolve(flags(tmp_path, examples=5), FEW)).found.train) == 5
    both = prepare(resolve(flags(tmp_path, per_class=5, examples=5), FEW)).found.train
    assert len(both) == 5 and {*both.labels} == {0, 1}, "the cut to 5 leaves the classes mixed"


def test_an_adapter_is_trained_further(tmp_path: Path) -> None:
    run(tmp_path, "gpt2", method="base")
    again = flags(
        tmp_path, "gpt2", method="nbar", adapter=str(tmp_path / "out" / "adapter"), out=str(tmp_path / "more")
    )
    ready = prepare(resolve(again, FEW))
    before = {name: w.clone() for name, w in ready.model.named_parameters() if "lora_B" in name}
    assert before and all(w.abs().sum() > 0 for w in before.values())
    assert all(w.requires_grad for name, w in ready.model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(("body", "method"), [("bert", "sam"), ("gpt2", "base")])
def test_an_accumulated_batch_is_the_same_as_one_batch(tmp_path: Path, body: str, method: str) -> None:
    pieces = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole, parts = (
        finetune(resolve(undropped(tmp_path / name, body, method=method), FEW | more))
        for name, more in (("whole", {}), ("parts", pieces))
    )
    losses = [[row["loss"] for row in found["curve"] if "loss" in row] for found in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert parts["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-4)
