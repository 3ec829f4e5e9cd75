"""What steppe does beside the passes of a step: processor time on one thread, and the functions that a step enters.

    OMP_NUM_THREADS=1 python benchmarks/host_overhead.py

A step of SAM stands beside a twelve-line loop of the same arithmetic (`loop_of`) on chains of small linear layers, a
step that is known to skip beside a plain one, and MSAM, an ascent on one sample and LookSAM's reuse beside the base on
the CNN of digits-few, the first two also written by hand. Contenders have copies of one model and take turns in one
process, step by step. Writes
benchmarks/results/host_overhead.json; `python docs/overhead.py` makes the page of it.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

import steppe
from steppe._command.files import write_json
from steppe._command.networks import cnn
from steppe.bench.measure import provenance

RESULTS = Path(__file__).parent / "results"
TENSORS = (8, 100, 400)
FIRST_ASCENT = 2**40
"""An interval at which no further step ascends."""

Step = Callable[[], Any]
Make = Callable[[nn.Module, torch.optim.Optimizer, Callable[[Any], Tensor], Any], Step]


def chain(tensors: int, width: int = 16) -> nn.Module:
    """So many tensors in small linear layers, whose passes are nearly all host work too."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(tensors // 2)))


def base_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Any], Tensor], batch: Any) -> Step:
    """A step of the bare optimizer."""

    def step() -> None:
        loss_of(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def loop_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Any], Tensor],
    batch: Any,
    samples: int | None = None,
) -> Step:
    """SAM in twelve lines, with one call for all tensors where there is one; ``samples``: it climbs on so many."""
    params, few = list(model.parameters()), tuple(part[:samples] for part in batch)

    def step() -> None:
        loss_of(few).backward()
        with torch.no_grad():
            grads = [p.grad for p in params]
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            saved = [p.clone() for p in params]
            torch._foreach_mul_(grads, 0.05 / (length + 1e-12))
            torch._foreach_add_(params, grads)
        optimizer.zero_grad()
        loss_of(batch).backward()
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        optimizer.step()
        optimizer.zero_grad()

    return step


def momentum_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Any], Tensor], batch: Any
) -> Step:
    """MSAM by hand: against the momentum of SGD, before the only pass."""
    params = list(model.parameters())

    def step() -> None:
        found = [optimizer.state[p].get("momentum_buffer") for p in params]
        saved = [p.detach().clone() for p in params]
        if found[0] is not None:
            with torch.no_grad():
                vectors = torch._foreach_neg(found)
                length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vectors)))
                torch._foreach_mul_(vectors, 0.05 / (length + 1e-12))
                torch._foreach_add_(params, vectors)
        loss_of(batch).backward()
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        optimizer.step()
        optimizer.zero_grad()

    return step


