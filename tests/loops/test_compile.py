"""torch.compile: a compiled model, a compiled train step; never compiled again from one step to the next."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.loops.shared import ALL, LOOP_METHODS, Record, table
from tests.problems import batches, everything, same, weights
from torch import Tensor, nn
from torch._C._dynamo import eval_frame
from torch._dynamo.utils import compilation_time_metrics, counters

import steppe
from steppe._compiled import in_compiled_step

STEPS = 12
BATCHES = list(batches(STEPS))
# The compiled graph may sum in another order: some rounding of float64 in each of twelve steps.
TOLERANCE = 1e-11
COMPILED: list[int] = []
"""How many pieces of code were compiled after each step of :func:`run`, with graphs and without."""
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
    compilation_time_metrics.clear()
    yield
    torch._dynamo.reset()


def build(
    name: str, compiled: Callable[[nn.Module], nn.Module] = lambda model: model, settings: dict[str, Any] | None = None
) -> Built:
    torch.manual_seed(0)
    model = compiled(Net().double())
    kind = steppe.optim.AMSGrad if name == "adasam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.02, **({} if name == "adasam" else {"momentum": 0.9}))
    return model, optimizer, steppe.methods.get(name).recipe(model, optimizer, **(settings or ALL[name]))


def step_of(built: Built) -> Callable[[Tensor, Tensor], Tensor]:
    model, optimizer, sharp = built

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def run(step: Callable[[Tensor, Tensor], Tensor], steps: int = STEPS) -> tuple[list[float], list[int]]:
    """The losses, and how many graphs there were after each step."""
    losses, graphs = [], []
    COMPILED.clear()
    for t, (x, y) in enumerate(BATCHES[:steps]):
        torch.manual_seed(t)  # the masks are a function of the step
        losses.append(step(x, y).item())
        graphs.append(counters["stats"]["unique_graphs"])
        COMPILED.append(len(compilation_time_metrics.get("_compile.compile_inner", ())))
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
    built = build(name, lambda model: torch.compile(model, backend="eager"))  # type: ignore[arg-type, return-value]
    losses, graphs = run(step_of(built))
    assert graphs == [1] * STEPS, "one graph for all steps, clean and perturbed"
    agrees(built, losses, name)


def whole(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def in_place(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.compile(backend="eager")
    return model


def one_layer(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.first = torch.compile(model.first, backend="eager")
    return model


def its_forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def a_function(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: model(x), backend="eager")


@pytest.mark.parametrize("way", [whole, in_place, one_layer, its_forward, a_function])
def test_other_ways_to_compile_a_model(way: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
    """Of the model, to which the method was tied before, or which it does not know to be compiled."""
    model, optimizer, sharp = build("look_sam", settings=ALL["look_sam"] | {"k": 2})
    run_model = way(model)
    losses, graphs = [], []
    for t, (x, y) in enumerate(BATCHES[:4]):
        torch.manual_seed(t)
        losses.append(sharp.backward(lambda x=x, y=y: nn.functional.cross_entropy(run_model(x), y)).item())
        optimizer.step()
        optimizer.zero_grad()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1] * 4
    assert not sharp._making.passes.outside.modules(), "the model is not taken for another"
    free = build("look_sam", settings=ALL["look_sam"] | {"k": 2})
    expected, _ = run(step_of(free), 4)
    assert losses == expected and model.norm.num_batches_tracked == 4


def phases(built: Built) -> Callable[[Tensor, Tensor], Tensor]:
    model, optimizer, sharp = built

    def step(x: Tensor, y: Tensor) -> Tensor:
        sharp.mark()
        first = nn.functional.cross_entropy(model(x), y)
        first.backward()
        if sharp.ascend():
            nn.functional.cross_entropy(model(x), y).backward()
            sharp.restore()
        optimizer.step()
        optimizer.zero_grad()
        return first.detach()

    return step


def per_sample(built: Built) -> Callable[[Tensor, Tensor], Tensor]:
    model, optimizer, sharp = built

    def step(x: Tensor, y: Tensor) -> Tensor:
        batch = (x, y)
        loss = sharp.backward(lambda b: nn.functional.cross_entropy(model(b[0]), b[1], reduction="none"), batch)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


@pytest.mark.parametrize(
    ("name", "way", "pieces", "graphs"),
    [("look_sam", step_of, 8, 3), ("look_sam", phases, 12, 5), ("esam", per_sample, 10, 5)],
    ids=["in one call", "in phases", "hardest samples"],
)
def test_a_compiled_train_step(name: str, way: Any, pieces: int, graphs: int, record_property: Record) -> None:
    """Backward, step and zero_grad in one compiled function: the passes are compiled, and what is between them is not.

    (torch 2.11 has a piece more in phases, and losses that differ in the last bit.)

    Nothing is compiled after the second step: LookSAM (k = 4) ascends in the first, reuses in the second; SGD has no
    momentum before the first.
    """
    if name == "look_sam":
        table(record_property, "torch.compile", name)
    settings = ALL.get(name, {"rho": 0.1})
    built, free = build(name, settings=settings), build(name, settings=settings)
    losses, _ = run(torch.compile(way(built), backend="eager"))
    assert COMPILED[1] <= pieces + 1 and set(COMPILED[1:]) == {COMPILED[1]}, "no piece more, and none again"
    assert counters["stats"]["unique_graphs"] == graphs
    expected, _ = run(way(free))
    assert losses == pytest.approx(expected, rel=TOLERANCE)
    torch.testing.assert_close(everything(built[0]), everything(free[0]), rtol=TOLERANCE, atol=TOLERANCE)
    assert built[2].step == STEPS


def test_an_error_in_a_compiled_step_leaves_the_compiler_as_it_was() -> None:
    model, optimizer, sharp = build("sam")
    before, calls = everything(model), 0

    @torch.compiler.disable
    def fails() -> None:
        raise KeyError

    def loss(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            fails()
        return nn.functional.cross_entropy(model(x), y)

    def step(x: Tensor, y: Tensor) -> Tensor:
        try:
            sharp.backward(lambda: loss(x, y))
        except KeyError:
            pass
        return x + 1

    torch.compile(step, backend="eager")(*BATCHES[0])
    assert same(weights(before), weights(everything(model))), "the second pass raised"
    assert eval_frame.set_eval_frame(None) is None and not in_compiled_step()


def test_the_page_has_the_figures_of_the_file() -> None:
    root = Path(__file__).parent.parent.parent
    found = json.loads((root / "benchmarks" / "results" / "compiled_step.json").read_text())
    page = (root / "docs" / "loops" / "compile.md").read_text()
    for each in (found[model][f"{method}, {what}"] for model in ("cnn", "transformer") for method in ("base", "sam")
                 for what in ("nothing", "model", "step")):  # fmt: skip
        low, high = each["quartiles_ms"]
        assert f"| {each['ms']:.2f} ({low:.2f} to {high:.2f}) |" in page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    """The default backend, which draws its masks by itself: equal in both passes, from torch's generator."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3, bias=False))  # one kernel: each is seconds of a C++ compiler
    # Nor is tried which vectors work, nor a header made ready for the next kernels, nor a pool of processes started.
    cheap = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False, "compile_threads": 1}
    known = {name: value for name, value in cheap.items() if name in torch._inductor.list_options()}
    compiled = torch.compile(model, options=known)
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


class Graphs:
    """What torch.compile's CUDA graphs do, without a GPU: every pass leaves its gradients in the same memory."""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        self.memory = [torch.zeros_like(p) for p in self.params]

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        for p, place in zip(self.params, self.memory, strict=True):
            p.grad = place.copy_(p.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sam", "look_sam", "gsam", "fsam", "wsam"])
def test_gradients_in_the_memory_of_cuda_graphs_are_kept_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = SimpleNamespace(
        get_manager=lambda device, create_if_none_exists: {(3, False): 1}.get((device, create_if_none_exists))
    )
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    built, free = build(name), build(name)
    for (model, optimizer, sharp), backward in ((built, Graphs(built[0]).backward), (free, Tensor.backward)):
        torch.manual_seed(1)
        for x, y in BATCHES:
            sharp.backward(lambda x=x, y=y, m=model: nn.functional.cross_entropy(m(x), y), backward=backward)
            optimizer.step()
            optimizer.zero_grad()
    assert same(everything(built[0]), everything(free[0]))
