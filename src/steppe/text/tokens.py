"""Texts to tensors: classification batches; dialogues with the loss on the response only, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.text.readers import Dialogues, Texts

IGNORED = -100
"""The label of a position that has no part in the loss (what torch's cross entropy ignores)."""


def counting(batch: Mapping[str, Tensor]) -> int:
    """The tokens of a language model's batch whose loss counts; nothing stands before the first of a row."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def encode(tokenizer: Any, texts: Texts, max_length: int) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and whatever else the tokenizer makes, each (texts, length) of int64.

    Args:
        tokenizer: of the model.
        texts: texts, or pairs of them.
        max_length: tokens, special ones included; what is longer is cut at the end (of the longer one of a pair).
            The length is that of the longest text, not more than this.
    """
    return dict(tokenizer(*sides(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"))


def sides(texts: Texts) -> tuple[list[str], list[str] | None]:
    """First and second texts of pairs, None for the second where there are single texts: as tokenizers take them."""
    if isinstance(texts[0], str):
        return [str(text) for text in texts], None
    return [pair[0] for pair in texts], [pair[1] for pair in texts]


def limit(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model (or anything with its ``config``) takes at once, None where nothing says so."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions and any(kin in config.model_type for kin in _ROBERTA):
        positions -= (config.pad_token_id or 0) + 1  # those up to the padding's are never used
    known = [number for number in (positions, tokenizer.model_max_length) if number and 0 < number < _NO_LIMIT]
    return min(known) if known else None


_ROBERTA = ("roberta", "camembert", "data2vec-text", "longformer")
_NO_LIMIT = 10**9  # tokenizers that do not know their model say 10**30, and XLNet's configuration says -1


def check_length(max_length: int, model: Any, tokenizer: Any) -> int:
    """``max_length``, refused where the model's positions end before."""
    most = limit(model, tokenizer)
    if most is not None and max_length > most:
        raise ValueError(
            f"max_length {max_length} is more than the {most} tokens that the model takes; set it to at most {most}"
        )
    return max_length


def counted(tokenizer: Any, texts: Texts) -> list[int]:
    """Tokens of each text, or pair, as a whole; texts of none are refused, from which no class follows."""
    found = [len(ids) for ids in tokenizer(*sides(texts), verbose=False)["input_ids"]]
    if not all(found):
        raise ValueError(
            f"{found.count(0)} of {len(found)} texts, such as {texts[found.index(0)]!r}, are no token to the model, so "
            "that it has nothing to classify; fill them or leave them out"
        )
    return found


def note_on_cut(whole: Sequence[int], length: int, most: int | None) -> str:
    """How many texts are cut, and what would take them whole, in a sentence without its stop; nothing where none is.

    Args:
        whole: the tokens of each text.
        length: beyond which a text is cut.
        most: the model's own limit, None where there is none.
    """
    count, longest = sum(each > length for each in whole), max(whole, default=0)
    if not count:
        return ""
    if most is None or longest <= most:
        remedy = f"--max-length {longest} takes them whole"
    else:
        remedy = f"the longest has {longest:,}, and the model takes {most:,}"
    are = "is" if count == 1 else "are"
    return f"{count:,} of {len(whole):,} texts {are} longer than {length} tokens and cut; {remedy}"


def encode_dialogues(tokenizer: Any, dialogues: Dialogues, max_length: int) -> list[dict[str, list[int]]]:
    """Each dialogue as ``input_ids`` and ``labels``: the response and the end of text, and -100 over the prompt.

    What is longer than ``max_length`` loses the beginning of its prompt, so that the response stays; a response that
    is longer by itself is cut at its end.
    """
    prompts = tokenizer(dialogues.prompts)["input_ids"]
    responses = tokenizer(dialogues.responses, add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return [_joined(prompt, response + end, max_length) for prompt, response in zip(prompts, responses, strict=True)]


def _joined(prompt: list[int], response: list[int], max_length: int) -> dict[str, list[int]]:
    response = response[: max_length - 1]  # at least one token stands before it, or it has nothing to follow from
    prompt = prompt[-(max_length - len(response)) :]
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def pack(examples: Sequence[dict[str, list[int]]], length: int) -> list[dict[str, list[int]]]:
    """Examples one behind the other in blocks of at most ``length`` tokens, none of them cut (first fit).

    ``position_ids`` begin at 0 with every example; the first label of each is -100, so that none follows from the
    example before it. :class:`Collator` makes the mask that keeps them apart.
    """
    blocks: list[dict[str, list[int]]] = []
    for example in examples:
        size = len(example["input_ids"])
        block = next((b for b in blocks[-_OPEN:] if len(b["input_ids"]) + size <= length), None)
        if block is None:
            block = {"input_ids": [], "labels": [], "position_ids": []}
            blocks.append(block)
        block["input_ids"] += example["input_ids"]
        block["labels"] += [IGNORED, *example["labels"][1:]]
        block["position_ids"] += range(size)
    return blocks


_OPEN = 64  # blocks that are still looked at for room: enough to fill well, and linear in the number of examples


class Collator:
    """Examples of :func:`encode_dialogues` or blocks of :func:`pack` to a batch, padded on the right.

    Args:
        pad: the padding token. mask: False leaves the mask over packed examples to an attention that reads
            ``position_ids`` (FlashAttention); True gives it as (batch, 1, length, length) in ``dtype``, 0 where a token
            sees another and the smallest number where not.
    """

    def __init__(self, pad: int, *, mask: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self.pad, self.mask, self.dtype = pad, mask, dtype

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """The batch."""
        length = max(len(example["input_ids"]) for example in examples)
        batch = {
            "input_ids": _padded([example["input_ids"] for example in examples], length, self.pad),
            "labels": _padded([example["labels"] for example in examples], length, IGNORED),
        }
        if "position_ids" not in examples[0]:
            batch["attention_mask"] = _padded([[1] * len(example["input_ids"]) for example in examples], length, 0)
            return batch
        batch["position_ids"] = _padded([example["position_ids"] for example in examples], length, 0)
        if self.mask:
            batch["attention_mask"] = apart(batch["position_ids"], self.dtype)
        return batch


def apart(position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (batch, 1, length, length) under which a token sees itself and earlier ones of its example."""
    number = (position_ids == 0).cumsum(1)
    same = number.unsqueeze(2) == number.unsqueeze(1)
    sees = same & torch.ones(same.shape[1:], dtype=torch.bool).tril()
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min).unsqueeze(1)


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
