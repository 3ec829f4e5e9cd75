import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.evaluate import tiny
from transformers import GPT2LMHeadModel

from steppe.evaluate import model
from steppe.evaluate.request import Request


def load(base, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's would stand beside the one sentence
        return model.load(Request(base, ("x.jsonl",), **settings))


def test_a_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a BertForSequenceClassification; expected a causal language model"):
        load(tiny.classifier(tmp_path / "bert"))


def test_an_adapter_of_a_wider_model_is_refused(lora, tmp_path):
    wider = tiny.gpt2(tmp_path / "tiny-gpt2", width=24)
    with pytest.raises(ValueError, match="could not be put on .* most likely it belongs to another model"):
        load(wider, adapter=lora)


def test_an_adapter_of_a_deeper_model_is_refused_though_peft_would_load_it(lora, base, tmp_path):
    deeper = tiny.gpt2(tmp_path / "tiny-gpt2", layers=2)
    with pytest.raises(ValueError, match="belongs to another model than .*: 2 tensors do not match, the first is"):
        load(deeper, adapter=lora)
    other = tiny.adapter(tmp_path / "lora", deeper)
    with pytest.raises(ValueError, match="2 tensors do not match"):
        load(base, adapter=other)


@pytest.mark.parametrize(
    "kind",
    [
        {"modules_to_save": ["wte"]}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["wte", "lm_head"]},
        {"target_modules": ["c_attn", "lm_head"]}, {"target_modules": ["wte"]}, {"trainable_token_indices": [65, 66]},
    ],
    ids=str,
)  # fmt: skip
def test_an_embedding_or_a_head_that_an_adapter_brings_is_as_peft_has_it(kind, base, tmp_path):
    """GPT-2's head is its embedding: lm-eval ties them once more behind the adapter, where one of them is another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = tiny.adapter(tmp_path / "lora", base, kind)
        mine = model.load(Request(base, ("x.jsonl",), adapter=folder)).model
        theirs = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), folder).eval()
    tokens = torch.arange(60, 80)[None]
    assert torch.equal(mine(tokens).logits, theirs(tokens).logits)
    assert not torch.equal(mine(tokens).logits, GPT2LMHeadModel.from_pretrained(base)(tokens).logits)


def test_an_adapter_of_other_layers_is_refused(base, tmp_path):
    other = tiny.adapter(tmp_path / "lora", base, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="belongs to another model"):
        load(base, adapter=other)


def test_an_adapter_that_names_another_base_is_refused_unless_told_otherwise(base, tmp_path):
    other = tiny.adapter(tmp_path / "lora", base, base_model_name_or_path="somebody/other-gpt2")
    with pytest.raises(ValueError, match="belongs to 'somebody/other-gpt2'.*or --same-base"):
        load(base, adapter=other)
    assert load(base, adapter=other, same_base=True).model.peft_config


def test_a_base_that_moved_is_still_the_base(base, lora, tmp_path):
    moved = shutil.copytree(base, tmp_path / Path(base).name)
    assert model.sources(Request(str(moved), ("x.jsonl",), adapter=lora)) == (str(moved), lora)
    cached = tmp_path / "models--owner--name" / "snapshots" / "1234"
    shutil.copytree(base, cached)
    named = tiny.adapter(tmp_path / "lora", base, base_model_name_or_path="owner/name")
    assert model.sources(Request(str(cached), ("x.jsonl",), adapter=named))[0] == str(cached)


def test_an_adapter_alone_brings_its_base(base, lora):
    assert model.sources(Request(lora, ("x.jsonl",))) == (base, lora)
    assert load(lora).model.peft_config


def test_an_adapter_alone_that_names_no_base_is_refused(base, tmp_path):
    nameless = tiny.adapter(tmp_path / "lora", base, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base; give the base model, and this as --adapter"):
        load(nameless)
    assert load(base, adapter=nameless).model.peft_config


def test_an_adapter_of_a_classifier_is_refused(base, tmp_path):
    other = tiny.adapter(tmp_path / "lora", base, task_type="SEQ_CLS")
    with pytest.raises(ValueError, match="was trained for SEQ_CLS; expected one of a causal language model"):
        load(base, adapter=other)


def test_an_adapter_that_cannot_be_read_is_refused(base, lora, tmp_path):
    broken = shutil.copytree(lora, tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="could not be read: expected a folder that PEFT saved"):
        load(base, adapter=str(broken))
    half = shutil.copytree(lora, tmp_path / "half")
    weights = half / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="could not be put on"):
        load(base, adapter=str(half))


def test_a_model_without_weights_or_tokenizer_is_refused(base, tmp_path):
    without = shutil.copytree(base, tmp_path / "weightless")
    (without / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="weightless could not be loaded"):
        load(str(without))
    half = shutil.copytree(base, tmp_path / "half")
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="half could not be loaded"):
        load(str(half))


def test_a_hub_that_is_not_there_is_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(model.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"a hub id while the hub is there \(We couldn't connect to the hub\)$"):
        load("owner/name")


def test_what_was_measured_is_described(base):
    lm = load(base, dtype="bfloat16")
    described = model.described(lm)
    assert described["dtype"] == "bfloat16" and described["architecture"] == ["GPT2LMHeadModel"]
    assert described["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert not lm.model.training and next(lm.model.parameters()).dtype == torch.bfloat16
