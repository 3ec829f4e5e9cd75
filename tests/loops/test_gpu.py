"""On a GPU: no synchronisation of host and device inside ``backward``, and the same result as on the CPU.

Compiled with CUDA graphs, spread over the CPU and the GPU, on another stream, sharded, and with one buffer of memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.problems import batches, loss_of, net
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import steppe

pytestmark = pytest.mark.gpu
LOOP_METHODS = ("sam", "asam", "grst", "look_sam", "gsam", "adasam", "fsam", "wsam", "layer_sam", "sl_sam")


F32, F64 = torch.float32, torch.float64
Steps = Callable[[nn.Module, torch.optim.Optimizer], Any]


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    make = steppe.methods.get(name).optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return make(model.parameters())


def build(
    name: str, device: str, dtype: torch.dtype = F32
) -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]:
    model = net(dtype, dropout=0).to(device)
    optimizer = optimizer_of(name, model)
    return model, optimizer, steppe.methods.get(name).recipe(model, optimizer)


def on(device: str, dtype: torch.dtype = F32) -> list[tuple[Tensor, Tensor]]:
    return [(x.to(device), y.to(device)) for x, y in batches(6, dtype)]


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_backward_does_not_wait_for_the_device(name: str) -> None:
    """In the first passes before an ascent it does, to find out which large tensors a forward writes."""
    model, optimizer, sharp = build(name, "cuda")
    known = 0
    for batch in on("cuda") * 3:
        known += (learnt := not sharp._making.passes.watch.first)
        torch.cuda.set_sync_debug_mode("error" if learnt else "default")
        try:
            sharp.backward(loss_of(model), batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.step()
        optimizer.zero_grad()
    assert known > 5, "LookSAM's fourth ascent is at step 15"


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_the_gpu_agrees_with_the_cpu(name: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, optimizer, sharp = build(name, device, F64)
        train(model, optimizer, on(device, F64), lambda batch, m=model, s=sharp: s.backward(loss_of(m), batch))
        found.append(flat(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOOP_METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_real_half_precision_trains(name: str, dtype: torch.dtype) -> None:
    model, optimizer, sharp = build(name, "cuda")
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cuda", dtype):
            return loss_of(model)(batch)

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for batch in on("cuda"):
        sharp.backward(loss, batch, backward=lambda value: scaler.scale(value).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert 0 < sharp.step <= 6
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_compiled_and_accumulated(name: str) -> None:
    model, optimizer, _ = build(name, "cuda")
    compiled: Any = torch.compile(model)
    sharp = steppe.methods.get(name).recipe(compiled, optimizer)
    pieces = on("cuda")
    for _ in range(3):
        loss = sharp.backward(lambda b: loss_of(compiled)(b) / len(pieces), micro_batches=pieces)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite() and sharp.step == 3


def test_dropout_draws_the_same_in_both_passes() -> None:
    model, masks = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3)).cuda(), []
    model[1].register_forward_hook(lambda _, __, out: masks.append(out.detach() == 0))
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in on("cuda")[:2]:
        sharp.backward(loss_of(model), batch)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3]) and not torch.equal(masks[0], masks[2])


def looked(sharp_of: Callable[..., Any], compiled: bool = False, **look: Any) -> Tensor:
    """The weights after training on the GPU with a look at three samples; dropout and batch norm in the network."""
    torch.manual_seed(5)
    model = net(F32, dropout=0.25).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    runs: Any = torch.compile(model) if compiled else model
    sharp = sharp_of(runs, optimizer, look=steppe.Look(3, **look))
    torch.manual_seed(6)
    train(model, optimizer, on("cuda") * 2, lambda batch: sharp.backward(loss_of(runs), batch))
    return flat(model)


@pytest.mark.parametrize("name", ["sam", "gsam", "fsam", "look_sam", "asam"])
def test_a_recorded_look_has_the_numbers_of_the_look(name: str) -> None:
    recipe = steppe.methods.get(name).recipe
    torch.testing.assert_close(looked(recipe, cuda_graph=True), looked(recipe), rtol=1e-5, atol=1e-7)


def test_a_recorded_look_under_autocast_and_compiled() -> None:
    low = {"autocast": torch.bfloat16}
    torch.testing.assert_close(
        looked(steppe.SAM, cuda_graph=True, **low), looked(steppe.SAM, **low), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        looked(steppe.SAM, compiled=True, cuda_graph=True), looked(steppe.SAM, compiled=True), rtol=1e-3, atol=1e-4
    )


def test_a_recorded_look_under_the_loop_s_own_autocast() -> None:
    """Casts of the weights that the cache keeps must not get into the recording."""
    found = []
    for cuda_graph in (True, False):
        torch.manual_seed(5)
        model = net(F32, dropout=0).to("cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        sharp = steppe.SAM(model, optimizer, samples=3, cuda_graph=cuda_graph)
        for batch in on("cuda") * 2:
            with torch.autocast("cuda", torch.bfloat16):
                sharp.backward(loss_of(model), batch)
            optimizer.step()
            optimizer.zero_grad()
        found.append(flat(model))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_recorded_look_does_not_wait_for_the_device() -> None:
    model = net(F32, dropout=0.25).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp, samples = steppe.SAM(model, optimizer, samples=3, cuda_graph=True), []
    sharp.replays.append(lambda batch: samples.append(len(batch[0])))
    for step, batch in enumerate(on("cuda") * 2):
        torch.cuda.set_sync_debug_mode("error" if step > 4 else "default")
        try:
            sharp.backward(loss_of(model), batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.step()
        optimizer.zero_grad()
    assert sharp._making.passes.recorder._looks[0].recording is not None
    assert samples and set(samples) == {3}, "who counts passes is told of the replays"


def test_a_loss_that_waits_is_told_and_the_device_goes_on() -> None:
    model = net(F32, dropout=0).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp = steppe.SAM(model, optimizer, samples=3, cuda_graph=True)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        value = loss_of(model)(batch)
        return value * (1 if value.item() > -1 else 2)

    with pytest.raises(RuntimeError, match="could not be recorded as a CUDA graph"):
        for batch in on("cuda"):
            sharp.backward(loss, batch)
            optimizer.zero_grad()
    sharp.look = steppe.Look(3)
    assert sharp.backward(loss, on("cuda")[0]).isfinite()
    assert torch.nn.functional.dropout(torch.ones(99, device="cuda")).eq(0).any(), "torch's generator still draws"
    with pytest.raises(ValueError, match="lie on cpu"):
        sharp.look = steppe.Look(3, cuda_graph=True)
        sharp.backward(lambda b: loss_of(model)(tuple(p.cuda() for p in b)), on("cpu")[0])


@pytest.mark.parametrize("name", ["sam", "look_sam", "gsam"])
def test_cuda_graphs_of_a_compiled_model(name: str) -> None:
    """Their outputs lie in memory that the next pass writes over."""
    found = []
    for compiled in (lambda m: m, lambda m: torch.compile(m, mode="reduce-overhead")):
        model = net(F32, dropout=0).cuda()
        optimizer = optimizer_of(name, model)
        forward: Any = compiled(model)
        sharp, losses = steppe.methods.get(name).recipe(model, optimizer), []
        train(
            model,
            optimizer,
            on("cuda") * 3,
            lambda b, s=sharp, f=forward, k=losses: k.append(s.backward(loss_of(f), b)),
        )
        found.append((flat(model), torch.stack(losses).cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


class Split(nn.Module):
    """Half on the CPU, half on the GPU, as a model that is offloaded in part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.here, self.there = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        device = next(self.there.parameters()).device
        return self.there(torch.tanh(self.here(x)).to(device)).cpu()


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_a_model_on_two_devices(name: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = Split()
        model.there.to(device)
        optimizer = optimizer_of(name, model)
        sharp = steppe.methods.get(name).recipe(model, optimizer)
        train(model, optimizer, on("cpu", F64), lambda batch, m=model, s=sharp: s.backward(loss_of(m), batch))
        found.append(flat(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backup", ["device", "host"])
def test_on_another_stream(backup: Any) -> None:
    """What is queued to and from the host is queued on the stream of the passes."""
    found = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 1024)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp, x = steppe.SAM(model, optimizer, backup=backup), torch.randn(64, 1024, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            train(
                model,
                optimizer,
                [(x, x)] * 8,
                lambda b, m=model, s=sharp: s.backward(lambda b: (m(b[0]) ** 2).mean(), b),
            )
        torch.cuda.synchronize()
        found.append(flat(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_a_step_of_sam_needs_one_buffer_of_weights() -> None:
    peaks = {}
    for ascends in (False, True):
        model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(4))).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        sharp = steppe.SAM(model, optimizer, rho=0.05 if ascends else 0.0)
        x, size = torch.randn(8, 2048, device="cuda"), sum(p.nbytes for p in model.parameters())
        for _ in range(4):
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(x).square().mean().backward() if not ascends else sharp.backward(
                lambda m=model, x=x: m(x).square().mean()
            )
            peaks[ascends] = (torch.cuda.max_memory_allocated() - before) / size
            optimizer.step()
            optimizer.zero_grad()
        del model, optimizer, sharp
    assert peaks[True] - peaks[False] < 1.1, peaks


@contextmanager
def alone() -> Iterator[None]:
    """A group of one process on NCCL."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, device_ids=[0])


def fsdp(model: nn.Module) -> nn.Module:
    for part in (model.first, model.last):
        fully_shard(part)  # type: ignore[arg-type]
    return fully_shard(model)  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [ddp, fsdp])
@pytest.mark.parametrize("name", ["sam", "look_sam", "fsam"])
def test_on_nccl(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, optimizer, sharp = build(name, "cuda", F64)
    train(model, optimizer, on("cuda", F64), lambda batch: sharp.backward(loss_of(model), batch))
    with alone():
        spread = wrap(net(F64, dropout=0).cuda())
        optimizer = optimizer_of(name, spread)
        sharp = steppe.methods.get(name).recipe(spread, optimizer)
        train(spread, optimizer, on("cuda", F64), lambda batch: sharp.backward(loss_of(spread), batch))
        found = torch.cat(
            [getattr(p, "full_tensor", lambda p=p: p)().detach().cpu().flatten() for p in spread.parameters()]
        )
    torch.testing.assert_close(found, flat(model), rtol=1e-9, atol=1e-11)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    backward: Callable[[Any], Any],
) -> None:
    for batch in data:
        backward(batch)
        optimizer.step()
        optimizer.zero_grad()
