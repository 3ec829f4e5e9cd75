"""Files written whole or not at all, and JSON without numbers that JSON does not have."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steppe._command.locks import lock, same_file


def content(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzip's.

    Raises:
        ValueError: it is gzip's and broken.
        OSError: it cannot be read.
    """
    raw = path.read_bytes()
    if raw[:2] != _GZIP:
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); is the download complete?") from error


def ending(path: Path) -> str:
    """The ending of a file's name in small letters, without the `.gz` behind it: `.csv` of `train.CSV.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


_GZIP = b"\x1f\x8b"


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` so that a reader, or a killed writer, never leaves half a file there."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write `text` to a new file beside `path` first, down to the disk, then move it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, handle = _new_beside(path)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)  # before it is closed: while it is locked nobody takes it for left behind
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs its room back
        raise


def _new_beside(path: Path) -> tuple[Path, int]:
    """A file of its own name, which no other process has made or linked to, open and locked."""
    while True:
        partial = name_beside(path)
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            mine = lock(handle) and same_file(partial, handle)
        except OSError:
            mine = True  # without locks nobody removes it either
        if mine:
            return partial, handle
        os.close(handle)  # whoever tidied here took it for left behind, and removes it


def name_beside(path: Path) -> Path:
    """A name in the same folder that nobody can foretell, for what is not whole yet."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")


def sync_folder(folder: Path) -> None:
    """Bring a folder's names down to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_left(folder: Path) -> None:
    """Remove the files that killed processes left half-written in `folder`; those being written stay."""
    for partial in folder.glob(".*.tmp"):
        try:
            handle = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or nothing of ours: a folder, a link
        try:
            if lock(handle) and same_file(partial, handle):
                partial.unlink(missing_ok=True)
        except OSError:
            pass  # no locks here, or not ours to remove
        finally:
            os.close(handle)


def read_json(path: Path) -> Any:
    """The value in `path`, or None where there is none or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finite(value: Any) -> Any:
    """`value` with None for every number JSON does not have (a diverged run has infinite losses)."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class DiskError(ValueError):
    """Something could not be written; the message is one sentence."""


@contextmanager
def writing(folder: Path, then: str) -> Iterator[None]:
    """Errors of the disk as one sentence, with what the reader can `then` do.

    Raises:
        DiskError: no space, no permission, or no folder.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(disk_sentence(folder, error.strerror or str(error), then)) from error


def disk_sentence(folder: Path, why: str, then: str) -> str:
    """What could not be written, why, and what to do."""
    return f"cannot write to {folder} ({' '.join(why.split())}); {then}"


def named_after(words: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The name of a record's file without its ending: the same for the same command, another for any other.

    Of what no file's name holds, and of a long name, a fingerprint tells it from others.
    """
    values = {key: each if isinstance(each, tuple) else (each,) for key, each in settings.items()}
    whole = [*words, *(f"{key}={','.join(map(str, each))}" for key, each in values.items())]
    name = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in whole) or "model"
    if len(name.encode()) <= 120 and re.fullmatch(r"[\w./:=,-]*", "".join(whole)):
        return name
    return f"{name[:60]}-{hashlib.sha256(repr(whole).encode()).hexdigest()[:8]}"


def free_target(target: Path) -> Path:
    """The file to write, found to be writable before hours are spent; nothing is made yet."""
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file with --out")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {target} ({there} is no folder to write in); name another file with --out")
    return target


def keep_figures(target: Path, record: dict[str, Any]) -> None:
    """Write a record whose figures have been shown already."""
    try:
        write_json(target, record)
    except OSError as error:
        raise ValueError(
            f"the figures above could not be written to {target} ({error.strerror}); make room or name another --out"
        ) from error
