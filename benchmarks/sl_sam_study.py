"""SL-SAM with SAM's compute: whole MiniLM on SST-2, beside the AdamW part of benchmarks/lora_study.py full.

    python benchmarks/sl_sam_study.py --data FOLDER        # after lora_study.py full; same seeds, examples and labels

At the same number of steps SL-SAM gives each tensor a share s of SAM's updates, so that a short training at SAM's rate
hardly begins. Its step costs about 0.6 of SAM's (benchmarks/sl_sam_cost.py); here it trains for 80 steps where SAM had
48, at a learning rate of its own, chosen on the first seed's validation set. Adds
"sl_sam_longer" to the part "across" of full_study.json, which lora_study.py full writes anew: call this after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_study import SEEDS, minilm
from paired import Figures, against_baselines, over
from sweep import records, settings

from steppe._command.files import read_json, write_json
from steppe.compare.engine.run import provenance
from steppe.compare.engine.runs import Run

STEPS, RHO, RATES = 80, 0.01, (2e-4, 5e-4)
TARGET = Path(__file__).parent / "results" / "full_study.json"


def trained(data: Path, folder: Path) -> dict[str, Any]:
    """The chosen rate, what was tried, and the figures of all seeds."""
    spec = settings(
        f"text:{data}/sst2/stsa.binary.train", "", model=f"hf:{minilm()}", adapt="full", optimizer="adamw",
        per_class=128, validation=256, max_length=32, batch_size=16, max_steps=STEPS, eval_every=STEPS // 2,
        test_curve=16, sharpness_examples=8,
    )  # fmt: skip
    tried = records(spec, [Run("sl_sam", RHO, 0, lr=lr) for lr in RATES], folder)
    best = max(tried, key=lambda each: each["val_accuracy"])
    rest = records(spec, [Run("sl_sam", RHO, seed, lr=best["lr"]) for seed in range(1, SEEDS["full"])], folder)
    forms = {
        "final": {str(each["seed"]): each["test_accuracy"] for each in (best, *rest)},
        "early": {str(each["seed"]): each["early"]["test_accuracy"] for each in (best, *rest)},
    }
    return {
        "command": "python benchmarks/sl_sam_study.py --data FOLDER", "provenance": provenance(spec),
        "steps": STEPS, "rho": RHO, "lr": best["lr"], "figures": {"sl_sam": forms},
        "tuning": [{"lr": each["lr"], "val_accuracy": each["val_accuracy"]} for each in tried],
    }  # fmt: skip


def main() -> None:
    """Train what is missing and write it beside the other whole models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with sst2/")
    parser.add_argument("--folder", type=Path, default=Path("results/studies/full_sl_sam"), help="where runs are kept")
    given = parser.parse_args()
    made = trained(given.data, given.folder)
    study: dict[str, Any] = read_json(TARGET) or {}
    if "adamw" not in study:
        parser.error(f"{TARGET.name} has no part 'adamw' to stand beside: run lora_study.py full first")
    found: Figures = study["adamw"]["figures"] | made["figures"]
    made["accuracy"] = against_baselines(made["figures"] | {"base": found["base"]})["sl_sam"]
    made["over"] = {name: over(found, "sl_sam", name) for name in ("sam", "base")}
    study["across"]["sl_sam_longer"] = made
    write_json(TARGET, study)
    print(f"SL-SAM over SAM: {made['over']['sam']}")


if __name__ == "__main__":
    main()
