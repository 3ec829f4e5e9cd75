"""Lightning in other ways: a manual backward, a compiled module, several processes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations import ranks
from tests.integrations.by_hand import Batch, base, micro_batches, sharpen, train
from tests.loops import distributed
from tests.problems import everything, net, same
from torch import Tensor, nn

import steppe

pytest.importorskip("lightning")
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from tests.integrations.test_lightning import Lit, callback, fit, loader, trainer  # noqa: E402

from steppe.integrations.lightning import SharpCallback  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(r"ignore:::(lightning|torchmetrics)\..*")]


def test_what_cannot_work_is_refused_in_one_sentence() -> None:
    class OwnBackward(MixedPrecision):
        def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            tensor.backward()

    class Reads(Lit):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            raise AssertionError

    manual = Lit()
    manual.automatic_optimization = False
    with pytest.raises(ValueError, match="manual optimization; expected automatic"):
        fit(manual, "sam", micro_batches(1))
    with pytest.raises(ValueError, match="dataloader_iter"):
        fit(Reads(), "sam", micro_batches(1))
    with pytest.raises(RuntimeError, match="does not call the module's backward"):
        fit(Lit(), "sam", micro_batches(1), plugins=[OwnBackward("bf16-mixed", "cpu")])
    with pytest.raises(ValueError, match="one loss per sample .*Lightning has the mean loss only"):
        trainer(SharpCallback(steppe.ESAM)).fit(Lit(), loader(micro_batches(1)))
    few, own = SharpCallback(steppe.SAM, samples=2), OwnBackward("bf16-mixed", "cpu")
    with pytest.raises(RuntimeError, match="does not call the module's backward"):
        trainer(few, plugins=[own]).fit(Lit(), loader(micro_batches(1)))


def test_manual_optimization_calls_backward_itself() -> None:
    class Manual(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            x, y = batch
            self.sharp.backward(lambda: nn.functional.cross_entropy(self.net(x), y), backward=self.manual_backward)
            self.optimizers().step()
            self.optimizers().zero_grad()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = base(self.name, self.net)
            self.sharp = sharpen(self.name, self, optimizer)
            return optimizer

    batches, lit = micro_batches(3), Manual()
    expected, _, _ = train("sam", batches)
    trainer().fit(lit, loader(batches))
    assert same(everything(lit.net), everything(expected)) and lit.sharp.step == 3


def test_a_compiled_module() -> None:
    class Silent(Lit):  # Lightning's own log cannot be compiled
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            pass

    batches, compiled, plain = micro_batches(2), Silent(net=net(torch.float32, 0)), Silent(net=net(torch.float32, 0))
    trainer(callback("sam")).fit(torch.compile(compiled, backend="eager"), loader(batches))
    trainer(callback("sam")).fit(plain, loader(batches))
    assert same(everything(compiled.net), everything(plain.net))


def test_two_processes_equal_one_on_the_concatenated_batch() -> None:
    cases = [("DDP", 1), ("DDP", 2), ("FSDP2", 2)]
    answers = distributed.run(2, ranks.with_lightning, cases)
    for (strategy, accumulate), first, second in zip(cases, *answers, strict=True):
        for name in ranks.METHODS:
            assert torch.equal(first[name], second[name]), f"{name}, {strategy}, {accumulate}: ranks differ"
            every_batch_averaged = accumulate == 1 or strategy == "FSDP2"  # Lightning's own doing
            torch.testing.assert_close(first[name], ranks.single(name, accumulate, every_batch_averaged))


def test_a_sharded_memory_is_saved_whole(tmp_path: Path) -> None:
    first, second = distributed.run(2, ranks.resumed_with_lightning, "look_sam", "FSDP2", str(tmp_path))
    assert torch.equal(first[0], first[1]) and torch.equal(second[0], second[1])
