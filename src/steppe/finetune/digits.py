"""The example's data and model: scans of handwritten digits as lines of words, and a small BERT that learns half."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steppe._command.devices import threads
from steppe._command.files import name_beside, write_text
from steppe.text.models import quiet

MODEL, TEST = "model", "test.txt"
KNOWN, PER_CLASS, POOL, WRONG = 7, 50, 60, 0.3
"""Digits below are pretrained on; each seed learns from PER_CLASS of POOL examples of each new digit, WRONG of them
with a wrong label; the others are the test."""

_SHADES, _SIDE = 3, 4  # a word is 2 x 2 pixels, so an image is 4 x 4 words
_WORDS = [f"p{number:02d}" for number in range(_SHADES**4)]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_PRETRAINING = {"epochs": 20, "batch": 64, "lr": 2e-3}


def lines() -> tuple[list[str], list[int]]:
    """All 1,797 images as words, and the digits they show."""
    from sklearn.datasets import load_digits

    found = load_digits()
    shades = (torch.tensor(found.images) / 16 * (_SHADES - 1e-3)).long()
    blocks = shades.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(shades), _SIDE**2, 4)
    numbers = blocks @ torch.tensor([_SHADES**3, _SHADES**2, _SHADES, 1])
    return [" ".join(_WORDS[n] for n in row) for row in numbers.tolist()], list(map(int, found.target))


def prepare_folder(folder: Path, seeds: Sequence[int], *, overwrite: bool = False) -> None:
    """Write the pretrained model, the test lines and the noisy training lines of each seed."""
    texts, digits = lines()
    if overwrite or not (folder / MODEL).is_dir():
        old = [i for i, digit in enumerate(digits) if digit < KNOWN]
        partial = name_beside(folder / MODEL)
        pretrain([texts[i] for i in old], [digits[i] for i in old], partial)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        partial.rename(folder / MODEL)
    new = [i for i, digit in enumerate(digits) if digit >= KNOWN]
    first = [i for digit in range(KNOWN, 10) for i in [j for j in new if digits[j] == digit][:POOL]]
    kept = set(first)
    write_text(folder / TEST, _written((digits[i], texts[i]) for i in new if i not in kept))
    for seed in seeds:
        chosen, labels = noisy([digits[i] for i in first], seed)
        write_text(train_file(folder, seed), _written((labels[k], texts[first[i]]) for k, i in enumerate(chosen)))


def train_file(folder: Path, seed: int) -> Path:
    """The training lines of a seed."""
    return folder / f"train-seed{seed}.txt"


def noisy(digits: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Which examples a seed learns from, PER_CLASS of each digit, and their labels, WRONG of them wrong."""
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(digits), generator=draw).tolist()
    classes = sorted(set(digits))
    chosen = [i for digit in classes for i in [j for j in order if digits[j] == digit][:PER_CLASS]]
    shift = torch.randint(1, len(classes), (len(chosen),), generator=draw).tolist()
    wrong = (torch.rand(len(chosen), generator=draw) < WRONG).tolist()
    labels = [
        classes[(classes.index(digits[i]) + by) % len(classes)] if spoilt else digits[i]
        for i, by, spoilt in zip(chosen, shift, wrong, strict=True)
    ]
    return chosen, labels


def _written(rows: Any) -> str:
    return "".join(f"{label} {text}\n" for label, text in rows)


def pretrain(texts: Sequence[str], digits: Sequence[int], folder: Path) -> None:
    """A BERT of two layers learns the classes ``digits`` of ``texts`` and is saved with its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=_SIDE**2 + 2, num_labels=len(set(digits)), type_vocab_size=1, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # type: ignore[call-arg] # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(config)
    tokens = tokenizer(list(texts), return_tensors="pt")["input_ids"]
    with threads(1):  # more only get into each other's way with matrices as small as these
        fit(model, tokens, torch.tensor(digits))
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit(model: Any, tokens: Tensor, labels: Tensor) -> None:
    """Ordinary training, AdamW with one cycle of the learning rate."""
    epochs, batch, lr = int(_PRETRAINING["epochs"]), int(_PRETRAINING["batch"]), _PRETRAINING["lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * (len(tokens) // batch) + 1)
    draw = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(tokens), generator=draw).split(batch)[: len(tokens) // batch]:
            model(input_ids=tokens[index], labels=labels[index]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            optimizer.zero_grad()


def make_tokenizer() -> Any:
    """Every word is a token, [CLS] stands before and [SEP] behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *_WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=_SIDE**2 + 2, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
