"""torch.compile: a compiled model, a compiled train step; never compiled again from one step to the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from tests.loops.shared import ALL, LOOP_METHODS, Record, table
from tests.problems import batches, everything, same
from torch import Tensor, nn
from torch._dynamo.utils import counters

import steppe

STEPS = 12
BATCHES = list(batches(STEPS))
# The compiled graph may sum in another order: some rounding of float64 in each of twelve steps.
TOLERANCE = 1e-11
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


class Net(nn.Module):
    """Batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.3)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(name: str, compiled: Callable[[nn.Module], nn.Module] = lambda model: model) -> Built:
    torch.manual_seed(0)
    model = compiled(Net().double())
    kind = steppe.optim.AMSGrad if name == "adasam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.02, **({} if name == "adasam" else {"momentum": 0.9}))
    return model, optimizer, steppe.methods.get(name).recipe(model, optimizer, **ALL[name])


def step_of(built: Built) -> Callable[[Tensor, Tensor], Tensor]:
    model, optimizer, sharp = built

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def run(step: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[float], list[int]]:
    """The losses, and how many graphs there were after each step."""
    losses, graphs = [], []
    for t, (x, y) in enumerate(BATCHES):
        torch.manual_seed(t)  # the masks are a function of the step
        losses.append(step(x, y).item())
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs


def agrees(built: Built, losses: list[float], name: str) -> None:
    """Weights, statistics, memory and losses of the uncompiled loop."""
    free = build(name)
    expected, _ = run(step_of(free))
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= TOLERANCE
    found = {k.replace("_orig_mod.", ""): v for k, v in everything(built[0]).items()}
    for k, v in everything(free[0]).items():
        torch.testing.assert_close(found[k], v, rtol=0, atol=TOLERANCE)
    assert found["norm.num_batches_tracked"] == STEPS == built[2].step
    memory, wanted = built[2].memory.get("combine", {}), free[2].memory.get("combine", {})
    assert memory.get("g_v", {}).keys() == wanted.get("g_v", {}).keys(), "names as without the compiler"


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_a_compiled_model(name: str, record_property: Record) -> None:
    table(record_property, "torch.compile", name)
    backend = "aot_eager" if name == "look_sam" else "eager"  # the former compiles the backward as well, slowly
    built = build(name, lambda model: torch.compile(model, backend=backend))  # type: ignore[arg-type, return-value]
    losses, graphs = run(step_of(built))
    assert graphs == [1] * STEPS, "one graph for all steps, clean and perturbed"
    agrees(built, losses, name)


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def one_layer(model: nn.Module) -> nn.Module:
    model.first = torch.compile(model.first, backend="eager")
    return model


@pytest.mark.parametrize("way", [in_place, one_layer], ids=["in place", "one layer"])
def test_other_ways_to_compile_a_model(way: Callable[[nn.Module], nn.Module]) -> None:
    built = build("look_sam", way)
    losses, graphs = run(step_of(built))
    assert graphs == [1] * STEPS
    agrees(built, losses, "look_sam")


def test_a_compiled_train_step(record_property: Record, name: str = "look_sam") -> None:
    """Backward, step and zero_grad in one compiled function: nothing new once each branch has run three times."""
    table(record_property, "torch.compile", name)
    built = build(name)
    losses, graphs = run(torch.compile(step_of(built), backend="eager"))
    assert graphs[9:] == [graphs[9]] * (STEPS - 9)  # LookSAM, k = 4: refreshed at 0, 4 and 8
    agrees(built, losses, name)


def test_a_compiled_optimizer_step() -> None:
    """The step is counted and the memory kept by hooks inside of the compiled region."""
    built = build("look_sam")
    model, optimizer, sharp = built
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        compiled()
        optimizer.zero_grad()
        return loss

    losses, graphs = run(step)
    assert graphs[5:] == [graphs[5]] * (STEPS - 5)
    agrees(built, losses, "look_sam")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    """The default backend, which draws its masks by itself: equal in both passes, from torch's generator."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3))  # each kernel is seconds of a C++ compiler
    compiled = torch.compile(model, options={"cpp.vec_isa_ok": False})  # nor is tried which vectors work
    sharp = steppe.SAM(compiled, torch.optim.SGD(model.parameters(), lr=0.02), rho=1e-6)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gaps, losses = [], []
    for _ in range(4):
        x, y = BATCHES[0]
        loss = sharp.backward(lambda: nn.functional.cross_entropy(compiled(x.float()), y))
        gaps.append(abs(float(sharp.last.surrogate_gap)))
        losses.append(loss.item())
        sharp.optimizer.zero_grad()
    assert max(gaps) < 1e-5 and len({round(loss, 3) for loss in losses}) == 4, "masks change, but not between passes"
    assert same(before, {n: p.detach() for n, p in model.named_parameters()})
    assert counters["stats"]["unique_graphs"] == 1
