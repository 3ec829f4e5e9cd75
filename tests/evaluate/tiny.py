"""A GPT-2 of a few thousand weights and a tokenizer of bytes, saved as users save theirs; nothing is downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = "ant bee cat dog elk fox gnu hen ibis jay kiwi lynx mole newt owl pig".split()


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "<|end|>"])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<|end|>", bos_token="<|end|>")


def gpt2(folder: Path, *, width: int = 16, layers: int = 1, seed: int = 0) -> str:
    """Weights large enough that its answers differ from question to question."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=257, n_positions=256, n_embd=width, n_layer=layers, n_head=2, bos_token_id=256, eos_token_id=256,
        initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def classifier(folder: Path) -> str:
    config = BertConfig(
        vocab_size=257, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def adapter(folder: Path, base: str, kind: dict[str, Any] | None = None, **changes: Any) -> str:
    """A LoRA adapter of `base` that is away from zero; `changes` are written into its adapter_config.json."""
    kind = {"target_modules": ["c_attn"]} | (kind or {})
    model = peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(base),
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, **kind),
    )
    torch.manual_seed(1)
    for name, param in model.named_parameters():
        if any(part in name for part in ("lora_B", "lora_embedding_A", "modules_to_save", "token_adapter")):
            nn.init.normal_(param, std=1.0)
    model.save_pretrained(folder)
    notes = folder / "adapter_config.json"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | changes))
    return str(folder)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with two to four answers; some texts look like templates, which they are not."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        choices = draw.sample(WORDS, draw.choice([2, 3, 4]))
        query = f"Which of {{{{these}}}} is animal {number} {' '.join(draw.sample(WORDS, 3))}?\n"
        made.append({"query": query, "choices": choices, "gold": draw.randrange(len(choices))})
    return made


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)
