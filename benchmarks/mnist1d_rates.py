"""How much of SAM's gain on MNIST-1D is the learning rate: CNN, AdamW, the base beside the look at 4 samples.

    python benchmarks/mnist1d_rates.py          # some ten minutes; finished groups are kept in the JSON

Many runs train at once, their weights stacked: the arithmetic is that of `steppe compare --task mnist1d --model cnn`,
seed by seed (a test compares the two), at a fraction of the time.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from steppe._command.networks import cnn
from steppe.compare.engine.run import batches, load_task
from steppe.compare.engine.spec import resolve

RESULTS = Path(__file__).parent / "results" / "mnist1d_rates.json"
CONVOLUTIONS = ((1, 5), (1, 3), (1, 3))
"""Padding and width of the three; all have stride 2."""

DECAY, BETAS, EPSILON = 0.01, (0.9, 0.999), 1e-8
AT_ONCE = 24


@dataclass(frozen=True)
class Job:
    """One run: `samples` of a batch of `batch` are looked at with radius rho; the base has rho = 0."""

    labelled: int
    batch: int
    steps: int
    lr: float
    seed: int
    samples: int = 0
    rho: float = 0.0


def forward(weights: list[Tensor], x: Tensor) -> Tensor:
    """Outputs (runs, examples, classes) of stacked CNNs for inputs (runs, examples, channels, length)."""
    for i, (padding, width) in enumerate(CONVOLUTIONS):
        windows = F.pad(x, (padding, padding)).unfold(-1, width, 2)
        runs, examples, _, length, _ = windows.shape
        rows = windows.permute(0, 1, 3, 2, 4).reshape(runs, examples * length, -1)
        kernel = weights[2 * i].flatten(2).transpose(1, 2)
        x = torch.baddbmm(weights[2 * i + 1].unsqueeze(1), rows, kernel).relu()
        x = x.view(runs, examples, length, -1).permute(0, 1, 3, 2)
    return torch.baddbmm(weights[7].unsqueeze(1), x.flatten(2), weights[6].transpose(1, 2))


def losses(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean loss of each run."""
    return F.cross_entropy(forward(weights, x).flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


@torch.no_grad()
def accuracies(weights: list[Tensor], x: Tensor, y: Tensor) -> list[float]:
    """Of each run, in per cent."""
    return [100 * float(v) for v in (forward(weights, x).argmax(-1) == y).float().mean(1)]


def _by_run(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def perturbed(weights: list[Tensor], x: Tensor, y: Tensor, samples: int, rho: Tensor) -> list[Tensor]:
    """w + rho g/||g||, run by run, with g the gradient of the first samples of the batch."""
    here = [w.detach().requires_grad_() for w in weights]
    grads = torch.autograd.grad(losses(here, x[:, :samples], y[:, :samples]).sum(), here)
    norm = torch.stack([(g**2).flatten(1).sum(1) for g in grads]).sum(0).sqrt().clamp_min(1e-12)
    return [(w.detach() + g * _by_run(rho / norm, g)).requires_grad_() for w, g in zip(weights, grads, strict=True)]


def train(jobs: list[Job]) -> Iterator[list[Tensor]]:
    """Stacked weights after every step; all jobs have data, batch, steps and samples of one size."""
    first = jobs[0]
    spec = resolve({"task": "mnist1d", "device": "cpu", "labelled": first.labelled, "batch_size": first.batch})
    streams = [itertools.chain.from_iterable(batches(load_task(spec, j.seed), first.batch, j.seed)) for j in jobs]
    weights = [torch.stack(each).requires_grad_() for each in zip(*(_fresh(j.seed) for j in jobs), strict=True)]
    rates, rho = torch.tensor([j.lr for j in jobs]), torch.tensor([j.rho for j in jobs])
    means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(first.steps):
        x, y = (torch.stack(part) for part in zip(*(next(stream) for stream in streams), strict=True))
        there = perturbed(weights, x, y, first.samples, rho) if first.samples else weights
        grads = torch.autograd.grad(losses(there, x, y).sum(), there)
        rate = rates * 0.5 * (1 + math.cos(math.pi * step / first.steps))
        with torch.no_grad():
            for w, g, m, v in zip(weights, grads, means, squares, strict=True):
                _adamw(w, g, m, v, _by_run(rate, w), step + 1)
        yield weights


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor, step: int) -> None:
    w.mul_(1 - rate * DECAY)
    m.lerp_(g, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    denominator = v.sqrt() / math.sqrt(1 - BETAS[1] ** step) + EPSILON
    w.sub_(rate * m / (1 - BETAS[0] ** step) / denominator)


def _fresh(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [w.detach() for w in cnn((1, 40), 10).parameters()]


def measured(jobs: list[Job]) -> list[dict[str, Any]]:
    """Validation and test accuracy of each at the end."""
    *_, weights = train(jobs)
    spec = resolve({"task": "mnist1d", "device": "cpu", "labelled": jobs[0].labelled})
    tasks = [load_task(spec, job.seed) for job in jobs]
    val, test = (
        accuracies(weights, *(torch.stack([getattr(getattr(t, part), of) for t in tasks]) for of in "xy"))
        for part in ("val", "test")
    )
    return [asdict(j) | {"val": a, "test": b} for j, a, b in zip(jobs, val, test, strict=True)]


def wanted() -> list[Job]:
    """3,000 examples with one seed, 1,000 with three; the base also twice as long."""
    sizes = [(3000, 100, (0.005, 0.01, 0.02, 0.04), (100,)), (1000, 50, (0.0125, 0.02, 0.03), (101, 102, 103))]
    found = []
    for (labelled, batch, rates, seeds), rho in itertools.product(sizes, (0.0, 0.1, 0.2)):
        for lr, seed in itertools.product(rates, seeds):
            lengths = (2000,) if rho else (2000, 4000)
            found += [Job(labelled, batch, steps, lr, seed, 4 if rho else 0, rho) for steps in lengths]
    return found


def main() -> None:
    """Train what is missing, group by group."""
    torch.set_num_threads(1)
    done = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    known = {tuple(each[name] for name in Job.__dataclass_fields__) for each in done}
    missing = [job for job in wanted() if tuple(asdict(job).values()) not in known]
    of_size = sorted(missing, key=lambda job: (job.labelled, job.steps, job.samples))
    for _, group in itertools.groupby(of_size, key=lambda job: (job.labelled, job.steps, job.samples)):
        for chunk in itertools.batched(group, AT_ONCE) if hasattr(itertools, "batched") else [list(group)]:
            done += measured(list(chunk))
            RESULTS.write_text(json.dumps({"command": "python benchmarks/mnist1d_rates.py", "runs": done}, indent=1))


if __name__ == "__main__":
    main()
