"""A training resumed for more steps: the length that the host gave follows the new run, the user's own stays."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lora import factors
from tests.problems import batches, loss_of
from torch import nn

import steppe
from steppe.schedule import uniform

SHORT, LONG, SAVED = 4, 8, 2
RISING = {"schedule": "linear2", "p": 0.0, "rho": 0.05, "seed": 5}  # p(t) = t/T: at T steps it would be 1


def expected(total: int) -> list[bool]:
    """The paper's formula, by hand."""
    return [uniform(5, t) < min(t / total, 1.0) for t in range(SHORT, LONG)]


def test_the_two_lengths_decide_differently() -> None:
    assert expected(SHORT) != expected(LONG)


# Hosts


class Regression(nn.Module):
    """For the Trainer: two linear layers and their loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layers(x)
        return {"loss": (out - labels).square().mean(), "logits": out}


def rows() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(3, generator=draw), "labels": torch.randn(1, generator=draw)} for _ in range(8)]


def trained(folder: Path, recipe: Any, steps: int, resume: bool) -> Any:
    transformers = pytest.importorskip("transformers")
    from steppe.integrations.transformers import SharpTrainer

    transformers.utils.logging.disable_progress_bar()
    args = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, max_steps=steps, save_steps=SHORT,
        per_device_train_batch_size=2, lr_scheduler_type="constant", learning_rate=0.1,
    )  # fmt: skip
    trainer = SharpTrainer(Regression(), args, train_dataset=rows(), sharp=recipe)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def passes(trainer: Any) -> list[bool]:
    logs = [log for log in trainer.state.log_history if "passes_per_step" in log and log["step"] > SHORT]
    return [log["passes_per_step"] == 2 for log in logs]


@pytest.mark.filterwarnings("error:settings differ")
def test_the_trainers_length_follows_the_new_run(tmp_path: Path) -> None:
    recipe = functools.partial(steppe.RST, **RISING)
    trained(tmp_path, recipe, SHORT, False)
    again = trained(tmp_path, recipe, LONG, True)
    assert again.sharp.step == LONG and again.sharp.schedule.p.total_steps == LONG
    assert passes(again) == expected(LONG)


@pytest.mark.filterwarnings("error:settings differ")
def test_a_ramp_follows_the_new_run(tmp_path: Path) -> None:
    recipe = functools.partial(steppe.recommended, samples=1, rho=0.05, ramp=0.5)
    trained(tmp_path, recipe, SHORT, False)
    again = trained(tmp_path, recipe, LONG, True)
    assert [again.sharp.ascent.rho(t) for t in (0, 2, 4)] == [0.0, pytest.approx(0.025), 0.05]


def test_the_users_own_length_stays(tmp_path: Path) -> None:
    recipe = functools.partial(steppe.RST, total_steps=SHORT, **RISING)
    trained(tmp_path, recipe, SHORT, False)
    again = trained(tmp_path, recipe, LONG, True)
    assert passes(again) == expected(SHORT) == [True] * 4


@pytest.mark.filterwarnings("error:settings differ")
def test_bar_goes_on_in_a_longer_run_of_the_trainer(tmp_path: Path) -> None:
    recipe = functools.partial(steppe.BAR, pairs={"layers.0.weight": "layers.1.weight"}, mu=0.5)
    trained(tmp_path, recipe, SHORT, False)
    again = trained(tmp_path, recipe, LONG, True)
    assert again.sharp.total_steps == LONG and again.sharp.step == LONG
    saved = torch.load(tmp_path / f"checkpoint-{SHORT}" / "sharpness_aware.pt", weights_only=True)
    assert saved["total_steps"] == SHORT and saved["step"] == SHORT  # alpha was 0 from there on


@pytest.mark.filterwarnings("ignore:::(lightning|torchmetrics).*")
@pytest.mark.parametrize("own", [None, SHORT])
def test_lightnings_length_follows_the_new_run(own: int | None, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from steppe.integrations.lightning import SharpCallback

    ascended: list[bool] = []

    class Lit(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Regression()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Watch(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, *_: Any) -> None:
            ascended.append(sharp.sharp.last.ascended)

    def fit(steps: int, path: Path | None) -> Any:
        trainer = lightning.Trainer(
            max_steps=steps, callbacks=[sharp, Watch()], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(Lit(), torch.utils.data.DataLoader(rows(), batch_size=2), ckpt_path=path)
        return trainer

    sharp = SharpCallback(steppe.RST, **RISING, **({} if own is None else {"total_steps": own}))
    fit(SHORT, None).save_checkpoint(tmp_path / "short.ckpt")
    ascended.clear()
    fit(LONG, tmp_path / "short.ckpt")
    assert sharp.sharp.step == LONG
    assert ascended == expected(own or LONG)


# A loop of one's own


def bar(total: int) -> tuple[nn.Module, torch.optim.Optimizer, steppe.BAR]:
    model = factors.net()
    optimizer = torch.optim.SGD(factors.trained(model), lr=0.1)
    return model, optimizer, steppe.BAR(model, optimizer, mu=2.0, total_steps=total)


def test_bar_in_a_plain_loop_takes_the_new_length_and_says_so() -> None:
    model, optimizer, first = bar(SHORT)
    for batch in batches(SHORT):
        loss_of(model)(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    resumed, optimizer, second = bar(LONG)
    resumed.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=f"total_steps was {SHORT} and is {LONG}"):
        second.load_state_dict(first.state_dict())
    loss_of(resumed)(next(batches(1))).backward()
    before = factors.factors(resumed)
    grads = [
        (m.lora_A["default"].weight.grad, m.lora_B["default"].weight.grad) for m in (resumed.first, resumed.second)
    ]
    optimizer.step()
    a = 2.0 * (1 - SHORT / LONG) * 0.1  # alpha_t of the new length, times the learning rate
    for (x, y), (gx, gy), (new_x, new_y) in zip(before, grads, factors.factors(resumed), strict=True):
        grow = math.copysign(a, float(gx.norm() - gy.norm()))
        torch.testing.assert_close(new_x, x * (1 + grow) - 0.1 * gx, rtol=0, atol=1e-12)
        torch.testing.assert_close(new_y, y * (1 - grow) - 0.1 * gy, rtol=0, atol=1e-12)


def test_the_same_length_needs_no_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bar(LONG)[2].load_state_dict(bar(LONG)[2].state_dict())
