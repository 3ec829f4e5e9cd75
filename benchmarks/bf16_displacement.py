"""What is left of a perturbation when bf16 (or fp16) weights are rounded: to nearest, and stochastically.

    python benchmarks/bf16_displacement.py            # writes benchmarks/results/bf16_displacement.json

A linear layer of real size (4096 x 4096, weights N(0, 0.02^2) as language models start), a Gaussian gradient, eps =
rho g / ||g||. For every rho, with delta = what the weights really moved:

  moved   share of the weights that move at all
  length  ||delta|| / ||eps||                 (what steppe measures and warns by; rounding noise counts too)
  along   <delta, eps> / ||eps||^2            (1: all of eps is there, on average)
  cosine  <delta, eps> / (||delta|| ||eps||)  (1: nothing but eps is there)
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import steppe
from steppe._rounding import add_

SIZE, SPREAD = 4096, 0.02
RADII = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
TARGET = Path(__file__).parent / "results" / "bf16_displacement.json"


def row(weight: torch.Tensor, gradient: torch.Tensor, rho: float, rounding: str) -> dict[str, Any]:
    eps = (rho / gradient.norm() * gradient).to(weight.dtype)
    moved = weight.clone()
    add_([moved], [eps], rounding, seed=0, step=0)
    delta, exact = moved.float() - weight.float(), eps.float()
    length, along = float(delta.norm() / exact.norm()), float((delta * exact).sum() / exact.square().sum())
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "rho": rho,
        "rounding": rounding,
        "moved": round(float((delta != 0).float().mean()), 4),
        "length": round(length, 4),
        "along": round(along, 4),
        "cosine": round(along / length, 4) if length else 0.0,
    }


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = SPREAD * torch.randn(SIZE, SIZE, generator=generator)
    gradient = torch.randn(SIZE, SIZE, generator=generator)
    rows = [
        row(weight.to(dtype), gradient, rho, rounding)
        for dtype in (torch.bfloat16, torch.float16)
        for rho in RADII
        for rounding in ("nearest", "stochastic")
    ]
    print(f"{'dtype':<9} {'rho':>6} {'rounding':<11} {'moved':>7} {'length':>7} {'along':>7} {'cosine':>7}")
    for r in rows:
        print(
            f"{r['dtype']:<9} {r['rho']:>6} {r['rounding']:<11} {r['moved']:>7.1%} {r['length']:>7.3f} "
            f"{r['along']:>7.3f} {r['cosine']:>7.3f}"
        )
    about = {"steppe": steppe.__version__, "torch": torch.__version__, "python": platform.python_version()}
    layer = {"shape": [SIZE, SIZE], "weights": f"N(0, {SPREAD}^2)", "gradient": "N(0, 1)"}
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps({"layer": layer, "provenance": about, "rows": rows}, indent=1) + "\n")
    print(f"written: {TARGET}")


if __name__ == "__main__":
    sys.exit(main())
