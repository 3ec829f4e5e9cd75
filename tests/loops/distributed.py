"""A function on every rank of a small gloo group: one short-lived process a rank, meeting in a file on this machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe.methods import METHODS

LOOP_METHODS = ("sam", "asam", "grst", "look_sam", "gsam", "adasam")
# What else ranks can get wrong: norms tensor by tensor, a remembered direction, what follows the step, a statistic, the
# optimizer's momentum, its gradient, tensors that are left out.
MORE_METHODS = ("layer_sam", "fsam", "wsam", "aesam", "msam", "s2_sam", "sam_on")
STEPS, BATCH = 5, 8  # what a wrong norm or average does shows at the first of them; two cycles of LookSAM
# k and p such that both kinds of step come; radii large enough that a wrong norm would show.
SETTINGS: dict[str, dict[str, Any]] = {
    "asam": {"rho": 0.5},
    "look_sam": {"rho": 0.3, "k": 3, "alpha": 0.3},
    "grst": {"rho": 0.1, "p": 0.5, "seed": 1},
    "layer_sam": {"rho": 0.05},
    "rst": {"rho": 0.1, "p": 0.5, "seed": 1},
    "aesam": {"rho": 0.1, "total_steps": STEPS},
    "msam": {"rho": 0.3},
    "sam_on": {"rho": 0.5},
}
GROUP_TIMEOUT = timedelta(minutes=10)  # that a rank is gone is heard at once; a busy machine only takes its time
GRACE = 300.0  # seconds for the other ranks after one has failed
Work = Callable[..., Any]
Record = Callable[[str, object], None]


# Processes


def run(world: int, work: Work, *args: Any, timeout: float = 1200.0, may_die: bool = False) -> list[Any]:
    """What ``work(*args)`` returns on each of ``world`` ranks.

    Raises AssertionError with every rank's traceback if any fails, and after ``timeout`` seconds; no process outlives
    the call. With ``may_die``, a rank that ends without an answer gives None.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_context().Pipe(duplex=False) for _ in range(world)]
        processes = [
            _context().Process(target=_rank, args=(work, args, rank, world, f"{folder}/meet", pair[1]), daemon=True)
            for rank, pair in enumerate(pairs)
        ]
        try:
            for process, (_, theirs) in zip(processes, pairs, strict=True):
                process.start()
                theirs.close()  # so that the death of a rank is seen as the end of its pipe
            answers = _answers([mine for mine, _ in pairs], time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
    failed = [str(text or "a rank ended without an answer") for fine, text in answers if not fine]
    assert not failed or (may_die and not any(text for fine, text in answers if not fine)), "\n".join(failed)
    return [value for _, value in answers]


def every(works: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """What each ``(work, *args)`` returns: a group that is there already is the dearest part of a small check."""
    return {name: work(*args) for name, (work, *args) in works.items()}


def free_port() -> int:
    """One of this machine for ranks that meet by address, as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _context() -> Any:
    """Ranks are forks of this process, which has everything imported; with CUDA about, forks of a bare one.

    Autograd's threads for a GPU cannot be forked, and without one there are none.
    """
    if not torch.cuda.is_available():
        import_module("torch._dynamo")  # a second of every rank's otherwise, with its first optimizer
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "steppe"])
    return context


def _forget() -> None:
    """What earlier tests of the forked process left: the position of a generator, accelerate's idea of the group."""
    torch.manual_seed(0)
    if state := sys.modules.get("accelerate.state"):
        for kind in (state.AcceleratorState, state.GradientState, state.PartialState):
            kind._reset_state()


def _answers(pipes: list[Connection], deadline: float) -> list[tuple[bool, Any]]:
    """Of every rank, in their order; once one has failed the others, which may wait for it, have only GRACE."""
    answers: dict[Connection, tuple[bool, Any]] = {}
    while waiting := [pipe for pipe in pipes if pipe not in answers]:
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        for pipe in ready or waiting:
            answers[pipe] = _answer(pipes.index(pipe), pipe, deadline)
        if not all(fine for fine, _ in answers.values()):
            deadline = min(deadline, time.monotonic() + GRACE)
    return [answers[pipe] for pipe in pipes]


def _answer(rank: int, pipe: Connection, deadline: float) -> tuple[bool, Any]:
    try:
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            return False, f"rank {rank}: no answer in time"
        fine, value = pickle.loads(pipe.recv_bytes())
        return fine, value if fine else f"rank {rank}: {value}"
    except EOFError:
        return False, None


def _rank(work: Work, args: tuple[Any, ...], rank: int, world: int, meet: str, answer: Connection) -> None:
    gc.freeze()  # garbage is looked for in the rank's own objects, not in those of the process it is a fork of
    torch.set_num_threads(1)
    _forget()
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # works without a network
    # With the barrier no rank leaves while another is still joining, to which that would look like a crash.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), TORCH_DIST_INIT_BARRIER="1")
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meet}", rank=rank, world_size=world, timeout=GROUP_TIMEOUT
        )
        reply = (True, work(*args))
    except BaseException:
        reply = (False, traceback.format_exc())
    answer.send_bytes(pickle.dumps(reply))
    # Without the orderly shutdown, which would wait for ranks that are gone.
    answer.close()
    os._exit(0)


