"""How the Trainer builds the gradient, TRL's SFTTrainer, several processes, and scalers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.ranks import as_launched
from tests.loops import distributed
from tests.problems import everything, same
from torch import nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.integrations import tiny_models as tiny  # noqa: E402
from tests.integrations.trainers import Seeds, arguments, factory  # noqa: E402
from tests.situations.standins import Chained  # noqa: E402

import steppe  # noqa: E402
from steppe.integrations.transformers import SharpTrainer, SharpTrainerMixin  # noqa: E402

# Construction


def simple(folder: Path, sharp: Any, **settings: Any) -> SharpTrainer:
    return SharpTrainer(tiny.classifier(), arguments(folder, **settings), train_dataset=tiny.sentences(8), sharp=sharp)


def test_total_steps_come_from_the_trainer(tmp_path: Path) -> None:
    trainer = simple(tmp_path, functools.partial(steppe.RST, rho=0.1, p=0.2, schedule="linear2"), max_steps=4)
    trainer.train()
    assert trainer.sharp.schedule.p == steppe.curves.Linear(0.2, 0.8, 4)
    trainer = simple(tmp_path, functools.partial(steppe.AESAM, total_steps=9))
    trainer.train()
    assert trainer.sharp.schedule.total_steps == 9


def test_the_optimizer_is_the_one_that_really_steps(tmp_path: Path) -> None:
    trainer = simple(tmp_path, factory("sam"))
    with pytest.raises(RuntimeError, match="no optimizer yet"):
        _ = trainer.sharp
    trainer.train()
    assert type(trainer.sharp.optimizer) is torch.optim.AdamW
    first = trainer.sharp
    trainer.train()
    assert trainer.sharp is not first and trainer.sharp.step == 3


@pytest.mark.parametrize("recipe", [functools.partial(steppe.LookSAM, k=2, rho=0.1), steppe.S2SAM])
def test_optimizers_chained_in_one_train_as_one_of_all(recipe: Any, tmp_path: Path) -> None:
    """Their steps are heard beneath; what the chain saves and loads is its own."""

    def trained(chained: bool) -> Any:
        model = tiny.classifier()
        here = [p for n, p in model.named_parameters() if "query" in n]
        there = [p for n, p in model.named_parameters() if "query" not in n]
        sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        made = Chained(sgd(here), sgd(there)) if chained else sgd([{"params": here}, {"params": there}])
        settings = arguments(tmp_path, max_grad_norm=0.0, max_steps=4, save_strategy="no")
        trainer = SharpTrainer(
            model, settings, train_dataset=tiny.sentences(8), sharp=recipe, optimizers=(made, None), callbacks=[Seeds()]
        )
        trainer.train()
        return trainer

    one, chain = trained(False), trained(True)
    assert type(chain.sharp.optimizer) is Chained and chain.sharp.step == one.sharp.step == 4
    for (name, a), b in zip(one.model.named_parameters(), chain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


def test_an_accumulated_batch_that_is_broken_off_is_dropped(tmp_path: Path) -> None:
    class Breaks(transformers.TrainerCallback):
        done = False

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop, self.done = not self.done, True

    settings = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 2}
    trainer = SharpTrainer(
        tiny.classifier(), arguments(tmp_path, **settings), train_dataset=tiny.sentences(8), callbacks=[Breaks()],
        sharp=factory("sam"),
    )  # fmt: skip
    trainer.train()
    assert trainer.sharp.step == 2 and not trainer._held  # of the second epoch


def other_optimizer(model: nn.Module, optimizer: Any) -> steppe.SharpnessAware:
    return steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("sharp", "message"),
    [
        (0.05, r"sharp is a float; expected a function \(model, optimizer\)"),
        (other_optimizer, "on another optimizer; expected the very one that it was given .*optimizers="),
        (lambda model, optimizer: None, "sharp returned a NoneType; expected a steppe object"),
        (factory("adasam"), "AdaSAM was given AdamW; expected steppe.optim.AMSGrad"),
    ],
)
def test_bad_factories_are_refused(sharp: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        simple(tmp_path, sharp).train()


def test_trainers_that_make_their_data_in_the_step_are_refused(tmp_path: Path) -> None:
    class Generates(transformers.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._step = 0

    mine = type("Mine", (SharpTrainerMixin, Generates), {})
    with pytest.raises(TypeError, match="makes its data within training_step"):
        mine(tiny.classifier(), arguments(tmp_path), train_dataset=tiny.sentences(4), sharp=factory("sam"))


# TRL


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *map(str, range(tiny.VOCABULARY - 3))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sft_trainer_runs_and_counts_its_tokens_once(lora: bool, tmp_path: Path) -> None:
    trl, datasets, peft = (pytest.importorskip(name) for name in ("trl", "datasets", "peft"))
    sharp_sft = type("SharpSFTTrainer", (SharpTrainerMixin, trl.SFTTrainer), {})
    rows = [{"text": " ".join(str(7 * i * j % 29) for j in range(3 + i % 4))} for i in range(12)]
    args = trl.SFTConfig(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, max_steps=3, bf16=False,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.01, save_strategy="no",
    )  # fmt: skip
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None
    logs = {}
    for rho in (None, 0.0, 0.05):
        sharp = {} if rho is None else {"sharp": functools.partial(steppe.SAM, rho=rho)}
        trainer = (sharp_sft if sharp else trl.SFTTrainer)(
            tiny.language_model(), args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer(),
            peft_config=config, **sharp,
        )  # fmt: skip
        trainer.train()
        logs[rho] = [row for row in trainer.state.log_history if "loss" in row]
    keys = ("loss", "num_tokens", "mean_token_accuracy", "entropy", "grad_norm")
    plain, still, moved = ([[row[k] for k in keys] for row in logs[rho]] for rho in (None, 0.0, 0.05))
    assert plain == still and len(moved) == 3
    assert moved[0][:4] == plain[0][:4] and moved[0][4] != plain[0][4] and moved[2] != plain[2]
    assert [row[1] for row in moved] == [row[1] for row in plain]
    assert all(row["passes_per_step"] == 2 and row["surrogate_gap"] > 0 for row in logs[0.05])


# Processes and devices


def train_texts(folder: str, name: str, accumulation: int, **settings: Any) -> dict[str, torch.Tensor]:
    model = tiny.language_model()
    model.model.layers[0].self_attn.attention_dropout = 0.0
    args = arguments(
        Path(folder), gradient_accumulation_steps=accumulation, train_sampling_strategy="sequential",
        save_strategy="steps", save_steps=2, **settings.pop("args", {}),
    )  # fmt: skip
    optimizers = (torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), None)
    trainer = SharpTrainer(
        model, args, train_dataset=tiny.texts(24), optimizers=optimizers, sharp=factory(name), **settings
    )
    trainer.train()
    assert trainer.sharp.step == 3
    return everything(model)


def on_a_rank(folder: str) -> dict[str, dict[str, torch.Tensor]]:
    as_launched()
    args = {"ddp_backend": "gloo"}
    results = {name: train_texts(f"{folder}/{name}", name, 2, args=args) for name in ("sam", "look_sam")}
    return results | {"m": train_texts(f"{folder}/m", "sam", 2, m_sharpness=True, args=args)}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = distributed.run(2, on_a_rank, str(tmp_path))
    for name in ("sam", "look_sam", "m"):
        assert same(first[name], second[name]), name
    for name in ("sam", "look_sam"):
        alone = train_texts(str(tmp_path / f"alone-{name}"), name, 4)
        for key, value in alone.items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-5, atol=1e-6)
        assert (tmp_path / name / "checkpoint-2" / "sharpness_aware.pt").is_file()
    assert not same(first["m"], first["sam"])


def scaled(folder: Path, sharp: Any, scale: float | None, callbacks: Any = ()) -> SharpTrainer:
    """A Trainer with accelerate's fp16 scaler, which a CPU is not given by itself; the scale doubles at every step."""
    args = arguments(folder, max_steps=6, gradient_accumulation_steps=2, max_grad_norm=0.0)
    rows = tiny.sentences(24)
    trainer = SharpTrainer(tiny.classifier(), args, train_dataset=rows, sharp=sharp, callbacks=list(callbacks))
    if scale is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_factor=2.0, growth_interval=1)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["fsam", "wsam"])
