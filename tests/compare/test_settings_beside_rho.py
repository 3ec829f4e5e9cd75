"""Comparisons in which something else than rho was chosen: mu of BAR, the base's learning rate."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tests.compare.records import CLEAN, Fake, cost, records, spec
from tests.compare.report.test_page import Page

from steppe.compare.analysis.groups import group, tuned
from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import chosen, symbols
from steppe.compare.report import page as report
from steppe.compare.report.table import table

METHODS = {
    "base": CLEAN["base"], "sam": CLEAN["sam"],
    "nbar": Fake("nBAR", 0.962, 0.960, 1.0, 1.01, 1.0, 0.1, 1.0, (0.2, 0.5, 1.0)),
}  # fmt: skip
RATES = (0.01, 0.02, 0.04)


def made() -> list[dict[str, Any]]:
    """Records of a study in which the base chose 0.04, and nBAR mu = 1."""
    found = []
    for run in records(METHODS):
        if run["method"] == "nbar":
            run |= {"mu": run["rho"], "rho": None, "tunes": "mu"}
            run["balancedness"] = {"epoch": [0, 50, 100], "share": [1.0, 0.9, 0.7]}
        elif run["method"] == "base":
            run |= {"lr": 0.04, "tunes": "lr", "balancedness": {"epoch": [0, 50, 100], "share": [1.0, 0.99, 0.98]}}
        found.append(run | {"lr": 0.04})
    for rate in RATES:
        tune = next(run for run in found if run["method"] == "base" and run["variant"] == "plain")
        found.append(tune | {"phase": "tune", "run_id": f"tune-{rate}", "lr": rate, "val_accuracy": 0.9 + rate})
    return found


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(made(), cost(METHODS), spec(METHODS))


def row(summary: dict[str, Any], method: str, variant: str = "plain") -> dict[str, Any]:
    return next(r for r in summary["rows"] if (r["method"], r["variant"]) == (method, variant))


def test_each_row_says_what_was_chosen(summary) -> None:
    assert [(row(summary, m)["tunes"], row(summary, m)["rho"], row(summary, m)["values"]) for m in METHODS] == [
        ("lr", None, [0.04]), ("rho", 0.2, [0.2]), ("mu", None, [1.0]),
    ]  # fmt: skip
    assert [chosen(row(summary, m)) for m in METHODS] == ["lr 0.04", "0.2", "μ 1"]
    assert symbols(summary["rows"]) == "ρ, μ and lr"


def test_the_grids_are_those_that_were_tried(summary) -> None:
    assert [point["value"] for point in row(summary, "nbar")["tuning"]] == [0.2, 0.5, 1.0]
    assert [(p["value"], p["val_accuracy"]) for p in row(summary, "base")["tuning"]] == [
        (rate, pytest.approx(0.9 + rate)) for rate in RATES
    ]
    assert row(summary, "base", "double")["tuning"] == []


def test_balancedness_at_the_end_is_in_the_rows_that_have_it(summary) -> None:
    assert row(summary, "nbar")["balancedness"]["mean"] == pytest.approx(0.7)
    assert row(summary, "base")["balancedness"]["n"] == 5 and row(summary, "sam")["balancedness"] is None


def test_edges_and_verdict_name_the_setting(summary) -> None:
    told = " ".join(summary["notes"])
    assert "The chosen μ is the largest tried for nBAR (1)" in told
    assert "The chosen lr is the largest tried for the base (0.04)" in told
    assert "ρ, μ and lr were chosen on validation data alone" in told
    assert "nBAR (μ = 1)" in summary["verdict"]


def test_one_kind_of_setting_reads_as_ever() -> None:
    plain = summarise(records(), cost(), spec())
    assert symbols(plain["rows"]) == "ρ" and "ρ was chosen on validation data alone" in " ".join(plain["notes"])
    assert symbols([]) == "ρ"


def test_the_table_shows_them(summary) -> None:
    console = Console(file=StringIO(), width=140)
    console.print(table(summary, 140))
    shown = console.file.getvalue()
    assert "μ 1" in shown and "lr 0.04" in shown


def test_the_report_shows_them_and_the_balance(summary) -> None:
    page = Page(report.html(summary, made(), cost(METHODS)))
    assert not page.errors and not page.open
    text = " ".join(" ".join(page.text).split())
    assert "ρ, μ and lr chosen on validation data" in text and "ρ, μ and lr tried" in text
    assert "Balancedness of the adapters" in text and "μ 0.5" in text and "lr 0.02" in text
    drawings = [label for label in page.all("id") if label.startswith("balance")]
    assert drawings
    plain = Page(report.html(summarise(records(), cost(), spec()), records(), cost()))
    assert "Balancedness of the adapters" not in " ".join(plain.text)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"rho": 0.1}, ("rho", 0.1)), ({"rho": None}, ("rho", None)), ({"rho": 0.1, "lr": 0.3}, ("rho", 0.1)),
        ({"rho": None, "tunes": "mu", "mu": 0.5, "lr": 0.3}, ("mu", 0.5)),
        ({"rho": None, "tunes": "lr", "lr": 0.3}, ("lr", 0.3)), ({"tunes": "mu", "mu": float("nan")}, ("mu", None)),
    ],
)  # fmt: skip
def test_what_was_tuned_is_read_from_old_and_new_records(run, expected) -> None:
    assert tuned(run) == expected


def test_a_group_has_one_setting() -> None:
    groups = {each.method: each for each in group(made()) if each.variant == "plain"}
    assert (groups["nbar"].tunes, groups["nbar"].values) == ("mu", [1.0])
    assert (groups["sam"].tunes, groups["sam"].values) == ("rho", [0.2])
