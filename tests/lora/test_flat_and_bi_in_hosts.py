"""Flat-LoRA and Bi-LoRA in loops owned by others: each equals the loop in which weights are really moved."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lora.factors import copies, trained
from tests.lora.moved import SETTINGS, Hand
from tests.problems import batches, loss_of, net, same
from torch import Tensor, nn

import steppe
from steppe.methods import get

NAMES = ["flat_lora", "bi_lora"]


def near(model: nn.Module, expected: nn.Module) -> None:
    for name, value in copies(expected).items():
        torch.testing.assert_close(copies(model)[name], value, rtol=1e-10, atol=1e-10, msg=name)


def built(name: str) -> nn.Module:
    return net(lora=True, dropout=0)


def recipe(name: str) -> Any:
    settings = {key: value for key, value in SETTINGS[name].items() if key != "total_steps"}
    return functools.partial(get(name).recipe, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_of_ones_own(name: str) -> None:
    expected, model = built(name), built(name)
    base, optimizer = (torch.optim.SGD(trained(m), lr=0.1, momentum=0.9) for m in (expected, model))
    hand, sharp = Hand(name, expected), recipe(name)(model, optimizer, **_length(name))
    for batch in batches(6):
        wanted = hand.step([lambda b=batch: loss_of(expected)(b)], base)
        assert float(sharp.backward(loss_of(model), batch)) == pytest.approx(wanted, rel=1e-12)
        optimizer.step()
        optimizer.zero_grad()
    near(model, expected)


def _length(name: str) -> dict[str, int]:
    return {"total_steps": 6} if name == "flat_lora" else {}


# Hugging Face


def _classifier() -> nn.Module:
    tiny = pytest.importorskip("tests.integrations.tiny_models")
    model = tiny.with_lora(tiny.classifier()).double()
    for module in model.modules():  # dropout masks would depend on how the passes are run
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.get_base_model().accepts_loss_kwargs = False  # or the Trainer takes its loss for one that is divided already
    return model


def _trainer(folder: Path, name: str, model: nn.Module, **options: Any) -> Any:
    from tests.integrations import tiny_models as tiny
    from transformers import TrainingArguments

    from steppe.integrations.transformers import SharpTrainer

    given = {
        "max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "max_grad_norm": 0.0, "save_steps": 3, "logging_steps": 3, "report_to": [], "disable_tqdm": True,
        "use_cpu": True, "data_seed": 0,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **given | options)
    return SharpTrainer(model, arguments, train_dataset=tiny.sentences(24), sharp=recipe(name))


@pytest.mark.parametrize("name", NAMES)
def test_sharp_trainer_and_its_checkpoints(name: str, tmp_path: Path) -> None:
    """It is given its number of steps; a run resumed from the middle is, bit for bit, one that nobody stopped."""
    import transformers

    whole, seen = _trainer(tmp_path, name, _classifier()), list[dict[str, Tensor]]()
    watch = whole.model.register_forward_pre_hook(lambda model, args, given: seen.append(given), with_kwargs=True)
    whole.train()
    watch.remove()
    assert len(seen) == 12
    assert whole.sharp.step == 6 and getattr(whole.sharp, "total_steps", 6) == 6 and whole.passes == (6, 6)

    expected = _classifier().train()
    optimizer = torch.optim.AdamW(trained(expected), lr=1e-2, weight_decay=0.0)
    schedule = transformers.get_scheduler("linear", optimizer, 0, 6)
    hand = Hand(name, expected)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        hand.step([lambda b=b: _loss(expected, b) / 2 for b in (first, second)], optimizer)
        schedule.step()
    near(whole.model, expected)

    resumed = _trainer(tmp_path, name, _classifier())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.sharp.step == 6 and same(copies(whole.model), copies(resumed.model))


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**{key: value for key, value in batch.items() if key in ("input_ids", "labels")}).loss


@pytest.mark.parametrize("name", NAMES)
def test_a_second_training_is_perturbed_once(name: str, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, name, _classifier(), max_steps=2, save_strategy="no")
    trainer.train()
    first = trainer.sharp
    trainer.train()
    assert trainer.sharp is not first and trainer.sharp.step == first.step == 2
    assert all(len(layer.base._forward_hooks) == 1 for layer in trainer.sharp.layers)


# Lightning


def _fit(
    name: str, folder: Path, model: nn.Module, data: Any, resume: Path | None = None,
    given: dict[str, Any] | None = None, **settings: Any,
) -> Any:  # fmt: skip
    lightning = pytest.importorskip("lightning.pytorch")
    from steppe.integrations.lightning import SharpCallback

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(self.net)(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(trained(self.net), lr=0.1, momentum=0.9)

    callback = SharpCallback(recipe(name), **given or {})
    trainer = lightning.Trainer(
        default_root_dir=folder, callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
        **{"max_epochs": 1} | settings,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(Module(), loader, ckpt_path=resume, weights_only=bool(resume) or None)
    return trainer, callback.sharp


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The 'train_dataloader'")
@pytest.mark.parametrize("name", NAMES)
def test_lightning_and_its_checkpoints(name: str, tmp_path: Path) -> None:
    expected, model, data = built(name), built(name), list(batches(12))
    optimizer, hand = torch.optim.SGD(trained(expected), lr=0.1, momentum=0.9), Hand(name, expected)
    # Lightning's modules are children of one called net, and so are the layers' names.
    hand.layers = {f"net.{n}": m for n, m in hand.layers.items()}
    hand.auxiliary = {n: hand._start(n, m) for n, m in hand.layers.items()}
    for first, second in zip(data[::2], data[1::2], strict=True):
        hand.step([lambda b=b: loss_of(expected)(b) / 2 for b in (first, second)], optimizer)
    _, sharp = _fit(name, tmp_path, model, data)
    assert sharp.step == 6 and getattr(sharp, "total_steps", 6) == 6
    near(model, expected)

    half, again = built(name), built(name)
    trainer, _ = _fit(name, tmp_path, half, data[:6], given=_length(name))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer, sharp = _fit(name, tmp_path, again, data[:6], tmp_path / "half.ckpt", max_epochs=2)
    unbroken = built(name)
    _fit(name, tmp_path, unbroken, data[:6], max_epochs=2)
    assert sharp.step == 6 and same(copies(unbroken), copies(again))


@pytest.mark.parametrize("name", NAMES)
def test_the_closure_optimizer(name: str) -> None:
    from steppe.integrations.closure import SharpOptimizer

    expected, model = built(name), built(name)
    base, optimizer = (torch.optim.SGD(trained(m), lr=0.1, momentum=0.9) for m in (expected, model))
    hand, wrapped = Hand(name, expected), SharpOptimizer(recipe(name)(model, optimizer, **_length(name)))
    for t, batch in enumerate(batches(6)):
        hand.step([lambda b=batch: loss_of(expected)(b)], base)

        def closure(b: Any = batch) -> Tensor:
            wrapped.zero_grad()
            loss = loss_of(model)(b)
            loss.backward()
            return loss

        if t % 2:
            wrapped.step(closure)
        else:  # the drop-in's two calls: there is nothing to look at twice
            closure()
            assert not wrapped.first_step(zero_grad=True)
            wrapped.second_step(zero_grad=True)
    near(model, expected)


def test_a_model_without_lora_is_refused_in_one_sentence() -> None:
    model = net()
    for name in NAMES:
        with pytest.raises(ValueError, match="the model holds no LoRA layer; expected a PEFT model") as refused:
            recipe(name)(model, torch.optim.SGD(model.parameters(), lr=0.1), **_length(name))
        assert "\n" not in str(refused.value)
    assert isinstance(steppe.FlatLoRA, type)
