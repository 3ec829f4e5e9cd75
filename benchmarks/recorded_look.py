"""What a look costs on a GPU as it is, and recorded as a CUDA graph, beside the base's step.

    python benchmarks/recorded_look.py            # needs a CUDA device and torchvision; a minute

SAM whose ascent is on 4 of 128 images, on ResNet-50 and ViT-B/16 in bf16 autocast, each after six steps of its own;
`waited_ms` is the median of steps that are waited for one by one, `row_ms` a step's share of as many without waiting,
and `kernels_ms` the sum of the kernels of a forward and backward pass over so many images.
Writes benchmarks/results/recorded_look.json, of which `python docs/cost.py` makes a table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import step_models
import torch

import steppe
from steppe._command.files import write_json
from steppe.bench.measure import provenance

RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet50", "vit_b16")
SAMPLES, BATCH, WARM = 4, 128, 6


def timed(step: Callable[[], Any], steps: int, wait: Callable[[], Any] = torch.cuda.synchronize) -> dict[str, float]:
    """Milliseconds of a warm step, waited for and in a row."""
    for _ in range(WARM):
        step()
    wait()
    waited = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        wait()
        waited.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return {"waited_ms": median(waited), "row_ms": 1e3 * (time.perf_counter() - start) / steps}


def of_model(name: str, steps: int) -> dict[str, dict[str, float]]:
    """Base, look and recorded look on one model, one after the other."""
    model, batch, loss_of = getattr(step_models, name)(BATCH)
    model, batch = model.cuda(), tuple(part.cuda() for part in batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def base() -> None:
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    found = {"base": timed(base, steps)}
    for kind, recorded in (("look", False), ("recorded", True)):
        sharp = steppe.SAM(model, optimizer, rho=0.05, samples=SAMPLES, cuda_graph=recorded)

        def step(sharp: steppe.SharpnessAware = sharp) -> None:
            sharp.backward(lambda seen: loss_of(model, seen), batch)
            optimizer.step()
            optimizer.zero_grad()

        found[kind] = timed(step, steps)
    return found


def kernels(name: str, images: int, passes: int = 3) -> float:
    """Milliseconds of the kernels of a forward and backward pass over so many images, by torch's profiler."""
    model, batch, loss_of = getattr(step_models, name)(images)
    model, batch = model.cuda(), tuple(part.cuda() for part in batch)
    loss_of(model, batch).backward()
    with torch.profiler.profile() as profile:
        for _ in range(passes):
            model.zero_grad()
            loss_of(model, batch).backward()
        torch.cuda.synchronize()
    on_device = [each for each in profile.key_averages() if each.device_type != torch.profiler.DeviceType.CPU]
    return sum(each.self_device_time_total for each in on_device) / passes / 1e3


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16, help="steps of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS / "recorded_look.json", help="the file to write")
    given = parser.parse_args()
    found = {
        "command": "python " + shlex.join(["benchmarks/recorded_look.py", *sys.argv[1:]]),
        "samples": SAMPLES, "batch_size": BATCH, "steps": given.steps,
        "models": {name: of_model(name, given.steps) for name in MODELS},
        "kernels_ms": {name: {str(images): kernels(name, images) for images in (BATCH, 1)} for name in MODELS},
        "provenance": provenance("cuda", torch.get_num_threads()),
    }  # fmt: skip
    write_json(given.out, found)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
