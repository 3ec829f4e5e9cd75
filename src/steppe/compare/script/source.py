"""The function that `train.py:train` names: loaded, its arguments checked, its code part of the study's hash."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from steppe._command.lookup import executed, named_function, nearest

GIVEN = ("sharpen", "seed", "length", "lr", "device")
"""Arguments by name that the comparison gives; the first two are always there."""

EXPECTED = "expected def train(sharpen, seed)"
_INSTALLED = ("site-packages", "dist-packages")


class ScriptError(ValueError):
    """A script does not do what a comparison needs; the message is one sentence, with the place once it is known."""


@dataclass(frozen=True)
class Script:
    """A user's training function, as typed (`train.py:train`), and the folder where its own code lies."""

    reference: str
    function: Callable[..., Any]
    folder: Path

    @property
    def where(self) -> str:
        """File and line of the function."""
        code = inspect.unwrap(self.function).__code__
        return f"{Path(code.co_filename).name}:{code.co_firstlineno}"

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of that name."""
        return name in inspect.signature(self.function).parameters

    @property
    def halves(self) -> bool:
        """Whether its `length` may be a half: it is annotated as a float, or has one as its default."""
        length = inspect.signature(self.function).parameters.get("length")
        return length is not None and ("float" in str(length.annotation) or isinstance(length.default, float))

    def own(self, file: str) -> bool:
        """Whether a file is the user's own code: beside the script, and nothing installed there."""
        path = Path(file)
        return path.is_relative_to(self.folder) and not any(part in _INSTALLED for part in path.parts)

    def place(self, error: BaseException) -> str:
        """File and line of the user's code in which an error arose."""
        return self.arose(error) or self.where

    def arose(self, error: BaseException) -> str | None:
        """The same, None where it did not pass through the user's code; code that cannot be read has no frame."""
        if isinstance(error, SyntaxError) and error.filename and self.own(error.filename):
            return f"{Path(error.filename).name}:{error.lineno}"
        return self._nearest(frame for frame, _ in traceback.walk_tb(error.__traceback__))

    def _nearest(self, frames: Iterator[FrameType]) -> str | None:
        """The last of some frames that are the user's; the line in which an error passed through it."""
        found = None
        for frame in frames:
            if self.own(frame.f_code.co_filename):
                found = frame
        return found and f"{Path(found.f_code.co_filename).name}:{found.f_lineno}"


@lru_cache(maxsize=4)
def _file(path: Path, changed: int) -> ModuleType:
    """The module in a file, run once for each state of it."""
    name = path.stem if getattr(sys.modules.get(path.stem), "__file__", str(path)) == str(path) else f"_{path.stem}"
    return executed(name, str(path))


def load(reference: str) -> Script:
    """The script that was named."""
    place, colon, name = reference.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ValueError(f"script {reference!r}: expected FILE.py:FUNCTION, such as train.py:train")
    path = Path(place).expanduser().absolute()
    if not place.endswith(".py"):
        function = named_function(reference, "script")
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or ".").absolute()
    else:
        function = _in_file(path, name, reference)
    script = Script(reference, function, path.resolve().parent)
    _check_arguments(script)
    return script


def _in_file(path: Path, name: str, reference: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ValueError(f"script {reference!r}: there is no file {path}")
    path = path.resolve()
    try:
        module = _file(path, path.stat().st_mtime_ns)
    except (Exception, SystemExit) as error:  # code that runs, and parses a command line, where it should be guarded
        where = Script(reference, load, path.parent).arose(error) or path.name
        hint = "; put what runs a training under if __name__ == '__main__':" if isinstance(error, SystemExit) else ""
        raise ValueError(f"script {reference!r} cannot be imported: {where}: {said(error)}{hint}") from error
    function = getattr(module, name, None)
    if not inspect.isroutine(function):
        own = [each for each, value in vars(module).items() if inspect.isroutine(value)]
        raise ValueError(f"script {reference!r}: {path.name} has no function {name!r}; {nearest(name, own)}")
    return function


def said(error: BaseException) -> str:
    """An error of the user's code in one line."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"  # its place is said before it
    return f"{type(error).__name__}: {error}"


def _check_arguments(script: Script) -> None:
    if inspect.iscoroutinefunction(script.function):
        raise ValueError(f"{script.where}: {script.reference!r} is an async function; {EXPECTED}")
    for name in GIVEN[:2]:
        if not script.takes(name):
            raise ValueError(f"{script.where}: {script.reference!r} takes no argument {name!r}; {EXPECTED}")


def check_settings(script: Script, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse settings that the function does not take, and arguments of it that nothing gives.

    `given` are the comparison's own that the user asked for, such as `lr` where there is a grid.
    """
    parameters = inspect.signature(script.function).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name in settings:
        if name in GIVEN and name != "lr":
            raise ValueError(f"settings: {name!r} is given by the comparison itself; leave it out")
        if name not in named and not anything:
            raise ValueError(f"{script.where}: {script.reference!r} takes no setting {name!r}; {nearest(name, named)}")
    for name, each in parameters.items():
        known = name in GIVEN if name != "lr" else "lr" in given
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.default is each.empty:
            if name not in named:
                raise ValueError(f"{script.where}: argument {name!r} can be given by its place only; {EXPECTED}")
            if not known and name not in settings:
                raise ValueError(
                    f"{script.where}: nothing gives the argument {name!r}; give it a default, or --settings {name}=..."
                )


def read_settings(text: Any) -> Any:
    """`lr=0.1,layers=[64,64],name=adam` as a dict; what is read already stays."""
    if not isinstance(text, str):
        return text
    pairs = [piece.partition("=") for piece in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", text)]
    if not all(name.strip().isidentifier() and equals and value.strip() for name, equals, value in pairs):
        return text  # is refused, with the words of what is expected
    return {name.strip(): _value(value.strip()) for name, _, value in pairs}


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def fingerprint(reference: str) -> str:
    """A short hash of the script's code and of all modules beside it that it reads."""
    script = load(reference)
    digest = hashlib.blake2b(digest_size=8)
    module = sys.modules[inspect.unwrap(script.function).__module__]
    files = {Path(str(each.__file__)).resolve() for each in _reached(module, script)}
    for path in sorted(files):
        digest.update(os.path.relpath(path, script.folder).encode() + b":" + path.read_bytes())
    return digest.hexdigest()


def _reached(first: ModuleType, script: Script) -> list[ModuleType]:
    """The user's own modules that a module's names lead to, itself the first."""
    found: list[ModuleType] = []
    waiting = [first]
    while waiting:
        module = waiting.pop()
        if module in found or not script.own(str(getattr(module, "__file__", None) or "")):
            continue
        found.append(module)
        for value in list(vars(module).values()):
            known = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", "")))
            waiting += [known] if isinstance(known, ModuleType) else []
    return found
