"""The report: whole, self-contained, readable in both themes, safe with hostile names."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.compare.records import CLEAN, NOISY, Fake, cost, records, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.report import page as report

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect", "circle", "line", "polyline"}
SELF_CLOSING = {"path", "use", "rect", "circle", "line", "polyline"}


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


def test_a_report_has_no_column_of_what_was_not_measured() -> None:
    """Memory and sharpness, where a script trains."""
    runs = [{**run, "sharpness": None} for run in records()]
    text = report.html(summarise(runs, None, spec()), runs, None)
    shown = text[text.index('class="results"') :].split("</table>")[0]
    assert len({len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr.*?</tr>", shown, re.DOTALL)}) == 1
    assert "harpness" not in shown and "memory" not in shown and "Sharpness:" not in text
    assert not Page(text).errors


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
    variables = set(re.findall(r"var\((--[a-z]+)\)", clean)) - {"--colour"}  # which each mark takes from the others
    for start in (":root {", "@media (prefers-color-scheme: dark) {", "@media print {"):
        block = clean[clean.index(start) :].split("}")[0]
        assert variables <= set(re.findall(r"(--[a-z]+):", block))


def test_pictures_have_words(page: Page) -> None:
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert len(drawings) > 12
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


def test_one_of_a_kind_is_no_plural() -> None:
    methods = {name: NOISY[name] for name in ("base", "sam")}
    runs = [run for run in records(methods, seeds=[0]) if run["variant"] == "plain" and run["method"] == "base"]
    text = report.html(summarise(runs, cost(methods), spec(methods)), runs, cost(methods))
    assert ">1 final run<" in text and ">1 method: cost of one step<" in text
    assert ">15 final runs<" in made(methods) and ">4 runs that chose a setting<" in made(methods)


def test_one_value_each_is_no_choice(clean: str) -> None:
    alone = made({name: replace(fake, grid=()) for name, fake in NOISY.items()})
    for said in ("chosen on validation data", "on the grid below"):
        assert said in clean and said not in alone
    assert "<dd>20 final</dd>" in alone


def test_the_number_of_examples_stands_beside_the_task() -> None:
    runs = [run | {"examples": {"train": 20, "val": 99 + run["seed"] % 2, "test": 697}} for run in records(NOISY)]
    summary = summarise(runs, None, spec(NOISY))
    told = "<dd>digits-few</dd><dt>examples</dt><dd>20 for training, 99 to 100 for validation and 697 for the test</dd>"
    assert told in report.html(summary, runs, None)
    assert summary["hints"] == ["Few examples: 20 for training."]
    few = [run | {"examples": {"train": 30, "val": 2, "test": 8}} for run in runs]
    chance, rough = "2 for validation (what it chooses is partly chance)", "8 for the test (its figures are rough)"
    assert summarise(few, None, spec(NOISY))["hints"] == [f"Few examples: {chance} and {rough}."]
    assert "<dt>examples</dt>" not in made(NOISY)


def test_a_run_of_two_uses_is_counted_once() -> None:
    runs = [run for run in records(NOISY) if run["method"] != "grst"]
    choosing = [run for run in runs if run["phase"] == "tune"][1:]
    both = next(run for run in runs if (run["method"], run["phase"]) == ("sam", "final"))
    finals = [run for run in runs if run["phase"] == "final"]
    used = [*finals, *choosing, both | {"phase": "tune"}]
    methods = {name: NOISY[name] for name in ("base", "sam")}
    text = report.html(summarise(used, None, spec(methods)), used, None)
    assert "<dd>18: 15 final, 4 for the choice of ρ, 1 of them both</dd>" in text
    assert f"{sum(run['seconds'] for run in [*finals, *choosing]) / 60:.1f} min added up" in text


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


def intervals(*gains: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Ends of each small interval, and its dot."""
    rows = [{"gain": {"mean": mean, "ci95": half}} for mean, half in gains]
    draw = report._forest_of({"rows": rows})
    found = [re.findall(r'class="bar" x1="(.*?)" x2="(.*?)".*cx="(.*?)"', draw(row["gain"]))[0] for row in rows]
    return [tuple(map(float, each)) for each in found]


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_small_intervals_look_alike_whatever_the_unit(size: float) -> None:
    gains = ((0.02, 0.01), (-0.01, 0.01), (0.015, 0.002))
    drawn = intervals(*((size * mean, size * half) for mean, half in gains))
    assert drawn == intervals(*gains)
    assert drawn[0][1] == 96 and drawn[1][0] == 4, "they fill the room"


def test_small_intervals_of_methods_that_change_nothing_or_all() -> None:
    assert intervals((0.0, 0.0), (0.0, 0.0)) == [(4, 4, 4)] * 2
    assert intervals((1e-17, 0.0), (0.0, 0.01), (-0.003, 0.006))[1] == pytest.approx((4, 96, 50), abs=1)
    fine = intervals((0.02, 0.01), (0.01, 0.01), (-5.0, 0.1))
    assert fine[0][1] - fine[0][0] > 15, "one that failed squeezes no other"


def test_same_input_same_file(noisy: str) -> None:
    assert made(NOISY) == noisy


def test_the_gain_is_the_first_figure_of_a_row(clean: str) -> None:
    rows = re.findall(r"<tr class.*?</tr>", clean, re.DOTALL)
    assert rows and all(re.search(r"</th>\s*<td class=\"gain\">", row) for row in rows)


def test_all_curves_are_in_one_picture_with_their_values(clean: str) -> None:
    overlay = clean[clean.index('aria-labelledby="curves-wide-title') :].split("</svg>")[0]
    assert all(f">{fake.label}</text>" in overlay for fake in CLEAN.values())
    assert overlay.count('<polyline class="line') == len(CLEAN) + 1  # and the base with twice the epochs


def test_settings_of_adapters_are_those_of_models_that_have_any() -> None:
    asked = spec() | {"lora_r": 8, "adapt": "lora"}
    runs = records()
    plain = report.html(summarise(runs, cost(), asked), runs, cost())
    adapted = report.html(summarise(runs, cost(), asked | {"model": "hf:mini"}), runs, cost())
    assert "lora_r" not in plain and "lora_r" in adapted


def test_the_forecasts_of_base_and_best_stand_beside_the_truth() -> None:
    runs = records(CLEAN)
    window = {"row": 7, "at": [-1, 0, 1], "truth": [0.0, 1.0, 2.0], "to": [0, 1]}
    for run in runs:
        told = [3.0, 4.0] if run["method"] == "base" else [5.0, 6.0]
        run["forecast"] = {"windows": [window | {"told": told}]}
    text = report.html(summarise(runs, cost(), spec() | {"targets": ["wind"]}), runs, cost())
    picture = text[text.index('aria-labelledby="forecast1-title') :].split("</svg>")[0]
    assert "wind in the test part, as scaled for training, seed 0" in text and "from row 7 of the test part" in picture
    assert re.findall(r'class="name"[^>]*>([^<]+)<', picture) == ["ASAM", "base", "truth", "6", "4", "2"]
