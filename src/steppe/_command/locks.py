"""One writer of a folder, one process at a run: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_PATIENCE = 1.0  # seconds: somebody who only looks holds it for a moment


class TakenError(ValueError):
    """Another process works there; the message is one sentence."""


class Claim:
    """A lock that is held; the system frees it when the process ends.

    Attributes:
        locked: False where the file system has no locks, so that another process gets the same claim.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self.path, self._handle, self.locked = path, handle, handle is not None
        _held.add(self)

    def free(self) -> None:
        """Let others have it; its file goes."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)  # while it is held, so that nobody waits at a file that is gone
            self.forget()

    def forget(self) -> None:
        """Close it without a word to others: a forked child must not hold what its parent held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_held: WeakSet[Claim] = WeakSet()


def _forget_all() -> None:
    for each in list(_held):
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def claim(path: Path, what: str) -> Claim | None:
    """The lock that ``path`` stands for, or None where another holds it; ``what`` is what others read of this one.

    Raises:
        OSError: the file, in a folder that is there, cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            got = lock(handle)
        except OSError:
            os.close(handle)
            return Claim(path, None)
        if got and same_file(path, handle):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(whoami(what)).encode(), 0)
            return Claim(path, handle)
        os.close(handle)
        if not got:
            return None  # else its holder has freed and removed it: once more


def lock(handle: int, shared: bool = False) -> bool:
    """Lock an open file without waiting; False where another process holds it.

    Raises:
        OSError: the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock")
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise
        return False
    return True


def same_file(path: Path, handle: int) -> bool:
    """Whether ``path`` still is the open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except OSError:
        return False


def whoami(what: str) -> dict[str, str | int]:
    """This process, as others shall read it."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "what": what, "since": since}


def holder(path: Path) -> str:
    """Who holds a lock, as far as its file tells."""
    try:
        found = json.loads(path.read_text())
        here = " of this machine" if found["host"] == socket.gethostname() else f" of {found['host']}"
        return f"process {found['pid']}{here} ({found['what']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def one_writer(
    folder: Path, what: str, say: Callable[[str], None] = lambda text: None, patience: float | None = None
) -> Iterator[None]:
    """Nobody else writes to ``folder`` meanwhile, which is there.

    Args:
        folder: to write to.
        what: this process does, as others shall read it.
        say: told where the file system has no locks.
        patience: seconds to wait for another process; None: a moment.

    Raises:
        TakenError: another process writes there.
        OSError: the lock's file cannot be made.
    """
    held = _patient(folder / LOCK, what, _PATIENCE if patience is None else patience)
    if held is None:
        raise TakenError(_taken(folder))
    if not held.locked:
        say(without_locks(folder))
    try:
        yield
    finally:
        held.free()


def _patient(path: Path, what: str, patience: float) -> Claim | None:
    end = time.monotonic() + patience
    while (held := claim(path, what)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return held


def without_locks(folder: Path) -> str:
    """What to say where there are none."""
    return (
        f"{folder} lies on a file system without locks: two commands that write there would not notice each other, so "
        "start one at a time"
    )


def refuse_taken(folder: Path) -> None:
    """Look early whether somebody writes to ``folder``; nothing is made or held.

    Raises:
        TakenError: another process writes there.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if not lock(handle, shared=True):
            raise TakenError(_taken(folder))
    except TakenError:
        raise
    except OSError:
        return
    finally:
        os.close(handle)


def _taken(folder: Path) -> str:
    return (
        f"{folder} is being written by {holder(folder / LOCK)}; wait until that has ended, or name another folder with "
        "--out"
    )
