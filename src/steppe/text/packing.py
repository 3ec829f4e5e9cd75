"""Whether a language model keeps packed dialogues apart: asked before a training, which would not show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.text.tokens import Collator, pack

_UNPACKED = "leave the packing out"


def check_packing(model: Any, examples: Sequence[dict[str, list[int]]]) -> None:
    """Refuse a model for which packed examples are not what they are one by one.

    The mask over a block says which tokens see each other, and takes the place of the model's own: a window that ends
    within an example would be lost, and a model without attention (Mamba) or with a mask of its own form (BLOOM) mixes
    the examples or fails. FlashAttention needs neither mask nor this check.

    Args:
        model: with its ``config``; it is run twice on four tokens and left as it was.
        examples: of :func:`steppe.text.tokens.encode_dialogues`.
    """
    window, longest = _window(model.config), max(len(example["input_ids"]) for example in examples)
    if window is not None and longest > window:
        raise ValueError(
            f"the model sees {window} tokens at a time, fewer than the {longest} of the longest dialogue, and packing "
            f"does not keep that window; {_UNPACKED}, or set max_length to at most {window}"
        )
    if not _keeps_apart(model):
        raise ValueError(
            f"a model of the architecture {model.config.model_type} does not keep the dialogues of a block apart "
            f"(it takes no mask for each pair of tokens); {_UNPACKED}"
        )


def _window(config: Any) -> int | None:
    """Tokens that a layer sees, where some layers do not see all."""
    config = config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    limited = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ["unknown"])
    return min((window for window in windows if window), default=None) if limited else None


def _keeps_apart(model: Any) -> bool:
    """Whether two examples in a block get the scores that the second has alone."""
    one, other = ({"input_ids": [a, b], "labels": [a, b]} for a, b in ((5, 6), (7, 8)))
    try:
        packed, alone = _scores(model, pack([one, other], 4))[:, 2:], _scores(model, pack([other], 4))
    except (ValueError, RuntimeError, TypeError, IndexError):
        return False
    slack = 1e-3 if model.dtype == torch.float32 else 5e-2  # of the largest score: kernels differ with the length
    return bool((packed - alone).abs().max() <= slack * alone.abs().max())


def _scores(model: Any, blocks: list[dict[str, list[int]]]) -> Tensor:
    batch = Collator(0, dtype=model.dtype)(blocks)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            scores: Tensor = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
            return scores.float()
    finally:
        model.train(training)
