"""The folder of a fine-tuning: what it was begun with, its checkpoints, what it leaves; files are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from steppe._command import files
from steppe._command.files import DiskError, disk_sentence, name_beside, read_json, write_json
from steppe._command.locks import LOCK, one_writer

SETTINGS, RESULT, CHECKPOINTS = "settings.json", "result.json", "checkpoints"


class Folder:
    """Where one fine-tuning writes.

    Args:
        path: made when training begins. It holds ``settings.json``, ``checkpoints/``, then ``adapter/`` (or ``model/``)
            and last ``result.json``.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS

    def begun_with(self) -> dict[str, Any] | None:
        """What an earlier run here was begun with, or None."""
        found = read_json(self.path / SETTINGS)
        return found if isinstance(found, dict) and "settings" in found else None

    def check_fresh(self, overwrite: bool) -> None:
        """Refuse a folder in which something lies that a new run would mix with."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; name a folder with --out")
        if self.begun_with() is not None:
            if not overwrite:
                finished = (self.path / RESULT).is_file()
                state = "a finished run: give" if finished else "a run that was interrupted: give --resume,"
                raise ValueError(f"{self.path} holds {state} --overwrite or another --out")
        elif self.path.is_dir() and any(map(_of_somebody, self.path.iterdir())):
            raise ValueError(f"{self.path} holds files that are not of a fine-tuning; name another folder with --out")

    def check_resumable(self) -> dict[str, Any]:
        """What the run here was begun with, if there is one to go on with."""
        begun = self.begun_with()
        if begun is None:
            raise ValueError(f"{self.path} holds no run to resume; leave --resume out, or name its folder with --out")
        if (self.path / RESULT).is_file():
            raise ValueError(f"the run in {self.path} is finished: see {self.path / RESULT}; nothing is left to resume")
        return begun

    def alone(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Make the folder and keep others from writing there, until the process ends at the latest.

        Raises:
            DiskError: the folder cannot be made.
            steppe._command.locks.TakenError: another process writes there.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return one_writer(self.path, "steppe finetune", say)

    def begin(self, settings: dict[str, Any], shared: dict[str, int], **files: list[str]) -> None:
        """Note what is begun; what an earlier run left goes, once that is written.

        `shared` are the processes and devices that share a batch out, `files` the fingerprints of data and weights.
        """
        with writing(self.path), self._aside(RESULT, CHECKPOINTS, "adapter", "model"):
            write_json(self.path / SETTINGS, {"settings": settings, "shared": shared} | files)
        self.tidy()

    @contextmanager
    def _aside(self, *names: str) -> Iterator[None]:
        """Out of the way meanwhile, and back where that fails."""
        moved = {name: name_beside(self.path / name) for name in names if os.path.lexists(self.path / name)}
        try:
            for name, aside in moved.items():
                os.rename(self.path / name, aside)
            yield
        except BaseException:
            for name, aside in moved.items():
                if os.path.lexists(aside):
                    os.rename(aside, self.path / name)
            raise

    def tidy(self) -> None:
        """Remove what is not in its place: an earlier run's, and what a killed process left half-written."""
        for partial in self.path.glob(".*.tmp"):
            _remove(partial)

    def save(self, name: str, write: Callable[[str], Any]) -> Path:
        """Let ``write(folder)`` fill a new folder beside the place ``name``, then move it there.

        Raises:
            DiskError: it could not be written, or could not be moved; then it stays where it is, whole.
        """
        place, partial = self.path / name, name_beside(self.path / name)
        with writing(self.path):
            try:
                write(str(partial))
                _sync(partial)
            except BaseException:
                _remove(partial)  # half of it is of no use, and a full disk needs its room back
                raise
        try:
            _move(partial, place)
        except OSError as error:
            raise DiskError(
                f"what was trained could not be moved to {place} ({error.strerror}); it lies whole in {partial}, and "
                "once the way is free --resume moves on from the last checkpoint"
            ) from error
        return place

    def finish(self, result: dict[str, Any]) -> Path:
        """Write the result, the last of all files; the checkpoints have served."""
        with writing(self.path):
            try:
                write_json(self.path / RESULT, result)
            finally:
                self.tidy()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return self.path / RESULT


def _of_somebody(path: Path) -> bool:
    """Not what a process that was killed at its very start left here."""
    return path.name != LOCK and not (path.name.startswith(".") and path.suffix == ".tmp")


def _move(new: Path, place: Path) -> None:
    """``new`` to ``place``; what stands there, be it a link, goes when that is done and comes back if it fails."""
    old = name_beside(place) if os.path.lexists(place) else None
    if old:
        os.rename(place, old)
    try:
        os.rename(new, place)
    except BaseException:
        if old:
            os.rename(old, place)
        raise
    if old:
        _remove(old)


def _remove(path: Path) -> None:
    """A file, a folder with all in it, or a link, but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Down to the disk, before its place names it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    files.sync_folder(folder)


_THEN = "make room or name another --out, and where checkpoints were written --resume goes on from the last"

_TORN = ("PytorchStreamWriter", "inline_container", "iostream error")  # what torch.save says of a file it cannot end


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of the disk, from whichever library writes, as one sentence.

    Raises:
        DiskError: no space, no permission, or no folder.
    """
    try:
        with files.writing(folder, _THEN):
            yield
    except Exception as error:
        # Its class is told by name: safetensors comes with the extra `finetune`, and every command imports this module.
        if type(error).__name__ == "SafetensorError":
            raise DiskError(disk_sentence(folder, str(error), _THEN)) from error
        if not any(words in str(error) for words in _TORN):
            raise
        raise DiskError(disk_sentence(folder, "a checkpoint could not be written to its end", _THEN)) from error
