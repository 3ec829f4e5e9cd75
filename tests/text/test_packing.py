from typing import Any

import pytest
import torch
import transformers
from tests.text import tiny

from steppe.text.packing import check_packing

_BODY = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_MISTRAL = _BODY | {"intermediate_size": 16, "num_key_value_heads": 1, "sliding_window": 4}
EXAMPLES = [{"input_ids": list(range(n)), "labels": list(range(n))} for n in (3, 5)]


def model(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_models_that_take_the_mask(kind: str, dtype: torch.dtype) -> None:
    made = model(tiny.CONFIGS[kind]()).to(dtype).train()
    check_packing(made, EXAMPLES)
    assert made.training


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2),
        transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4),
        transformers.RwkvConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, context_length=24),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_do_not(config: Any) -> None:
    made = model(config)
    with pytest.raises(
        ValueError, match=f"architecture {config.model_type} does not keep .* apart .*leave the packing"
    ):
        check_packing(made, EXAMPLES)


def test_a_window_shorter_than_a_dialogue() -> None:
    made = model(transformers.MistralConfig(**_MISTRAL))
    check_packing(made, EXAMPLES[:1])
    with pytest.raises(ValueError, match="sees 4 tokens at a time, fewer than the 5 of the longest.*at most 4$"):
        check_packing(made, EXAMPLES)


def test_a_window_that_no_layer_has() -> None:
    settings = _MISTRAL | {"use_sliding_window": True, "max_window_layers": 1}
    made = model(transformers.Qwen2Config(**settings))
    assert made.config.layer_types == ["full_attention"]
    check_packing(made, EXAMPLES)
