"""The site's pages are laid out with every link led somewhere; built ones are searched for links that lead nowhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def web() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web", ROOT / "docs" / "web.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(web: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    web.lay_out(place)
    return place


def test_every_link_of_every_page_has_its_file(web: ModuleType, source: Path) -> None:
    pages = list(source.rglob("*.md"))
    assert len(pages) > 40
    lost = [
        f"{page.relative_to(source)}: {target}"
        for page in pages
        for _, _, target, _ in web.LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        if ":" not in target and not (page.parent / target).exists()
    ]
    assert not lost


def test_every_page_is_in_the_menu(web: ModuleType, source: Path) -> None:
    config = (ROOT / "docs" / "web" / "zensical.toml").read_text()
    assert config.count(web.OTHERS) == 1
    named = set(re.findall(r'"([\w/.-]+\.md)"', config.replace(web.OTHERS, web.others(source, config))))
    pages = {str(page.relative_to(source)) for page in source.rglob("*.md")}
    assert named <= pages
    assert not {page for page in pages - named if page.startswith(("docs/", "api/"))}


def test_a_page_that_the_menu_does_not_name_is_listed(web: ModuleType, source: Path) -> None:
    config = (ROOT / "docs" / "web" / "zensical.toml").read_text().replace("docs/rho.md", "docs/choosing.md")
    assert '"docs/rho.md" },' in web.others(source, config)


def test_the_first_page_has_diff_picture_and_table(source: Path) -> None:
    text = (source / "index.md").read_text()
    assert "+ sharp = steppe.SAM(" in text and "<!--" not in text
    assert "| your situation |" in text and "| task (seeds) |" in text
    assert "<svg" in (source / "docs" / "suite.svg").read_text()


def test_the_menu_asks_for_nothing_from_other_hosts() -> None:
    settings = (ROOT / "docs" / "web" / "zensical.toml").read_text()
    assert "font = false" in settings and "http" not in settings


def test_a_built_page_with_faults_is_found(web: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/x.css"><script src="here.js"></script>'
        '<a href="a/">fine</a><a href="a/#there">fine</a><a href="a/#nowhere">no</a><a href="b/">no</a>'
        '<a href="https://elsewhere.example">fine</a><p id="top">'
    )
    (tmp_path / "a" / "index.html").write_text('<p id="there"><a href="../#top">fine</a>')
    assert sorted(web.faults(tmp_path)) == [
        "index.html loads https://fonts.example/x.css", "index.html: a/#nowhere has no such place",
        "index.html: there is no b/", "index.html: there is no here.js",
    ]  # fmt: skip


def test_a_page_that_points_nowhere_stops_the_build(web: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="docs/data.md: there is no nothing.md"):
        web.place(tmp_path, ROOT / "docs" / "data.md", "[words](nothing.md)")
