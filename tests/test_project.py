"""The project's own promises: one version, quiet import, torch only, a wheel that holds what it should."""

import ast
import functools
import json
import re
import sys
import zipfile
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from tests import bare

import steppe
from steppe import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_is_the_same_everywhere() -> None:
    version = steppe.__version__
    assert version == metadata.version("steppe")
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == version


def test_import_is_quiet_needs_torch_only_and_leaves_the_random_generators_alone() -> None:
    code = (
        "import json, random, sys, torch; before = set(sys.modules); a = (random.getstate(), torch.get_rng_state()); "
        "import steppe, steppe.methods, steppe.optim; "
        "assert random.getstate() == a[0] and torch.equal(torch.get_rng_state(), a[1]), 'something was drawn'; "
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before})))"
    )
    done = bare.run(code)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert len(done.stdout.splitlines()) == 1, "importing steppe prints"
    foreign = set(json.loads(done.stdout)) - sys.stdlib_module_names - {"steppe", "torch"}
    assert not foreign, f"importing steppe imports {foreign}"


FLOORS = (
    "", "_command", "text", "compare.judge", "compare.data", "compare.analysis", "compare.report", "compare.script",
    "compare.engine",
    "compare", "finetune", "evaluate", "bench", "look", "study", "cli", "__main__",
)  # fmt: skip
"""Rooms of the package from the ground up; the first is the core: whatever has no name here."""

COMMANDS = ("compare", "finetune", "evaluate")
"""They stand beside each other; bench and look, above them, take the tasks of compare."""


def room(module: str) -> str:
    """The innermost of the named rooms that a module lies in."""
    inside = [name for name in FLOORS[1:] if f"{module}.".startswith(f"steppe.{name}.")]
    return max(inside, key=len, default="")


@functools.cache
def modules() -> dict[str, tuple[set[str], ...]]:
    """Module -> what it imports of the package at its head, in functions, and for types; each name as it is written."""
    return {
        ".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): imported(p.read_text())
        for p in (ROOT / "src").rglob("*.py")
    }


def imported(source: str) -> tuple[set[str], ...]:
    """What is imported of the package at the head, in functions, and behind an `if`."""
    body, head, late, types = ast.parse(source).body, set(), set(), set()
    nested = re.search(r"^ +(from|import) steppe", source, re.MULTILINE) is not None
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            head |= names_in(node)
        elif nested:
            into = types if isinstance(node, ast.If) else late
            into |= {name for each in ast.walk(node) for name in names_in(each)}
    return head, late, types


def names_in(node: ast.AST) -> set[str]:
    found = {each.name for each in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
    found = {f"{node.module}.{name}" for name in found} if isinstance(node, ast.ImportFrom) else found
    return {name for name in found if name.partition(".")[0] == "steppe"}


def graph(late: bool) -> dict[str, set[str]]:
    """Module -> modules; the package's own face, which is imported before any of them, is left out."""
    known = modules()
    every = {name: head | later if late else head for name, (head, later, _) in known.items()}
    return {
        name: {each if each in known else each.rpartition(".")[0] for each in found} - {"steppe"}
        for name, found in every.items()
    }


def upward(module: str, names: set[str]) -> list[str]:
    """Those of the imports that lead to a higher floor, or from one command to another."""
    own = room(module)
    beside = {name for name in COMMANDS if own in COMMANDS or own.startswith("compare")} - {own.partition(".")[0]}
    return [
        f"{module} -> {name}" for name in sorted(names)
        if FLOORS.index(room(name)) > FLOORS.index(own) or room(name).partition(".")[0] in beside
    ]  # fmt: skip


def test_imports_go_down_only() -> None:
    assert {room(name) for name in modules()} == set(FLOORS), "a room that is not there"
    assert not [each for name, found in modules().items() for each in upward(name, set().union(*found))]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("steppe.gradient", "steppe._command.files"), ("steppe._command.pool", "steppe.text.rows"),
        ("steppe.text.rows", "steppe.compare.data.tasks"), ("steppe.compare.report.page", "steppe.compare.engine.run"),
        ("steppe.finetune.run", "steppe.compare.engine.run"), ("steppe.compare.rho", "steppe.bench.measure"),
        ("steppe.compare.data.tasks", "steppe.compare.rho"), ("steppe.evaluate.run", "steppe.cli.main"),
    ],
)  # fmt: skip
def test_an_upward_import_is_found(module: str, name: str) -> None:
    assert upward(module, {name, "steppe._parts.check_choice"}) == [f"{module} -> {name}"]


def test_commands_import_what_the_extra_study_brings_and_nothing_else_at_their_head() -> None:
    """Of all, as `steppe --help` imports every command: one foreign line breaks it where the extra `study` alone is."""
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["study"]
    brought = {re.match(r"[\w-]+", each)[0] for each in needed}
    paths = {
        ".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): p
        for p in (ROOT / "src").rglob("*.py")
    }
    heads, reached, waiting = graph(late=False), set(), set(cli._COMMANDS.values())
    while waiting:
        name = waiting.pop()
        reached.add(name)
        parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
        waiting |= (heads[name] | parents) - reached
    spelled = {"sklearn": "scikit-learn", "PIL": "pillow", "pydantic_core": "pydantic"}
    foreign = {
        (name, top) for name in reached for top in tops(paths[name].read_text())
        if spelled.get(top, top) not in brought and top not in sys.stdlib_module_names | {"steppe"}
    }  # fmt: skip
    assert not foreign


def tops(source: str) -> set[str]:
    """The packages that a module imports at its head."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [each.name for node in found if isinstance(node, ast.Import) for each in node.names]
    names += [node.module or "" for node in found if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


DEEPEST = 17
"""Modules of the longest chain in which each imports the next at its head."""


def test_no_import_is_deeper() -> None:
    depth: dict[str, int] = {}
    heads = graph(late=False)
    for name in TopologicalSorter(heads).static_order():
        depth[name] = 1 + max((depth[each] for each in heads[name]), default=0)
    deepest = max(depth, key=depth.__getitem__)
    assert depth[deepest] == DEEPEST, f"{deepest} is {depth[deepest]} deep; keep the number true"


def test_no_modules_import_one_another_even_late() -> None:
    TopologicalSorter(graph(late=True)).prepare()


def test_torch_is_the_only_core_dependency() -> None:
    assert [re.match(r"[\w-]+", need)[0] for need in PROJECT["dependencies"]] == ["torch"]


def test_every_bound_has_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n\n")[0]
    needs = [line for line in lines.splitlines() if line.strip().startswith('"')]
    assert needs and all("#" in line for line in needs), "a lower bound without its reason"


def test_constraints_pin_torch() -> None:
    assert (ROOT / "constraints.txt").read_text().split() == ["torch==2.13.0"]


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == "exec make test"


def test_public_names_are_importable_and_documented() -> None:
    assert len(steppe.__all__) == len(set(steppe.__all__))
    for name in steppe.__all__:
        value = getattr(steppe, name)
        assert name == "__version__" or (getattr(value, "__doc__", None) or "").strip(), name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="building needs hatchling")
    return Path(next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "steppe/py.typed" in names
    sources = ROOT / "src"
    expected = {p.relative_to(sources).as_posix() for p in sources.rglob("*.py")}
    assert expected <= set(names)
    assert {name.split("/")[0] for name in names} == {"steppe", f"steppe-{steppe.__version__}.dist-info"}
