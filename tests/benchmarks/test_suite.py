"""The suite's page says what its files hold, with sign, unit and boldness; its networks and files are sound."""

from __future__ import annotations

import csv
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def module(folder, name, alias):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(alias, ROOT / folder / f"{name}.py")
        made = importlib.util.module_from_spec(spec)
        sys.modules[alias] = made
        spec.loader.exec_module(made)
        return made
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


page = module("docs", "suite_page", "suite_page")
suite = module("benchmarks", "suite", "suite_tasks")
models = module("benchmarks", "suite_models", "suite_nets")


def record(percent=True, mean=0.9):
    def row(label, gain, clear, cost, kept=None):
        found = {"mean": gain, "ci95": 0.01, "n": 3, "clear": clear}
        return {
            "method": label, "label": label, "rho": 0.1, "gain": found, "passes": cost, "cost": cost,
            "time_ratio": {"median": cost}, "kept": kept,
        }  # fmt: skip

    share = {"share": -0.75, "low": -2.0, "high": 0.5}
    rows = [{"method": "base"}, row("SAM", 0.02, 1, 2.0), row("few", -0.015, 0, 1.1, share)]
    metric = {"name": "m", "title": "M", "percent": percent, "higher": percent}
    found = {"mean": mean, "ci95": 0.03, "n": 3}
    return {"metric": metric, "best_baseline": "early", "baselines": {"early": found}, "rows": rows, "command": "c"}


def test_the_page_is_that_of_the_files() -> None:
    found = {name: kept for name in suite.SUITE if (kept := page.kept(name))}
    assert found
    assert page.TARGET.read_text() == page.page(found)


def test_a_study_from_before_the_step_back_or_the_shorter_base_is_made_again_without_it() -> None:
    assert page.command({"command": "c", "spec": {"rho": [0.1]}}) == "c --no-step-back --no-half"
    assert page.command({"command": "c", "spec": {"step_back": True}}) == "c --no-half"
    assert page.command({"command": "c", "spec": {"step_back": True, "half": True}}) == "c"


def test_readmes_table_is_that_of_the_files() -> None:
    found = {name: kept for name in suite.SUITE if (kept := page.kept(name))}
    assert page.README.read_text() == page.readme(found)
    assert page.evidence(found).count("\n| ") == 1 + len(page.QUOTED) and "**" in page.evidence(found)


def test_readmes_table_has_the_looks_own_epochs_and_the_time_of_all_of_them() -> None:
    """On Fashion-MNIST the look takes 40 epochs where SAM takes 20: a step's time alone hides six trainings."""
    found = {name: kept for name in suite.SUITE if (kept := page.kept(name))}
    line = next(each for each in page.evidence(found).splitlines() if each.startswith("| Fashion-MNIST 2,000, MLP ("))
    assert "| 10, 20, 40 |" in line and line.endswith("| 1.62, 6.5 |")


def test_what_a_gain_takes_in_all_is_what_was_measured() -> None:
    gained = {"sam": [], "look": []}
    for name in ("weather96", "ett96", "mnist1d_mlp", "fashion_mlp", "fashion_mlp_noisy"):
        for row in filter(page.clear, page.methods(page.kept(name))):
            gained["sam" if row["method"] == "sam" else "look"].append(row["time_ratio"]["median"])
    assert [round(end(gained["sam"])) for end in (min, max)] == [4, 8]
    assert round(min(gained["look"])) == 3 and round(max(gained["look"]), 1) == 6.5
    for text in (" ".join(page.FOUND.split()), told("docs/choosing.md")):
        assert "4 to 8 times" in text and "3 to 6.5 times by a look" in text


def test_how_many_settings_each_side_tried_is_said() -> None:
    most = {"base": 0, "method": 0}
    for name in ("weather96", "ett96", "mnist1d_mlp", "fashion_mlp", "fashion_mlp_noisy"):
        for row in page.kept(name)["rows"]:
            side = "base" if row["method"] == "base" else "method"
            most[side] = max(most[side], len(row["tuning"]))
    assert f"up to {most['method']} settings and the base up to {most['base']} (" in " ".join(page.INTRO.split())


def test_what_rests_on_papers_alone_is_said_and_so() -> None:
    """Rows of choosing's table name methods that gained nothing clear in any file."""
    files = sorted((ROOT / "benchmarks" / "results").glob("suite_*.json"))
    rows = [row for path in files for row in page.methods(json.loads(path.read_text()))]
    assert not any(page.clear(row) for row in rows if row["method"].startswith(("grst", "look_sam")))
    assert "G-RST and LookSAM gained nothing clear on any task here" in told("docs/choosing.md")
    single = json.loads((ROOT / "benchmarks" / "results" / "mnist1d_mlp_one_length.json").read_text())
    lost = next(row for row in page.methods(single) if row["method"] == "msam")["gain"]
    assert f"at {-100 * lost['mean']:.1f} ± {100 * lost['ci95']:.1f} points below" in told("docs/choosing.md")


def told(name):
    return " ".join((ROOT / name).read_text().split())


def won(task, method):
    """A method's gain as the page has it, without sign and boldness."""
    found = page.kept(task)
    row = next(row for row in page.methods(found) if row["method"] == method)
    return page._won(row, found).strip("*+")


