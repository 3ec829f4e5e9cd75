"""Lightning: one callback, and everything as in the loop by hand, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.by_hand import LOOP_METHODS, Batch, base, micro_batches, problem, sharpen, train
from tests.problems import everything, net, same
from torch import Tensor, nn

import steppe

L = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import Callback, ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from torchmetrics import CatMetric, MeanMetric  # noqa: E402

from steppe.integrations.lightning import SharpCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:::(lightning|torchmetrics)\..*"),  # advice of the host on workers and such
]


class Lit(L.LightningModule):
    """The user's module: knows nothing of steppe."""

    def __init__(self, name: str = "sam", net: nn.Module | None = None) -> None:
        super().__init__()
        self.name, self.net = name, net or problem()
        self.mean = MeanMetric()
        self.seen: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Any]:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x).float(), y)
        self.mean(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"mean": self.mean}, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(self.trainer.callback_metrics["loss_step"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return base(self.name, self.net)


def trainer(*callbacks: Callback, **settings: Any) -> Any:
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), "max_epochs": 1,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **(quiet | settings))


def loader(batches: list[Batch]) -> torch.utils.data.DataLoader[Batch]:
    return torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def callback(name: str) -> SharpCallback:
    return SharpCallback(lambda model, optimizer: sharpen(name, model, optimizer))


# Every pair of them for the method that remembers and reuses; one way for each of the others.
WAYS = [(1, "fp32", "full"), (1, "bf16", "lora"), (4, "fp32", "lora"), (4, "bf16", "full")]
THREE_STEPS = [("look_sam", *way) for way in WAYS]
THREE_STEPS += [(n, *WAYS[-1 if n == "sl_sam" else 0]) for n in (*LOOP_METHODS, "sl_sam") if n != "look_sam"]


