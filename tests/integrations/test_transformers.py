"""The Hugging Face Trainer against the same steps by hand, and what it logs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.problems import everything, same
from torch import nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.integrations import tiny_models as tiny  # noqa: E402
from tests.integrations.trainers import LOOP_METHODS, Seeds, arguments, base, by_hand, class_loss, factory, in_steps  # noqa: E402

import steppe  # noqa: E402
from steppe.integrations.transformers import SharpTrainer, SharpTrainerMixin  # noqa: E402

# Every pair of them for the method that remembers and reuses; one way for each of the others.
WAYS = [(False, 1, False), (False, 4, True), (True, 1, True), (True, 4, False)]
THREE_STEPS = [("look_sam", *way) for way in WAYS]
THREE_STEPS += [(n, *WAYS[1 if n == "sl_sam" else 0]) for n in (*LOOP_METHODS, "sl_sam") if n != "look_sam"]


@pytest.mark.parametrize(("name", "lora", "accumulation", "bf16"), THREE_STEPS)
def test_three_steps_equal_the_same_steps_by_hand(
    name: str, lora: bool, accumulation: int, bf16: bool, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    record_property("loop", "HF Trainer")
    record_property("method", name)
    rows = tiny.sentences(6 * accumulation)
    model, twin = (tiny.with_lora(tiny.classifier()) if lora else tiny.classifier() for _ in range(2))
    optimizer = base(name, twin)
    losses = by_hand(
        twin, optimizer, factory(name)(twin, optimizer), in_steps(rows, accumulation), class_loss(twin, bf16)
    )

    args = arguments(
        tmp_path, gradient_accumulation_steps=accumulation, bf16=bf16, train_sampling_strategy="sequential"
    )
    trainer = SharpTrainer(
        model, args, train_dataset=rows, callbacks=[Seeds()], optimizers=(base(name, model), None), sharp=factory(name)
    )
    start = everything(model)
    trainer.train()

    assert same(everything(model), everything(twin)) and not same(start, everything(model))
    assert trainer.sharp.step == 3
    assert [row["loss"] for row in trainer.state.log_history[:-1]] == losses


@pytest.mark.parametrize("name", ["sam", "look_sam", "gsam"])
def test_each_micro_batch_by_itself(name: str, tmp_path: Path) -> None:
    rows = tiny.sentences(18)
    model, twin = tiny.classifier(), tiny.classifier()
    optimizer = base(name, twin)
    by_hand(twin, optimizer, factory(name)(twin, optimizer), in_steps(rows, 3), class_loss(twin), m_sharpness=True)
    trainer = SharpTrainer(
        model, arguments(tmp_path, gradient_accumulation_steps=3, train_sampling_strategy="sequential"),
        train_dataset=rows, callbacks=[Seeds()], optimizers=(base(name, model), None), sharp=factory(name),
        m_sharpness=True,
    )  # fmt: skip
    trainer.train()
    assert same(everything(model), everything(twin))


def test_the_split_into_micro_batches_does_not_matter(tmp_path: Path) -> None:
    """With a loss per token the same twelve rows give the same step in one, two or six pieces."""
    weights = []
    for accumulation in (1, 2, 6):
        model = tiny.language_model()
        args = arguments(
            tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=12 // accumulation,
            train_sampling_strategy="sequential", max_steps=1,
        )  # fmt: skip
        model.config.attention_dropout = 0.0
        model.model.layers[0].self_attn.attention_dropout = 0.0
        optimizers = (torch.optim.SGD(model.parameters(), lr=0.5), None)
        SharpTrainer(model, args, train_dataset=tiny.texts(12), optimizers=optimizers, sharp=factory("sam")).train()
        weights.append(everything(model))
    for other in weights[1:]:
        for key, value in weights[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6)


class Weighted(transformers.Trainer):
    """A loss of one's own."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + 0.1 * outputs["logits"].square().mean()
        return (loss, outputs) if return_outputs else loss


def token_mean(outputs: Any, labels: Any, num_items_in_batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum") / (
        num_items_in_batch
    )


class Moving(transformers.Trainer):
    """A loss with a centre of its own, which moves with what it has seen."""

    centre: Any = 0.0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = model(**inputs).logits
        before, self.centre = self.centre, logits.detach().mean()
        return (logits - before).square().mean()


LOSSES: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "the model's": (transformers.Trainer, {}, {}),
    "label smoothing": (transformers.Trainer, {"label_smoothing_factor": 0.2}, {}),
    "compute_loss": (Weighted, {}, {}),
    "compute_loss that moves": (Moving, {}, {}),
    "compute_loss_func": (transformers.Trainer, {}, {"compute_loss_func": token_mean}),
}


