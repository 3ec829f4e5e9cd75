"""The Hugging Face Trainer, with its own checkpoints; a checkpoint is one once its last file is there."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from steppe.integrations._trainer import WRITTEN_LAST, last_whole_checkpoint
from steppe.integrations.transformers import SharpTrainer

from .loop import Loop, numbered
from .methods import base, recipe
from .watch import EVERY, STEPS, Watch

WORDS, LENGTH, BATCH, ACCUMULATE = 16, 5, 4, 2


def _model() -> BertForSequenceClassification:
    """BERT of one layer, with dropout."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=LENGTH, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def _rows() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(WORDS, (5 * BATCH * ACCUMULATE, LENGTH), generator=draw)
    return [{"input_ids": w, "labels": w[0] % 3} for w in words]  # five steps an epoch: the data are shuffled anew


def _train(folder: Path, method: str, watch: Watch, rank: int) -> dict[str, Any]:
    model = _model()
    args = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
        save_steps=EVERY, logging_steps=EVERY, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = _Watched(
        model, args, train_dataset=_rows(), sharp=recipe(method), optimizers=(base(method, model.parameters()), None)
    )
    trainer.watch = watch
    resume = bool(checkpoints(folder))
    if resume:
        watch.loaded(numbered(folder, Path(last_whole_checkpoint(str(folder))).name).popitem()[0])
    trainer.train(resume_from_checkpoint=True if resume else None)
    return {
        "model": model.state_dict(), "optimizer": trainer.optimizer.state_dict(), "sharp": trainer.sharp.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(), "generator": torch.get_rng_state(),
    }  # fmt: skip


class _Watched(SharpTrainer):
    watch: Watch

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.watch.region("checkpoint", self.state.global_step):
            super()._save_checkpoint(*args, **kwargs)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Written here a second time, so as not to ask the code under test what is whole."""
    return {step: path for step, path in numbered(folder, "checkpoint-*").items() if _whole(path)}


def _whole(path: Path) -> bool:
    try:
        return json.loads((path / WRITTEN_LAST).read_text())["global_step"] == int(path.name.split("-")[1])
    except (OSError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any]:
    files = {p.name: load_file(p) for p in path.glob("*.safetensors")}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "sharpness_aware.pt"):
        files[name] = torch.load(path / name, weights_only=False)
    return files | {"step": json.loads((path / WRITTEN_LAST).read_text())["global_step"]}


def _unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if not _whole(path)]


TRAINER = Loop("HF Trainer", _train, checkpoints, _read, _unfinished)
