"""The same in hosts that own the loop: a buffer and an attribute that a forward reads and moves, and NumPy's draws."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tests.situations.by_hand import LR, RHO, ByHand, batches, far, loss, state, trained
from tests.situations.stateful import Reading
from torch import nn

import steppe


class Drawing(Reading):
    """A queue, a plain attribute, and a share drawn from NumPy's generator in every pass."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.zeros(3, dtype=torch.float64)

    def forward(self, x):
        out = super().forward(x) + self.hidden + float(np.random.beta(0.5, 0.5))
        self.hidden = out.detach().mean(0).tanh()
        return out


def by_hand(xs, accumulate, together, monkeypatch):
    """Steps over the mean of ``accumulate`` batches' losses, with one perturbation for all or each its own."""
    hand = ByHand(Drawing(), lr=LR / accumulate)
    np.random.seed(1)
    for i in range(0, len(xs), accumulate):
        pieces = xs[i : i + accumulate]
        groups = [pieces] if together else [[x] for x in pieces]
        draws = [[float(np.random.beta(0.5, 0.5)) for _ in group] for group in groups]
        shares = iter([share for group in draws for share in group * 2])  # in both passes the same
        with monkeypatch.context() as patched:
            patched.setattr(np.random, "beta", lambda *_: next(shares))
            hand.step(*groups)
    return hand.model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(accumulate, monkeypatch):
    """Each micro-batch has a perturbation of its own."""
    lightning = pytest.importorskip("lightning")
    from steppe.integrations.lightning import SharpCallback

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Drawing()

        def training_step(self, x, i):
            if i == 0:
                np.random.seed(1)
            return loss(self.net, x)

        def configure_optimizers(self):
            return torch.optim.SGD(trained(self.net), lr=LR)

    xs, lit = batches(4), Lit()
    data = torch.utils.data.DataLoader(xs, batch_size=None)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(
        callbacks=[SharpCallback(steppe.SAM, rho=RHO)], max_epochs=1, accelerator="cpu",
        accumulate_grad_batches=accumulate, **quiet,
    )  # fmt: skip
    trainer.fit(lit, data)
    assert far(state(lit.net), state(by_hand(xs, accumulate, False, monkeypatch))) <= 1e-10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer(accumulate, tmp_path, monkeypatch):
    """All micro-batches of a step are one pass: the second begins before the first of them."""
    transformers = pytest.importorskip("transformers")
    from steppe.integrations.transformers import SharpTrainer

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Drawing()

        def forward(self, x):
            return {"loss": loss(self.net, x)}

    class Seeding(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            np.random.seed(1)

    xs = batches(4)
    rows = [{"x": row} for x in xs for row in x]
    model = Wrapped()
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=6, gradient_accumulation_steps=accumulate, max_steps=4 // accumulate,
        report_to=[], save_strategy="no", use_cpu=True, max_grad_norm=0.0, lr_scheduler_type="constant",
        disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SharpTrainer(
        model, args, train_dataset=rows, sharp=functools.partial(steppe.SAM, rho=RHO), callbacks=[Seeding()],
        optimizers=(torch.optim.SGD(trained(model.net), lr=LR), None),
    )  # fmt: skip
    trainer.train()
    assert far(state(model.net), state(by_hand(xs, accumulate, True, monkeypatch))) <= 1e-10
