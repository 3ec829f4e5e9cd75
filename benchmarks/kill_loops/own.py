"""Loops of one's own: plain, fp16 with a GradScaler (on CPU, with injected infinities), and two ranks of DDP."""

import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe

from .loop import Loop, last, numbered
from .methods import base, recipe
from .watch import EVERY, STEPS, Watch

# Attempts whose first (1) or second (2) pass overflows; on a step that does not ascend there is no second.
OVERFLOWS = {2: 1, 4: 2, 7: 2, 8: 2, 10: 1}
RANKS = 2


class Net(nn.Module):
    """Batch norm (running statistics) and dropout (the generator's state)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.25)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


@dataclass
class Run:
    """One process of a run: everything that a checkpoint holds."""

    net: Net
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sharp: steppe.SharpnessAware
    scaler: torch.amp.GradScaler
    scheduler: Any = field(init=False)
    attempt: int = 0

    def __post_init__(self) -> None:
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.2, total_iters=STEPS)

    def state(self) -> dict[str, Any]:
        parts = (self.net, self.optimizer, self.sharp, self.scaler, self.scheduler)
        names = ("model", "optimizer", "sharp", "scaler", "scheduler")
        return {name: part.state_dict() for name, part in zip(names, parts, strict=True)} | {
            "attempt": self.attempt, "generators": _of_all_ranks(torch.get_rng_state())
        }  # fmt: skip

    def load(self, state: dict[str, Any], rank: int) -> None:
        for name in ("optimizer", "sharp", "scaler", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.net.load_state_dict(state["model"])
        self.attempt = state["attempt"]
        torch.set_rng_state(state["generators"][rank])


def _of_all_ranks(value: Tensor) -> list[Tensor]:
    if not dist.is_initialized():
        return [value]
    values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value)
    return values


def _build(method: str, rank: int, fp16: bool) -> Run:
    torch.manual_seed(0)
    net = Net()
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    optimizer = base(method, net.parameters())
    common = {"sync": "rank"} if dist.is_initialized() and method == "rst" else {}
    sharp = recipe(method, **common)(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=fp16)
    torch.manual_seed(100 + rank)
    return Run(net, model, optimizer, sharp, scaler)


def save(state: dict[str, Any], step: int, folder: Path) -> None:
    """Whole or not at all: write under another name, then rename."""
    part = folder / f"{step}.pt.part"
    torch.save(state, part)
    os.replace(part, folder / f"{step}.pt")


def checkpoints(folder: Path) -> dict[int, Path]:
    return numbered(folder, "*.pt")


def _train(folder: Path, method: str, watch: Watch, rank: int, fp16: bool = False) -> dict[str, Any]:
    run = _build(method, rank, fp16)
    watch.clock = lambda sharp: run.attempt
    if (path := last(checkpoints(folder))) is not None:
        run.load(torch.load(path, weights_only=True), rank)
        watch.loaded(run.attempt)
    while run.attempt < STEPS:
        _step(run, rank)
        if run.attempt % EVERY == 0:
            state = run.state()
            if rank == 0:
                with watch.region("checkpoint", run.attempt):
                    save(state, run.attempt, folder)
    return run.state()


def _step(run: Run, rank: int) -> None:
    loss_of = _loss_of(run, *_batch(run.attempt, rank))
    run.sharp.backward(loss_of, backward=lambda loss: run.scaler.scale(loss).backward())
    run.scaler.unscale_(run.optimizer)
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.scheduler.step()
    run.attempt += 1


def _batch(attempt: int, rank: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(10 * attempt + rank)
    return torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)


def _loss_of(run: Run, x: Tensor, y: Tensor) -> Any:
    passes = 0
    fp16 = run.scaler.is_enabled()

    def loss_of() -> Tensor:
        nonlocal passes
        passes += 1
        with torch.autocast("cpu", dtype=torch.float16, enabled=fp16):
            loss = nn.functional.cross_entropy(run.model(x), y)
        return loss * float("inf") if fp16 and OVERFLOWS.get(run.attempt) == passes else loss

    return loss_of


def _plain(folder: Path, method: str, watch: Watch, rank: int) -> dict[str, Any]:
    return _train(folder, method, watch, rank)


def _fp16(folder: Path, method: str, watch: Watch, rank: int) -> dict[str, Any]:
    return _train(folder, method, watch, rank, fp16=True)


def _ddp(folder: Path, method: str, watch: Watch, rank: int) -> dict[str, Any]:
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # works without a network
    meet = (folder / "meet").absolute().as_uri()
    dist.init_process_group("gloo", meet, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    return _train(folder, method, watch, rank)


def _read(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


PLAIN = Loop("plain", _plain, checkpoints, _read, _unfinished)
FP16 = Loop("fp16 GradScaler", _fp16, checkpoints, _read, _unfinished)
DDP = Loop("DDP", _ddp, checkpoints, _read, _unfinished, RANKS)
