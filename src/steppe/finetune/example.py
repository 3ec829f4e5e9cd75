"""What `steppe finetune` does with nothing given: a transformer that knows the digits 0 to 6 learns 7 to 9 by LoRA.

The data are scikit-learn's 1,797 scans of handwriting. Each becomes a line of 16 words, one for every 2 x 2 pixels in
three shades; the model and the lines lie in the folder afterwards, for ``steppe finetune --model ... --data ...``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from steppe._command.app import hush
from steppe._command.choices import BASE
from steppe._command.devices import usable_cores
from steppe._command.files import read_json, write_json
from steppe._command.locks import refuse_taken
from steppe._command.pool import Job, Pool
from steppe._command.statistics import estimate, paired
from steppe.finetune import method
from steppe.finetune.digits import MODEL, TEST, prepare_folder, train_file
from steppe.finetune.folder import RESULT, Folder, writing
from steppe.finetune.run import finetune
from steppe.finetune.spec import resolve
from steppe.finetune.watch import Quiet

METHODS = (BASE, "sam:rho=0.05", "nbar:mu=1")
SEEDS = (0, 1, 2)
STEPS = 120
_SETTINGS = {"r": 8, "alpha": 16.0, "targets": "query,key,value,dense", "max_length": 18}
_TRAINING = {"learning_rate": 3e-3, "per_device_train_batch_size": 32, "max_steps": STEPS, "save_strategy": "no"}


def run(out: str, *, overwrite: bool = False, shown: Quiet | None = None) -> dict[str, Any]:
    """Pretrain, fine-tune with each method and seed, and give the record that stands in ``result.json``.

    An earlier example in the folder is begun anew; `overwrite`: a fine-tuning of another kind there may go.
    """
    folder, shown = Folder(out), shown or Quiet()
    earlier = read_json(folder.path / RESULT)
    if not (isinstance(earlier, dict) and earlier.get("kind") == "example"):
        folder.check_fresh(overwrite)
    wanted = [(text, seed) for seed in SEEDS for text in METHODS]
    refuse_taken(folder.path)
    with shown, folder.alone(shown.say), writing(folder.path):
        shown.say("A small transformer learns the digits 0 to 6 (once), then 7 to 9 by LoRA from noisy labels")
        prepare_folder(folder.path, SEEDS, overwrite=True)
        results = _all(folder.path, wanted, shown)
        record = summarise(results, out)
        write_json(folder.path / RESULT, record)
    return record


def _all(folder: Path, wanted: Sequence[tuple[str, int]], shown: Quiet) -> list[dict[str, Any]]:
    """The result of each run, as many side by side as there are cores, at most 2: timings are compared."""
    found: dict[str, dict[str, Any]] = {}
    shown.begin(len(wanted), 0, "runs")
    with Pool(min(2, usable_cores())) as pool:
        for text, seed in wanted:
            pool.submit(Job(f"{text} {seed}", one, (str(folder), text, seed)))
        for event in pool.events():
            if event.kind == "failed":
                raise RuntimeError(f"the run {event.key} failed: {event.value}")
            if event.kind == "done":
                found[event.key] = event.value
                shown.step(len(found))
                name, _, number = event.key.rpartition(" ")
                accuracy = 100 * event.value["metrics"]["accuracy"]
                shown.say(f"{method.label(name, full=False)}, seed {number}: {accuracy:.2f} %")
    return [found[f"{text} {seed}"] for text, seed in wanted]


def one(folder: str, text: str, seed: int, tell: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """One run of the example: the same call as for a user's own data."""
    warnings.simplefilter("ignore")
    hush("transformers", "peft", "accelerate")
    place = Path(folder)
    flags = _SETTINGS | {
        "model": str(place / MODEL), "data": str(train_file(place, seed)), "test": str(place / TEST), "method": text,
        "seed": seed, "out": str(place / f"{text.partition(':')[0]}-seed{seed}"),
    }  # fmt: skip
    return finetune(resolve(flags, _TRAINING), overwrite=True)


def summarise(results: Sequence[Mapping[str, Any]], out: str) -> dict[str, Any]:
    """The rows of the table, paired by seed against LoRA, and what they say."""
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    for each in results:
        by_method.setdefault(each["method"]["name"], {})[each["settings"]["seed"]] = each
    base = by_method[BASE]
    rows = [_row(found, base) for found in by_method.values()]
    first = next(iter(base.values()))
    return {
        "schema": 1, "kind": "example", "rows": rows, "seeds": sorted(base),
        "verdict": _verdict(rows) + _diverged(results),
        "legend": (
            f"Mean and 95 % interval over {len(base)} seeds; B = (||A||^2 - ||B||^2)/2 of the LoRA pairs at the end. "
            f"{first['data']['train']} training examples, 30 % of them with a wrong label; {first['data']['test']} "
            "test examples with right ones."
        ),
        "next": f"Your own: steppe finetune --model {out}/{MODEL} --data {train_file(Path(out), 0)} --method look_sam",
        "provenance": first["provenance"],
    }  # fmt: skip


def _diverged(results: Sequence[Mapping[str, Any]]) -> str:
    """A word on runs that stand in a mean and mean nothing."""
    lost = [f"{r['method']['label']} with seed {r['settings']['seed']}" for r in results if r["diverged"]]
    what = " Diverged, so that their means and what is said of them count for nothing:"
    return f"{what} {', '.join(lost)}." if lost else ""


def _row(found: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(found.values()))
    accuracy, reference = ({seed: r["metrics"]["accuracy"] for seed, r in each.items()} for each in (found, base))
    gain = None if found is base else estimate(paired(accuracy, reference))
    mean = estimate(list(accuracy.values()))
    balance = [abs(b) for r in found.values() for b in r["method"]["balancedness"]["end"].values()]
    return {
        "method": first["method"]["name"], "label": first["method"]["label"],
        "accuracy": vars(mean) if mean else None, "gain": vars(gain) if gain else None,
        "passes": fmean(r["passes_per_step"] for r in found.values()),
        "time": median(found[seed]["seconds"]["step"] / base[seed]["seconds"]["step"] for seed in found),
        "balancedness": fmean(balance),
    }  # fmt: skip


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on what the seeds tell, and what they do not."""
    gains = {row["label"]: row["gain"] for row in rows if row["gain"]}
    clear = [name for name, gain in gains.items() if gain["ci95"] is not None and abs(gain["mean"]) > gain["ci95"]]
    if not clear:
        return "No method differs from LoRA by more than the seeds do: an example to look at, not a study."
    said = ", ".join(f"{name} by {100 * gains[name]['mean']:+.2f} points" for name in clear)
    return f"Clear of the seeds' spread against LoRA: {said}; with so few seeds an example, not a study."
