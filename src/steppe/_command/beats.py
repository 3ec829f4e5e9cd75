"""Claims that several machines share: a lock, and signs of life for those whom the lock does not reach.

Among the processes of one kernel a lock is certain: it goes with the process that holds it. Whether it reaches other
machines depends on how the folder is mounted (NFS without `nolock` and `local_lock`: yes; many others: no), and no
system says so. So whoever holds a claim also touches its file every `BEAT` seconds; what another kernel has written
counts as held until it was not touched for `DEAD` seconds. Both times are the file system's own, so that no two
machines' clocks are compared. A file system without locks has the signs of life alone.

A claim saves work and no more: a run that two machines make after all is the same run, and its file is written whole.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from steppe._command.locks import Claim, lock, same_file, whoami

BEAT, DEAD = 10.0, 60.0


class BeatingClaim(Claim):
    """A claim that is held and shows it, until it is freed or the process ends."""

    def __init__(self, path: Path, handle: int, what: str) -> None:
        super().__init__(path, handle)
        self._who = whoami(what) | {"kernel": kernel(), "token": secrets.token_hex(6)}
        self._write(self._who)
        _beating.add(self)
        _Heart.beats()

    def _write(self, content: dict[str, Any]) -> None:
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(content).encode(), 0)

    def note(self, why: str) -> None:
        """Tell others that it failed, while it is held."""
        if self._handle is not None:
            self._write(self._who | {"failed": why})

    def free(self) -> None:
        """Let others have it; its file goes, unless another machine took this one for dead."""
        if self._handle is not None and _told(self._handle).get("token") != self._who["token"]:
            self.forget()
        super().free()

    def beat(self) -> None:
        """Show that this process lives."""
        try:
            if self._handle is not None:
                os.utime(self._handle if os.utime in os.supports_fd else self.path)
        except OSError:
            pass  # freed meanwhile, or the file system is away: then others may take it


_beating: WeakSet[BeatingClaim] = WeakSet()


class _Heart(threading.Thread):
    """Touches all claims of this process now and then; there is one, and a forked child starts its own."""

    _one: _Heart | None = None
    _over = threading.Event()  # never set

    @classmethod
    def beats(cls) -> None:
        if cls._one is None or not cls._one.is_alive():
            cls._one = cls(daemon=True, name="steppe-claims")
            cls._one.start()

    def run(self) -> None:
        while not self._over.wait(BEAT):
            for each in list(_beating):
                each.beat()


def claim(path: Path, what: str) -> BeatingClaim | None:
    """The claim that `path` stands for, or None where another living process holds it, here or on another machine.

    Raises:
        OSError: the file, in a folder that is there, cannot be made.
    """
    while True:
        handle, new = _open(path)
        got = _lock(handle)
        if got is not False and not same_file(path, handle):
            os.close(handle)  # its holder has freed and removed it: once more
            continue
        if got is False or not (new or _left(path, handle, locks=got is not None)):
            os.close(handle)
            return None
        return BeatingClaim(path, handle, what)


def holds(path: Path) -> bool:
    """Whether a living process holds the claim that `path` stands for; nothing is made or held."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        got = _lock(handle)
        return got is False or not _left(path, handle, locks=got is not None)
    finally:
        os.close(handle)


def failed(path: Path) -> str | None:
    """Why the run failed whose claim another process holds; None of one that has not failed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _told(handle).get("failed")
    finally:
        os.close(handle)


def _open(path: Path) -> tuple[int, bool]:
    """The open file, and whether it was made now."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            pass
        try:
            return os.open(path, flags), False
        except FileNotFoundError:
            continue  # removed meanwhile


def _lock(handle: int) -> bool | None:
    """Whether the file could be locked; None where there are no locks."""
    try:
        return lock(handle)
    except OSError:
        return None


def _left(path: Path, handle: int, locks: bool) -> bool:
    """Whether a file that nobody of this kernel has locked is nobody's."""
    writer = _told(handle).get("kernel")
    if locks and writer in (None, kernel()):
        return True
    return _now(path.parent) - os.fstat(handle).st_mtime > DEAD


def _told(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 1 << 16, 0))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _now(folder: Path) -> float:
    """The time by the clock of the file system that `folder` is on."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".now.", suffix=".tmp")
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.unlink(name)
        os.close(handle)


@lru_cache(maxsize=1)
def kernel() -> str:
    """What tells this running system from others: containers of one machine, which share their locks, are one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(whoami("")["host"])
