"""What this process may compute on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from steppe._command.locks import Claim, claim


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_device(name: str) -> str:
    """The device a user means by `name`; "auto" is CUDA where there is any."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is asked for but this torch sees no CUDA device; use --device cpu")
    return name


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gpus(device: str) -> int:
    """How many GPUs "cuda" is on this machine; one of them is one."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def take_gpu(device: str) -> None:
    """Make "cuda" one of this machine's GPUs for this process: the one on which the fewest other processes of ours are.

    Whoever started the process, it takes the next free place; the place goes with the process.
    """
    if gpus(device) > 1:
        torch.cuda.set_device(_own_gpu())


_places: list[Claim] = []


@lru_cache(maxsize=1)
def _own_gpu() -> int:
    names = [_identity(gpu) for gpu in range(torch.cuda.device_count())]
    owner = os.getuid() if hasattr(os, "getuid") else "own"
    for place in range(256):
        for gpu, name in enumerate(names):
            if held := claim(Path(tempfile.gettempdir()) / f".steppe-gpu-{owner}-{name}-{place}.lock", "steppe"):
                _places.append(held)
                return gpu
    return 0


def _identity(gpu: int) -> str:
    """What a GPU is to all processes, whichever of them each one sees."""
    found = torch.cuda.get_device_properties(gpu)
    return str(getattr(found, "uuid", f"{found.name}-{gpu}")).replace(" ", "-").replace("/", "-")
