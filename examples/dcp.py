"""A distributed checkpoint of a sharded training, in the middle of a LookSAM cycle, continued in one process.

    torchrun --nproc-per-node 2 examples/dcp.py

Called plainly, it calls torchrun. `sharp` goes into the same dictionary as model and optimizer: DCP calls its
state_dict and load_state_dict, and cuts the memory anew for however many ranks there are.
"""

import gc
import os
import subprocess
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import steppe

STEPS, SAVED = 40, 23  # in the middle of a cycle of 5
Batch = tuple[Tensor, Tensor]
Parts = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


def build(sharded: bool) -> Parts:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 1))
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, steppe.LookSAM(model, optimizer, rho=0.1, k=5)


def train(parts: Parts, batches: list[Batch]) -> None:
    model, optimizer, sharp = parts
    for x, y in batches:
        sharp.backward(lambda: nn.functional.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def save(parts: Parts, folder: str) -> None:
    model, optimizer, sharp = parts
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": state, "sharp": sharp}, checkpoint_id=folder)  # new: "sharp"


def load(parts: Parts, folder: str) -> None:
    model, optimizer, sharp = parts
    weights, state = get_state_dict(model, optimizer)
    holder = {"model": weights, "optim": state, "sharp": sharp}  # new: "sharp"
    dcp.load(holder, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=holder["model"], optim_state_dict=holder["optim"])


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    draw = (torch.randn(16, 5, generator=generator) for _ in range(STEPS))
    whole = [(x, x.sum(1, keepdim=True)) for x in draw]
    mine = [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in whole]
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)

    parts = build(sharded=True)
    train(parts, mine[:SAVED])
    save(parts, folder[0])
    train(parts, mine[SAVED:])
    weights = [p.full_tensor().detach() for p in parts[0].parameters()]
    gc.collect()  # what still holds the process group must go before it
    dist.barrier()
    dist.destroy_process_group()
    if rank:
        return

    alone = build(sharded=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that there is one process only
        load(alone, folder[0])
    step = alone[2].step
    train(alone, whole[SAVED:])
    off = max(float((a - b).detach().abs().max()) for a, b in zip(alone[0].parameters(), weights, strict=True))
    print(f"saved by {world} ranks at step {step}, continued by one: {off:.0e} from the training that went on")
    assert step == SAVED and off < 1e-4


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        sys.exit(subprocess.call(launch))
