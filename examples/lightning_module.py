"""Lightning: one more callback; the LightningModule and the rest of the Trainer stay as they are.

The state is in Lightning's own checkpoint: a fit that stops in the middle of a LookSAM cycle and goes on from
the checkpoint ends with the same weights, to the last bit, as one that never stopped.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning as L  # noqa: N812
import torch
from sklearn.datasets import load_digits
from torch import nn

import steppe
from steppe.integrations.lightning import SharpCallback  # new

# Lightning's advice on workers, loggers and such.
warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

EPOCHS, STOPPED = 6, 2


class Digits(L.LightningModule):
    """An ordinary module in automatic optimisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)  # logged once a step: the second pass logs nothing
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader() -> torch.utils.data.DataLoader:
    images, labels = load_digits(return_X_y=True)
    data = torch.utils.data.TensorDataset(torch.tensor(images[:448]).float() / 16, torch.tensor(labels[:448]))
    return torch.utils.data.DataLoader(data, batch_size=16)


def fit(epochs: int, folder: Path, resume_from: Path | None = None) -> tuple[L.Trainer, Digits]:
    trainer = L.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=4,
        gradient_clip_val=1.0,
        callbacks=[SharpCallback(steppe.LookSAM, rho=0.05, k=5, alpha=0.1)],  # new
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Digits()
    trainer.fit(module, loader(), ckpt_path=resume_from)
    return trainer, module


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, whole = fit(EPOCHS, folder)

        stopped, _ = fit(STOPPED, folder)
        stopped.save_checkpoint(folder / "stopped.ckpt")
        resumed, module = fit(EPOCHS, folder, folder / "stopped.ckpt")

    pairs = zip(whole.parameters(), module.parameters(), strict=True)
    different = sum(int((a != b).sum()) for a, b in pairs)
    print(f"stopped after {stopped.global_step} of {resumed.global_step} steps: {different} weights differ")
    print(f"training loss {resumed.callback_metrics['loss']:.3f}")
    assert stopped.global_step % 5 != 0
    assert different == 0


if __name__ == "__main__":
    main()