def test_the_loss_scale_changes_nothing(name: str, tmp_path: Path) -> None:
    plain, scaler = (scaled(tmp_path, factory(name), scale) for scale in (None, 1024.0))
    assert scaler.accelerator.scaler.get_scale() == 2.0**16 and scaler.sharp.step == 6
    for key, value in everything(plain.model).items():
        torch.testing.assert_close(everything(scaler.model)[key], value, rtol=1e-6, atol=1e-8)


class Poison(transformers.TrainerCallback):
    """An overflow in the second and third step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step in (1, 2):
            next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = torch.inf


def test_steps_that_the_scaler_skips_do_not_count(tmp_path: Path) -> None:
    trainer = scaled(tmp_path, factory("look_sam"), 1024.0, [Poison()])
    assert trainer.state.global_step == 6 and trainer.sharp.step == 4
    passes = [row["passes_per_step"] for row in trainer.state.log_history if "loss" in row]
    assert passes == [2, 1, 1, 1, 1, 1]  # the cycle of four goes on where it was
    assert all(w.isfinite().all() for w in everything(trainer.model).values())


@pytest.mark.gpu
def test_fp16_steps_that_the_scaler_skips_do_not_count(tmp_path: Path) -> None:
    class Skips(transformers.TrainerCallback):
        count = 0

        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
            self.count += optimizer.step_was_skipped

    skips = Skips()
    args = transformers.TrainingArguments(
        str(tmp_path), fp16=True, max_steps=12, gradient_accumulation_steps=2, per_device_train_batch_size=2,
        report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    model = tiny.classifier()
    trainer = SharpTrainer(model, args, train_dataset=tiny.sentences(48), callbacks=[skips], sharp=factory("look_sam"))
    trainer.train()
    assert trainer.sharp.step == 12 - skips.count > 0
    assert all(w.isfinite().all() for w in everything(model).values())