def test_what_is_said_of_the_weather_is_what_was_measured() -> None:
    found = page.kept("weather96")
    base, sam = (next(row for row in found["rows"] if row["method"] == name) for name in ("base", "sam"))
    sentence = f"SAM errs {won('weather96', 'sam')} less than the best baseline, and a look at 8 of 256 samples "
    assert sentence + won("weather96", "rst:p=1.0,samples=8") in told("docs/choosing.md")
    assert (base["epochs"], sam["epochs"]) == (3, 12) and "12 epochs where the base is best after 3" in told(
        "docs/choosing.md"
    )
    linear = page.best(page.kept("weather96_linear"))["mean"]
    assert round(100 * (1 - linear / sam["final"]["mean"])) == 1
    assert all("a linear network errs 1 % less" in told(name) for name in ("README.md", "docs/choosing.md"))


def test_what_is_said_of_etth1_is_what_was_measured() -> None:
    found = page.kept("ett96")
    sam, look = won("ett96", "sam"), won("ett96", "rst:p=1.0,samples=8")
    assert f"On ETTh1, 96 hours, SAM errs {sam.removesuffix(' %')} % less, the look {look}**" in " ".join(
        page.FOUND.split()
    )
    assert f"On ETTh1, 96 hours, {sam} and {look};" in told("docs/choosing.md")
    base, double = found["baselines"]["base"]["mean"], found["baselines"]["double"]["mean"]
    assert double < base and found["best_baseline"] == "double"


def test_what_a_shorter_training_leaves_of_the_resnets_gain_is_what_was_measured() -> None:
    found, short = page.kept("fashion_resnet_noisy"), page.kept("fashion_resnet_short")
    ten = next(row for row in short["rows"] if row["variant"] == "double")
    over = {}
    for name in ("sam", "recommended:ramp=0.1,samples=8"):
        row = next(row for row in found["rows"] if row["method"] == name)
        gains = [100 * (row["by_seed"]["final"][seed] - ten["by_seed"]["final"][seed]) for seed in map(str, range(5))]
        over[name] = f"{statistics.mean(gains):+.1f} ± {2.776 * statistics.stdev(gains) / 5**0.5:.1f}"
    text = " ".join(page.FOUND.split())
    assert "over that one SAM has {}, the look {}.".format(*over.values()) in text
    assert f"lies {100 * (ten['final']['mean'] - page.best(found)['mean']):.1f} points above the best baseline" in text
    assert "SAM {} and a look {}".format(*over.values()) in told("README.md")


def test_choosing_counts_the_tasks_with_a_clear_gain() -> None:
    found = [record for name in suite.SUITE if (record := page.kept(name))]
    clear = sum(any(map(page.clear, page.methods(record))) for record in found)
    words = (
        "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen",
    )  # fmt: skip
    wanted = f"On {words[clear]} of {words[len(found)]} tasks of [the suite](suite.md) a method gains clearly"
    assert wanted in told("docs/choosing.md")


def test_choosing_quotes_the_climbs_whose_radius_rises() -> None:
    text, ramp = told("docs/choosing.md"), "recommended:ramp=0.1,samples="
    few, more = (won("mnist1d_mlp", f"{ramp}{samples}") for samples in (4, 16))
    assert f"+{more} points on 16 of 100 samples" in text and f"+{few} on 4 (" in text
    assert f"SAM +{won('mnist1d_mlp', 'sam')}" in text


def test_gains_are_in_points_bold_where_clear_and_by_passes() -> None:
    lines = page.table(record()).splitlines()[2:]
    assert lines[0] == "| few | 0.1 | −1.50 ± 1.00 | 1.10 | 1.10 | -75 % [-200, 50] |"
    assert lines[1] == "| SAM | 0.1 | **+2.00 ± 1.00** | 2.00 | 2.00 | – |"


def test_where_each_chose_its_epochs_they_are_shown_and_time_is_a_steps() -> None:
    found = record()
    base, sam, few = found["rows"]
    base |= {"epochs": 10, "lr": 0.003}
    sam |= {"epochs": 20, "length": 2.0, "time_ratio": {"median": 4.2}}
    few |= {"epochs": 5, "length": 0.5, "time_ratio": {"median": 0.6}}
    heads, _, *lines = page.table(found).splitlines()
    assert heads.startswith("| method | radius | epochs | gain |")
    assert lines[0].startswith("| few | 0.1 | 5 | −1.50 ± 1.00 | 1.10 | 1.20 |")
    assert lines[1].startswith("| SAM | 0.1 | 20 | **+2.00 ± 1.00** | 2.00 | 2.10 |")
    assert page._chosen(found) == " The base chose 10 epochs, at a rate of 0.003."


@pytest.mark.parametrize(("mean", "shown"), [(0.402, "0.402 ± 0.030"), (3.25, "3.250 ± 0.030"), (3000.0, "3000 ± 0")])
def test_figures_of_other_metrics_keep_three_digits(mean, shown) -> None:
    kept = record(percent=False, mean=mean)
    assert page.figure(page.best(kept), kept) == shown


def test_the_networks_give_a_score_for_each_class() -> None:
    assert models.gru((1, 1, 40), 10)(torch.randn(3, 1, 1, 40)).shape == (3, 10)
    assert models.mixer((1, 28, 28), 7)(torch.randn(3, 1, 28, 28)).shape == (3, 7)


def test_the_made_tables_have_all_rows_and_no_text_where_there_is_none(tmp_path) -> None:
    pytest.importorskip("sklearn")
    suite.make_files(tmp_path / "nothing", tmp_path)
    rows = {name: list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("diabetes", "wine")}
    assert [len(found) for found in rows.values()] == [442, 178]
    assert {row["cultivar"] for row in rows["wine"]} == {"barolo", "grignolino", "barbera"}
    assert float(rows["diabetes"][0]["age"]) == 59
    assert not (tmp_path / "reviews.txt").exists()
