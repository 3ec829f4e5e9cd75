"""What each process of a group runs, and the same in one process."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from tests.integrations.by_hand import Batch, base, micro_batches, sharpen
from torch import Tensor, nn

RANKS, SIZE, STEPS = 2, 8, 3
METHODS = ("grst", "look_sam", "gsam")
"""Steps that do not ascend and a mixture, a direction that is kept, products of gradients; the others: tests/loops."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()


def weights(model: nn.Module) -> Tensor:
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    return torch.cat([p.detach().flatten() for p in whole])


def shared(accumulate: int) -> list[Batch]:
    return [(x.double(), y) for x, y in micro_batches(STEPS * accumulate, SIZE)]


def share(batch: Batch, rank: int) -> Batch:
    mine = slice(rank * SIZE // RANKS, (rank + 1) * SIZE // RANKS)
    return batch[0][mine], batch[1][mine]


def single(name: str, accumulate: int, every_batch_averaged: bool) -> Tensor:
    """One process. Where micro-batches are not averaged over ranks, each rank's share is perturbed by itself."""
    model = network()
    optimizer = base(name, model)
    sharp = sharpen(name, model, optimizer)

    def backward(batch: Batch, ranks: int) -> None:
        sharp.backward(lambda: nn.functional.cross_entropy(model(batch[0]), batch[1]) / (accumulate * ranks))

    for i, batch in enumerate(shared(accumulate)):
        last = (i + 1) % accumulate == 0
        for piece in [batch] if last or every_batch_averaged else [share(batch, r) for r in range(RANKS)]:
            backward(piece, 1 if piece is batch else RANKS)
        if last:
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def as_launched() -> int:
    """What torchrun would have set."""
    rank = dist.get_rank()
    one_node = {"LOCAL_RANK": rank, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({k: str(v) for k, v in one_node.items()} | {"MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"})
    return rank


def with_accelerate(cases: list[tuple[int, bool]]) -> list[dict[str, Tensor]]:
    """accelerate's recipe on this rank's share, for METHODS; (micro-batches, whether each is averaged)."""
    rank = as_launched()
    return [_accelerate(rank, *case) for case in cases]


def _accelerate(rank: int, accumulate: int, sync_each_batch: bool) -> dict[str, Tensor]:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    found = {}
    for name in METHODS:
        plugin = GradientAccumulationPlugin(num_steps=accumulate, sync_each_batch=sync_each_batch)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
        accelerator.gradient_state.plugin_kwargs = plugin.to_kwargs()  # shared by all of a process
        model = network()
        model, optimizer = accelerator.prepare(model, base(name, model))
        assert type(model).__name__ == "DistributedDataParallel"
        sharp = sharpen(name, model, optimizer)
        for batch in shared(accumulate):
            x, y = share(batch, rank)
            with accelerator.accumulate(model):
                sharp.backward(lambda: nn.functional.cross_entropy(model(x), y), backward=accelerator.backward)
                optimizer.step()
                optimizer.zero_grad()
        found[name] = weights(model)
    return found


def with_lightning(cases: list[tuple[str, int]]) -> list[dict[str, Tensor]]:
    """Lightning's Trainer on this rank's share, for METHODS; (strategy, micro-batches)."""
    as_launched()
    return [
        {name: weights(_lightning(name, strategy, accumulate)[1].net) for name in METHODS}
        for strategy, accumulate in cases
    ]


def resumed_with_lightning(name: str, strategy: str, folder: str) -> list[Tensor]:
    """Two epochs, and one epoch that another Trainer's second one follows."""
    as_launched()
    _, whole = _lightning(name, strategy, epochs=2)
    stopped, _ = _lightning(name, strategy)
    stopped.save_checkpoint(f"{folder}/c.ckpt")
    _, resumed = _lightning(name, strategy, epochs=2, ckpt=f"{folder}/c.ckpt")
    return [weights(whole.net), weights(resumed.net)]


def _lightning(
    name: str, strategy: str, accumulate: int = 1, epochs: int = 1, ckpt: str | None = None
) -> tuple[Any, Any]:
    import lightning as L  # noqa: N812
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from steppe.integrations.lightning import SharpCallback

    class Lit(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def configure_model(self) -> None:
            if strategy == "FSDP2":
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return base(name, self.net)

    method = SharpCallback(lambda model, optimizer: sharpen(name, model, optimizer))
    sharded = ModelParallelStrategy(data_parallel_size=RANKS, tensor_parallel_size=1)
    trainer = L.Trainer(
        accelerator="cpu", strategy=sharded if strategy == "FSDP2" else "ddp", devices=RANKS, max_epochs=epochs,
        accumulate_grad_batches=accumulate, callbacks=[method], use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    mine = [share(batch, dist.get_rank()) for batch in shared(accumulate)]
    lit = Lit()
    trainer.fit(lit, torch.utils.data.DataLoader(mine, batch_size=None), ckpt_path=ckpt)  # type: ignore[arg-type]
    return trainer, lit
