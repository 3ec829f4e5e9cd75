"""The report: whole, self-contained, readable in both themes, safe with hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.compare.records import CLEAN, NOISY, Fake, cost, records, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.report import page as report
from steppe.compare.report import panels

pytestmark = pytest.mark.pictures

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect", "circle", "line"}
SELF_CLOSING = {"path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Collects what the tests ask about and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.errors: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in SELF_CLOSING:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, attribute: str) -> list[str]:
        return [a[attribute] or "" for _, a in self.elements if attribute in a]


def made(methods: dict[str, Fake] = CLEAN, **more: Any) -> str:
    runs = records(methods)
    summary = summarise(runs, cost(methods), spec(methods) | more)
    return report.html(summary, runs, cost(methods))


@pytest.fixture(scope="module")
def clean() -> str:
    return made()


@pytest.fixture(scope="module")
def noisy() -> str:
    return made(NOISY)


@pytest.fixture(scope="module")
def page(clean: str) -> Page:
    return Page(clean)


def test_well_formed(page: Page) -> None:
    assert not page.errors and not page.open


def test_small(clean: str) -> None:
    assert len(clean.encode()) < 2_000_000


def test_loads_nothing(clean: str, page: Page) -> None:
    assert not any(tag in ("script", "img", "iframe", "object", "embed", "image") for tag, _ in page.elements)
    assert [a["href"] for tag, a in page.elements if tag == "link"] == ["data:,"]
    assert not page.all("src") and "@import" not in clean
    outside = set(re.findall(r"https?://[^\"' <)]+", clean))
    anchors = {a["href"] for tag, a in page.elements if tag == "a"}
    assert outside == anchors and all(str(url).startswith("https://arxiv.org/abs/") for url in anchors)
    assert not re.findall(r"url\((?!#)", clean)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_ids_are_unique_and_references_resolve(clean: str, page: Page) -> None:
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", clean)) | {u[1:] for u in page.all("href") if u.startswith("#")}
    used |= {name for names in page.all("aria-labelledby") for name in names.split()}
    assert used <= set(ids)


def test_both_themes_and_print(clean: str) -> None:
    variables = set(re.findall(r"var\((--[a-z]+)\)", clean))
    for start in (":root {", "@media (prefers-color-scheme: dark) {", "@media print {"):
        block = clean[clean.index(start) :].split("}")[0]
        assert variables <= set(re.findall(r"(--[a-z]+):", block))
    assert not re.search(r"#(0\d)(\1){2}\b", clean), "a placeholder colour is left"


def test_pictures_have_words(page: Page) -> None:
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert len(drawings) > 20
    assert all(a.get("aria-hidden") == "true" or (a.get("role") == "img" and a["aria-labelledby"]) for a in drawings)


def test_says_what_matters(page: Page) -> None:
    text = " ".join(" ".join(page.text).split())
    for words in (
        "pays here", "Early stopping alone recovers nothing", "Pareto", "Learning curves", "ρ tried", "2.13.0",
        "base, 2× epochs", "base, stopped early", "LookSAM (push=natural)", "0, 1, 2, 3, 4", "arXiv 2010.01412",
    ):  # fmt: skip
        assert words in text.replace("\u00a0", " "), words


def test_tables_can_be_read_by_keyboard(page: Page) -> None:
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert regions and all(a.get("tabindex") == "0" and a.get("aria-label") for a in regions)
    assert {a["scope"] for tag, a in page.elements if tag == "th"} == {"row", "col"}


def test_hostile_names_stay_text() -> None:
    names = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^$ & {{ 7*7 }}")
    methods = {"base": CLEAN["base"]}
    for key, name in zip(("sam", "asam", "gsam"), names, strict=True):
        methods[key] = Fake(name, 0.95, settings={name: name})
    page = Page(made(methods, task=names[0], labels={key: fake.label for key, fake in methods.items()}))
    assert not page.errors
    assert not any(tag in ("script", "img") for tag, _ in page.elements)
    assert all(name in "".join(page.text).replace("\u2011", "-") for name in names)


@pytest.mark.parametrize(
    "keep",
    [
        lambda r: False,
        lambda r: r["method"] == "base",
        lambda r: r["method"] != "base",
        lambda r: r["seed"] == 0,
        lambda r: r["phase"] == "final" and r["variant"] == "plain",
    ],
    ids=["nothing", "base", "no base", "one seed", "no tuning"],
)
def test_unfinished_comparisons(keep: Any) -> None:
    runs = [r for r in records(NOISY) if keep(r)]
    costs = cost(NOISY) if any(r["method"] != "base" for r in runs) else None
    page = Page(report.html(summarise(runs, costs, spec(NOISY)), runs, costs))
    assert not page.errors and not page.open


def test_runs_without_figures() -> None:
    runs = records(NOISY)
    for record in runs:
        if record["method"] == "sam":
            record |= dict.fromkeys(
                ("test_accuracy", "val_accuracy", "early", "sharpness", "slice", "curve", "seconds")
            )
        if record["method"] == "grst":
            record["curve"] = {key: [None] * len(value) for key, value in record["curve"].items()}
    page = Page(report.html(summarise(runs, None, spec(NOISY)), runs, None))
    assert not page.errors


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = records(NOISY)
    summary = summarise(runs, cost(NOISY), spec(NOISY))
    path = report.write(summary, runs, cost(NOISY), tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.setattr(report, "html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(summary, runs, None, path)
    assert path.read_text(encoding="utf-8") == before


def test_same_input_same_file(noisy: str) -> None:
    assert made(NOISY) == noisy


def test_far_points_are_named_with_their_figure(clean: str, noisy: str) -> None:
    assert "base, to the end 70.1 ± 0.4" in noisy  # drawn at the edge of the plot
    assert ">base</text>" in clean and not re.search(r">base [\d.]+ ± [\d.]+</text>", clean)  # to scale


@pytest.mark.parametrize(("values", "ticks"), [((0.0013, 0.041), {"0.001", "0.01"}), ((0.02, 0.04), {"0.01", "0.04"})])
def test_the_ticks_of_sharpness_are_numbers_on_both_kinds_of_axis(values: tuple[float, ...], ticks: set[str]) -> None:
    rows = [
        {"method": name, "label": name, "sharpness": {"mean": value, "ci95": value / 10}}
        for name, value in zip(("base", "sam"), values, strict=True)
    ]
    drawn = str(panels.sharpness({"rows": rows}, "key"))
    assert "$" not in drawn
    assert ticks <= set(re.findall(r">([^<>\n]+)</text>", drawn))
