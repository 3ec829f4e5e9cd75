"""What torch.compile brings to a step: processor time of a step with nothing, the model or the whole step compiled.

    OMP_NUM_THREADS=1 python benchmarks/compiled_step.py

Of the base (momentum SGD, its step compiled too in "step") and of SAM, on the CNN of digits-few and a tiny transformer,
by the default backend. Contenders have copies of one model and take turns in one process, step by step, after the steps
in which things are compiled. Writes benchmarks/results/compiled_step.json, which docs/loops/compile.md quotes.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import step_models
import torch
from torch import Tensor, nn
from torch._dynamo.utils import compilation_time_metrics

import steppe
from steppe._command.files import write_json
from steppe._command.networks import cnn
from steppe.bench.measure import provenance

RESULT = Path(__file__).parent / "results" / "compiled_step.json"
FIRST = 4
"""Steps in which everything is compiled."""


def subjects() -> dict[str, tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]]:
    """Model, batch and loss of each."""
    batch = torch.randn(50, 1, 8, 8), torch.randint(10, (50,))
    return {
        "cnn": (cnn((1, 8, 8), 10), batch, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])),
        "transformer": step_models.transformer_tiny(8),
    }


def step_of(
    model: nn.Module, loss_of: Callable[[nn.Module, Any], Tensor], method: str, what: str
) -> Callable[..., Any]:
    """A step of the base or of SAM, with what is to be compiled compiled."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    sharp = steppe.SAM(model, optimizer) if method == "sam" else None
    run = torch.compile(model) if what == "model" else model

    def step(batch: Any) -> Tensor:
        if sharp is None:
            loss = loss_of(run, batch)
            loss.backward()
        else:
            loss = sharp.backward(lambda: loss_of(run, batch))
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return torch.compile(step) if what == "step" else step


def compiled(step: Callable[..., Any], batch: Any) -> dict[str, Any]:
    """The first steps: how long they take, and into how many pieces they are compiled."""
    before, begun = _pieces(), time.perf_counter()
    for _ in range(FIRST):
        step(batch)
    return {"first_steps_s": round(time.perf_counter() - begun, 2), "pieces": _pieces() - before}


def measure(steps: dict[str, Callable[..., Any]], batch: Any, turns: int) -> dict[str, Any]:
    """Milliseconds of processor time, the contenders in turn."""
    first = {name: compiled(step, batch) for name, step in steps.items()}
    before, times = _pieces(), {name: list[float]() for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            begun = time.process_time()
            step(batch)
            times[name].append(1e3 * (time.process_time() - begun))
    assert _pieces() == before, "nothing is compiled later"
    found = {name: quantiles(each, n=4) for name, each in times.items()}
    return {
        name: first[name] | {"ms": round(median(times[name]), 3), "quartiles_ms": [round(q[0], 3), round(q[2], 3)]}
        for name, q in found.items()
    }


def _pieces() -> int:
    return len(compilation_time_metrics.get("_compile.compile_inner", ()))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, (model, batch, loss_of) in subjects().items():
        contenders = [(method, what) for method in ("base", "sam") for what in ("nothing", "model", "step")]
        steps = {f"{m}, {w}": step_of(copy.deepcopy(model), loss_of, m, w) for m, w in contenders}
        found[name] = measure(steps, batch, arguments.turns)
        print(name, found[name], flush=True)
    about = {"turns": arguments.turns, "load_average": os.getloadavg()}
    write_json(arguments.output, {"about": about, "provenance": provenance("cpu", 1)} | found)


if __name__ == "__main__":
    main()