@pytest.mark.parametrize(("name", "accumulate", "kind", "parameters"), THREE_STEPS)
def test_three_steps_equal_the_loop_by_hand(
    name: str, accumulate: int, kind: str, parameters: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("loop", "Lightning")
    record_property("method", name)
    batches = micro_batches(3 * accumulate)
    expected, by_hand, losses = train(name, batches, accumulate, kind, cache=False, parameters=parameters)
    lit, sharp = Lit(name, problem(parameters)), callback(name)
    precision = "bf16-mixed" if kind == "bf16" else "32-true"
    trainer(sharp, accumulate_grad_batches=accumulate, precision=precision).fit(lit, loader(batches))
    assert same(everything(lit.net), everything(expected))
    assert sharp.sharp.step == by_hand.step == 3
    assert sharp.sharp.last.ascended == by_hand.last.ascended
    torch.testing.assert_close(torch.tensor(lit.seen), torch.tensor(losses) * accumulate)


def fit(
    lit: Lit, name: str, batches: list[Batch], *callbacks: Callback, ckpt: Path | None = None, **settings: Any
) -> Any:
    host = trainer(callback(name), *callbacks, **settings)
    host.fit(lit, loader(batches), ckpt_path=ckpt)
    return host


def test_logs_and_metrics_count_the_first_pass_only() -> None:
    lit, batches = Lit(), micro_batches(4)
    host = fit(lit, "sam", batches)
    _, _, losses = train("sam", batches)
    for key in ("loss_epoch", "mean"):
        torch.testing.assert_close(host.callback_metrics[key].item(), sum(losses) / 4)


@pytest.mark.parametrize("recipe", [steppe.SAM, functools.partial(steppe.SAM, samples=2)], ids=["twice", "whole"])
def test_a_metric_with_a_long_list_counts_the_first_pass_only(recipe: Any) -> None:
    """Longer than those that the state of a model puts back."""

    class Listing(Lit):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.all.update(loss.detach())
            return loss

    lit = Listing()
    lit.all = CatMetric()
    lit.all.value = [torch.zeros(1)] * 2000
    trainer(SharpCallback(recipe, rho=0.3)).fit(lit, loader(micro_batches(2)))
    assert len(lit.all.value) == 2002


def test_the_module_is_left_as_it_was() -> None:
    lit = Lit()
    fit(lit, "sam", micro_batches(2))
    assert not {"training_step", "backward", "log"} & set(vars(lit))


@pytest.mark.parametrize("name", ["gsam", "wsam"])  # WSAM's correction shrinks with the gradient
def test_clipping_happens_once_and_after_combining(name: str) -> None:
    class Clipped(Lit):
        clipped = 0

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            self.clipped += 1
            super().configure_gradient_clipping(*args, **kwargs)

    batches = micro_batches(8)
    expected, _, _ = train(name, batches, 4, clip=0.1)
    lit = Clipped(name)
    fit(lit, name, batches, accumulate_grad_batches=4, gradient_clip_val=0.1)
    assert same(everything(lit.net), everything(expected)) and lit.clipped == 2


def test_wsam_accumulates_its_correction() -> None:
    batches = micro_batches(8)
    expected, _, _ = train("wsam", batches, 4)
    lit = Lit()
    fit(lit, "wsam", batches, accumulate_grad_batches=4)
    assert same(everything(lit.net), everything(expected))


def by_hand_in_fp16(
    name: str, batches: list[Batch], scaler: torch.amp.GradScaler, inf_at: int
) -> tuple[nn.Module, int]:
    model = problem()
    optimizer = base(name, model)
    sharp = sharpen(name, model, optimizer)
    for i, (x, y) in enumerate(batches):
        torch.manual_seed(i)

        def loss_of() -> Tensor:
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            return loss * float("inf") if i == inf_at else loss

        sharp.backward(loss_of, backward=lambda loss: scaler.scale(loss).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, sharp.step


@pytest.mark.parametrize("name", ["sam", "grst", "look_sam"])
def test_16_mixed_skips_a_step_and_the_schedule_does_not_move(name: str) -> None:
    class Overflows(Lit):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 1 else loss

    batches, scalers = micro_batches(5), [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    expected, steps = by_hand_in_fp16(name, batches, scalers[0], inf_at=1)
    lit = Overflows(name)
    fit_sharp = callback(name)
    trainer(fit_sharp, plugins=[MixedPrecision("16-mixed", "cpu", scalers[1])]).fit(lit, loader(batches))
    assert fit_sharp.sharp.step == steps == 4 and scalers[1].get_scale() == 512
    assert same(everything(lit.net), everything(expected))


@pytest.mark.parametrize("name", ["grst", "look_sam", "adasam"])
def test_resumes_bit_for_bit_in_the_middle_of_a_cycle(name: str, tmp_path: Path) -> None:
    batches = micro_batches(3)  # three steps to an epoch: LookSAM, with k = 2, stops where it reuses
    whole = Lit(name)
    fit(whole, name, batches, max_epochs=3)
    fit(Lit(name), name, batches, ModelCheckpoint(tmp_path, filename="c"), max_epochs=1)
    again, sharp = Lit(name), callback(name)
    trainer(sharp, max_epochs=3).fit(again, loader(batches), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert sharp.sharp.step == 9
    assert same(everything(again.net), everything(whole.net))


def test_a_checkpoint_from_before_the_callback_is_said_to_start_at_step_0(tmp_path: Path) -> None:
    trainer(ModelCheckpoint(tmp_path, filename="c")).fit(Lit(), loader(micro_batches(2)))
    with pytest.warns(UserWarning, match="no state of SharpCallback"):
        fit(Lit(), "sam", micro_batches(2), ckpt=tmp_path / "c.ckpt", max_epochs=2)


def test_a_recipe_that_wants_total_steps_is_given_the_trainers() -> None:
    for settings, expected in (({}, 3), ({"total_steps": 7}, 7)):
        sharp = SharpCallback(steppe.RST, rho=0.1, schedule="linear1", **settings)
        trainer(sharp, accumulate_grad_batches=2, max_epochs=3).fit(Lit(), loader(micro_batches(2)))
        model = net()
        by_hand = steppe.RST(model, base("sam", model), rho=0.1, schedule="linear1", total_steps=expected)
        assert sharp.sharp.schedule == by_hand.schedule


def test_every_fit_has_its_own_method_and_evaluation_leaves_it_alone(tmp_path: Path) -> None:
    class Tested(Lit):
        def test_step(self, batch: Batch, batch_idx: int) -> None:
            self.net(batch[0])

    sharp, lit = callback("look_sam"), Tested("look_sam")
    trainer(sharp, ModelCheckpoint(tmp_path, filename="c")).fit(lit, loader(micro_batches(3)))
    first = sharp.sharp
    host = trainer(sharp)
    host.test(lit, loader(micro_batches(1)), ckpt_path=tmp_path / "c.ckpt", verbose=False)
    host.fit(lit, loader(micro_batches(2)))
    assert sharp.sharp is not first and (first.step, sharp.sharp.step) == (3, 2)


def logged(step: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(step)(lambda *args, **kwargs: step(*args, **kwargs))


SAME = functools.partial(steppe.SAM, rho=0.3, look=steppe.Look(view=lambda batch: batch))


@pytest.mark.parametrize("recipe", [functools.partial(steppe.SAM, rho=0.3), SAME], ids=["twice", "whole"])
def test_steps_may_return_a_dict_take_only_the_batch_and_empty_it(recipe: Any) -> None:
    class Popping(Lit):
        @logged
        def training_step(self, batch: dict[str, Tensor]) -> dict[str, Any]:
            x, y = batch.pop("x"), batch.pop("y")
            return {"loss": nn.functional.cross_entropy(self.net(x), y), "more": 1}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert outputs["more"] == 1

    batches = micro_batches(3)
    expected, _, _ = train("sam", batches)
    lit = Popping()
    trainer(SharpCallback(recipe)).fit(lit, loader([{"x": x, "y": y} for x, y in batches]))  # type: ignore[arg-type]
    # The weights: running statistics are the first pass's, or of the pass at w + eps where the first only looks.
    assert same(dict(lit.net.named_parameters()), dict(expected.named_parameters()))


def test_hooks_run_once_and_a_backward_of_ones_own_twice() -> None:
    backwards = []  # not a number in the module, which the second pass would begin with anew

    class Counting(Lit):
        hooks = 0

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            backwards.append(1)
            super().backward(loss, *args, **kwargs)

        def on_after_backward(self) -> None:
            self.hooks += 1
            assert sharp.sharp.last.surrogate_gap is not None

    lit, sharp = Counting(), callback("sam")
    trainer(sharp).fit(lit, loader(micro_batches(2)))
    assert (len(backwards), lit.hooks) == (4, 2)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_in_the_second_pass_leaves_the_weights(error: BaseException) -> None:
    calls = []

    class Fails(Lit):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise error
            return super().training_step(batch, batch_idx)

    lit = Fails()
    before = [p.detach().clone() for p in lit.parameters()]
    with pytest.raises((type(error), SystemExit)):
        fit(lit, "sam", micro_batches(2))
    assert all(torch.equal(a, b) for a, b in zip(before, lit.parameters(), strict=True))
    assert not {"training_step", "backward", "log"} & set(vars(lit))
