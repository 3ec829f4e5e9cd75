"""Lightning, with its own checkpoints: written to a temporary file, which is moved."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from steppe.integrations.lightning import SharpCallback

from .loop import Loop, last, numbered
from .methods import base, recipe
from .watch import EVERY, STEPS, Watch

STEPS_PER_EPOCH = 5  # so that checkpoints fall into the middle of epochs


class _Module(L.LightningModule):
    def __init__(self, method: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.method = method
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.25), nn.Linear(16, 3))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 + self.global_step)  # Lightning's checkpoints do not hold the generator's state

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return base(self.method, self.parameters())


class _Batches:
    """A loader that says where it is: with any other, Lightning begins a broken-off epoch's data from the start."""

    def __init__(self) -> None:
        self.next = 0

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.next < len(self):
            draw = torch.Generator().manual_seed(self.next)
            self.next += 1
            yield torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class _Watched(ModelCheckpoint):
    watch: Watch

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        make = tempfile.mkstemp
        tempfile.mkstemp = lambda *args, **kwargs: (make(*args, **kwargs), self.watch.writing(trainer.global_step))[0]
        with self.watch.region("checkpoint", trainer.global_step):
            super()._save_checkpoint(trainer, filepath)
        tempfile.mkstemp = make


def _train(folder: Path, method: str, watch: Watch, rank: int) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    tempfile.tempdir = str(folder)  # on the checkpoints' own file system, where a move is a rename
    sharp, keep = SharpCallback(recipe(method)), _keep(folder, watch)
    trainer = L.Trainer(
        max_steps=STEPS, callbacks=[sharp, keep], default_root_dir=folder, accelerator="cpu", gradient_clip_val=1.0,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module, path = _Module(method), last(checkpoints(folder))
    if path is not None:
        watch.loaded(max(checkpoints(folder)))
    trainer.fit(module, _Batches(), ckpt_path=path)
    return {
        "model": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict(),
        "sharp": sharp.sharp.state_dict(), "step": trainer.global_step, "epoch": trainer.current_epoch,
    }  # fmt: skip


def _keep(folder: Path, watch: Watch) -> ModelCheckpoint:
    keep = _Watched(dirpath=folder, filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)
    keep.watch = watch
    return keep


def checkpoints(folder: Path) -> dict[int, Path]:
    return numbered(folder, "step=*.ckpt")


def _read(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=False)
    sharp = [v for k, v in state["callbacks"].items() if k.startswith("SharpCallback")]
    return {k: state[k] for k in ("state_dict", "optimizer_states", "global_step", "epoch")} | {"sharp": sharp}


def _unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("tmp*") if path.is_file()]


LIGHTNING = Loop("Lightning", _train, checkpoints, _read, _unfinished)
