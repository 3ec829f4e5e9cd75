"""A probe in hosts that own the loop: what it logs, and that the training is the same with it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.problems import everything, same

pytest.importorskip("transformers")
pytest.importorskip("peft")
L = pytest.importorskip("lightning")

from lightning.pytorch.loggers.logger import Logger  # noqa: E402
from tests.integrations import test_lightning as lit  # noqa: E402
from tests.integrations import tiny_models as tiny  # noqa: E402
from tests.integrations.trainers import Seeds, arguments, base, factory  # noqa: E402

import steppe  # noqa: E402
from steppe.integrations.lightning import ProbeCallback as LightningProbe  # noqa: E402
from steppe.integrations.lightning import SharpCallback  # noqa: E402
from steppe.integrations.transformers import ProbeCallback, SharpTrainer  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(r"ignore:::(lightning|torchmetrics)\..*")]

NAMES = {"probe/surrogate_gap", "probe/perturbation_norm", "probe/cosine"}


class Kept(Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((metrics, step or 0))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def with_the_trainer(folder: Path, probing: bool) -> Any:
    model = tiny.classifier()
    args = arguments(folder, gradient_accumulation_steps=2, train_sampling_strategy="sequential")
    trainer = SharpTrainer(
        model, args, train_dataset=tiny.sentences(12), callbacks=[Seeds()], optimizers=(base("sam", model), None),
        sharp=factory("sam"),
    )  # fmt: skip
    if probing:
        trainer.add_callback(ProbeCallback(trainer, every=2))
    trainer.train()
    return trainer


def test_the_trainer_logs_what_it_notes_and_trains_the_same(tmp_path: Path) -> None:
    plain, probed = (with_the_trainer(tmp_path / str(probing), probing) for probing in (False, True))
    assert same(everything(plain.model), everything(probed.model))
    rows = [row for row in probed.state.log_history if "probe/cosine" in row]
    assert [row["step"] for row in rows] == [0, 2]
    assert all(row.keys() >= NAMES for row in rows)
    assert probed.sharp.measure is plain.sharp.measure, "a training ended with the probe's parts"


def test_lightnings_loggers_get_what_it_notes_and_it_trains_the_same(tmp_path: Path) -> None:
    batches = lit.micro_batches(4)
    modules = []
    for probing in (False, True):
        module, sharp = lit.Lit(), SharpCallback(functools.partial(steppe.SAM, rho=0.1))
        logger = Kept() if probing else False
        probe = LightningProbe(sharp, every=2)
        callbacks = [sharp, probe] if probing else [sharp]
        torch.manual_seed(0)
        lit.trainer(*callbacks, logger=logger, accumulate_grad_batches=2, default_root_dir=tmp_path).fit(
            module, lit.loader(batches)
        )
        modules.append(module)
    assert same(everything(modules[0].net), everything(modules[1].net))
    assert [record["step"] for record in probe.probe.records] == [0]
    assert [(row.keys() & NAMES, step) for row, step in logger.rows if "probe/cosine" in row] == [(NAMES, 0)]
