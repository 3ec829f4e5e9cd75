"""Perturbing and restoring alone: inside real steps, and over models of growing width.

On the CPU everything here runs on one thread and is measured in processor time, which other programs leave alone; on a
GPU by the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from step_peers import LR, RHO, NoStep
from torch import Tensor, nn

import steppe
from steppe.bench.subject import Problem, Subject

STREAMS = 10
"""Reads and writes of one buffer: norm 1, scaling 2, saving 2, adding 3, restoring 2."""

TENSORS = 48
SIZES = {"1M": 10**6, "10M": 10**7, "100M": 10**8, "1B": 10**9}
ROUNDS = {"1M": 200, "10M": 40, "100M": 9, "1B": 3}
Halves = tuple[Callable[[], Any], Callable[[], Any]]


def by_steppe(model: nn.Module) -> Halves:
    sharp = steppe.SAM(model, torch.optim.SGD(_trained(model), lr=LR), rho=RHO)

    def perturb() -> None:
        sharp.mark()
        sharp.ascend()

    return perturb, sharp.restore


def by_pytorch_optimizer(model: nn.Module) -> Halves:
    from pytorch_optimizer import SAM

    peer = SAM(_trained(model), NoStep, rho=RHO)
    return lambda: peer.first_step(zero_grad=True), peer.second_step


def by_hand(model: nn.Module) -> Halves:
    """As in the naive loop of step_peers.py: w - eps, never bit for bit."""
    moves: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def perturb() -> None:
        touched = [p for p in _trained(model) if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in touched]).norm()
        moves.extend((p, p.grad * (RHO / (norm + 1e-12))) for p in touched)
        for p, eps in moves:
            p.add_(eps)
            p.grad = None

    @torch.no_grad()
    def restore() -> None:
        for p, eps in moves:
            p.sub_(eps)
        moves.clear()

    return perturb, restore


WAYS = {"steppe": by_steppe, "pytorch_optimizer": by_pytorch_optimizer, "naive": by_hand}


def _trained(model: nn.Module) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def seconds(work: Callable[[], Any], device: str) -> float:
    _wait(device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    _wait(device)
    return clock() - start


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def in_steps(subject: Subject, rounds: int) -> dict[str, Any]:
    """Perturb and restore within real steps, as a share of a pass that lies beside them."""
    problems = {name: subject.make() for name in WAYS}
    halves = {name: way(problems[name].model) for name, way in WAYS.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"pass": [], "perturb": [], "restore": []} for name in WAYS}
    for turn in range(rounds + 1):
        for name, problem in problems.items():
            times = _one_step(problem, halves[name], subject.device)
            for part, value in times.items() if turn else ():
                found[name][part].append(value)
    return {name: _shares(parts) for name, parts in found.items()}


def _one_step(problem: Problem, halves: Halves, device: str) -> dict[str, float]:
    def one_pass() -> None:
        problem.loss_of(problem.model, problem.batch).backward()

    first, perturb = seconds(one_pass, device), seconds(halves[0], device)
    second, restore = seconds(one_pass, device), seconds(halves[1], device)
    for p in problem.model.parameters():
        p.grad = None
    return {"pass": (first + second) / 2, "perturb": perturb, "restore": restore}


def _shares(parts: dict[str, list[float]]) -> dict[str, Any]:
    both = [(a + b) / p for a, b, p in zip(parts["perturb"], parts["restore"], parts["pass"], strict=True)]
    times = {f"{name}_ms": spread([1e3 * value for value in values]) for name, values in parts.items()}
    return times | {"share_of_a_pass": spread(both)}


def width(size: int, device: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """The same without passes, on a bag of tensors of `size` weights in all, with gradients that are given."""
    model = nn.ParameterList(
        nn.Parameter(torch.empty(size // TENSORS, device=device, dtype=dtype).normal_()) for _ in range(TENSORS)
    )
    grads = [torch.randn_like(p) for p in model]
    ways = {name: way(model) for name, way in WAYS.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    copies: list[float] = []
    for turn in range(rounds + 1):
        copied = _copy_seconds(grads, device)
        # Each is first in its turn: what one frees, the next need not ask the system for again.
        for name in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
            perturb, restore = ways[name]
            for p, g in zip(model, grads, strict=True):
                p.grad = g
            spent = seconds(perturb, device) + seconds(restore, device)
            model.zero_grad()
            found[name] += [spent] if turn else []
        copies += [copied] if turn else []
    nbytes = sum(g.numel() * g.element_size() for g in grads)
    rate = 2 * nbytes / median(copies)
    rows = {name: {"ms": spread([1e3 * t for t in times])} for name, times in found.items()}
    for row in rows.values():
        row["at_copy_rate"] = row["ms"]["median"] / (1e3 * STREAMS * nbytes / rate)  # type: ignore[assignment]
    return {"weights": size, "bytes": nbytes, "copy_gb_per_s": rate / 1e9, "ways": rows}


def _copy_seconds(grads: list[Tensor], device: str) -> float:
    """One half of the tensors copied onto the other, times two: the rate that memory gives to as much data."""
    half = len(grads) // 2
    return 2 * seconds(lambda: torch._foreach_copy_(grads[:half], grads[half:]), device)