def method(build: Callable[..., Any], sliced: bool = False, **settings: Any) -> Make:
    """A step of a method; ``sliced``: it is handed the batch, to take samples out of it."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Any], Tensor], batch: Any) -> Step:
        sharp = build(model, optimizer, **settings)

        def step() -> None:
            sharp.backward(loss_of, batch) if sliced else sharp.backward(lambda: loss_of(batch))
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def skipping(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> Any:
    """A method that ascends at its first step alone."""
    return steppe.SharpnessAware(model, optimizer, schedule=steppe.Every(FIRST_ASCENT), **settings)


def reusing(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """LookSAM after its first step: every step reuses."""
    return steppe.LookSAM(model, optimizer, k=FIRST_ASCENT)


def contenders(model: nn.Module, batch: Any, loss: Callable[..., Tensor], makes: dict[str, Make]) -> dict[str, Step]:
    """Name -> a step of a copy of the model."""
    steps = {}
    for name, make in makes.items():
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
        steps[name] = make(twin, optimizer, lambda b, twin=twin: loss(twin(b[0]), b[1]), batch)
    return steps


def in_turn(steps: dict[str, Step], turns: int, warm: int = 12) -> dict[str, list[float]]:
    """Name -> milliseconds of processor time of each step."""
    for _ in range(warm):
        for step in steps.values():
            step()
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            start = time.process_time()
            step()
            spent[name].append((time.process_time() - start) * 1e3)
    return spent


def beside(mine: list[float], other: list[float], how: Callable[[float, float], float]) -> dict[str, float]:
    """Median and quartiles over the turns of a comparison within each; and of the quickest tenth of each side.

    The last is what a machine shows that other programs leave alone for a while.
    """
    low, middle, high = quantiles([how(a, b) for a, b in zip(mine, other, strict=True)], n=4)
    quick = how(quantiles(mine, n=10)[0], quantiles(other, n=10)[0])
    return {"median": middle, "low": low, "high": high, "quick": quick}


def more(a: float, b: float) -> float:
    """Milliseconds more."""
    return a - b


def times(a: float, b: float) -> float:
    """Times as long."""
    return a / b


def of_tensors(tensors: int, turns: int) -> dict[str, Any]:
    """SAM beside the loop, and a step that skips beside a plain one."""
    torch.manual_seed(0)
    makes = {"base": base_of, "loop": loop_of, "sam": method(steppe.SAM, rho=0.05), "skip": method(skipping)}
    batch = torch.randn(8, 16), torch.randn(8, 16)
    spent = in_turn(contenders(chain(tensors), batch, nn.functional.mse_loss, makes), turns)
    return {
        "tensors": tensors, "turns": turns, "ms": {name: median(ms) for name, ms in spent.items()},
        "sam_over_loop_ms": beside(spent["sam"], spent["loop"], more),
        "skip_over_base_ms": beside(spent["skip"], spent["base"], more),
    }  # fmt: skip


def of_cnn(turns: int) -> dict[str, Any]:
    """Methods whose passes are nearly the base's, beside the base, on the CNN of digits-few."""
    torch.manual_seed(0)
    makes = {
        "base": base_of, "msam": method(steppe.MSAM), "msam by hand": momentum_of,
        "look": method(steppe.SAM, sliced=True, samples=1), "look by hand": partial(loop_of, samples=1),
        "reuse": method(reusing), "skip": method(skipping),
    }  # fmt: skip
    batch = torch.randn(50, 1, 8, 8), torch.randint(10, (50,))
    spent = in_turn(contenders(cnn((1, 8, 8), 10), batch, nn.functional.cross_entropy, makes), turns)
    ratios = {name: beside(spent[name], spent["base"], times) for name in makes if name != "base"}
    return {"turns": turns, "base_ms": median(spent["base"]), "times_base": ratios}


def entered(build: Callable[..., Any] = steppe.SAM) -> dict[str, int]:
    """Python functions that a warm step on a two-layer MLP enters: different ones, calls, files and depth.

    Those of steppe alone; depth counts steppe's frames on the way down, the call of ``backward`` being the first.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp, x = build(model, optimizer), torch.randn(6, 4)
    home = str(Path(steppe.__file__).parent)
    seen: set[tuple[str, int]] = set()
    calls = depth = deepest = 0

    def trace(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls, depth, deepest
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(home):
            return
        if event == "return":
            depth -= 1
            return
        calls, depth = calls + 1, depth + 1
        deepest = max(deepest, depth)
        seen.add((code.co_filename, code.co_firstlineno))

    for i in range(6):
        if i == 5:
            sys.setprofile(trace)
        sharp.backward(lambda: model(x).square().mean())
        optimizer.step()
        sys.setprofile(None)
        optimizer.zero_grad()
    return {"functions": len(seen), "calls": calls, "files": len({file for file, _ in seen}), "depth": deepest}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300, help="steps of each contender")
    parser.add_argument("--out", type=Path, default=RESULTS / "host_overhead.json", help="the file to write")
    parser.add_argument("--note", default="", help="a sentence on the machine, for the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "command": "OMP_NUM_THREADS=1 python " + shlex.join(["benchmarks/host_overhead.py", *sys.argv[1:]]),
        "note": arguments.note,
        "entered": entered(),
        "entered_skipping": entered(skipping),
        "tensors": [of_tensors(n, max(20, arguments.turns * 8 // (n + 8))) for n in TENSORS],
        "cnn": of_cnn(arguments.turns // 2),
        "provenance": provenance("cpu", 1) | {"load_average": [round(x, 2) for x in os.getloadavg()]},
    }
    write_json(arguments.out, found)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
