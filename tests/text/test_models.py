import json
from pathlib import Path

import pytest
import torch
from tests.text import tiny

from steppe.text.models import Lora, causal, classifier, tokenizer_of
from steppe.text.tokens import encode

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save(tmp_path_factory.mktemp("bert"))


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_classifier_with_lora_trains_adapters_and_head_alone(bert: str) -> None:
    model, _ = classifier(bert, ("no", "yes", "maybe"), Lora(r=4, alpha=8, dropout=0.1), seed=0)
    names = trained(model)
    assert names and all("lora_" in name or "classifier.modules_to_save" in name for name in names)
    assert {"query", "value"} == {name.split(".lora_")[0].rpartition(".")[2] for name in names if "lora_" in name}
    assert model.config.id2label == {0: "no", 1: "yes", 2: "maybe"} and model.config.label2id["maybe"] == 2
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)


def test_without_lora_everything_is_trained(bert: str) -> None:
    model, _ = classifier(bert, 3, None, seed=0)
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.config.num_labels == 3


def test_the_seed_alone_draws_head_and_adapters(bert: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (classifier(bert, 5, Lora(), seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = {key for key in first if not torch.equal(first[key], other[key])}
    assert any("lora_A" in key for key in drawn) and any("classifier" in key for key in drawn)
    assert not any("lora_B" in key or "base_layer" in key for key in drawn)


@pytest.mark.parametrize(("kind", "part"), [("rslora", "use_rslora"), ("dora", "use_dora")])
def test_kinds_of_adapters(bert: str, kind: str, part: str) -> None:
    model, _ = classifier(bert, 2, Lora(kind=kind), seed=0)
    assert getattr(model.peft_config["default"], part)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_classifier_says_of_a_text_the_same_whatever_is_beside_it(kind: str, tmp_path: Path) -> None:
    """Also where the tokenizer was saved with padding on the left, as for generation."""
    path = Path(tiny.save(tmp_path, kind), "tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    model, tokenizer = classifier(str(tmp_path), 2, None, seed=0)
    short, long = "a good film", "what is the plot of a dull film ?"
    alone, beside = (model.eval()(**encode(tokenizer, texts, 24)).logits[0] for texts in ([short], [short, long]))
    torch.testing.assert_close(alone, beside)


def test_targets_by_name(bert: str) -> None:
    model, _ = classifier(bert, 2, Lora(targets=("key", "intermediate.dense")), seed=0)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(model) if "lora_" in name}
    assert adapted == {"key", "dense"}


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_language_models(tmp_path: Path, kind: str) -> None:
    model, tokenizer = causal(tiny.save(tmp_path, kind), Lora(r=2), seed=0)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id == 3
    assert trained(model) and all("lora_" in name for name in trained(model))


def test_loading_says_nothing(bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    classifier(bert, 7, Lora(), seed=0)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_model_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="^cannot get the model .*give the folder of a saved model") as caught:
        causal("nobody/nothing", None, 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^cannot load a model from the folder"):
        classifier(str(tmp_path), 2, None, 0)


def test_a_model_without_weights(tmp_path: Path) -> None:
    path = tiny.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="^cannot load a model from the folder"):
        classifier(path, 2, None, 0)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="^cannot load a model from the folder"):
        classifier(path, 2, None, 0)


def test_a_tokenizer_that_cannot_pad(tmp_path: Path) -> None:
    made = tiny.tokenizer("gpt")
    made.eos_token = None
    tiny.save(tmp_path, "gpt2")
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        tokenizer_of(str(tmp_path))


def test_bad_targets_and_classes(bert: str) -> None:
    with pytest.raises(ValueError, match="no module 'qeury' to adapt; did you mean 'query'?"):
        classifier(bert, 2, Lora(targets=("qeury",)), 0)
    with pytest.raises(ValueError, match="at least 2 classes, got 1; the data has one label only"):
        classifier(bert, 1, None, 0)


@pytest.mark.parametrize(
    "wrong", [{"r": 0}, {"r": 2.5}, {"r": True}, {"alpha": 0}, {"dropout": 1}, {"kind": "adalora"}]
)
def test_bad_settings_of_adapters(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lora(**wrong)  # type: ignore[arg-type]
