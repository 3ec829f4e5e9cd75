"""In Lightning and the Trainer: ascents on few samples, views and bf16, and directions known before any pass."""

from __future__ import annotations

import copy
import functools
import logging
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.by_hand import Batch, micro_batches, precision, problem
from tests.problems import everything, same
from torch import Tensor, nn

import steppe

L = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging  # noqa: E402
from tests.integrations import tiny_models as tiny  # noqa: E402
from torchmetrics import MeanMetric  # noqa: E402

from steppe.integrations.lightning import SharpCallback  # noqa: E402
from steppe.integrations.transformers import SharpTrainer  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(r"ignore:::(lightning|torchmetrics)\..*")]

RHO = 0.3
WAYS: dict[str, dict[str, Any]] = {
    "samples": {"ascent": steppe.Ascent(RHO), "look": steppe.Look(2)},
    "samples and g": {"ascent": steppe.Ascent(RHO), "look": steppe.Look(0.25), "combine": steppe.Mix(0.6)},
    "samples, reused": {
        "ascent": steppe.Ascent(RHO), "look": steppe.Look(2), "combine": steppe.Reuse(), "schedule": steppe.Every(2)},
    "view": {"ascent": steppe.Ascent(RHO), "look": steppe.Look(view=lambda batch: (batch[0][4:], batch[1][4:]))},
    "bf16": {"ascent": steppe.Ascent(RHO), "look": steppe.Look(autocast=torch.bfloat16)},
    "momentum": {"ascent": steppe.Ascent(RHO, steppe.Momentum())},
    "previous": {"ascent": steppe.Ascent(RHO, steppe.Previous())},
    "previous and g": {"ascent": steppe.Ascent(RHO, steppe.Previous()), "combine": steppe.Mix(0.6)},
    "AE-SAM on samples": {"ascent": steppe.Ascent(RHO), "look": steppe.Look(2), "schedule": steppe.AboveNorm(3)},
}  # fmt: skip
each = pytest.mark.parametrize("way", WAYS)


