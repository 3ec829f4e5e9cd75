"""Faults in either pass, for each mechanism: exact weights, statistics counted once, and a loop that goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops.faults import BATCHES, Built, advance, build, loss_of, outcome, trained
from tests.loops.shared import MECHANISMS, equal
from tests.problems import everything, same
from torch import Tensor, nn

FAULT = 4  # the step with the fault: a refresh of LookSAM (k = 4), an ascent of G-RST (seed 3)
ONE_PASS = ("ahead of the pass", "ahead by its own gradient")
WHOLE = tuple(name for name in MECHANISMS if "samples" not in name)  # every pass sees the whole batch
ERRORS = [RuntimeError("shape"), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]


def check_and_go_on(name: str, built: Built, before: dict[str, Any], second: bool) -> None:
    """Weights, method and optimizer as before the fault; from there on as a twin that never had one."""
    model, optimizer, _ = built
    after = outcome(built)
    assert equal({k: after["model"][k] for k in trained(model)}, {k: before["model"][k] for k in trained(model)})
    assert equal(after["sharp"], before["sharp"]) and equal(after["optimizer"], before["optimizer"])
    counted = after["model"]["norm.num_batches_tracked"] - before["model"]["norm.num_batches_tracked"]
    assert counted == 1 or (counted == 0 and not second)
    optimizer.zero_grad()
    model.load_state_dict(before["model"])  # a first pass that did run has moved the statistics, as in any loop
    advance(name, built, FAULT, 8)
    assert equal(outcome(built), without_fault(name))


@functools.cache
def without_fault(name: str) -> dict[str, Any]:
    built = build(name)
    advance(name, built, 0, 8)
    return outcome(built)


class Fault:
    """Raises, or spoils a gradient, in the pass with the given number."""

    def __init__(self, number: int, error: BaseException | None = None, factor: float = 1.0) -> None:
        self.number, self.error, self.factor, self.seen = number, error, factor, 0

    def __call__(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.number and self.error is not None:
            raise self.error

    def spoil(self, grad: Tensor) -> Tensor:
        self.seen += 1
        return grad * self.factor if self.seen == self.number else grad

    def at_gradient(self, module: nn.Module, inputs: Any, out: Tensor) -> None:
        if out.requires_grad:  # a pass that only looks has no backward
            out.register_hook(self)

    @contextmanager
    def in_forward(self, model: nn.Module) -> Iterator[None]:
        handle = model.get_submodule("second").register_forward_pre_hook(self)
        yield
        handle.remove()

    @contextmanager
    def in_backward(self, model: nn.Module) -> Iterator[None]:
        handle = model.get_submodule("second").register_forward_hook(self.at_gradient)
        yield
        handle.remove()


# Every place and pass for the plainest mechanism, every kind of error in one of them; one place in the others' passes.
PLACES = ("forward", "backward", "host")
FAULTS = [("replace", place, number, ERRORS[1]) for place in PLACES for number in (1, 2)]
FAULTS += [("replace", "backward", 2, error) for error in (ERRORS[0], ERRORS[2])]
PASSES = [(name, number) for name in MECHANISMS for number in (1, 2) if number == 1 or name not in ONE_PASS]
FAULTS += [(name, PLACES[number - 1], number, ERRORS[1]) for name, number in PASSES if name != "replace"]
FAULTS += [(name, "backward", 1, ERRORS[1]) for name in ONE_PASS]


@pytest.mark.parametrize(("name", "place", "number", "error"), FAULTS)
def test_an_error_in_a_pass(name: str, place: str, number: int, error: BaseException) -> None:
    built = build(name)
    advance(name, built, 0, FAULT)
    before, fault, f = outcome(built), Fault(number, error), loss_of(name, built[0])
    host = Fault(number, error) if place == "host" else lambda: None
    spot = {"forward": fault.in_forward, "backward": fault.in_backward, "host": Fault(0).in_forward}[place]

    def backward(loss: Tensor) -> None:
        loss.backward()
        host()

    with spot(built[0]), pytest.raises(type(error)):
        built[2].backward(f, BATCHES[FAULT], backward=backward)
    assert all(p.grad is None for p in built[0].parameters())
    check_and_go_on(name, built, before, number == 2)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("name", ["replace", "reuse"])
def test_an_error_in_any_micro_batch_of_either_pass(name: str, number: int) -> None:
    """Four micro-batches in two passes; gradients that were there before stay as they were."""
    built = build(name)
    advance(name, built, 0, FAULT)
    loss_of(name, built[0])(BATCHES[0]).backward()
    held = {n: p.grad.clone() for n, p in built[0].named_parameters() if p.grad is not None}
    before = trained(built[0])
    x, y = BATCHES[FAULT]
    pieces = list(zip(x.split(2), y.split(2), strict=True))
    with Fault(number, ERRORS[1]).in_backward(built[0]), pytest.raises(torch.OutOfMemoryError):
        built[2].backward(loss_of(name, built[0]), micro_batches=pieces)
    assert same(before, trained(built[0])) and built[2].step == FAULT
    assert same(held, {n: p.grad for n, p in built[0].named_parameters() if p.grad is not None})


POISONS = [(name, n, float("nan"), "everywhere") for name, n in PASSES]
POISONS += [
    (name, n, poison, where)
    for name, n in (("replace", 1), ("replace", 2), ("ahead by its own gradient", 1))
    for poison, where in ((float("inf"), "last.weight"), (float("nan"), "norm.bias"), (float("inf"), "everywhere"))
]


@pytest.mark.parametrize(("name", "number", "poison", "where"), POISONS)
def test_inf_and_nan_in_either_gradient(name: str, number: int, poison: float, where: str) -> None:
    built = build(name)
    advance(name, built, 0, FAULT)
    before, fault, passes = outcome(built), Fault(number, factor=poison), 0
    handle = built[0].get_parameter("first.weight" if where == "everywhere" else where).register_hook(fault.spoil)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal passes
        passes += 1
        value = loss_of(name, built[0])(batch)
        return value * poison if where == "everywhere" and passes == number else value

    built[2].backward(loss, BATCHES[FAULT])
    handle.remove()
    finite = all(bool(p.grad.isfinite().all()) for p in built[0].parameters() if p.grad is not None)
    climbs_nowhere = (name, number) == ("few samples", 1)
    assert passes < number or finite is climbs_nowhere, "the fault can be seen in .grad, but not that of a look"
    check_and_go_on(name, built, before, second=True)


UNUSED = [(name, (True, False)) for name in WHOLE]
UNUSED += [(name, uses) for name in ("replace", "reuse", "decoupled") for uses in ((False, True), (False, False))]


@pytest.mark.parametrize(("name", "uses"), UNUSED)
def test_a_module_without_a_gradient_in_a_pass(name: str, uses: tuple[bool, bool]) -> None:
    built = build(name)
    model, optimizer, sharp = built
    advance(name, built, 0, FAULT)
    before, use = everything(model), iter(uses)
    x, y = BATCHES[FAULT]
    sharp.backward(lambda: nn.functional.cross_entropy(model(x, next(use)), y))
    assert same(trained(model), {n: before[n] for n in trained(model)})
    assert any(uses) or model.get_parameter("rare.weight").grad is None
    optimizer.step()
    optimizer.zero_grad()
    advance(name, built, FAULT + 1, 8)
    assert all(v.isfinite().all() for v in everything(model).values()) and sharp.step == 8


# Statistics and masks


class Average(nn.Module):
    """A running mean of one's own: in place, or bound to a new tensor each time."""

    def __init__(self, rebinds: bool) -> None:
        super().__init__()
        self.rebinds = rebinds
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean(0)
        if self.rebinds:
            self.mean, self.count = 0.9 * self.mean + 0.1 * now, self.count + 1
        else:
            self.mean.lerp_(now, 0.1)
            self.count.add_(1)
        return x - self.mean


