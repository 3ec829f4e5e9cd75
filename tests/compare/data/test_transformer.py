import pytest
import torch
from tests.compare import words
from tests.text.tiny import save

from steppe.compare.data import transformer
from steppe.compare.engine import measure, run
from steppe.compare.engine.runs import Run
from steppe.text.models import Lora

LORA = Lora(r=2, targets=("query", "value"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def model(folder) -> str:
    return save(folder / "model")


def weights(made) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in made.named_parameters()}


def test_a_batch_of_tokens_gives_a_score_per_class(model):
    made = transformer.build(model, 3, None, 0)
    batch = {"input_ids": torch.tensor([[2, 4, 3], [2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert made(batch).shape == (2, 3) and made.training


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_seed_draws_what_is_new_and_nothing_else(model, lora):
    one, again, other = (weights(transformer.build(model, 3, lora, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    differs = {name for name in one if not torch.equal(one[name], other[name])}
    assert differs and all("classifier" in name or "lora_A" in name for name in differs)
    assert any("classifier" in name for name in differs)
    assert any("lora_A" in name for name in differs) is (lora is not None)


def test_a_model_is_read_once_and_each_run_has_its_own(model, monkeypatch):
    transformer._pretrained.cache_clear()
    read = []
    monkeypatch.setattr(transformer, "classifier", _counting(transformer.classifier, read))
    first, second = (transformer.build(model, 2, LORA, 0) for _ in range(2))
    assert len(read) == 1
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    transformer._pretrained.cache_clear()


def _counting(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_the_global_generator_is_left_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    transformer.build(model, 2, LORA, 7)
    assert torch.equal(torch.rand(2), expected)


def test_lora_trains_adapters_and_head_alone(folder):
    trainer = _trainer(folder)
    before = weights(trainer.model)
    task = run.load_task(words.settings(folder), 0)
    for batch, _ in zip(next(run.batches(task, 4, 0)), range(3), strict=False):
        trainer.step(batch)
    moved = {name for name, weight in weights(trainer.model).items() if not torch.equal(weight, before[name])}
    assert moved and all("lora_" in name or "classifier" in name for name in moved)
    assert any("lora_B" in name for name in moved) and any("classifier" in name for name in moved)


def _trainer(folder, method="base", value=None, **flags):
    spec = words.settings(folder, **flags)
    return run.make_trainer(spec, run.load_task(spec, 0), Run(method, value, 0), 6)


def test_full_fine_tuning_trains_everything(folder):
    trainer = _trainer(folder, adapt="full")
    assert all(weight.requires_grad for weight in trainer.model.parameters())


def test_adapters_are_as_they_are_set(folder):
    trainer = _trainer(folder, lora_r=3, lora_alpha=6.0, lora_dropout=0.25, lora_targets=["key"])
    names = [name for name, _ in trainer.model.named_parameters() if "lora_A" in name]
    assert names and all(".key." in name for name in names)
    config = trainer.model.inner.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6.0, 0.25)


def test_balancedness_starts_at_one_and_follows_the_pairs(folder):
    trainer = _trainer(folder, method="nbar", value=5.0, lr=0.05, warmup=0.0)
    balance = measure.Balance.of(trainer.model)
    a = next(weight for name, weight in trainer.model.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_A" in name:
                weight.mul_(0.5)  # B is nought: a quarter of the balancedness
    balance.note(1.5)
    found = balance.as_dict()
    assert found["epoch"] == [0, 1.5] and found["share"] == pytest.approx([1.0, 0.25]) and a.requires_grad


def test_a_model_without_adapters_has_no_balance(folder):
    assert measure.Balance.of(_trainer(folder, adapt="full").model) is None
