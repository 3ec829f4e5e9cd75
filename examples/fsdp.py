"""FSDP2 with gradients, weights and the method's memory in shards: the loop is the one for a single process.

    torchrun --nproc-per-node 2 examples/fsdp.py

Called plainly, it calls torchrun. The result is compared with one process on the whole batch.
"""

import gc
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import steppe

STEPS = 50
Batch = tuple[Tensor, Tensor]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 21), nn.Tanh(), nn.Linear(21, 21), nn.Tanh(), nn.Linear(21, 1))


def train(model: nn.Module, batches: list[Batch]) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    sharp = steppe.LookSAM(model, optimizer, rho=0.1, k=5)  # new; after fully_shard
    for x, y in batches:
        loss = sharp.backward(lambda: nn.functional.mse_loss(model(x), y))  # was: loss = ...; loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    draw = (torch.randn(16, 5, generator=generator) for _ in range(STEPS))
    whole = [(x, x.sum(1, keepdim=True)) for x in draw]
    mine = [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in whole]

    model = build()
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    train(model, mine)

    single = build()
    loss = train(single, whole)
    pairs = zip(model.parameters(), single.parameters(), strict=True)
    off = max(float((sharded.full_tensor() - p).detach().abs().max()) for sharded, p in pairs)
    if rank == 0:
        print(f"{world} ranks, loss {loss:.3f}: within {off:.0e} of one process on the whole batch")
    assert off < 1e-4
    gc.collect()  # what still holds the process group must go before it
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        sys.exit(subprocess.call(launch))
