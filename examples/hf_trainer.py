"""The Hugging Face Trainer: two changed lines, and accumulation, clipping, evaluation, logs and resume stay its own.

For TRL: `class SharpSFTTrainer(SharpTrainerMixin, SFTTrainer)`, used alike.
"""

import functools
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, logging

import steppe
from steppe.integrations.transformers import SharpTrainer  # changed 1: was: from transformers import Trainer

Rows = list[dict[str, torch.Tensor]]
WORDS, LENGTH = 20, 8
STEPS, SAVED = 60, 33


def sentences(count: int, seed: int) -> Rows:
    """Sentences of random words; class 1 if the first stands in the vocabulary's second half."""
    words = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": w, "labels": (w[0] >= WORDS // 2).long()} for w in words]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=LENGTH, num_labels=2,
        )
    )  # fmt: skip


def accuracy(prediction: tuple) -> dict[str, float]:
    logits, labels = prediction
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def build(folder: str) -> SharpTrainer:
    args = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=16, gradient_accumulation_steps=2, learning_rate=3e-3,
        max_grad_norm=1.0, logging_steps=20, save_steps=SAVED, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return SharpTrainer(
        model(),
        args,
        train_dataset=sentences(640, seed=1),
        eval_dataset=sentences(200, seed=2),
        compute_metrics=accuracy,
        sharp=functools.partial(steppe.LookSAM, rho=0.05, k=5),  # changed 2: added
    )


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        whole = build(folder)
        whole.train()
        score = whole.evaluate()["eval_accuracy"]
        resumed = build(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{SAVED}")  # in the middle of a cycle of five steps

    weights, again = (trainer.model.state_dict() for trainer in (whole, resumed))
    same = all(torch.equal(weights[name], again[name]) for name in weights)
    print(f"accuracy {score:.2f} after {whole.sharp.step} steps; resumed at step {SAVED}, the same weights: {same}")
    assert same
    assert score > 0.9


if __name__ == "__main__":
    main()
