"""docs/claims.md: what papers say beside what the files say, from small stand-in files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded():
    spec = importlib.util.spec_from_file_location("claims_page", ROOT / "docs" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(ROOT / "docs"))  # as for a script there
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "docs"))
    return module


claims = loaded()
claim_tables = sys.modules["claim_tables"]


def study(**accuracy):
    """A summary of a comparison, as `steppe compare` writes it."""
    rows = [
        {
            "method": name, "variant": "plain", "label": name.upper(), "passes": 1.5, "rho": 0.1,
            "accuracy": {"mean": mean, "ci95": 0.0125, "n": 3},
        }
        for name, mean in accuracy.items()
    ]  # fmt: skip
    return {"rows": [*rows, {"method": "base", "variant": "double", "label": "base, 2x", "passes": 2.0}]}


def ratio(median):
    return {"mean": median + 0.01, "median": median, "low": median - 0.1, "high": median + 0.1}


def gained(label, gain, passes, clear, share=None):
    """A row of a comparison with a gain."""
    kept = {"share": share, "low": share - 0.2, "high": share + 0.2} if share else None
    return {
        "method": label.lower(), "label": label, "rho": 0.1, "passes": passes, "time_ratio": {"median": passes},
        "gain": {"mean": gain, "ci95": 0.01, "n": 3, "clear": clear}, "kept": kept,
    }  # fmt: skip


GRID = {
    "command": "steppe compare --methods sam,rst",
    "metric": {"name": "accuracy", "title": "accuracy", "percent": True, "higher": True},
    "best_baseline": "double_early",
    "baselines": {"base": {"mean": 0.89, "ci95": 0.01, "n": 3}, "double_early": {"mean": 0.9, "ci95": 0.02, "n": 3}},
    "rows": [{"method": "base"}, gained("SAM", 0.04, 2.0, 1), gained("RST", -0.02, 1.5, 0, share=-0.5)],
}


def large_row(label, batch, test, deviation=0.02):
    return {"label": label, "batch": batch, "test": test, "deviation": deviation, "steps": 4096 // batch}


LARGE = {
    "size": {"images": 16384, "epochs": 16}, "parameters": 12345,
    "rows": [large_row("LAMB", 256, 0.85), large_row("LAMB", 2048, 0.75), large_row("LAMB + X", 256, 0.86, None)],
}  # fmt: skip


def search(test, rho, short):
    return {"test": test, "rho": rho, "short_of_best": short, "in_trainings": 0.875}


FINDER = {
    "command": "python benchmarks/rho_finder.py",
    "digits_few": {
        "method": "sam", "sweep": [], "base": {"test": 0.95, "tests": [0.94, 0.95, 0.96]},
        "best": {"test": 0.96, "rho": 0.2, "tests": [0.95, 0.96, 0.97]},
        "finder": search(0.957, [0.22, 0.1, 0.22], 0.003),
    },
}  # fmt: skip


def put(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def line(page, start):
    found = [each for each in page.splitlines() if each.startswith(f"| {start}")]
    assert len(found) == 1, found
    return found[0]


def test_without_files_everything_is_not_measured(tmp_path):
    page = claims.page(tmp_path)
    for claim in claims.CLAIMS:
        assert f"| {claim.published} | not measured | `{claim.command}` | `{claim.file}` |" in page
    assert page.count("not measured") == len(claims.CLAIMS) + 6, "and the six sections"


def test_a_study_gives_accuracies_and_passes_in_the_order_asked_for(tmp_path):
    put(tmp_path, suite_fashion_mlp=study(grst=0.9628, sam=0.962, base=0.9559))
    measured = line(claims.page(tmp_path), "G-RST at half of SAM's extra cost, 2,000 of Fashion-MNIST").split(" | ")[2]
    assert measured == (
        "BASE 95.59 ± 1.25 at 1.50 passes; SAM 96.20 ± 1.25 at 1.50 passes; GRST 96.28 ± 1.25 at 1.50 passes"
    )


def test_epochs_that_each_chose_stand_beside_the_passes_of_a_step(tmp_path):
    found = study(sam=0.962, base=0.9559)
    found["rows"][0]["epochs"] = 20
    put(tmp_path, suite_fashion_mlp=found)
    measured = line(claims.page(tmp_path), "G-RST at half of SAM's extra cost, 2,000 of Fashion-MNIST").split(" | ")[2]
    assert measured == "BASE 95.59 ± 1.25 at 1.50 passes; SAM 96.20 ± 1.25 at 1.50 passes, 20 epochs"


def estimate(mean, ci95=0.0125):
    return {"mean": mean, "ci95": ci95, "n": 5, "p": 0.5}


def paired(**accuracy):
    """What benchmarks/paired.py makes: methods are a point above the base, 2 above early stopping, 0.5 below double."""
    over = {"base": estimate(0.01), "early": estimate(0.02, 0.003), "double": estimate(-0.005, None)}
    return {
        name.replace("__", " "): {"final": estimate(mean), "early": estimate(mean + 0.1)}
        | ({} if name.startswith("base") else {"over": over})
        for name, mean in accuracy.items()
    }


def tuned(tunes, *values, time=1.25):
    return {"tunes": tunes, "values": list(values), "time_ratio": {"median": time}, "passes": 1.5}


LORA = {
    "sst2": {
        "paired": paired(base=0.8, base__double=0.82, nbar=0.81),
        "rows": [
            {"method": "base", "variant": "plain", **tuned("lr", 0.002, time=1.0)},
            {"method": "base", "variant": "double", **tuned("lr", 0.002, time=2.0)},
            {"method": "nbar", "variant": "plain", **tuned("mu", 0.5, 2)},
        ],
    },
    "across": {"paired": paired(base=0.6, nbar=0.61)},
}


def test_the_study_of_lora_with_differences_to_each_baseline(tmp_path):
    put(tmp_path, lora_study=LORA)
    page = claims.page(tmp_path)
    assert line(page, "BAR comes near SAM").split(" | ")[2] == ("LoRA 60.00 ± 1.25, points over it: nBAR +1.00 ± 1.25")
    task, mean = page.split("## LoRA with few labels")[1].split("## ")[0].split("mean of both, 5 seeds:")
    assert "SST-2, 128 labels of each class, 5 seeds:" in task
    gains = "+1.00 ± 1.25 | {early} ± 1.25 | +2.00 ± 0.30 | -0.50"
    assert line(task, "nBAR") == f"| nBAR | mu 0.5, 2 | 81.00 ± 1.25 | {gains.format(early='91.00')} | 1.25 |"
    assert line(task, "LoRA, twice") == (
        "| LoRA, twice the steps | lr 0.002 | 82.00 ± 1.25 | – | 92.00 ± 1.25 | – | – | 2.00 |"
    )
    assert line(mean, "nBAR") == f"| nBAR | – | 61.00 ± 1.25 | {gains.format(early='71.00')} | – |"


FULL = {
    "amsgrad": {
        "paired": paired(base=0.7, base__double=0.72, adasam=0.71),
        "rows": [
            {"method": "base", "variant": "plain", **tuned("lr", 3e-5, time=1.0)},
            {"method": "adasam", "variant": "plain", **tuned("rho", 0.02, time=2.0)},
        ],
    },
    "across": {
        "sl_sam_longer": {
            "steps": 80,
            "lr": 0.0005,
            "accuracy": {"final": estimate(0.6), "early": estimate(0.61)},
            "over": {"sam": estimate(-0.01), "base": estimate(0.02)},
        },
        "differences": [
            {"of": "amsgrad adasam", "to": "amsgrad base", "over": estimate(0.01)},
            {"of": "adamw sl_sam", "to": "adamw sam", "over": estimate(-0.002)},
        ],
    },  # fmt: skip
}


def test_the_study_of_whole_models(tmp_path):
    put(tmp_path, full_study=FULL)
    page = claims.page(tmp_path)
    assert line(page, "AdaSAM beats SGD").split(" | ")[2] == "AdaSAM − AMSGrad +1.00 ± 1.25"
    found = page.split("## Whole models")[1].split("## ")[0]
    assert line(found, "AMSGrad") == "| AMSGrad | lr 3e-05 | 70.00 ± 1.25 | 80.00 ± 1.25 | – | 1.50 | 1.00 |"
    assert line(found, "AdaSAM |") == "| AdaSAM | rho 0.02 | 71.00 ± 1.25 | 81.00 ± 1.25 | +1.00 ± 1.25 | 1.50 | 2.00 |"
    assert line(found, "SL-SAM (AdamW) − SAM") == "| SL-SAM (AdamW) − SAM (AdamW) | -0.20 ± 1.25 |"
    assert line(found, "SL-SAM (AdamW), 80 steps |") == (
        "| SL-SAM (AdamW), 80 steps | lr 0.0005 | 60.00 ± 1.25 | 61.00 ± 1.25 | +2.00 ± 1.25 | 2.00 | – |"
    )
    assert line(found, "SL-SAM (AdamW), 80 steps − SAM") == "| SL-SAM (AdamW), 80 steps − SAM (AdamW) | -1.00 ± 1.25 |"
    assert "twice" not in found


def test_costs_of_bar(tmp_path):
    steps = {name: {"ratio_processor": ratio(median)} for name, median in (("nbar", 1.0), ("obar", 1.02), ("sam", 2.0))}
    put(tmp_path, bar_cost={"minilm": {"steps": steps}})
    assert "nbar 1.00 [0.90, 1.10], obar 1.02 [0.92, 1.12], sam 2.00 [1.90, 2.10]" in claims.page(tmp_path)


def test_costs_of_sl_sam(tmp_path):
    row = {"over_sam": {"step": ratio(0.6)}, "memory": {"over_sam": 0.45}}
    put(tmp_path, sl_sam_cost={"methods": {"sam": {}, "sl_sam tensor": row}})
    assert "tensors: mean time 0.61, memory beyond the weights 0.45 of SAM's" in claims.page(tmp_path)


SPEEDUP = {
    "steps_to_share_of_first_loss": {"4": {"0.5": 40.0, "0.1": None}, "16": {"0.5": 10.0, "0.1": 90.0}},
    "settings": {"seeds": 3, "rho": 0.02, "lr": "3e-05 * sqrt(batch / 16)"},
}


def test_speed_up_of_adasam(tmp_path):
    put(tmp_path, adasam_speedup=SPEEDUP)
    page = claims.page(tmp_path)
    measured = line(page, "AdaSAM is faster")
    assert "batch 4: 40 steps to 0.5, – steps to 0.1; batch 16: 10 steps to 0.5, 90 steps to 0.1" in measured
    assert "| batch | to 50% | to 10% |" in page and line(page, "4 |") == "| 4 | 40 | – |"
    assert "rho 0.02, lr 3e-05 * sqrt(batch / 16); steps" in page


def test_a_comparison_stands_beside_its_best_baseline_and_its_command(tmp_path):
    put(tmp_path, suite_schedules=GRID)
    page = claims.page(tmp_path)
    assert "3 seeds; best baseline 90.00 ± 2.00 (double and early)" in page
    assert "`steppe compare --methods sam,rst`" in page
    assert line(page, "RST |") == "| RST | 0.1 | −2.00 ± 1.00 | 1.50 | 1.50 | -50 % [-70, -30] |"
    assert line(page, "SAM |") == "| SAM | 0.1 | **+4.00 ± 1.00** | 2.00 | 2.00 | – |"


def test_large_batches_by_column_and_what_is_missing_yet(tmp_path):
    put(tmp_path, large_batch=LARGE)
    page = claims.page(tmp_path)
    assert "|  | 256 (16 steps) | 2,048 (2 steps) |" in page
    assert line(page, "LAMB |") == "| LAMB | 85.0 (2.0) | 75.0 (2.0) |"
    assert line(page, "LAMB + X") == "| LAMB + X | 86.0 | not measured |"
    assert "16,384 images, 16 epochs, 12,345 weights." in page


def test_the_finder_beside_the_best_of_the_sweep(tmp_path):
    put(tmp_path, rho_finder=FINDER)
    assert line(claims.page(tmp_path), "digits few") == (
        "| digits few | `sam` | 95.00 | 96.00 at 0.2 | 95.70 at 0.1, 0.22 (-0.30) | 70% | 0.88 |"
    )


def test_no_share_is_kept_of_a_gain_that_may_be_none(tmp_path):
    best = {"test": 0.96, "rho": 0.2, "tests": [0.93, 0.97, 0.98]}
    put(tmp_path, rho_finder={"digits_few": FINDER["digits_few"] | {"best": best}})
    assert line(claims.page(tmp_path), "digits few").count("| – |") == 1


def test_of_a_forecast_the_finder_shows_its_error(tmp_path):
    error = {"sign": -1, "test": 0.7851}
    found = {"sign": -1, **search(0.7902, [1.0, 1.5], 0.0051)}
    base, best = (
        {"sign": -1, "test": 0.93, "tests": [0.93, 0.93, 0.93]},
        error | {"rho": 1.0, "tests": [0.78, 0.78, 0.79]},
    )
    case = {"method": "sam", "sweep": [], "base": base, "best": best}
    put(tmp_path, rho_finder={"weather96": case | {"finder": found}})
    cell = "0.790 at 1, 1.5 (-0.005)"
    assert f"| weather96 | `sam` | 0.930 | 0.785 at 1 | {cell} | 95% | 0.88 |" in claims.page(tmp_path)


def test_lora_md_says_what_the_files_have():
    paired = json.loads((claims.RESULTS / "noisy_study.json").read_text())["trec40"]["paired"]
    text = " ".join((ROOT / "docs" / "lora.md").read_text(encoding="utf-8").split())
    over = {name: paired[name]["over"]["base"] for name in ("obar", "nbar", "sam")}
    gains = {name: f"{100 * d['mean']:+.1f} ± {100 * d['ci95']:.1f}".replace("-", "−") for name, d in over.items()}
    assert f"oBAR is {gains['obar']} points over LoRA, nBAR {gains['nbar']}, LoRA-SAM {gains['sam']}" in text


def test_one_task_has_no_mean_beside_it(tmp_path):
    put(tmp_path, noisy_study={"trec40": LORA["sst2"]})
    section = claims.page(tmp_path).split("## LoRA with wrong labels")[1].split("## ")[0]
    assert "40 % of them wrong, 5 seeds:" in section and "mean of both" not in section


def test_every_table_has_one_width(tmp_path):
    put(
        tmp_path, suite_schedules=GRID, suite_look_sam=GRID, large_batch=LARGE, rho_finder=FINDER, lora_study=LORA,
        full_study=FULL, adasam_speedup=SPEEDUP,
    )  # fmt: skip
    for block in claims.page(tmp_path).split("\n\n"):
        widths = {row.count("|") for row in block.splitlines() if row.startswith("|")}
        assert len(widths) <= 1, block


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == claims.page(), "run python docs/claims.py"


def test_the_other_pages_say_of_lora_what_the_file_says():
    record = json.loads((claims.RESULTS / "lora_study.json").read_text())
    lora, finetune = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("lora.md", "finetune.md"))
    rows = [record[part]["paired"] for part in ("sst2", "trec", "across")]
    for name, start in (("obar", "oBAR"), ("nbar", "nBAR"), ("sam", "LoRA-SAM, at twice the cost")):
        gains = " | ".join(claims.points(each[name]["over"]["base"]).replace("-", "−") for each in rows)
        assert f"| {start} | {gains} |" in lora
    means = (f"{100 * rows[-1][name]['final']['mean']:.2f}" for name in ("base", "sam", "obar", "nbar"))
    assert f"in small²: {', '.join(means)} |" in finetune


@pytest.mark.parametrize("there", [True, False])
def test_check_says_whether_it_is_up_to_date(there, tmp_path, monkeypatch, capsys):
    target = tmp_path / "claims.md"
    monkeypatch.setattr(claims, "TARGET", target)
    if there:
        monkeypatch.setattr(sys, "argv", ["claims.py"])
        assert claims.main() == 0 and "written" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["claims.py", "--check"])
    assert claims.main() == (0 if there else 1)
    assert ("up to date" if there else "out of date") in capsys.readouterr().out


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.claim)
def test_commands_name_scripts_that_exist(claim):
    assert (ROOT / claim.command.split()[1]).is_file()
