"""Write what follows from registry and tests: docs/methods.md and the table of docs/loops (`make docs`)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from steppe._command.rows import RECOMMENDED
from steppe.methods import METHODS
from steppe.methods._card import write_card

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ROOT / "docs" / "loops.json"
LISTED = (RECOMMENDED, *METHODS.values())
"""What `steppe methods` lists, in its order."""

ORDER = (
    "plain", "accumulation (exact)", "accumulation (m-sharpness)", "clipping", "several optimizers", "fp16 GradScaler",
    "bf16 autocast", "DDP", "FSDP2", "DCP", "accelerate", "HF Trainer", "Lightning", "Fabric", "torch.compile",
)  # fmt: skip


def table() -> str:
    """One line per method."""
    head = "| method | in Python | passes a step | buffers | when | paper |\n| --- | --- | --- | --- | --- | --- |"
    rows = [
        f"| [{row.title}](#{row.name}) | `steppe.{row.recipe.__name__}` | {row.passes} | {row.buffers} "
        f"| {row.use} | {_link(row.paper)} |"
        for row in LISTED
    ]
    return "\n".join([head, *rows])


def page() -> str:
    """The table, and all cards one after the other."""
    intro = (
        "# Methods\n\nWritten from the registry and docstrings by `make docs`; `steppe methods NAME` prints one card. "
        "A pass is a forward and a backward; a buffer is one tensor for each perturbed parameter, held while weights "
        "are perturbed unless it says otherwise.\n"
    )
    cards = [f'<a id="{row.name}"></a>\n\n' + write_card(row).replace("# ", "## ", 1) for row in LISTED]
    return "\n".join([intro, table(), "", *cards])


def loops() -> str:
    """Which method ran in which loop, as the tests noted it (`make loops`)."""
    ran: dict[str, dict[str, bool]] = json.loads(LOOPS.read_text())
    names = [name for name in METHODS if any(name in methods for methods in ran.values())]
    head = "| loop | " + " | ".join(METHODS[name].title for name in names) + " |\n| --- |" + " --- |" * len(names)
    rows = [f"| {loop} | " + " | ".join(_cell(ran.get(loop, {}).get(name)) for name in names) + " |" for loop in ORDER]
    return "\n".join([head, *rows])


def _cell(passed: bool | None) -> str:
    return {True: "✓", False: "fails", None: "–"}[passed]


def marked(path: Path, name: str, content: str) -> str:
    """A page with the present table between its marks."""
    start, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
    before, rest = path.read_text().split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def _link(paper: str) -> str:
    found = re.search(r"arXiv (\d{4}\.\d{5})", paper)
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else paper


def main() -> int:
    """Write, or with --check only say what is out of date."""
    of_loops = ROOT / "docs" / "loops" / "README.md"
    targets = {
        ROOT / "docs" / "methods.md": page(),
        of_loops: marked(of_loops, "loops", loops()),
    }
    old = [str(p.relative_to(ROOT)) for p, text in targets.items() if not p.exists() or p.read_text() != text]
    if "--check" in sys.argv:
        print(f"out of date: {', '.join(old)}; run make docs" if old else "up to date")
        return bool(old)
    for path, text in targets.items():
        path.write_text(text)
    print(f"written: {', '.join(old) or 'nothing new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
