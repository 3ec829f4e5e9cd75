"""The project's own promises: one version, quiet import, torch only, a wheel that holds what it should."""

import ast
import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import steppe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


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
    done = run(code)
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


def imported(path: Path) -> set[str]:
    """What a file imports of the package, at its head or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {name for name in found if name.partition(".")[0] == "steppe"}


def upward(module: str, names: set[str]) -> list[str]:
    """Those of the imports that lead to a higher floor, or from one command to another."""
    own = room(module)
    beside = {name for name in COMMANDS if own in COMMANDS or own.startswith("compare")} - {own.partition(".")[0]}
    return [
        f"{module} -> {name}" for name in sorted(names)
        if FLOORS.index(room(name)) > FLOORS.index(own) or room(name).partition(".")[0] in beside
    ]  # fmt: skip


def test_imports_go_down_only() -> None:
    sources = {".".join(p.relative_to(ROOT / "src").with_suffix("").parts): p for p in (ROOT / "src").rglob("*.py")}
    assert {room(name) for name in sources} == set(FLOORS), "a room that is not there"
    assert not [each for name, path in sources.items() for each in upward(name, imported(path))]


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
