"""`steppe compare` on a training with the Hugging Face Trainer: `SharpTrainer(..., sharp=sharpen)`.

    steppe compare --script compare_trainer.py:train --methods sam,rst --seeds 5

The Trainer owns the loop, so the figures of its evaluations are yielded when it is done.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import TrainingArguments, logging

from steppe.cli import main as steppe
from steppe.integrations.transformers import SharpTrainer

COMPARED = "--methods sam --rho 0.2 --seeds 2 --tune-seeds 1 --jobs 1 --settings epochs=3"
Rows = list[dict[str, torch.Tensor]]


def digits(seed: int) -> dict[str, Rows]:
    """200 digits to train on, 800 for validation, 797 for the test: the test is the same for every seed."""
    images, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    rows = [{"pixels": x, "labels": y} for x, y in zip(images.float() / 16, labels, strict=True)]
    test, rest = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split([797, 1000])
    train, val = rest[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))].split([200, 800])
    return {"train": [rows[i] for i in train], "val": [rows[i] for i in val], "test": [rows[i] for i in test]}


class Network(nn.Module):
    """A model as the Trainer wants it: it computes its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(sharpen: Any, seed: int, length: float = 1, epochs: int = 30) -> Iterator[dict[str, Any]]:
    """The Trainer as ever, but for its `sharp`; the learning rate is AdamW's."""
    logging.set_verbosity_error()
    torch.manual_seed(seed)
    data = digits(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=max(1, round(epochs * length)), per_device_train_batch_size=50, learning_rate=3e-3,
            lr_scheduler_type="cosine", per_device_eval_batch_size=800, eval_strategy="epoch", save_strategy="no",
            logging_strategy="no", seed=seed, use_cpu=True, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = SharpTrainer(
            Network(), args, train_dataset=data["train"], eval_dataset={"val": data["val"], "test": data["test"]},
            compute_metrics=accuracy, sharp=sharpen,
        )  # fmt: skip
        trainer.train()
    log = trainer.state.log_history
    val, test = ([each[key] for each in log if key in each] for key in ("eval_val_accuracy", "eval_test_accuracy"))
    for v, t in zip(val, test, strict=True):
        yield {"val": {"accuracy": v}, "test": {"accuracy": t}}


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        assert steppe(["compare", "--script", f"{__file__}:train", "--out", out, *COMPARED.split()]) == 0


if __name__ == "__main__":
    main()