def sharpen(way: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> steppe.SharpnessAware:
    return steppe.SharpnessAware(model, optimizer, **WAYS[way])


def base(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, 0.9)


def by_hand(way: str, batches: list[Batch], accumulate: int = 1, kind: str = "fp32") -> tuple[nn.Module, Any]:
    model = problem()
    optimizer = base(model)
    sharp = sharpen(way, model, optimizer)

    def loss_of(batch: Batch) -> Tensor:
        with precision(kind, cache=False):
            return nn.functional.cross_entropy(model(batch[0]).float(), batch[1]) / accumulate

    for i, batch in enumerate(batches):
        torch.manual_seed(i)
        sharp.backward(loss_of, batch)
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model, sharp


class Count:
    """Counts passes: what lies in an array of Python's, unlike a number in the module or in an object, stays."""

    def __init__(self) -> None:
        self._n = array("q", [0])

    @property
    def n(self) -> int:
        return self._n[0]

    @n.setter
    def n(self, value: int) -> None:
        self._n[0] = value


class Lit(L.LightningModule):
    """Logs, counts with a metric, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.mean = problem(), MeanMetric()
        self.shown: list[float] = []
        self.outputs: list[float] = []
        self.calls = Count()

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        self.calls.n += 1
        loss = nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])
        self.mean(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["extra"] == batch_idx
        self.outputs.append(float(outputs["loss"]))
        self.shown.append(float(self.trainer.callback_metrics["loss_step"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return base(self.net)


def fit(lit: Any, way: str, batches: list[Batch], *others: Callback, **settings: Any) -> tuple[Any, SharpCallback]:
    sharp = SharpCallback(functools.partial(sharpen, way))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    usual = quiet | {"enable_checkpointing": False, "max_epochs": 1}
    host = L.Trainer(callbacks=[sharp, *others], **(usual | settings))
    host.fit(lit, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return host, sharp


LOOKED = [(way, 1, "fp32") for way in WAYS]
LOOKED += [(way, *more) for way in ("samples", "previous and g") for more in ((4, "fp32"), (1, "bf16"))]


@pytest.mark.parametrize(("way", "accumulate", "kind"), LOOKED)
def test_lightning_equals_the_loop_by_hand(way: str, accumulate: int, kind: str) -> None:
    batches = micro_batches(4 * accumulate)
    expected, own = by_hand(way, batches, accumulate, kind)
    lit = Lit()
    precise = "bf16-mixed" if kind == "bf16" else "32-true"
    host, sharp = fit(lit, way, batches, accumulate_grad_batches=accumulate, precision=precise)
    assert same(everything(lit.net), everything(expected))
    assert sharp.sharp.step == own.step == 4 and sharp.sharp.last.ascended == own.last.ascended
    torch.testing.assert_close(torch.tensor(lit.outputs) * accumulate, torch.tensor(lit.shown))
    mean = torch.tensor(sum(lit.shown) / len(lit.shown))
    torch.testing.assert_close(host.callback_metrics["mean"], mean, rtol=1e-5, atol=1e-6)


def test_lightning_logs_the_first_pass_over_the_whole_batch() -> None:
    for way, calls in (("samples", 2), ("samples and g", 3), ("momentum", 1)):
        lit, (batch,) = Lit(), micro_batches(1)
        fit(lit, way, [batch])
        model = problem()
        sharp = sharpen(way, model, base(model))
        torch.manual_seed(0)
        loss = sharp.backward(lambda b, m=model: nn.functional.cross_entropy(m(b[0]), b[1]), batch)
        expected = sharp.last.perturbed_loss if way == "samples" else loss
        torch.testing.assert_close(torch.tensor(lit.shown[0]), expected)
        assert lit.calls.n == (1 if way == "momentum" else calls)


def test_lightning_leaves_module_and_strategy_as_they_were_also_after_an_error() -> None:
    lit = Lit()
    host, _ = fit(lit, "samples", micro_batches(2))
    assert not {"training_step", "backward", "log"} & set(vars(lit)) and "training_step" not in vars(host.strategy)

    class Failing(Lit):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            if self.calls.n == 3:  # the second pass of the second batch
                raise ZeroDivisionError
            if self.calls.n % 2 == 0:  # the look; at w + eps a part of the model is not to be saved either
                before.update(everything(self.net))
            return super().training_step(batch, batch_idx)

    before: dict[str, Tensor] = {}
    lit = Failing()
    with pytest.raises(ZeroDivisionError):
        fit(lit, "samples", micro_batches(2))
    weights = {k: v for k, v in everything(lit.net).items() if "running" not in k and "tracked" not in k}
    assert same(weights, {k: before[k] for k in weights})
    assert not {"training_step", "backward", "log"} & set(vars(lit))


def test_lightning_skips_a_batch_whose_step_returns_none() -> None:
    class Skipping(Lit):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert bool(outputs) is (batch_idx != 1)

    lit, batches = Skipping(), micro_batches(3)
    fit(lit, "samples", batches)
    expected, _ = by_hand("samples", batches[:1])
    optimizer_steps = lit.trainer.global_step
    assert optimizer_steps == 3 and lit.calls.n == 4 and not same(everything(lit.net), everything(expected))


def test_lightning_calls_hooks_once_and_a_backward_of_ones_own_in_every_pass() -> None:
    class Own(Lit):
        backwards, after = Count(), 0

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.backwards.n += 1
            loss.backward()

        def on_after_backward(self) -> None:
            self.after += 1
            assert self.net.first.weight.grad is not None

    lit = Own()
    fit(lit, "samples", micro_batches(3))
    assert lit.backwards.n == 6 and lit.after == 3


@pytest.mark.parametrize("way", ["samples", "momentum"])
def test_averaged_weights_get_their_own_batch_norms(way: str) -> None:
    """The last epoch of Lightning's SWA has passes without a backward, which are at the weights and at no others."""

    class Averaged(Lit):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            if self.current_epoch == 3:
                again.append(copy.deepcopy(self.net))

    again: list[nn.Module] = []
    lit, batches = Averaged(), micro_batches(3)
    fit(lit, way, batches, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1), max_epochs=3)
    for x, _ in batches:
        again[0](x)
    found, expected = (everything(net) for net in (lit.net, again[0]))
    assert len(again) == 3 and all(same({k: found[k]}, {k: expected[k]}) for k in found if k.startswith("norm.running"))


# The Trainer

TRAINED: dict[str, tuple[Callable[..., steppe.SharpnessAware], float]] = {
    "msam": (functools.partial(steppe.MSAM, rho=0.1), 1.0),
    "s2_sam": (steppe.S2SAM, 1.0),
    "length": (lambda m, o: steppe.SharpnessAware(
        m, o, look=steppe.Look(view=steppe.views.Length(0.5))), 1.5),
    "function": (lambda m, o: steppe.SharpnessAware(
        m, o, look=steppe.Look(view=lambda b: {k: v[:1] for k, v in b.items()})), 1.5),
}  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_the_trainer_equals_the_loop_by_hand(name: str, accumulation: int, tmp_path: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    factory, passes = TRAINED[name]
    rows = tiny.sentences(6 * accumulation)
    if name == "length":  # an even number of positions
        rows = [{k: v[: len(v) // 2 * 2] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    model, twin = tiny.classifier().eval(), tiny.classifier().eval()
    for net in (model, twin):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    sharp = factory(twin, optimizer)
    collated = [transformers.default_data_collator(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    scheduler = transformers.get_scheduler("linear", optimizer, 0, 3)
    twin.train()
    for i in range(0, len(collated), accumulation):
        sharp.backward(lambda b: twin(**b).loss, micro_batches=collated[i : i + accumulation])
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    args = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, max_steps=3, max_grad_norm=0.5,
        per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, save_strategy="no",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SharpTrainer(
        model, args, train_dataset=rows, sharp=factory,
        optimizers=(torch.optim.AdamW(model.parameters(), lr=0.01), None),
    )  # fmt: skip
    trainer.train()
    ours, theirs = everything(model), everything(twin)
    assert all(torch.allclose(ours[k], theirs[k], rtol=1e-5, atol=1e-6) for k in ours) and trainer.sharp.step == 3
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["passes_per_step"] for row in logs] == pytest.approx([passes] * 3)
    assert not any("surrogate_gap" in row for row in logs)