class Late(nn.Module):
    """Registers its statistic in its first forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "largest"):
            self.register_buffer("largest", torch.zeros(7))
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().amax(0)))
        return x / (1 + self.largest)


class Rows(nn.Module):
    """InstanceNorm over a batch of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.InstanceNorm1d(7, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(-1).expand(-1, -1, 4) * torch.arange(1.0, 5.0)).mean(-1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.BatchNorm1d(7),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(7, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(7),
    "InstanceNorm": Rows,
    "in place": lambda: Average(False),
    "rebound": lambda: Average(True),
    "registered late": Late,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7)),
}


def of_layer(layer: str, dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), LAYERS[layer](), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3))


def count_once(name: str, layer: str) -> None:
    """With a learning rate of 0 the statistics, and the random numbers drawn, are those of the plain loop."""
    found = []
    for with_method in (True, False):
        model, optimizer, sharp = build(name, of_layer(layer))
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        weights = trained(model)
        torch.manual_seed(11)
        for batch in BATCHES:
            if with_method:
                sharp.backward(loss_of(name, model), batch)
            else:
                loss_of("", model)(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert same(weights, trained(model))
        found.append(everything(model) | {"generator": torch.get_rng_state()})
    assert same(*found)


PERTURBED = (*ONE_PASS, "few samples")  # their one pass on the whole batch is perturbed, so statistics are its own
# Every layer with one method; the one that counts with every mechanism.
STATISTICS = [("replace", layer) for layer in LAYERS]
STATISTICS += [(name, "BatchNorm") for name in MECHANISMS if name not in PERTURBED]


@pytest.mark.parametrize(("name", "layer"), STATISTICS)
def test_statistics_move_once(name: str, layer: str) -> None:
    count_once(name, layer)


@pytest.mark.parametrize("name", PERTURBED)
def test_statistics_of_a_perturbed_pass_are_counted_once(name: str) -> None:
    built = build(name, of_layer("BatchNorm, cumulative", 0.0))
    advance(name, built, 0, 8)
    assert everything(built[0])["1.num_batches_tracked"] == 8


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Set seed for `cpu` device")  # torch, of the name given below
@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", ["replace", "reuse"])
def test_synchronised_statistics_move_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm in a process group; torch keeps it from CPUs by the device's name alone."""
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
        count_once(name, "SyncBatchNorm")  # a fault of the host's, in the first pass
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "cpu")
    count_once(name, "SyncBatchNorm")


@pytest.mark.parametrize("name", WHOLE)
def test_masks_are_the_same_in_both_passes(name: str) -> None:
    built, seen = build(name, of_layer("BatchNorm", 0.5)), []
    built[0].get_submodule("3").register_forward_hook(lambda m, i, out: seen.append(out == 0))
    for batch in BATCHES:
        seen.clear()
        built[2].backward(loss_of(name, built[0]), batch)
        assert len(seen) == 1 + (built[2].last.ascended and not built[2].ascent.direction.ahead)
        assert 0 < seen[0].float().mean() < 1 and torch.equal(seen[0], seen[-1])
        built[1].step()
        built[1].zero_grad()
