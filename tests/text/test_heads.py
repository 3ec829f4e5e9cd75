from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.text import tiny
from transformers import AutoModelForSequenceClassification

from steppe.text.models import Lora, causal, classifier

peft = pytest.importorskip("peft")

_WIDTHS = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_BODY = _WIDTHS | {"intermediate_size": 16, "max_position_embeddings": tiny.LENGTH}
_BART = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")}
HEADLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", _BODY),
    "DebertaV2Model": ("DebertaV2Config", _BODY | {"type_vocab_size": 0, "pooler_hidden_size": 16}),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": 20, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 24},
    ),
    "RobertaModel": ("RobertaConfig", _BODY | {"pad_token_id": 0}),
    "BartModel": (
        "BartConfig",
        _BART
        | {"vocab_size": 20, "d_model": 16, "max_position_embeddings": tiny.LENGTH, "pad_token_id": 0}
        | {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3},
    ),
    "XLNetModel": (
        "XLNetConfig",
        {"vocab_size": 20, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "pad_token_id": 0},
    ),
}


def headless(folder: Path, kind: str) -> str:
    """A pretrained body without a classification head."""
    config, settings = HEADLESS[kind]
    torch.manual_seed(0)
    getattr(transformers, kind)(getattr(transformers, config)(**settings)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def classes(folder: Path, names: dict[int, str], dtype: torch.dtype = torch.float32) -> str:
    """A trained classifier for classes of these names."""
    path = tiny.save(folder)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(names), id2label=names)
    model.to(dtype).save_pretrained(folder)
    return path


def differing(path: str, lora: Lora | None, names: tuple[str, ...] = ("no", "yes")) -> list[tuple[str, bool]]:
    """Parameters that the seed changes, and whether each is trained."""
    one, other = (dict(classifier(path, names, lora, seed)[0].named_parameters()) for seed in (0, 1))
    return [(name, weight.requires_grad) for name, weight in one.items() if not torch.equal(weight, other[name])]


@pytest.mark.parametrize("targets", [None, ("all-linear",)], ids=["default", "all-linear"])
@pytest.mark.parametrize("kind", HEADLESS)
def test_whatever_is_drawn_is_trained(tmp_path: Path, kind: str, targets: tuple[str, ...] | None) -> None:
    found = differing(headless(tmp_path, kind), Lora(r=2, targets=targets))
    assert any("lora_" not in name for name, _ in found)
    assert [name for name, trained in found if not trained and "original_module" not in name] == []


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_saved_adapter_is_the_whole_classifier(tmp_path: Path, kind: str) -> None:
    path = headless(tmp_path / "base", kind)
    model, _ = classifier(path, 2, Lora(r=2), 5)
    model.eval().save_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = {"input_ids": torch.tensor([[2, 4, 9, 3], [2, 5, 8, 3]])}
    with torch.no_grad():
        assert torch.equal(model(**ids).logits, again(**ids).logits)


def test_a_kept_layer_before_the_head_gets_no_adapter(tmp_path: Path) -> None:
    path = headless(tmp_path, "DistilBertModel")
    AutoModelForSequenceClassification.from_pretrained(path).save_pretrained(path)
    model, _ = classifier(path, 2, Lora(targets=("all-linear",)), 0)
    assert not any("pre_classifier" in name and "lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("lora", [None, Lora()], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_classifier_is_trained_in_float32(tmp_path: Path, dtype: torch.dtype, lora: Lora | None) -> None:
    model, tokenizer = classifier(classes(tmp_path, {0: "no", 1: "yes"}, dtype), ("no", "yes"), lora, 0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer(["good film", "bad film"], return_tensors="pt") | {"labels": torch.tensor([1, 0])}
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_language_model_is_trained_in_float32(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    path = tiny.save(tmp_path, kind)
    transformers.AutoModelForCausalLM.from_pretrained(path).to(dtype).save_pretrained(path)
    assert {weight.dtype for weight in causal(path, None, 0)[0].parameters()} == {torch.float32}
    assert {weight.dtype for weight in causal(path, None, 0, frozen=True)[0].parameters()} == {dtype}
    model, _ = causal(path, Lora(r=2, kind="dora"), 0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {dtype}
    model(input_ids=torch.tensor([[4, 5]]), labels=torch.tensor([[4, 5]])).loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in _trained(model))


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def test_a_head_for_the_same_classes_is_kept(tmp_path: Path) -> None:
    path = classes(tmp_path, {0: "NO", 1: "YES"})
    assert differing(path, None) == []
    assert dict(differing(path, Lora(r=2))).keys() == {
        name for name, _ in differing(path, Lora(r=2)) if "lora_" in name
    }
    head = classifier(path, ("no", "yes"), Lora(r=2), 0)[0].base_model.model.classifier
    assert head.modules_to_save["default"].weight.requires_grad


def test_a_head_without_names_of_classes_is_kept(tmp_path: Path) -> None:
    assert differing(classes(tmp_path, {0: "LABEL_0", 1: "LABEL_1"}), None) == []


@pytest.mark.parametrize("names", [{0: "yes", 1: "no"}, {0: "joy", 1: "fear"}])
def test_a_head_for_other_classes_is_drawn_anew(tmp_path: Path, names: dict[int, str]) -> None:
    path = classes(tmp_path, names)
    assert differing(path, None) == [("classifier.weight", True)]
    assert not classifier(path, ("no", "yes"), None, 0)[0].classifier.bias.any()


def test_classes_are_classes_whatever_the_checkpoint_was_trained_for(tmp_path: Path) -> None:
    path = classes(tmp_path, {0: "no", 1: "yes"})
    model = AutoModelForSequenceClassification.from_pretrained(path, problem_type="multi_label_classification")
    model.save_pretrained(path)
    made, _ = classifier(path, 2, None, 0)
    assert made.config.problem_type == "single_label_classification"
    assert made(input_ids=torch.tensor([[2, 3]]), labels=torch.tensor([1])).loss > 0
