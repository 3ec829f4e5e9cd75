from collections import namedtuple

import pytest
import torch

from steppe.bench.subject import Subject, moved

Pair = namedtuple("Pair", "x, y")


def weights(problem):
    return torch.cat([p.detach().flatten() for p in problem.model.parameters()])


@pytest.mark.parametrize("model", ["cnn", "mlp", "tests.bench.tiny:linear"])
def test_an_image_model_gets_images_and_labels_of_its_shape(model):
    problem = Subject(model, 4, (1, 8, 8), 5).make()
    images, labels = problem.batch
    assert images.shape == (4, 1, 8, 8) and labels.shape == (4,) and int(labels.max()) < 5
    assert problem.model.training
    loss = problem.loss_of(problem.model, problem.batch)
    assert loss.shape == () and loss.requires_grad


def test_a_function_of_the_batch_size_brings_model_batch_and_loss():
    problem = Subject("tests.bench.tiny:problem", 7).make()
    assert problem.batch["x"].shape == (7, 6) and problem.batch["name"] == "tiny"
    expected = (problem.model(problem.batch["x"])[:, 0] - problem.batch["y"]).square().mean()
    assert torch.equal(problem.loss_of(problem.model, problem.batch), expected)


def test_a_batch_may_be_a_named_tuple():
    found = moved(Pair(torch.ones(2), torch.ones(2, dtype=torch.long)), "cpu", torch.float64)
    assert isinstance(found, Pair) and found.x.dtype == torch.float64 and found.y.dtype == torch.long


@pytest.mark.parametrize("model", ["cnn", "tests.bench.tiny:problem"])
def test_every_call_makes_the_same_and_draws_nothing_from_the_global_generator(model):
    subject, before = Subject(model, 3, (1, 8, 8)), torch.get_rng_state()
    first, second = subject.make(), subject.make()
    assert torch.equal(weights(first), weights(second)) and first.model is not second.model
    assert torch.equal(torch.get_rng_state(), before)


def test_dtype_is_of_weights_and_of_floating_inputs_alone():
    problem = Subject("cnn", 2, (1, 8, 8), dtype="bfloat16").make()
    assert {p.dtype for p in problem.model.parameters()} == {torch.bfloat16}
    assert problem.batch[0].dtype == torch.bfloat16 and problem.batch[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("cn", "did you mean 'cnn'"),
        ("tests.bench.tiny:problemb", "did you mean 'problem'"),
        ("tests.bench.tiny:wrong", "expected (model, batch, loss_of)"),
        ("tests.bench.tiny:no_model", "gave a Tensor; expected a torch.nn.Module"),
        ("no_such_module:f", "cannot import module 'no_such_module'"),
        ("hf:nowhere/at/all", "cannot"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(model, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError) as error:
        Subject(model, 2).make()
    assert words in str(error.value)


@pytest.mark.parametrize("lora", [None, 2])
def test_a_pretrained_classifier_is_trained_whole_or_by_adapters(tmp_path, lora):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra: pip install '.[hosts]'")
    if lora:
        pytest.importorskip("peft", reason="peft is an extra: pip install '.[hosts]'")
    save_tiny_bert(transformers, tmp_path)
    problem = Subject(f"hf:{tmp_path}", 3, length=6, lora=lora).make()
    assert problem.batch["input_ids"].shape == (3, 6) and int(problem.batch["input_ids"].max()) < 20
    trained = [name for name, p in problem.model.named_parameters() if p.requires_grad]
    assert any("lora" in name for name in trained) == bool(lora)
    assert any(name.endswith("word_embeddings.weight") for name in trained) != bool(lora)
    assert problem.loss_of(problem.model, problem.batch).requires_grad
    with pytest.raises(ValueError, match="length 513 is more than the 512 tokens that .* takes; give --length 512"):
        Subject(f"hf:{tmp_path}", 3, length=513, lora=lora).make()


def save_tiny_bert(transformers, folder):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, **shape)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
