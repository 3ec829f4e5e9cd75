"""One run on several processes: `torchrun --nproc-per-node 2 -m steppe compare --parallel ddp` (or `fsdp`).

Every rank goes through the whole study in step; each trains on its share of every batch. Rank 0 reads and writes the
results folder and decides what is done; the others keep theirs in a folder that goes with them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import torch
import torch.distributed as dist

from steppe._command.ranks import first, leave_at_exit
from steppe.compare.engine.spec import Spec


def begin(spec: Spec) -> Spec:
    """Join the other processes, if the settings ask for several; the settings as this rank uses them."""
    if spec.parallel is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"{os.environ['WORLD_SIZE']} processes were started, and each would run the whole study; add "
                "--parallel ddp (or fsdp), or start one process"
            )
        return spec
    if ":" in spec.device:
        raise ValueError(f"device={spec.device!r} is one GPU for all processes; give --device cuda")
    if "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"parallel={spec.parallel!r} needs several processes; start with "
            f"torchrun --nproc-per-node 2 -m steppe compare --parallel {spec.parallel}"
        )
    if spec.batch_size % int(os.environ["WORLD_SIZE"]):
        raise ValueError(f"batch_size={spec.batch_size} does not divide into {os.environ['WORLD_SIZE']} equal shares")
    if spec.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if spec.device == "cpu" else "nccl")
    leave_at_exit()
    if first():
        return spec
    folder = tempfile.mkdtemp(prefix="steppe-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return spec.model_copy(update={"out": folder})