@pytest.mark.parametrize("case", LOSSES)
def test_the_trainers_loss_is_respected(case: str, tmp_path: Path) -> None:
    host, settings, options = LOSSES[case]
    mine = type("Mine", (SharpTrainerMixin, host), {})
    args = arguments(tmp_path, gradient_accumulation_steps=2, train_sampling_strategy="sequential", **settings)
    rows = tiny.texts(12)
    model, twin = tiny.language_model(), tiny.language_model()
    plain = host(twin, args, train_dataset=rows, **options)

    def loss_of(batch: Any, whole: list[Any]) -> torch.Tensor:
        count = plain.get_batch_samples(iter(whole), len(whole), torch.device("cpu"))[1]
        return plain.compute_loss(twin, dict(batch), num_items_in_batch=count)

    optimizer = base("look_sam", twin)
    by_hand(twin, optimizer, factory("look_sam")(twin, optimizer), in_steps(rows, 2), loss_of)
    trainer = mine(
        model, args, train_dataset=rows, callbacks=[Seeds()], optimizers=(base("look_sam", model), None),
        sharp=factory("look_sam"), **options,
    )  # fmt: skip
    trainer.train()
    assert same(everything(model), everything(twin))


def test_no_radius_is_the_plain_trainer(tmp_path: Path) -> None:
    """Bit for bit, with the Trainer's own optimizer, groups and schedule, an uneven last batch and shuffled data."""
    settings = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3, "learning_rate": 0.01}
    weights, logs = [], []
    for make in (transformers.Trainer, functools.partial(SharpTrainer, sharp=functools.partial(steppe.SAM, rho=0))):
        model = tiny.classifier()
        trainer = make(model, arguments(tmp_path, **settings), train_dataset=tiny.sentences(14))
        trainer.train()
        weights.append(everything(model))
        logs.append([row["grad_norm"] for row in trainer.state.log_history[:-1]])
    assert same(*weights) and logs[0] == logs[1]
    assert len(logs[0]) == 6


# Logs


def test_logs_show_gap_norm_and_passes(tmp_path: Path) -> None:
    trainer = SharpTrainer(
        tiny.classifier(), arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2, eval_strategy="steps"),
        train_dataset=tiny.sentences(16), eval_dataset=tiny.sentences(4),
        sharp=functools.partial(steppe.LookSAM, rho=0.1, k=2, measure=True),
    )  # fmt: skip
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["passes_per_step"] for row in logs] == [2, 1, 2, 1]
    assert all(row["surrogate_gap"] > 0 and row["perturbation_norm"] == pytest.approx(0.1) for row in logs[::2])
    assert not any("surrogate_gap" in row for row in logs[1::2])
    assert all("passes_per_step" not in row for row in trainer.state.log_history if "eval_loss" in row)


def test_means_between_logs_and_over_micro_batches(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2)
    args.logging_steps = 4
    trainer = SharpTrainer(
        tiny.classifier(), args, train_dataset=tiny.sentences(16), m_sharpness=True,
        sharp=functools.partial(steppe.LookSAM, rho=0.1, k=2, measure=True),
    )  # fmt: skip
    trainer.train()
    (log,) = (row for row in trainer.state.log_history if "loss" in row)
    assert log["passes_per_step"] == pytest.approx(1.5) and log["perturbation_norm"] == pytest.approx(0.1)
    trainer.train()
    assert trainer.passes == (6, 4), "of the latest training"


def test_the_passes_of_a_training_are_counted_beside_its_logs(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=10, gradient_accumulation_steps=6, logging_first_step=True)
    args.logging_steps = 7
    sharp = functools.partial(steppe.LookSAM, rho=0.1, k=5)
    trainer = SharpTrainer(tiny.classifier(), args, train_dataset=tiny.sentences(120), sharp=sharp)
    assert trainer.passes == (0, 0)
    trainer.train()
    assert trainer.passes == (12, 10)


@pytest.mark.parametrize(
    ("combine", "passes", "shown"), [(None, 1.25, "perturbed_loss"), (steppe.Mix(0.5), 2.25, "loss")]
)
def test_an_ascent_on_few_samples(combine: Any, passes: float, shown: str, tmp_path: Path) -> None:
    """It is counted as what it costs, and the loss in the log is of the whole batch."""

    def few(model: nn.Module, optimizer: Any) -> steppe.SharpnessAware:
        return steppe.SharpnessAware(model, optimizer, look=steppe.Look(1), combine=combine)

    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = SharpTrainer(tiny.classifier(), args, train_dataset=tiny.sentences(24), sharp=few)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["passes_per_step"] for row in logs] == [passes] * 3
    assert logs[-1]["loss"] == float(getattr(trainer.sharp.last, shown))
    assert not any("surrogate_gap" in row for row in logs)
