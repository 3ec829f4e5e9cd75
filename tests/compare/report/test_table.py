"""The table that a comparison prints: its width, and which columns stand in it."""

from __future__ import annotations

import pytest
from rich.console import Console
from tests.compare.records import CLEAN, NOISY, Fake, cost, records, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import Words
from steppe.compare.report.table import legend, table


@pytest.mark.parametrize("methods", [CLEAN, NOISY], ids=["clean", "noisy"])
@pytest.mark.parametrize("width", [100, 80, 60])
def test_table_fits(methods: dict[str, Fake], width: int) -> None:
    summary = summarise(records(methods), cost(methods), spec(methods))
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(table(summary, width))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text and {"method", "gain", "time"} <= set(text.split())
    best = max((r["gain"] for r in summary["rows"] if r["gain"]), key=lambda gain: gain["mean"])
    assert Words(summary).gain(best) in text
    assert table(summary, width).row_count == len(summary["rows"])
    said, headers = legend(summary, width), {"kept": "kept", "memory": "memory", "sharpness": "sharp-"}
    assert all((word in said) is (header in text) for word, header in headers.items())


def test_table_shows_the_difference_to_the_base_where_it_says_more() -> None:
    headers = [str(c.header) for c in table(summarise(records(NOISY), cost(NOISY), spec(NOISY)), 120).columns]
    assert "− base\npoints" in headers
    headers = [str(c.header) for c in table(summarise(records(), cost(), spec()), 120).columns]
    assert "− base\npoints" not in headers


def test_table_has_no_column_in_which_nothing_stands() -> None:
    found = [{**run, "sharpness": None} for run in records()]
    headers = [str(c.header) for c in table(summarise(found, None, spec()), 150).columns]
    assert not {"sharp-\nness", "\nmemory"} & set(headers) and "stopped\nearly %" in headers
