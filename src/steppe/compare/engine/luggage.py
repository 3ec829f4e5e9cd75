"""What a run needs beside the package travels with it: the user's own modules, and small files of data.

Modules go along always: their text is part of a study's hash, and a worker that has others of the same name would make
another study's runs. Files of data go along where a worker says that it does not see them, if they are named by a path
relative to the current folder and small; all others have to lie where every machine sees them under the same path.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import io
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from steppe.compare.data.tasks import KINDS
from steppe.compare.engine.spec import Spec

LIMIT = 16 << 20
"""Bytes of data that travel, at most."""

_READERS = ("steppe.compare.data.", "steppe.compare.script.", "steppe.text.", "steppe._command.lookup")
"""Modules that keep what they have read."""

_unpacked: dict[str, str] = {}
_latest: tuple[str, str] | None = None


@dataclass(frozen=True)
class Luggage:
    """Files in a zip archive, named as they are found from a folder on Python's path.

    With them come the folder in which the command was started, and the files of data that the settings name.
    """

    cwd: str
    needs: tuple[str, ...]
    packed: bytes

    @property
    def digest(self) -> str:
        """What tells it from another."""
        return hashlib.blake2b(self.packed, digest_size=8).hexdigest()


def pack(spec: Spec, data: bool = False) -> Luggage:
    """What goes along with the runs of a study that has been checked here, so that its modules are loaded.

    With `data` its files of data go along too, or are refused.
    """
    needs = tuple(_needs(spec))
    content = _modules() | (_data(needs) if data else {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            archive.writestr(zipfile.ZipInfo(name), content[name], zipfile.ZIP_DEFLATED)
    return Luggage(os.getcwd(), needs, buffer.getvalue())


def _needs(spec: Spec) -> Iterator[str]:
    """The paths in the settings that are there."""
    for named, kinds in ((spec.task, KINDS), (spec.model, ("hf",))):
        kind, _, rest = named.partition(":")
        if kind in kinds and rest and Path(rest).expanduser().exists():
            yield rest
    for reference in (spec.task, spec.model, *spec.methods, spec.script or ""):
        yield from re.findall(r"^[^:]+\.py(?=:)", reference)


def _modules() -> dict[str, bytes]:
    """The text of all loaded modules that no installation brought, as they are imported and where they lie."""
    found, here = {}, os.getcwd() + os.sep
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or name.split(".")[0] == "steppe" or not file or not file.endswith(".py"):
            continue
        if _installed(file) or not os.path.exists(file):
            continue
        stem = name.replace(".", "/")
        place = next((each for each in (f"{stem}.py", f"{stem}/__init__.py") if file.endswith(f"/{each}")), None)
        for each in filter(None, (place, file.removeprefix(here) if file.startswith(here) else None)):
            found[each] = Path(file).read_bytes()
    return found


_LIBRARY = sysconfig.get_path("stdlib") + os.sep  # asked once: for each of some 3,000 modules it takes seconds


def _installed(file: str) -> bool:
    return file.startswith(_LIBRARY) or bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def _data(needs: tuple[str, ...]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for need in map(Path, needs):
        if need.is_absolute() or ".." in need.parts or need.parts[:1] == ("~",):
            raise ValueError(f"{need} is no path below the current folder, and only such files are sent along")
        for path in sorted(p for p in need.rglob("*") if p.is_file()) if need.is_dir() else [need]:
            files[path.as_posix()] = path.read_bytes()
            if sum(map(len, files.values())) > LIMIT:
                raise ValueError(f"{need} is larger than the {LIMIT >> 20} MB that are sent along")
    return files


def missing(luggage: Luggage) -> list[str]:
    """The data that this process does not see, being `there`."""
    return [need for need in luggage.needs if not Path(need).expanduser().exists()]


@contextmanager
def there(luggage: Luggage, study: str) -> Iterator[None]:
    """Work as if in the folder and with the modules of the process that packed: one at a time in a process.

    `study` tells it from another, whose data may bear the same names.
    """
    root, before = _root(luggage), os.getcwd()
    place = luggage.cwd if os.path.isdir(luggage.cwd) else root
    path = [root, place]
    sys.path[:0] = path
    try:
        os.chdir(place)
        if missing(luggage):
            os.chdir(root)
        _forget(luggage, study)
        yield
    finally:
        os.chdir(before)
        for each in path:
            sys.path.remove(each)


def _root(luggage: Luggage) -> str:
    """The folder with what came along; made once, for this process alone, and gone with it."""
    if luggage.digest not in _unpacked:
        root = tempfile.mkdtemp(prefix="steppe-")
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(luggage.packed)) as archive:
            archive.extractall(root)
        _unpacked[luggage.digest] = root
    return _unpacked[luggage.digest]


def _forget(luggage: Luggage, study: str) -> None:
    """What another study left in this process: modules of another text, and files that were read."""
    global _latest
    if _latest == (luggage.digest, study):
        return
    _latest = luggage.digest, study
    with zipfile.ZipFile(io.BytesIO(luggage.packed)) as archive:
        for place in archive.namelist():
            name = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and (not os.path.exists(file) or Path(file).read_bytes() != archive.read(place)):
                del sys.modules[name]
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        if name.startswith(_READERS):
            for each in vars(module).values():
                if clear := getattr(each, "cache_clear", None):
                    clear()
