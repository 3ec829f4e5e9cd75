from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.text import tiny
from transformers import AutoModelForCausalLM, XLNetConfig

from steppe.text.models import classifier, tokenizer_of
from steppe.text.readers import Dialogues
from steppe.text.tokens import IGNORED, Collator, apart, check_length, encode, encode_dialogues, limit, pack


def test_texts_are_padded_to_the_longest_and_cut_to_the_limit() -> None:
    made = encode(tiny.tokenizer(), ["good film", "the plot of the film is dull"], 6)
    assert made["input_ids"].tolist() == [[2, 4, 8, 3, 0, 0], [2, 13, 9, 15, 13, 3]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]


def test_pairs_of_texts() -> None:
    made = encode(tiny.tokenizer(), [("good film", "bad"), ("a", "plot")], 10)
    assert made["input_ids"].tolist() == [[2, 4, 8, 3, 5, 3], [2, 14, 3, 9, 3, 0]]
    assert made["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]


def test_the_loss_is_on_the_response_only() -> None:
    found = encode_dialogues(tiny.tokenizer("gpt"), Dialogues(["what is a film ?"], ["the joy"]), 20)
    assert found == [{"input_ids": [10, 12, 14, 8, 17, 13, 18, 3], "labels": [IGNORED] * 5 + [13, 18, 3]}]


def test_what_is_too_long_loses_the_beginning_of_its_prompt_first() -> None:
    dialogues = Dialogues(["what is a film ?"] * 2, ["the joy", "the joy of the film"])
    short, cut = encode_dialogues(tiny.tokenizer("gpt"), dialogues, 5)
    assert short == {"input_ids": [8, 17, 13, 18, 3], "labels": [IGNORED] * 2 + [13, 18, 3]}
    assert cut == {"input_ids": [17, 13, 18, 15, 13], "labels": [IGNORED, 13, 18, 15, 13]}


def test_blocks_hold_whole_examples() -> None:
    examples = [{"input_ids": list(range(n)), "labels": list(range(n))} for n in (5, 4, 3, 2, 9)]
    blocks = pack(examples, 9)
    assert [len(block["input_ids"]) for block in blocks] == [9, 5, 9]
    assert blocks[0]["position_ids"] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert blocks[0]["labels"] == [IGNORED, 1, 2, 3, 4, IGNORED, 1, 2, 3]
    assert sorted(t for b in blocks for t in b["input_ids"]) == sorted(t for e in examples for t in e["input_ids"])


def test_a_token_sees_itself_and_earlier_ones_of_its_example() -> None:
    mask = apart(torch.tensor([[0, 1, 0, 1, 2]]), torch.float32)
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert (mask[0, 0] == 0).int().tolist() == seen
    assert apart(torch.tensor([[0]]), torch.bfloat16).dtype == torch.bfloat16


def test_batches_are_padded_on_the_right() -> None:
    examples = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = Collator(pad=3)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in Collator(3, mask=False)(pack(examples, 4))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_packed_dialogues_have_the_loss_of_single_ones(tmp_path: Path, kind: str, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path, kind), attn_implementation=attention).eval()
    tokenizer = tokenizer_of(str(tmp_path))
    dialogues = Dialogues(["what is a film ?", "who ?", "is the plot dull ?"], ["the joy", "a poor film .", "good"])
    examples = encode_dialogues(tokenizer, dialogues, tiny.LENGTH)
    blocks = pack(examples, tiny.LENGTH)
    assert len(blocks) < len(examples)

    def total(rows: list[dict[str, list[int]]]) -> float:
        batch = Collator(tokenizer.pad_token_id)(rows)
        with torch.no_grad():
            return float(model(**batch).loss) * int((batch["labels"][:, 1:] != IGNORED).sum())

    assert total(blocks) == pytest.approx(sum(total([example]) for example in examples), rel=1e-5)


def test_more_tokens_than_the_model_has_positions(tmp_path: Path) -> None:
    tiny.save(tmp_path, "gpt2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer_of(str(tmp_path))
    assert limit(model, tokenizer) == tiny.LENGTH
    assert check_length(tiny.LENGTH, model, tokenizer) == tiny.LENGTH
    with pytest.raises(ValueError, match="max_length 25 is more than the 24 tokens that the model takes"):
        check_length(25, model, tokenizer)
    tokenizer.model_max_length = 10
    assert limit(model, tokenizer) == 10


def test_roberta_uses_fewer_positions_than_it_has(tmp_path: Path) -> None:
    model, tokenizer = classifier(tiny.save(tmp_path, "roberta"), 2, None, 0)
    most = limit(model, tokenizer)
    assert most == tiny.LENGTH == model.config.max_position_embeddings - 1
    model(**encode(tokenizer, ["film " * 99], most))
    with pytest.raises((IndexError, RuntimeError)):
        model(**encode(tokenizer, ["film " * 99], most + 1))


def test_a_model_without_a_limit() -> None:
    tokenizer = tiny.tokenizer()
    model = SimpleNamespace(config=XLNetConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, d_inner=16))
    assert limit(model, tokenizer) is None
    assert check_length(5000, model, tokenizer) == 5000
