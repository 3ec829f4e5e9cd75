"""Models of a few thousand weights from Hugging Face configurations: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH = 32, 6


def classifier(seed: int = 0) -> nn.Module:
    """BERT of one layer, with dropout."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LENGTH, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def with_lora(model: nn.Module) -> nn.Module:
    """The same, frozen, with adapters that are already away from zero."""
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"], lora_dropout=0.1)
    model = peft.get_peft_model(model, config)
    for name, param in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(param, std=0.1)
    return model


def language_model(seed: int = 0) -> nn.Module:
    """Llama of one layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, attention_dropout=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sentences(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Random sentences with a class each."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(3, VOCABULARY, (LENGTH,), generator=draw),
            "labels": torch.randint(3, (), generator=draw),
        }
        for _ in range(count)
    ]


def texts(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Token sequences of different lengths, padded, with labels for language modelling."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=draw)
        seen = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (), generator=draw)).long()
        rows.append({"input_ids": ids * seen, "attention_mask": seen, "labels": torch.where(seen > 0, ids, -100)})
    return rows
