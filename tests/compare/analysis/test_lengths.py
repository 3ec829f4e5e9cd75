"""What a reader sees of lengths that were chosen: rows, costs, verdict, notes, table and report."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tests.compare.records import CLEAN, cost, records, spec
from tests.compare.report.test_page import Page

from steppe.compare import screen
from steppe.compare.analysis.summary import summarise
from steppe.compare.report import page as report
from steppe.compare.report.table import table

METHODS = {name: CLEAN[name] for name in ("base", "sam", "grst")}
GRID = [50, 100, 200]
SPEC = spec(METHODS) | {"epochs_grid": GRID, "half": True}


def made() -> list[dict[str, Any]]:
    """Records of a study in which the base chose 100 epochs, SAM 50 and G-RST 100; both others were worse."""
    chose, found = {"base": 100, "sam": 50, "grst": 100}, []
    for each in METHODS:
        of = {"base": METHODS["base"], each: METHODS[each]}
        for record in records(of, epochs=chose[each]):
            if record["method"] == each:
                found.append(record | {"chosen_epochs": chose[each]})
    for record in [r for r in found if r["phase"] == "tune"]:
        for n in set(GRID) - {record["chosen_epochs"]}:
            worse = {"chosen_epochs": n, "epochs": n, "run_id": f"{record['run_id']}-{n}"}
            found.append(record | worse | {"val_accuracy": record["val_accuracy"] - 0.1})
    plain = [r for r in found if r["method"] == "base" and r["variant"] == "plain"]
    tune = (
        {"phase": "tune", "run_id": f"tune-{n}", "chosen_epochs": n, "val_accuracy": 1 - abs(n - 100)} for n in GRID
    )
    half = ({"variant": "half", "epochs": 50, "steps": 200, "run_id": f"half-{r['seed']}"} for r in plain)
    return found + [plain[0] | each for each in tune] + [r | each for r, each in zip(plain, half, strict=True)]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(made(), cost(METHODS), SPEC)


def row(summary: dict[str, Any], method: str, variant: str = "plain") -> dict[str, Any]:
    return next(each for each in summary["rows"] if (each["method"], each["variant"]) == (method, variant))


def test_each_row_says_its_length_and_what_the_whole_training_costs(summary: dict[str, Any]) -> None:
    assert [row(summary, "base", each)["epochs"] for each in ("plain", "half", "double")] == [100, 50, 200]
    sam = row(summary, "sam")
    assert (sam["epochs"], sam["length"]) == (50, 0.5) and sam["cost"] == pytest.approx(2.03 / 2)
    assert row(summary, "grst")["cost"] == pytest.approx(1.58)


def test_validation_figures_are_not_averaged_over_lengths(summary: dict[str, Any]) -> None:
    points = row(summary, "sam")["tuning"]
    assert len({(each["value"], each["epochs"]) for each in points}) == len(points) == 3 * len(CLEAN["sam"].grid)
    assert [each["epochs"] for each in row(summary, "base")["tuning"]] == GRID


def test_the_verdict_names_a_length_that_is_not_the_base_s(summary: dict[str, Any]) -> None:
    assert summary["verdict"].startswith("SAM (ρ = 0.2, 50 epochs) pays here: ")
    assert "× the base's training time" in summary["verdict"]
    same = [r for r in made() if r["method"] != "sam"]
    assert summarise(same, cost(METHODS), SPEC)["verdict"].startswith("G-RST (ρ = 0.2) pays here: ")


def test_notes_are_true_of_lengths_that_were_chosen(summary: dict[str, Any]) -> None:
    told = " ".join(summary["notes"])
    assert "The chosen length is the shortest tried for SAM (50 epochs): a shorter one may do better." in told
    assert "ρ and length were chosen on validation data alone (up to 12 settings for a method, 3 for the base)" in told
    assert "--epochs)" not in told and "shorter trainings first" not in told


@pytest.mark.parametrize(
    ("variant", "gain", "chose", "sentence"),
    [
        ("half", 0.02, 100, "Half the epochs that it chose help the base (+2.0 ± 0.0 points): more tuning seeds"),
        ("half", 0.02, 50, "Half the epochs that it chose help the base (+2.0 ± 0.0 points): try shorter ones, too"),
        (
            "double",
            0.02,
            200,
            "Twice the epochs help the base (+2.0 ± 0.0 points): it was not trained to its best; try lo",
        ),
        ("double", -0.02, 100, "Twice the epochs that it chose harm the base (−2.0 ± 0.0 points): it overfits when"),
    ],
)
def test_what_half_and_twice_the_chosen_length_tell(variant: str, gain: float, chose: int, sentence: str) -> None:
    known = [r | {"chosen_epochs": chose, "epochs": chose} if r["phase"] == "final" else r for r in made()]
    base = {r["seed"]: r["test_accuracy"] for r in known if (r["method"], r["variant"]) == ("base", "plain")}
    for r in known:
        if r["method"] == "base" and r["variant"] == variant:
            r["test_accuracy"] = base[r["seed"]] + gain + 1e-6 * r["seed"]
    told = summarise(known, cost(METHODS), SPEC)["notes"]
    assert any(note.startswith(sentence) for note in told), told


def test_table_and_report_show_them(summary: dict[str, Any]) -> None:
    console = Console(file=StringIO(), width=160)
    console.print(table(summary, 160))
    lines = {line.split()[0]: line.split() for line in console.file.getvalue().splitlines() if line.strip()}
    assert "epochs" in console.file.getvalue() and lines["SAM"][1:3] == ["0.2", "50"]
    html = report.html(summary, made(), cost(METHODS))
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    assert not page.errors and not page.open
    assert "Its ρ and length are those with the best validation accuracy" in text
    assert "ρ and length tried" in text and "0.2, 50 epochs:" in text and "0.2, 100 epochs:" in text
    chosen = [piece for piece in html.split('class="chosen">')[1:] if piece.startswith("0.2, ")]
    assert sorted(piece.partition(":")[0] for piece in chosen) == ["0.2, 100 epochs", "0.2, 50 epochs"]
    console = Console(file=StringIO(), width=160)
    console.print(screen.so_far(summary | {"spec": SPEC}))
    assert "epochs" in console.file.getvalue()


def test_one_length_is_no_choice() -> None:
    alone = summarise([r for r in made() if r["method"] != "sam"], cost(METHODS), SPEC | {"epochs_grid": [100]})
    assert all("epochs" not in each for each in alone["rows"])
    assert all("epochs" not in point for each in alone["rows"] for point in each["tuning"])


def test_a_length_that_is_not_the_base_s_may_want_another_rate() -> None:
    told = "SAM (50 epochs) trained at the learning rate that the base chose for 100 epochs; another may suit"
    several = SPEC | {"lr_grid": [0.1, 0.2]}
    assert any(each.startswith(told) for each in summarise(made(), cost(METHODS), several)["notes"])
    for quiet in (SPEC | {"lr_grid": [0.1]}, several | {"tune_lr": "each"}):
        assert not any(
            "trained at the learning rate" in each for each in summarise(made(), cost(METHODS), quiet)["notes"]
        )
