"""BAR in loops owned by others: the Trainer, Lightning, accelerate. Each equals the loop by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.tiny_models import classifier, sentences, with_lora
from tests.lora import factors as f
from tests.problems import batches, loss_of, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steppe

MU = 5.0


def trained_by_hand(steps: int, mu: float | None = MU, total: int = 6) -> dict[str, Tensor]:
    model = f.net()
    optimizer = torch.optim.SGD(f.trained(model), lr=0.05)
    if mu is not None:
        steppe.BAR(model, optimizer, mu=mu, total_steps=total)
    for batch in batches(steps):
        loss_of(model)(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return f.copies(model)


# Hugging Face


def _trainer(folder: Path, plain: bool = False, seed: int = 0, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    from steppe.integrations.transformers import SharpTrainer

    model = with_lora(classifier(seed))
    for module in model.modules():  # dropout masks would depend on how the passes are run
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    args = TrainingArguments(
        str(folder), **({"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "gradient_accumulation_steps": 2, "weight_decay": 0.0, "save_steps": 3,
        "logging_steps": 3} | options),
    )  # fmt: skip
    if not plain:
        return SharpTrainer(
            model, args, train_dataset=sentences(64), sharp=functools.partial(steppe.BAR, mu=MU, rule="obar")
        )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    steppe.BAR(model, optimizer, mu=MU, rule="obar", total_steps=6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / 6)
    return Trainer(model, args, train_dataset=sentences(64), optimizers=(optimizer, schedule))


def test_in_sharp_trainer_and_in_a_plain_trainer(tmp_path: Path) -> None:
    """The one is given its number of steps; the other needs nothing of steppe's but the line that builds BAR."""
    sharp, plain = _trainer(tmp_path / "a"), _trainer(tmp_path / "b", plain=True)
    sharp.train()
    plain.train()
    assert sharp.sharp.total_steps == 6 and sharp.sharp.step == 6 and len(sharp.sharp) == 2
    for name, value in f.copies(sharp.model).items():
        torch.testing.assert_close(value, f.copies(plain.model)[name], rtol=1e-4, atol=1e-6)
    logs = [entry for entry in sharp.state.log_history if "loss" in entry]
    assert all(entry["passes_per_step"] == 1 for entry in logs)


def test_in_sharp_trainer_a_resumed_training_equals_the_whole(tmp_path: Path) -> None:
    whole = _trainer(tmp_path)
    whole.train()
    resumed = _trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.sharp.step == 6 and same(f.copies(whole.model), f.copies(resumed.model))


def test_a_second_training_takes_over(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_steps=2)
    trainer.train()
    first = trainer.sharp
    trainer.train()
    assert trainer.sharp is not first and first.step == trainer.sharp.step == 2


# Lightning


def _module(own: bool) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = f.net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(self.net)(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(f.trained(self.net), lr=0.05)
            if own:
                self.bar = steppe.BAR(self.net, optimizer, mu=MU, total_steps=6)
            return optimizer

    return Module()


def _fit(
    module: Any, folder: Path, callbacks: list[Any], size: int = 6, epochs: int = 1, resume: Path | None = None
) -> Any:
    import lightning.pytorch as lightning

    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, callbacks=callbacks, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    xs, ys = zip(*batches(size), strict=True)
    data = DataLoader(TensorDataset(torch.cat(xs), torch.cat(ys)), batch_size=8)
    trainer.fit(module, data, ckpt_path=resume, weights_only=bool(resume) or None)
    return trainer


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The 'train_dataloader'")
def test_lightning_by_callback_and_by_a_line_of_the_module(tmp_path: Path) -> None:
    from steppe.integrations.lightning import SharpCallback

    expected, base = trained_by_hand(6), trained_by_hand(6, None)
    assert not same(expected, base)
    callback, module = SharpCallback(steppe.BAR, mu=MU), _module(own=False)
    _fit(module, tmp_path, [callback])
    assert callback.sharp.step == 6 and callback.sharp.total_steps == 6
    assert same(f.copies(module.net), expected)
    module = _module(own=True)
    _fit(module, tmp_path, [])
    assert module.bar.step == 6 and same(f.copies(module.net), expected)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The 'train_dataloader'")
def test_lightning_s_checkpoint_holds_the_state(tmp_path: Path) -> None:
    from steppe.integrations.lightning import SharpCallback

    whole = _module(own=False)
    _fit(whole, tmp_path, [SharpCallback(steppe.BAR, mu=MU)], 3, epochs=2)
    half = _fit(_module(own=False), tmp_path, [SharpCallback(steppe.BAR, mu=MU, total_steps=6)], 3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    callback, module = SharpCallback(steppe.BAR, mu=MU), _module(own=False)
    _fit(module, tmp_path, [callback], 3, 2, tmp_path / "half.ckpt")
    assert callback.sharp.step == 6
    assert same(f.copies(module.net), f.copies(whole.net))


# accelerate


def test_accelerate_and_its_wrapped_optimizer() -> None:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True, gradient_accumulation_steps=2), f.net()
    optimizer = torch.optim.SGD(f.trained(model), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    bar = steppe.BAR(model, optimizer, mu=MU, total_steps=6)
    for x, y in batches(6):
        for piece in ((x[:4], y[:4]), (x[4:], y[4:])):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model)(piece))
                optimizer.step()
                optimizer.zero_grad()
    assert bar.step == 6
    for name, value in trained_by_hand(6).items():
        torch.testing.assert_close(f.copies(model)[name], value, rtol=1e-11, atol=1e-13)
