"""DistributedDataParallel, one line changed in the loop: every rank perturbs alike, or each along its own gradient.

    torchrun --nproc-per-node 2 examples/ddp.py

Called plainly, it calls torchrun.
"""

import copy
import gc
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import steppe

STEPS = 100


def train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], sync: str) -> list[float]:
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = steppe.SAM(model, optimizer, rho=0.1, sync=sync)  # new; hand in the wrapped model
    losses = []
    for x, y in batches:
        loss = sharp.backward(lambda: nn.functional.mse_loss(model(x), y))  # was: loss = ...; loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 1))
    generator = torch.Generator().manual_seed(rank)  # each rank draws batches of its own
    draw = (torch.randn(8, 5, generator=generator) for _ in range(STEPS))
    batches = [(x, x.sum(1, keepdim=True)) for x in draw]
    for sync, cost in (("global", "2 all-reduces a step"), ("rank", "1 all-reduce a step")):
        model = copy.deepcopy(start)
        losses = train(model, batches, sync)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        first = weights.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(weights, first)
        assert losses[-1] < losses[0] / 4
        if rank == 0:
            print(f"sync={sync!r}: {cost}; loss {losses[0]:.2f} -> {losses[-1]:.2f}, the same weights on every rank")
    gc.collect()  # what still holds the process group must go before it
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        sys.exit(subprocess.call(launch))
