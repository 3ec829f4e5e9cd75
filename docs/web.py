"""Lay out and build the site, strictly, and check what was built (`make site`): all links, and nothing from elsewhere.

The pages are those of the repository, in its own layout, so that their links hold: what they point to outside of docs
is laid beside them, source files as pages. The first page takes its diff and its tables from README.md, choosing.md and
suite.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from steppe.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
SITE, PLACE = ROOT / "docs" / "web", ROOT / "build" / "site"
PAGES = ("docs/*.md", "docs/loops/*.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", "": "text"}
OTHERS = "  # pages that have no place above are listed here by docs/web.py"


def lay_out(source: Path) -> None:
    """All pages in the repository's layout, and what they link to."""
    for path in sorted(each for pattern in PAGES for each in ROOT.glob(pattern)):
        place(source, path, path.read_text())
    for path in sorted((ROOT / "examples").glob("*.py")):
        as_page(source, path)
    (source / "examples" / "index.md").write_text(examples())
    for path in SITE.rglob("*.*"):
        if path.suffix in (".md", ".css") and path.name != "index.md":
            copy(path, source / path.relative_to(SITE))
    (source / "api" / "recipes.md").write_text(recipes())
    (source / "index.md").write_text(first_page())


def place(source: Path, path: Path, text: str) -> None:
    """A page whose links lead to what lies in the site."""
    target = source / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(LINK.sub(lambda found: linked(source, path, *found.groups()), text))


def linked(source: Path, page: Path, mark: str, words: str, target: str, anchor: str | None) -> str:
    """A link of a page, led to where its target lies in the site; only its words where that has no place there."""
    if urlsplit(target).scheme:
        return f"{mark}[{words}]({target}{anchor or ''})"
    there = (page.parent / target).resolve()
    if not there.exists():
        raise SystemExit(f"{page.relative_to(ROOT)}: there is no {target}")
    if there.is_dir():
        index = "README.md" if (there / "README.md").exists() else "index.md"
        inside = there == ROOT / "examples" or index == "README.md"
        return f"[{words}]({target.rstrip('/')}/{index})" if inside else words
    if there == ROOT / "README.md":
        up = "../" * len(page.relative_to(ROOT).parts[:-1])
        return f"[{words}]({up}index.md{anchor or ''})"
    if there.suffix in LANGUAGES:
        as_page(source, there)
        return f"[{words}]({PurePosixPath(target).with_suffix('')}.md)"
    if there.suffix != ".md":
        copy(there, source / there.relative_to(ROOT))
    return f"{mark}[{words}]({target}{anchor or ''})"


def as_page(source: Path, path: Path) -> None:
    """A file that is no page, shown on one."""
    target = source / path.relative_to(ROOT).with_suffix(".md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# {path.name}\n\n````{LANGUAGES[path.suffix]}\n{path.read_text()}````\n")


def copy(path: Path, target: Path) -> None:
    """A file as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def examples() -> str:
    """A list of the examples, each with the first sentence of its docstring."""
    lines = ["# Examples\n\nSmall scripts, all run by the tests.\n", "| script | what it shows |", "| --- | --- |"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        about = re.match(r'"""(.+?)(?:"""|\n\n)', path.read_text(), re.DOTALL)
        words = " ".join(about[1].split()) if about else ""
        lines.append(f"| [{path.name}]({path.stem}.md) | {words.replace('|', ' ')} |")
    return "\n".join(lines) + "\n"


def recipes() -> str:
    """The signatures and docstrings of all recipes; their cards are on another page."""
    names = dict.fromkeys(row.recipe.__name__ for row in METHODS.values())
    blocks = "\n".join(f"::: steppe.{name}\n" for name in names)
    return f"# Recipes\n\nWith paper, cost and use on one card each: [methods](../docs/methods.md).\n\n{blocks}"


def first_page() -> str:
    """The first page, with the diff of README.md and the first tables of choosing.md and suite.md."""
    diff = re.search(r"```diff\n.*?```\n", (ROOT / "README.md").read_text(), re.DOTALL)
    chapter = (ROOT / "docs" / "choosing.md").read_text()
    table = re.search(r"^\| your situation .*?\n\n", chapter, re.DOTALL | re.MULTILINE)
    tasks = re.search(r"^\| task \(seeds\) .*?\n\n", (ROOT / "docs" / "suite.md").read_text(), re.DOTALL | re.MULTILINE)
    assert diff and table and tasks, "README.md lacks its diff, choosing.md its first table, or suite.md its overview"
    situations = re.sub(r"\]\(([\w/]+\.md)", r"](docs/\1", table[0])
    text = (SITE / "index.md").read_text()
    for mark, content in (("diff", diff[0]), ("situations", situations), ("suite", tasks[0])):
        text = text.replace(f"<!-- {mark} -->", content)
    return text


class Page(HTMLParser):
    """What a page names, points to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, links, and what is loaded without a click."""
        found = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := found.get(key))}
        target = found.get("href")
        if tag == "a" and target is not None:
            self.links.append(target)
        elif target is not None and {"stylesheet", "icon", "preload"} & set((found.get("rel") or "").split()):
            self.loads.append(target)
        if source := found.get("src"):
            self.loads.append(source)


def faults(html: Path) -> list[str]:
    """Links that lead nowhere, and what a page loads from another host."""
    pages = {path: read(path) for path in html.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        where = path.relative_to(html)
        found += [f"{where} loads {each}" for each in page.loads if urlsplit(each).netloc]
        for each in [*page.links, *page.loads]:
            parts = urlsplit(each)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                found.append(f"{where}: there is no {each}")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].names:
                found.append(f"{where}: {each} has no such place")
    return found


def read(path: Path) -> Page:
    """One page, parsed."""
    page = Page()
    page.feed(path.read_text())
    return page


def others(source: Path, config: str) -> str:
    """A chapter of the menu with the pages of docs that it does not name."""
    pages = sorted(str(path.relative_to(source)) for path in (source / "docs").rglob("*.md"))
    rows = [f'    {{ {json.dumps(title(source / page))} = "{page}" }},' for page in pages if f'"{page}"' not in config]
    return "\n".join(['  { "More" = [', *rows, "  ] },"]) if rows else ""


def title(page: Path) -> str:
    """A page's first heading, without marks."""
    found = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
    return found[1].replace("`", "") if found else page.stem


def build(place: Path) -> list[str]:
    """The site in ``place / "html"``; what is wrong with it.

    Raises:
        SystemExit: zensical found something, in strict mode.
    """
    shutil.rmtree(place, ignore_errors=True)
    (place / "source").mkdir(parents=True)
    lay_out(place / "source")
    config = (SITE / "zensical.toml").read_text().replace('"../../src"', json.dumps(str(ROOT / "src")))
    config = config.replace('"roles.py"', json.dumps(str(SITE / "roles.py")))
    config = config.replace(OTHERS, others(place / "source", config))
    (place / "zensical.toml").write_text(config)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=place, check=False)
    if done.returncode:
        raise SystemExit("zensical found the above")
    return faults(place / "html")


def main() -> int:
    """Build; say where it is, or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PLACE, help="folder to build in; what is there goes")
    place = parser.parse_args().out.resolve()
    wrong = build(place)
    print("\n".join(wrong) or f"The site: {place / 'html' / 'index.html'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