# Training: one model, one stream of batches, three kinds of loop


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Uneven on 2 and 4 ranks (7 and 3 rows; of the last layer one rank of 4 has nothing), one layer frozen."""
    torch.manual_seed(0)
    frozen = nn.Linear(7, 7).requires_grad_(False)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), frozen, nn.Linear(7, 3)).to(dtype)


def wrap(kind: str, model: nn.Sequential, **options: Any) -> nn.Module:
    """The model as a "DDP", "FSDP2" or "single" loop holds it."""
    if kind == "DDP":
        return DistributedDataParallel(model, **options)
    if kind == "FSDP2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        options.setdefault("mesh", init_device_mesh("cpu", (dist.get_world_size(),)))
        fully_shard(model[0], **options)
        return fully_shard(model, **options)
    return model


def base(name: str, model: nn.Module) -> torch.optim.Optimizer:
    row = METHODS[name]
    return row.optimizer(model.parameters()) if row.optimizer else torch.optim.SGD(model.parameters(), 0.1, 0.9)


def sharpen(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **common: Any) -> steppe.SharpnessAware:
    return METHODS[name].recipe(model, optimizer, **SETTINGS.get(name, {"rho": 0.1}), **common)


def batches(count: int = STEPS, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of every batch."""
    generator = torch.Generator().manual_seed(1)
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    for _ in range(count):
        x, y = torch.randn(BATCH, 5, generator=generator), torch.randint(3, (BATCH,), generator=generator)
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        yield x[mine].to(dtype), y[mine]


def loss_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, sharp: steppe.SharpnessAware, start: int = 0, stop: int = STEPS
) -> list[bool]:
    """Steps ``start`` to ``stop``; which of them ascended."""
    decisions = []
    for t, batch in enumerate(batches(stop, next(model.parameters()).dtype)):
        if t >= start:
            sharp.backward(loss_of(model), batch)
            optimizer.step()
            optimizer.zero_grad()
            decisions.append(sharp.last.ascended)
    return decisions


def whole(tensor: Tensor) -> Tensor:
    """A copy of all of a tensor, wherever its pieces lie."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def weights(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([whole(p).flatten() for p in model.parameters()])


def pieces(model: nn.Module) -> list[Tensor]:
    """Copies of what lies in this process."""
    return [(p.to_local() if hasattr(p, "to_local") else p).detach().clone() for p in model.parameters()]


def trajectory(
    kind: str, name: str, options: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32, **common: Any
) -> dict[str, Any]:
    """Weights after STEPS steps of one method, its decisions and its last perturbation's norm."""
    model = wrap(kind, network(dtype), **(options or {}))
    optimizer = base(name, model)
    sharp = sharpen(name, model, optimizer, **common)
    decisions = advance(model, optimizer, sharp)
    return {"weights": weights(model), "decisions": decisions, "perturbation": sharp.last.perturbation_norm}


def trajectories(kind: str, names: tuple[str, ...], dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Any]]:
    """The same for many methods, in one group."""
    return {name: trajectory(kind, name, dtype=dtype) for name in names}


def assert_equal(name: str, ranks: list[dict[str, Any]], single: dict[str, Any], within: float, world: int) -> None:
    """All ranks bit for bit, their decisions, and one process on the whole batch ``within`` its rounding."""
    first = ranks[0]["weights"]
    assert all(torch.equal(rank["weights"], first) for rank in ranks), f"{name}: ranks of {world} differ"
    assert all(rank["decisions"] == single["decisions"] for rank in ranks), f"{name}: decisions differ"
    off = float((first - single["weights"]).abs().max())
    assert off <= within, f"{name} on {world} ranks is {off:.1e} off one process"


def record(record_property: Record, loop: str, method: str) -> None:
    """For the README's table of loops and methods."""
    record_property("loop", loop)
    record_property("method", method)


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the calls of ``torch.distributed.all_reduce``."""
    counts, original = {"all_reduce": 0}, dist.all_reduce

    def all_reduce(*args: Any, **kwargs: Any) -> Any:
        counts["all_reduce"] += 1
        return original(*args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield counts
    finally:
        dist.all_reduce = original
